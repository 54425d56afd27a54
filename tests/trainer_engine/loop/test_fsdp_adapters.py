"""Adapters on a frozen network whose weights are spread over two processes: every file is that of processes with complete weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.helpers.models import tiny_model
from tests.helpers.pictures import assert_same_images
from tests.helpers.resuming import assert_same_files
from tests.helpers.tiny_run import TinyRun, files_of, run_of_ranks, with_held_out
from tests.trainer_engine.adapters.test_runs import ADAPTERS, LOKR, STANDARD, lycoris
from tests.trainer_engine.loop.test_fsdp import Runs
from tests.trainer_engine.loop.test_regularisation import with_prior
from trainer_engine.config.families import specs
from trainer_engine.contract.events import EVALUATION

STEPS, RESULT = 4, "pytorch_lora_weights.safetensors"
OPTIONS: dict[str, Any] = {
    **STANDARD,
    "max_train_steps": STEPS,
    "checkpoint_step_interval": 2,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "use_ema": True,
    "max_grad_norm": 0.01,
    "optimizer": "prodigy",
    "eval_steps_interval": 2,
    "eval_timesteps": 2,
    "validation_disable": False,
    "validation_disable_unconditional": True,
    "validation_prompt": "a red circle",
    "validation_resolution": "64x64",
    "validation_num_inference_steps": 2,
}


def run_two(place: Path, name: str, **options: Any) -> TinyRun:
    """A run of two processes that has ended well. One set of images is trained toward the network without its adapter."""
    datasets = [*with_prior(place), *with_held_out(place, size=(96, 96))[2:]]
    return run_of_ranks(place, f"run-{name}", datasets=datasets, **{"output_dir": str(place / name), **OPTIONS, **options})


def results_of(run: TinyRun) -> dict[str, bytes]:
    """Files that people use: adapter files and cards, the average's too."""
    paths = [path for path in run.output_dir.rglob("*") if path.name in (RESULT, "README.md", "lycoris_config.json")]
    return {str(path.relative_to(run.output_dir)): path.read_bytes() for path in paths if "checkpoint-" not in str(path)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = tmp_path_factory.mktemp("sharded-base")
    return Runs(place, run_two(place, "complete"), run_two(place, "sharded", fsdp_enable=True))


def test_an_adapter_on_spread_weights_learns_what_one_on_complete_weights_learns(runs: Runs) -> None:
    for name in ("loss", "grad_norm"):
        ours, theirs = ([entry.data[name] for entry in run.of_type("training.progress")] for run in (runs.sharded, runs.complete))
        assert len(ours) == STEPS and ours == theirs, name


@pytest.mark.parametrize("checkpoint", ["checkpoint-2", f"checkpoint-{STEPS}"])
def test_checkpoints_are_those_of_complete_weights(runs: Runs, checkpoint: str) -> None:
    assert_same_files(files_of(runs.sharded.output_dir / checkpoint), files_of(runs.complete.output_dir / checkpoint))


def test_the_adapter_files_are_those_of_complete_weights(runs: Runs) -> None:
    found = results_of(runs.sharded)
    assert {RESULT, f"ema/{RESULT}"} <= found.keys()
    for name in (RESULT, f"ema/{RESULT}"):
        with safe_open(runs.sharded.output_dir / name, "pt") as ours, safe_open(runs.complete.output_dir / name, "pt") as theirs:
            assert sorted(ours.keys()) == sorted(theirs.keys()) and len(ours.keys()) > 10
            assert all((ours.get_tensor(key) == theirs.get_tensor(key)).all() for key in ours.keys())  # noqa: SIM118


def test_spread_networks_are_evaluated_and_shown_together(runs: Runs) -> None:
    metrics = [
        [note.data["details"]["metrics"] for note in run.of_type("notification") if note.data["code"] == EVALUATION]
        for run in (runs.complete, runs.sharded)
    ]
    assert len(metrics[0]) == 3
    for mine, theirs in zip(*metrics, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-6)
    assert_same_images(*(run.output_dir / "validation_images" for run in (runs.complete, runs.sharded)))


def test_a_run_that_resumes_with_its_parts_on_the_host_and_one_reader_ends_byte_for_byte_the_same(runs: Runs) -> None:
    shutil.copytree(runs.sharded.output_dir / "checkpoint-2", runs.place / "resumed" / "checkpoint-2")
    on_host = {"fsdp_cpu_offload": True, "fsdp_cpu_ram_efficient_loading": True}
    resumed = run_two(runs.place, "resumed", fsdp_enable=True, resume_from_checkpoint="latest", **on_host)
    assert len(resumed.of_type("training.progress")) == STEPS - 2
    assert_same_files(*(files_of(run.output_dir / f"checkpoint-{STEPS}") for run in (runs.sharded, resumed)))
    assert_same_files(results_of(resumed), results_of(runs.sharded))


ALGORITHMS = {
    "lokr": lambda place: ADAPTERS["lokr"](place),
    "lokr with decomposed weights": lambda place: lycoris(place, **{**LOKR, "dora_wd": True}),
    "full differences": lambda place: ADAPTERS["full"](place),
    "dylora": lambda place: ADAPTERS["dylora"](place),
    "tlora": lambda place: ADAPTERS["tlora"](place),
    "dora": lambda place: ADAPTERS["dora"](place),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_other_adapters_train_on_spread_weights(name: str, tmp_path: Path) -> None:
    """Those that start from the weights below them get what they start with from the process that reads these."""
    quiet = {**ALGORITHMS[name](tmp_path), "validation_disable": True, "max_train_steps": 2, "optimizer": "torch-adamw"}
    how = {"fsdp_enable": True, "fsdp_cpu_ram_efficient_loading": not name.startswith("full")}
    complete, sharded = (run_two(tmp_path, str(len(spread)), **quiet, **spread) for spread in ({}, how))
    assert_same_files(*(files_of(run.output_dir / "checkpoint-2") for run in (complete, sharded)))
    assert_same_files(results_of(complete), results_of(sharded))


NEARLY = ("kandinsky5_image",)
"""Families whose gradients have another last bit on spread weights. The losses are the same: the products for the second matrices of the
layers of a prompt are added in another order."""


@pytest.mark.slow
@pytest.mark.parametrize("family", specs())
def test_adapters_of_every_family_train_on_spread_weights(family: str, tmp_path: Path) -> None:
    quiet = {"model_family": family, "model": str(tiny_model(family)), "model_type": "lora", "lora_rank": 4, "max_train_steps": 2}
    flavour = {"model_flavour": "base"} if family == "z_image" else {}
    how = dict.fromkeys(("fsdp_enable", "fsdp_cpu_offload", "fsdp_cpu_ram_efficient_loading"), True)
    runs = [
        run_of_ranks(tmp_path, f"run-{name}", output_dir=str(tmp_path / name), **quiet, **flavour, **spread)
        for name, spread in (("complete", {}), ("sharded", how))
    ]
    if family in NEARLY:
        one, other = (load_file(run.output_dir / RESULT) for run in runs)
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
        return
    assert_same_files(*(files_of(run.newest_checkpoint().path) for run in runs))
    assert_same_files(*map(results_of, runs))
