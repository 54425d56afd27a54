"""The commands against a running server: a run from its start to its end, and what is said on the way."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simpletuner_site import cli
from simpletuner_site.client import connection
from tests.helpers.live_server import LiveServer
from tests.helpers.ports import free_port
from tests.helpers.tiny_run import tiny_datasets, tiny_options

TOKEN = "a-token-of-the-tests-0123456789"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with a token, and one environment of a tiny model in its home."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "config" / "tiny"
    folder.mkdir(parents=True)
    (folder / "multidatabackend.json").write_text(json.dumps(tiny_datasets(home)))
    model = Path(tiny_options(home)["pretrained_model_name_or_path"])
    options = {**tiny_options(home), "data_backend_config": "tiny/multidatabackend.json", "max_train_steps": 3}
    (folder / "config.json").write_text(json.dumps({f"--{name}": value for name, value in options.items()}))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    live = LiveServer(home, free_port(), arguments=("--token", TOKEN, "--root", str(model.parent)), headers=headers)
    with live.start():
        yield live


@pytest.fixture
def run(server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command against the server; its code, and what it printed."""
    monkeypatch.setenv(connection.TOKEN, TOKEN)
    monkeypatch.delenv("SIMPLETUNER_HOME")

    def call(*arguments: str, code: int = 0) -> str:
        found = cli.main([*arguments, "--home", str(server.home)])
        printed = capsys.readouterr()
        assert found == code, printed.out + printed.err
        return printed.out + printed.err

    return call


def test_a_run_is_checked_started_watched_and_listed(run: Any, server: LiveServer) -> None:
    assert "its options and paths are valid" in run("check", "tiny")
    started = run("start", "tiny", "-o", "max_train_steps=4")
    assert "tiny is active now" in started and "Run 1 is" in started and f"{server.url}/runs/1" in started
    assert "changed in the environment: max_train_steps 3 -> 4" in started
    watched = run("watch", "1")
    assert "step 4/4" in watched and "completed" in watched
    assert "completed: tiny" in run("status") and "4/4" in run("jobs")
    lines = run("events").splitlines()
    assert any("training.checkpoint" in line for line in lines) and not any("training.progress" in line for line in lines)
    events = [json.loads(line) for line in run("events", "1", "--json", "--follow").splitlines()]
    assert [event["index"] for event in events] == list(range(len(events)))
    assert json.loads(run("status", "1", "--json"))["job_id"] == events[0]["job_id"]
    assert run("status", events[0]["job_id"][:8]) == run("status")
    said = server.log.read_text()
    for words in ("Run 1 (tiny) starts.", "Run 1 (tiny) is complete. Training completed at step 4"):
        assert words in said


@pytest.mark.slow
def test_a_run_is_saved_sampled_stopped_and_gone_on_with(run: Any, server: LiveServer) -> None:
    run("start", "tiny", "-o", "max_train_steps=100000", "-o", "checkpoint_step_interval=100000")
    deadline = time.monotonic() + 300
    while "step" not in run("status") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "Checkpoint queued" in run("save") and "Validation queued" in run("sample")
    assert "stop requested" in run("stop")
    assert "stopped" in run("watch", code=10)
    assert "No active training job" in run("stop")
    number = json.loads(run("jobs", "--json"))["jobs"][0]["number"]
    resumed = run("resume", str(number), "-o", "max_train_steps=100000")
    assert f"Run {number + 1} is" in resumed
    assert "Cancelled" in run("cancel") or "cancel" in run("status")
    run("watch", code=1)
    assert f"Run {number + 1} (tiny) was cancelled." in server.log.read_text()


def test_an_option_is_explained_or_searched_for(run: Any) -> None:
    one = run("options", "learning-rate")
    assert one.startswith("learning_rate:") and "bounds" in one
    assert json.loads(run("options", "learning_rate", "--family", "pixart_sigma", "--json"))[0]["name"] == "learning_rate"
    assert "checkpoint_step_interval" in run("options", "checkpoint")
    assert "No option has" in run("options", "nothing-of-that-name", code=2)


def test_a_refusal_says_what_is_wrong_and_how_to_go_on(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = run("start", "-o", "learning_rate=7", "-o", "train_batch_size=0", code=20)
    assert "learning_rate" in refused and "train_batch_size" in refused and "2 problems" in refused
    assert "There is no run 999" in run("status", "999", code=2)
    assert "not found" in run("env", "show", "nowhere", code=2)
    monkeypatch.setenv(connection.TOKEN, "another-token-0123456789")
    assert "SIMPLETUNER_TOKEN" in run("status", code=2)
    monkeypatch.setenv(connection.ADDRESS, f"http://localhost:{free_port()}")
    assert "does not answer" in run("status", code=2)


def test_the_server_of_a_home_is_found_by_its_file(server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection.find(server.home, None).url == server.url
    assert connection.find(tmp_path, None) == connection.Where(tmp_path)
    assert connection.find(tmp_path, "http://box:8001/").url == "http://box:8001"
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(connection, "USUAL_ADDRESS", server.url)
    monkeypatch.delenv("SIMPLETUNER_HOME")
    monkeypatch.chdir(tmp_path)
    assert connection.find(None, None).url == "", "a server elsewhere does not answer for a folder that is a home"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert connection.find(None, None).url == server.url
    monkeypatch.setenv("SIMPLETUNER_HOME", str(tmp_path / "new"))
    assert connection.find(None, None).url == "", "a server elsewhere does not answer for a home that is named and not made yet"
