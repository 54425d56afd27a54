"""One distinctive word goes in by every way there is; nothing that comes out, and no file but the store, holds it."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.live_server import start_server
from tests.helpers.receiver import Receiver, receiving
from tests.helpers.served_runs import JSON, ServedRuns, wait_until

CANARY = "canary-51f0c2"
HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedRuns]:
    place = tmp_path_factory.mktemp("place")
    with start_server(place / "home", environment={"SIMPLETUNER_LOG_LEVEL": "DEBUG"}) as server:
        served = ServedRuns(server, place / "data")
        yield served
        served.end_all()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def targets(receiver: Receiver) -> list[dict[str, Any]]:
    """A secret in each of the places where one can be."""
    host = receiver.url.removeprefix("http://")
    return [
        {"webhook_type": "raw", "callback_url": receiver.url, "auth_token": f"{CANARY}-token", "secret": f"{CANARY}-key"},
        {"webhook_type": "raw", "callback_url": f"http://me:{CANARY}-pass@{host}?key={CANARY}-query"},
        {"webhook_type": "discord", "webhook_url": f"{receiver.url}/{CANARY}-discord"},
        {"webhook_type": "slack", "webhook_url": f"{receiver.url}/{CANARY}-slack", "log_level": "warning"},
    ]


def put_in(runs: ServedRuns, receiver: Receiver) -> str:
    """By PUT, by a file edited by hand, by a stored list, by validate and by start; the job's id."""
    server, sent = runs.server, targets(receiver)
    stored = server.client().put("/api/configs/webhooks/lab", json=sent)
    assert stored.status_code == 200, stored.text
    for name in ("put", "hand"):
        new = {"name": name, "model_family": "pixart_sigma", "model_type": "full"}
        server.post("/api/configs/environments", json=new).raise_for_status()
    config = server.get("/api/configs/put").json()["config"]
    body = {"name": "put", "config": config | {"--webhook_config": json.dumps(sent)}}
    assert server.client().put("/api/configs/put", json=body).status_code == 200
    by_hand = server.home / "config/hand/config.json"
    by_hand.write_text(json.dumps(json.loads(by_hand.read_text()) | {"--webhook_config": sent}))
    server.get("/api/configs/hand").raise_for_status()
    server.post("/api/configs/put/activate").raise_for_status()
    form = runs.form("run", max_train_steps=2, webhook_config=json.dumps(sent))
    for accept in (JSON, {}):
        assert server.post("/api/training/validate", data=form, headers=accept).status_code == 200
    wrong = {**form, "webhook_config": json.dumps([*sent, {"webhook_type": "raw", "callback_url": f"nowhere:{CANARY}"}])}
    refused = server.post("/api/training/validate", data=wrong, headers=JSON)
    assert refused.status_code == 422
    assert CANARY not in refused.text
    return runs.start("run", max_train_steps=2, webhook_config=json.dumps(sent))


def answers(runs: ServedRuns, job_id: str) -> Iterator[tuple[str, str]]:
    """Every GET of the schema, as JSON and as a page, and the admin's pages."""
    schema = runs.server.get("/openapi.json").json()
    names = {"job_id": job_id, "index": "0", "place": "0", "other": job_id, "other_id": job_id}
    paths = ["/openapi.json", "/health", "/", "/docs"]
    for path, calls in schema["paths"].items():
        for name in ("put", "hand", "lab") if "{name}" in path else ("",):
            filled = path.replace("{name}", name)
            for key, value in names.items():
                filled = filled.replace("{" + key + "}", value)
            paths += [filled] if "get" in calls and "stream" not in path else []
    listed = [f"/api/configs?config_type={kind}" for kind in ("model", "dataloader", "lycoris", "webhook")]
    admin = ["/admin/", "/admin/environments/environment/", "/admin/environments/revision/", "/admin/training/job/"]
    changed = [f"/admin/training/job/{job_id}/change/", *(f"/admin/environments/environment/{number}/change/" for number in (1, 2, 3))]
    changed += [f"/admin/environments/revision/{number}/change/" for number in range(1, 12)]
    for path in (*paths, *listed):
        yield path, runs.server.get(path, headers=JSON).text
    for path in (*(path for path in paths if not path.startswith(("/api/configs/put", "/api/configs/lab"))), *listed):
        yield path, runs.server.get(path, headers=HTML).text
    for path in (*admin, *changed):
        yield path, runs.server.get(path, headers=HTML, follow_redirects=True).text


