"""``simpletuner train``: no server, no database, the engine's exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from environments.paths import Home
from environments.secrets import store
from environments.secrets.store import of_environment
from simpletuner_site.train import command
from simpletuner_site.train.command import UnreadableConfig, home_of_config, read_config
from tests.helpers.live_server import REPOSITORY
from tests.helpers.models import tiny_pixart
from tests.helpers.pictures import generate_images
from trainer_engine.contract.errors import ExitCode


def write_environment(home: Path, **changes: Any) -> Path:
    """``config/tiny/config.json`` of a run of a few steps; the path."""
    folder = home / "config/tiny"
    folder.mkdir(parents=True)
    generate_images(home / "pictures", count=4, size=(72, 72))
    images = {"id": "pictures", "type": "local", "dataset_type": "image", "instance_data_dir": "pictures", "caption_strategy": "filename"}
    sizes = {"resolution": 64, "resolution_type": "pixel_area", "crop": True, "crop_aspect": "square", "crop_style": "center"}
    texts = {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"}
    (folder / "multidatabackend.json").write_text(json.dumps([images | sizes, texts]))
    config = {
        "--model_family": "pixart_sigma",
        "--model_type": "full",
        "--pretrained_model_name_or_path": str(tiny_pixart()),
        "--data_backend_config": "tiny/multidatabackend.json",
        "--output_dir": "output",
        "--train_batch_size": 2,
        "--max_train_steps": 3,
        "--num_train_epochs": 0,
        "--mixed_precision": "no",
        "--vae_dtype": "fp32",
        "--validation_disable": True,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


# Destructors of a module's objects run after the handlers of signals are put away.
HELD_AT_ITS_END = """
import os, sys, time
from simpletuner_site.cli import main
class Held:
    def __del__(self, write=os.write, sleep=time.sleep):
        write(1, b"held\\n")
        sleep(1)
