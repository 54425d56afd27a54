"""What a run does where memory or disk end, and what it leaves undone where nobody needs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.pictures import generate_images
from tests.helpers.tiny_run import run_in_this_process, tiny_datasets, train_here, write_job
from trainer_engine.contract.errors import ExitCode
from trainer_engine.runtime.devices import ran_out_of_memory


def test_exhausted_memory_of_a_cpu_is_distinguished_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out_of_memory(raised.value) and ran_out_of_memory(MemoryError())
    assert not ran_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_journal_that_takes_no_line_ends_the_run_as_a_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    folder = write_job(tmp_path)
    folder.journal.symlink_to("/dev/full")
    run = run_in_this_process(folder)
    assert run.code == ExitCode.DISK, run.log()
    assert "could not be written to the journal" in run.log()


def test_a_dataset_of_probability_zero_is_not_encoded(tmp_path: Path) -> None:
    generate_images(tmp_path / "others", count=4, size=(96, 96))
    pictures, texts = tiny_datasets(tmp_path)
    cache = tmp_path / "cache/never"
    never = {**pictures, "id": "never", "instance_data_dir": str(tmp_path / "others"), "cache_dir_vae": str(cache), "probability": 0}
    run = train_here(tmp_path, datasets=[pictures, never, texts])
    assert run.code is ExitCode.COMPLETED
    assert not cache.exists()


def test_a_resumed_run_uses_the_optimizer_values_of_its_own_options(tmp_path: Path) -> None:
    usual = {"max_train_steps": 4, "optimizer_config": "weight_decay=0.0"}
    whole = train_here(tmp_path, **usual).weights()
    for name, later in (("same", usual), ("other", usual | {"optimizer_config": "weight_decay=0.9"})):
        output = str(tmp_path / name)
        train_here(tmp_path, **usual, output_dir=output, stop_after=2)
        assert (train_here(tmp_path, **later, output_dir=output).weights() == whole) is (name == "same")