def holders(*roots: Path) -> list[Path]:
    """Files that hold the word, plain or as base64 would hide it."""
    hidden = [CANARY.encode(), base64.b64encode(CANARY.encode())[:-2]]
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    return [path for path in files if any(word in path.read_bytes() for word in hidden)]


def test_a_secret_is_found_in_the_store_alone(runs: ServedRuns, receiver: Receiver) -> None:
    job_id = put_in(runs, receiver)
    ended = runs.wait_for_end(job_id)
    assert ended["status"] == "completed", (ended, runs.log(job_id))
    url = f"/api/training/jobs/{job_id}/webhooks"
    wait_until(lambda: runs.server.get(url).json()["counts"]["pending"] == 0, "every post arrived")
    assert runs.server.get(url).json()["counts"]["dead"] == 0
    home = runs.server.home
    store = home / "state/secrets"
    assert [path for path in holders(home, runs.place) if store not in path.parents] == []
    kept = {path.relative_to(store).as_posix() for path in holders(store)}
    assert kept == {"webhooks/lab.json", *(f"environments/{name}.json" for name in ("put", "hand", "run")), f"jobs/{job_id}.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.rglob("*.json")} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (store, *store.iterdir()) if path.is_dir()} == {0o700}
    seen = list(answers(runs, job_id))
    assert [path for path, text in seen if CANARY in text] == []
    showing = {path.split("/")[3] for path, text in seen if "***" in text and path.startswith("/admin/")}
    assert showing == {"environment", "revision", "job"}


def test_posts_carry_secrets_in_headers_and_addresses_alone(runs: ServedRuns, receiver: Receiver) -> None:
    assert receiver.came
    assert [posted.path for posted in receiver.came if CANARY.encode() in posted.body] == []
    plain = [posted for posted in receiver.came if posted.path == "/hook"]
    assert {posted.headers.get("X-API-Key") for posted in plain} == {f"{CANARY}-token"}
    basic = {posted.headers.get("Authorization") for posted in receiver.came if "?" in posted.path}
    assert basic == {"Basic " + base64.b64encode(f"me:{CANARY}-pass".encode()).decode()}
    assert {f"/hook/{CANARY}-discord", f"/hook?key={CANARY}-query"} <= {posted.path for posted in receiver.came}


def test_hidden_values_that_a_form_sends_back_mean_the_stored_secrets(runs: ServedRuns, receiver: Receiver) -> None:
    """The pages of the browsable API begin with the stored configuration, ``***`` included, and send it back."""
    config = runs.server.get("/api/configs/active").json()["config"]
    assert "***" in config["--webhook_config"]
    stored = (runs.server.home / "state/secrets/environments/put.json").read_text()
    receiver.came.clear()
    job_id = runs.start("again", max_train_steps=1, webhook_config=config["--webhook_config"])
    runs.cancel(job_id)
    wait_until(lambda: any(posted.headers.get("X-API-Key") == f"{CANARY}-token" for posted in receiver.came), "a post with the token")
    assert (runs.server.home / "state/secrets/environments/put.json").read_text() == stored
    shown = runs.server.get("/api/configs/webhooks/lab").json()
    assert runs.server.client().put("/api/configs/webhooks/lab", json=shown).json() == shown
    assert runs.server.post("/api/configs/webhooks/lab/test").json()["arrived"] is True
