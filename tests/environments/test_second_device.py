"""The sample that draws with a checkpoint on another device, on a real, tiny run of each kind."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from environments.paths import SHIPPED_SCRIPTS
from tests.helpers.models import tiny_pixart
from tests.helpers.tiny_run import train_here
from trainer_engine.contract.checkpoint_files import list_checkpoints

SCRIPT = SHIPPED_SCRIPTS / "second_device.py"
FAST = ["--device", "cpu", "--steps", "2", "--size", "64x64,64x96"]
LOKR = {
    "algo": "lokr",
    "multiplier": 1.0,
    "linear_dim": 10000,
    "linear_alpha": 1,
    "factor": 4,
    "apply_preset": {"target_module": ["Attention"]},
}


@pytest.fixture(scope="module")
def sample() -> ModuleType:
    """The script as a module: its libraries take long to load, once is enough."""
    spec = importlib.util.spec_from_file_location("second_device", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPLETUNER_BASE_MODEL", str(tiny_pixart()))
    monkeypatch.setenv("SIMPLETUNER_OUTPUT_DIR", str(tmp_path / "output"))


def images_in(text: str) -> list[Path]:
    return [Path(line.removeprefix("image: ")) for line in text.splitlines() if line.startswith("image: ")]


@pytest.mark.parametrize("kind", ["full", "standard", "lycoris"])
def test_the_hook_uses_the_newest_checkpoint(kind: str, sample: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = {"model_type": "lora", "lora_type": kind} if kind != "full" else {}
    if kind == "lycoris":
        (tmp_path / "lycoris.json").write_text(json.dumps(LOKR))
        adapter["lycoris_config"] = str(tmp_path / "lycoris.json")
    run = train_here(tmp_path, max_train_steps=2, checkpoint_step_interval=1, learning_rate=0.05, **adapter)
    capsys.readouterr()
    pictures = []
    for checkpoint in list_checkpoints(run.output_dir):
        assert sample.main([str(checkpoint.path), *FAST, "--prompt", "a stone", "--negative", "blurry"]) == 0
        paths = images_in(capsys.readouterr().out)
        assert [Image.open(path).size for path in paths] == [(64, 64), (64, 96)]
        assert paths[0].parent == run.output_dir / "external_validation"
        pictures.append(paths[0].read_bytes())
    assert pictures[0] != pictures[1], "each checkpoint draws its own image"


@pytest.mark.slow
def test_the_hook_runs_with_hardly_any_environment(tmp_path: Path) -> None:
    checkpoint = tiny_pixart()  # a model's folder holds what a checkpoint of a full run holds
    names = ("PATH", "HOME", "SIMPLETUNER_BASE_MODEL", "SIMPLETUNER_OUTPUT_DIR")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    command = [sys.executable, str(SCRIPT), str(checkpoint), *FAST, "--prompt", "a stone"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(images_in(done.stdout)) == 2


def test_an_impossible_request_is_reported(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "checkpoint-1"
    empty.mkdir()
    for more, said in (
        (["--prompt", "x"], "holds neither"),
        (["--prompt", " "], "validation_prompt"),
        (["--prompt", "x", "--device", "cuda:99"], "cannot be used here"),
        (["--prompt", "x", "--device", "toaster"], "cannot be used here"),
        (["--prompt", "x", "--size", "7x7"], "'7x7'"),
    ):
        assert sample.main([str(empty), *FAST, *more]) == 1
        assert said in capsys.readouterr().out
    monkeypatch.setenv("SIMPLETUNER_BASE_MODEL", str(empty))
    assert sample.main([str(empty), *FAST, "--prompt", "x"]) == 1
    assert "cannot be loaded" in capsys.readouterr().out
    monkeypatch.delenv("SIMPLETUNER_BASE_MODEL")
    assert sample.main([str(empty), *FAST, "--prompt", "x"]) == 1
    assert "SIMPLETUNER_BASE_MODEL" in capsys.readouterr().out
