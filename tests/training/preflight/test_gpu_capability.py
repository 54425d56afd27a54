"""The compute capability of the server's GPUs, as NVIDIA's own tool states it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from training.preflight.estimates import gpu_capability


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
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{answer}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert gpu_capability() == found


def test_a_machine_without_the_tool_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_capability() is None
