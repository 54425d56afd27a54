"""A run folder, caches and a checkpoint that an older version wrote keep working.

``tests/fixtures/older_run.tar.xz`` holds a LoRA run of a tiny PixArt Sigma, stopped after two steps: base model, images, caches, output and
run folder. It was written before the modules of the engine were regrouped.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.helpers.caches import state_of
from tests.helpers.tiny_run import ROOT, EndedRun, run_in_this_process, tiny_datasets, write_job
from trainer_engine.contract.checkpoint_files import list_checkpoints, verify
from trainer_engine.contract.events import decode
from trainer_engine.contract.run import ExitReport, JobSpec, RunFolder

LORA = {"model_type": "lora", "lora_rank": 2, "checkpoint_step_interval": 1}


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The folder that holds the older run."""
    with tarfile.open(ROOT / "tests/fixtures/older_run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_a_run_folder_of_an_older_version_is_read(older: Path) -> None:
    folder = RunFolder(older / "run")
    entries = [decode(line) for line in folder.journal.read_bytes().splitlines()]
    assert [entry.seq for entry in entries] == list(range(len(entries)))
    assert [entry.data["step"] for entry in entries if entry.type == "training.progress"] == [1, 2]
    report = ExitReport.read(folder)
    assert report is not None and report.exit_code == 0
    assert JobSpec.read(folder).options["model_type"] == "lora"


def test_a_run_resumes_from_a_checkpoint_of_an_older_version_and_encodes_nothing_again(older: Path) -> None:
    [checkpoint] = list_checkpoints(older / "output")
    assert verify(checkpoint.path) == []
    written = state_of(older / "cache")
    assert len(written) > 8
    run = resumed(older)
    assert run.code == 0, run.log()
    assert [entry.data["step"] for entry in run.of_type("training.progress")] == [3, 4]
    assert state_of(older / "cache") == written


def resumed(place: Path) -> EndedRun:
    return run_in_this_process(
        write_job(place, "later", datasets=tiny_datasets(place), model=str(place / "model"), max_train_steps=4, **LORA)
    )