sys.held = Held()
sys.exit(main())
"""


def train(config: Path, *, hold_the_end: bool = False) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "SIMPLETUNER_HOME"} | {"PYTHONPATH": str(REPOSITORY)}
    start = ["-c", HELD_AT_ITS_END] if hold_the_end else ["-m", "simpletuner_site.cli"]
    command = [sys.executable, *start, "train", "--config", str(config)]
    return subprocess.Popen(command, cwd=config.parents[2], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def output_of(process: subprocess.Popen[str], seconds: float = 120) -> str:
    return process.communicate(timeout=seconds)[0]


@pytest.mark.slow
def test_a_configuration_is_trained_to_its_end(tmp_path: Path) -> None:
    webhooks = [{"webhook_type": "raw", "callback_url": "http://127.0.0.1:9/", "auth_token": "hunter2"}]
    process = train(write_environment(tmp_path, **{"--webhook_config": webhooks}))
    text = output_of(process)
    assert "this command posts none" in text
    assert "hunter2" not in text
    assert [path for path in (tmp_path / "state").rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()] == []
    assert process.returncode == ExitCode.COMPLETED, text
    assert "step 3/3" in text
    assert "loss" in text
    assert "steps/s" in text or "s/step" in text
    assert (tmp_path / "output/pipeline/model_index.json").is_file()
    assert not list((tmp_path / "state").glob("*.sqlite3*")), "no database is needed"


def test_every_problem_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    process = train(write_environment(tmp_path, **{"--train_batch_size": 0, "--optimiser": "adam", "--lr_scheduler": "steep"}))
    text = output_of(process)
    assert process.returncode == ExitCode.CONFIGURATION
    for option in ("train_batch_size", "optimiser", "lr_scheduler"):
        assert option in text
    assert "Nothing was started" in text
    assert "Traceback" not in text
    assert not (tmp_path / "output").exists()
    assert not (tmp_path / "state/runs").exists()


def test_stars_mean_what_the_server_stored_for_the_environment(tmp_path: Path) -> None:
    hidden = [{"webhook_type": "discord", "webhook_url": "***"}]
    config = write_environment(tmp_path, **{"--webhook_config": hidden, "--resume_from_checkpoint": "checkpoint-7"})
    assert "stands for a stored secret, but none is" in " ".join(output_of(train(config)).split())
    stored = [{"webhook_type": "discord", "webhook_url": "http://127.0.0.1:9/hunter2"}]
    store.write(Home(tmp_path), of_environment("tiny"), {"webhook_config": json.dumps(stored)})
    text = output_of(train(config))
    assert "resume_from_checkpoint" in text  # the other problem is still reported
    assert "stands for" not in text and "hunter2" not in text


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    process = train(write_environment(tmp_path, **{"--max_train_steps": 100_000}))
    deadline = time.monotonic() + 60
    while not list((tmp_path / "state/runs").glob("*/journal.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output_of(process, seconds=30)
    assert process.returncode in (ExitCode.STOPPED, 128 + signal.SIGKILL)


def test_ctrl_c_stops_and_saves_and_one_after_the_end_leaves_the_exit_code(tmp_path: Path) -> None:
    """The second one arrives at the last thing that a shutting down interpreter does, where Python has put its own handlers away."""
    process = train(write_environment(tmp_path, **{"--max_train_steps": 100_000}), hold_the_end=True)
    journal_has_steps(tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    text = ""
    while (line := process.stdout.readline()) != "held\n":
        assert line, "ended without being held"
        text += line
    process.send_signal(signal.SIGINT)
    output_of(process)
    assert process.returncode == ExitCode.STOPPED
    assert "finishes its step and saves" in text
    assert list((tmp_path / "output").glob("checkpoint-*/manifest.json"))


def journal_has_steps(home: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        journals = list((home / "state/runs").glob("*/journal.jsonl"))
        if journals and "training.progress" in journals[0].read_text():
            return
        time.sleep(0.05)
    raise AssertionError("no step was taken")


@pytest.mark.parametrize(("content", "said"), [("{", "not valid JSON"), ("[1]", "a JSON object"), ("", "not valid JSON")])
def test_a_file_that_holds_no_configuration_is_explained(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UnreadableConfig, match=said):
        read_config(path)


def test_a_file_that_is_not_there_is_explained(tmp_path: Path) -> None:
    process = train_in(tmp_path, tmp_path / "config/none/config.json")
    text = output_of(process)
    assert process.returncode == ExitCode.CONFIGURATION
    assert "cannot be read" in text
    assert list(tmp_path.iterdir()) == []


def train_in(folder: Path, config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "simpletuner_site.cli", "train", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_home_is_the_one_that_the_file_lies_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert home_of_config(tmp_path / "a/config/run/config.json", None) == tmp_path / "a"
    assert home_of_config(Path("config/run/config.json"), None) == tmp_path
    assert home_of_config(tmp_path / "run.json", None) == tmp_path
    assert home_of_config(tmp_path / "a/config/run/config.json", tmp_path / "b") == tmp_path / "b"


def test_addresses_are_looked_at_without_a_server() -> None:
    """Nobody has set Django up in this process: a store of one's own network is no reason to fail."""
    code = "from training.webhooks.egress import resolve; print(resolve('http://127.0.0.1:9000/x').addresses)"
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=REPOSITORY, check=False)
    assert done.stdout.strip() == "('127.0.0.1',)", done.stderr


def test_a_home_and_a_run_folder_that_cannot_be_written_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_environment(tmp_path / "[/home]")
    (tmp_path / "[/home]/state").write_text("a file")
    assert command.train(config) == ExitCode.CONFIGURATION
    assert "[/home]cannotbewritten" in "".join(capsys.readouterr().err.split())
    (tmp_path / "[/home]/state").unlink()
    (tmp_path / "[/home]/state").mkdir()
    (tmp_path / "[/home]/state/runs").write_text("a file")
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert command.train(config) == ExitCode.FAILURE
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    assert "The engine could not be started" in capsys.readouterr().err
