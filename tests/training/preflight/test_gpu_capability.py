"""The compute capability of the server's GPUs, as NVIDIA's own tool states it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.models import options_with
from training.preflight.run import gpu_capability


def variables(folder: Path, answer: str, *, gpus: str = "0,1") -> dict[str, str]:
    """The environment of a machine whose nvidia-smi writes ``answer``."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{answer}\n")
    tool.chmod(0o755)
    return {"PATH": str(folder), "CUDA_VISIBLE_DEVICES": gpus}


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("echo 9.0", (9, 0)),
        ("echo 8.9; echo 7.5", (7, 5)),
        ("echo 10.0; echo 9.0", (9, 0)),
        ("echo No devices were found; exit 6", None),
        ("echo '[N/A]'", None),
        ("exit 1", None),
    ],
)
def test_the_oldest_gpu_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, found: tuple[int, int] | None) -> None:
    machine = variables(tmp_path, answer)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    options = options_with(model_family="sdxl", attention_mechanism="native-flash", mixed_precision="bf16")
    assert gpu_capability(options, machine) == found


def test_the_tool_is_asked_only_if_something_depends_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    asked = tmp_path / "asked"
    machine = variables(tmp_path, f"touch {asked}; echo 9.0")
    assert gpu_capability(options_with(), machine) is None
    chosen = options_with(model_family="sdxl", attention_mechanism="native-flash")
    assert gpu_capability(chosen, {**machine, "CUDA_VISIBLE_DEVICES": ""}) is None
    assert not asked.exists()


def test_a_machine_without_the_tool_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    options = options_with(model_family="sdxl", attention_mechanism="native-flash")
    assert gpu_capability(options, {"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0"}) is None
