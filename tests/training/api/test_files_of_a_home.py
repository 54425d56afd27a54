"""No file of a user's home can be read out by naming it where another kind of file is expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from environments.models import Environment, Revision
from tests.helpers.params import first_fast
from tests.training.conftest import Training
from training.models import Job

SECRET = "averysecretword"
FILES = {
    "docker.json": json.dumps({"auths": {"registry": {"auth": SECRET}}, "credsStore": SECRET}),
    "token": SECRET,
    "history": f"ls\ncurl -H 'Authorization: {SECRET}' https://h\nexport A={SECRET}\n",
    "npmrc": f"//registry.npmjs.org/:_authToken={SECRET}\n",
    "pgpass": f"localhost:5432:*:me:{SECRET}\n",
    "gh.yaml": f"github.com:\n    oauth_token: {SECRET}\n    user: {SECRET}\n",
    "service.json": json.dumps({"type": SECRET, "private_key": f"-----BEGIN PRIVATE KEY-----\n{SECRET}", "client_email": SECRET}),
    "client.json": json.dumps({"installed": {"client_id": SECRET, "client_secret": SECRET}}),
    "kaggle.json": json.dumps({"username": SECRET, "key": SECRET}),
    "flat.json": json.dumps({"accessToken": SECRET, "refreshToken": SECRET}),
    "list.json": json.dumps([SECRET, SECRET]),
    "logins.json": json.dumps([{"id": SECRET, "type": SECRET, "login": SECRET, "url": SECRET}]),
    "aws.json": json.dumps([{"id": "x", "type": "aws", "aws_access_key_id": SECRET, "other": SECRET}]),
    "text.json": json.dumps(SECRET),
    "cut.json": '{"token": "' + SECRET,
    "latin1": f"{SECRET} \xe9".encode("latin-1").decode("latin-1"),
}
OPTIONS = (
    *("accelerate_config", "data_backend_config", "user_prompt_library", "publishing_config", "webhook_config"),
    *("validation_adapter_config", "lycoris_config", "init_lora", "validation_adapter_path", "pretrained_model_name_or_path"),
)


@pytest.fixture
def private(training: Training) -> Path:
    """Files of a home beside the server's own folders, where the rule of paths lets them be named."""
    folder = training.home / "files"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content.encode("latin-1") if name == "latin1" else content.encode())
    return folder


@pytest.mark.parametrize("option", first_fast(list(OPTIONS), 2))
def test_validate_repeats_nothing_of_a_file(training: Training, private: Path, option: str) -> None:
    for name in FILES:
        form: dict[str, Any] = {**training.form, f"--{option}": f"files/{name}"}
        if option == "lycoris_config":
            form |= {"--model_type": "lora", "--lora_type": "lycoris"}
        answer = training.post("/validate", form)
        assert answer.status_code in (200, 422), name
        assert SECRET not in answer.content.decode(), name
        assert SECRET not in training.post("/validate", form, accept="text/html").content.decode(), name


@pytest.mark.parametrize("name", first_fast(list(FILES), 3))
def test_environments_show_and_keep_nothing_of_a_file(training: Training, private: Path, name: str) -> None:
    api = training.client
    config = {**training.form, "--model_type": "lora", "--lora_type": "lycoris", "--lycoris_config": f"files/{name}"}
    config["--data_backend_config"] = f"files/{name}"
    new = {"name": "demo", "model_family": "pixart_sigma", "model_type": "lora", "lora_type": "lycoris"}
    assert api.post("/api/configs/environments", new, format="json").status_code == 200
    put = api.put("/api/configs/demo", {"name": "demo", "config": config}, format="json")
    browser = Client()
    browser.force_login(User.objects.create_superuser("me", password=None))
    pages = [
        put.content,
        api.get("/api/configs/demo").content,
        api.get("/api/configs/environments/demo/lycoris").content,
        api.put("/api/configs/environments/demo/lycoris", {"algo": SECRET[:4]}, format="json").content,
        browser.get(f"/admin/environments/environment/{Environment.objects.get().pk}/change/").content,
        *(browser.get(f"/admin/environments/revision/{revision.pk}/change/").content for revision in Revision.objects.all()),
    ]
    assert put.status_code == 200 and len(pages) >= 7
    assert all(SECRET not in page.decode() for page in pages)
    assert all(SECRET not in json.dumps([row.datasets_text, row.replaced_text, row.config]) for row in Revision.objects.all())


def test_status_shows_the_file_of_a_prompt_library_and_not_its_texts(training: Training, private: Path) -> None:
    (private / "prompts.json").write_text(json.dumps({"bench": f"a bench, {SECRET}"}))
    started = training.start(**{"--user_prompt_library": "files/prompts.json"})
    browser = Client()
    browser.force_login(User.objects.create_superuser("me", password=None))
    for answer in (training.get("/status"), browser.get(f"/admin/training/job/{started['job_id']}/change/")):
        assert answer.status_code == 200
        assert SECRET not in answer.content.decode()
    assert training.get("/status").json()["config"]["--user_prompt_library"] == "files/prompts.json"
    assert SECRET in Job.objects.get().options["user_prompt_library"], "the run is frozen with what the file held"


def test_a_datasets_file_elsewhere_is_still_shown(training: Training, private: Path) -> None:
    """What parses as datasets is shown wherever it lies, also with a mistake in it."""
    (private / "datasets.json").write_text('[{"id": "a", "instance_data_dir": "x", "capton_strategy": "filename"}]')
    api = training.client
    api.post("/api/configs/environments", {"name": "demo", "model_family": "pixart_sigma", "model_type": "full"}, format="json")
    config = {**training.form, "--data_backend_config": "files/datasets.json"}
    assert api.put("/api/configs/demo", {"name": "demo", "config": config}, format="json").status_code == 200
    browser = Client()
    browser.force_login(User.objects.create_superuser("me", password=None))
    assert "capton_strategy" in browser.get(f"/admin/environments/environment/{Environment.objects.get().pk}/change/").content.decode()
    assert "capton_strategy" in str(Revision.objects.first().datasets_text)  # type: ignore[union-attr]
