"""Attacks over HTTP that try to make a file a command: a fetched checkpoint as a hook, a JSON file over somebody's settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from environments.places import INSTALLED, SHIPPED_SCRIPTS
from tests.helpers.checkpoint_folder import write_checkpoint
from tests.helpers.live_server import LiveServer, start_server
from tests.helpers.served_runs import JSON, ServedRuns
from tests.trainer_engine.publishing.test_fetch import served

PAYLOAD = b"from pathlib import Path\nPath(__file__).with_name('pwned').touch()\n"
ADAPTER = {
    "algo": "lokr",
    "multiplier": 1,
    "linear_dim": 4,
    "linear_alpha": 1,
    "apply_preset": {"target_module": ["Attention"], "exclude_name": ["$(touch pwned)"]},
}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedRuns]:
    """A server whose user has a home that holds everything that an attacker would like to reach."""
    place = tmp_path_factory.mktemp("attacked")
    (place / "me/.config").mkdir(parents=True)
    (place / "me/.bashrc").write_text("# mine\n")
    with start_server(place / "me/home", environment={"HOME": str(place / "me")}) as server:
        yield ServedRuns(server, place / "me/place")


def refusals(server: LiveServer, form: dict[str, object], call: str = "start") -> list[str]:
    answer = server.post(f"/api/training/{call}", data=form, headers=JSON)
    assert answer.status_code == 422, answer.text
    return [problem["option"] for problem in answer.json()["problems"]]


def test_a_fetched_checkpoint_brings_no_program(attacked: ServedRuns, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "far", 5, {"training_state.json": b"{}", "run.py": PAYLOAD})
    with served(tmp_path / "far") as url:
        store = {"provider": "s3", "bucket": "bucket", "access_key": "a", "secret_key": "b", "endpoint_url": url, "public_base_url": url}
        wanted = {"resume_from_checkpoint": f"{url}/checkpoint-5", "publishing_config": json.dumps([store])}
        for folder in (SHIPPED_SCRIPTS, attacked.server.home / "state/hooks", "state/hooks"):
            form = attacked.form("out", **wanted) | {"output_dir": str(folder)}
            assert "output_dir" in refusals(attacked.server, form)
        job = attacked.start("out", **wanted)
        assert "lists files that no checkpoint has: run.py" in json.dumps(attacked.wait_for_status(job, "error"))
    assert not list(attacked.place.rglob("run.py")) and not list(SHIPPED_SCRIPTS.glob("checkpoint-*"))
    for script in (attacked.output("out") / "checkpoint-5/run.py", SHIPPED_SCRIPTS / "checkpoint-5/run.py"):
        assert "post_checkpoint_script" in refusals(attacked.server, attacked.form("other", post_checkpoint_script=str(script)))


def test_a_folder_that_is_swapped_while_its_job_waits_gets_no_file(attacked: ServedRuns) -> None:
    first = attacked.start("first", max_train_steps=100_000)
    waiting = attacked.start("second", max_train_steps=1)
    hooks = attacked.server.home / "state/hooks"
    attacked.output("second").symlink_to(hooks)
    attacked.server.post("/api/training/cancel", data={"job_id": first}, headers=JSON)
    ended = attacked.wait_for_status(waiting, "error")
    assert "the server's own state" in json.dumps(ended)
    assert not list(hooks.iterdir())


def test_no_call_writes_over_a_file_of_the_person(attacked: ServedRuns) -> None:
    server, me = attacked.server, attacked.place.parent
    (me / "data.json").write_text('{"mine": true}')
    made = {"name": "x", "model_family": "pixart_sigma", "model_type": "lora", "lora_type": "lycoris"}
    config = server.post("/api/configs/environments", json=made, headers=JSON).json()["config"]
    before = {path: path.read_bytes() for path in (me / ".bashrc", me / "data.json", INSTALLED / "simpletuner_site/security/guard.py")}
    for path in ("~/.bashrc", "~/data.json", "~/.config/x.json", str(INSTALLED / "simpletuner_site/security/guard.py"), "x/config.json"):
        named = httpx.put(f"{server.url}/api/configs/x", json={"name": "x", "config": {**config, "--lycoris_config": path}}, headers=JSON)
        written = httpx.put(f"{server.url}/api/configs/environments/x/lycoris", json=ADAPTER, headers=JSON)
        assert 422 in (named.status_code, written.status_code), path
        if named.status_code == 200:
            assert written.status_code == 422, path
        answer = server.post("/api/configs/x/dataloader", json={"path": path}, headers=JSON)
        assert answer.status_code == 422, path
    assert {path: path.read_bytes() for path in before} == before
    assert [path.name for path in me.iterdir() if path.name.startswith("data")] == ["data.json"]
    assert not list((me / ".config").iterdir())
