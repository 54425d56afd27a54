"""How much memory a container, or a scheduler's job, may still take."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trainer_engine.checkpointing import snapshot
from trainer_engine.checkpointing.cgroups import memory_left


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def own(place: Path, text: str) -> Path:
    (place / "own").write_text(text)
    return place / "own"


def test_a_group_without_a_limit_bounds_nothing(tmp_path: Path) -> None:
    assert memory_left(tmp_path, tmp_path / "none") == math.inf
    group(tmp_path, memory__max="max", memory__current=5, memory__stat="inactive_file 1")
    assert memory_left(tmp_path, own(tmp_path, "0::/\n")) == math.inf
    assert memory_left(tmp_path / "unseen", own(tmp_path, "12:pids:/x\n0::/user.slice\n")) == math.inf
    assert memory_left() > 0


def test_the_tightest_group_counts_and_cache_is_no_use(tmp_path: Path) -> None:
    group(tmp_path / "slurm", memory__max=1000, memory__current=400, memory__stat="anon 300\ninactive_file 50")
    group(tmp_path / "slurm/job", memory__max=900, memory__current=300, memory__stat="anon 300\ninactive_file 0")
    assert memory_left(tmp_path, own(tmp_path, "0::/slurm/job\n")) == 600
    group(tmp_path / "slurm/job", memory__max="max")
    assert memory_left(tmp_path, own(tmp_path, "0::/slurm/job\n")) == 650


def test_a_container_of_the_first_version_sees_its_own_group_at_the_top(tmp_path: Path) -> None:
    facts = {"memory__limit_in_bytes": 1000, "memory__usage_in_bytes": 700, "memory__stat": "cache 1\ntotal_inactive_file 100"}
    group(tmp_path / "memory", **facts)
    assert memory_left(tmp_path, own(tmp_path, "7:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n")) == 400


def test_a_copy_has_to_fit_into_the_group_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "memory_left", lambda: snapshot.SPARE_BYTES + 10)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert snapshot.room_for(10) and not snapshot.room_for(11)
