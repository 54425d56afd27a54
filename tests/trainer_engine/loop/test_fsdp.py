"""Runs whose weights are spread over two processes: they train what processes with complete weights train, and save the same files."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors.torch import load_file

from tests.helpers.models import tiny_model, tiny_pixart
from tests.helpers.pictures import assert_same_images
from tests.helpers.resuming import assert_same_files
from tests.helpers.tiny_run import TinyRun, files_of, run_of_ranks, train_here, with_held_out
from trainer_engine.config.families import specs
from trainer_engine.contract.checkpoint_files import EMA_TENSORS
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.contract.events import EVALUATION

PROGRESS, STEPS = "training.progress", 4
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
WITHOUT_GRADIENT = ".to_k.bias"
"""Softmax does not feel it: its gradient is rounding alone, and Adam makes whole steps of that."""
OPTIONS: dict[str, Any] = {
    "max_train_steps": STEPS,
    "checkpoint_step_interval": 2,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "use_ema": True,
    "max_grad_norm": 0.01,
    "eval_steps_interval": 2,
    "eval_timesteps": 2,
    "validation_disable": False,
    "validation_disable_unconditional": True,
    "validation_prompt": "a red circle",
    "validation_resolution": "64x64",
    "validation_num_inference_steps": 2,
}


def run_two(place: Path, name: str, **options: Any) -> TinyRun:
    """A run of two processes that has ended well."""
    chosen = {"output_dir": str(place / name), **OPTIONS, **options}
    return run_of_ranks(place, f"run-{name}", datasets=with_held_out(place, size=(96, 96)), **chosen)


def values(run: TinyRun, name: str) -> list[float]:
    return [entry.data[name] for entry in run.of_type(PROGRESS)]


def assert_same_weights(one: Path, other: Path) -> None:
    """The weights of two runs, whose numbers were added in another order."""
    ours, theirs, base = (load_file(path) for path in (one, other, tiny_pixart() / WEIGHTS))
    assert ours.keys() == theirs.keys()
    named = [name for name in ours if not name.endswith(WITHOUT_GRADIENT)]
    moved = torch.cat([(ours[name] - base[name]).flatten() for name in named]).norm()
    apart = torch.cat([(ours[name] - theirs[name]).flatten() for name in named]).norm()
    assert apart < 1e-3 * moved, (moved, apart)


@dataclass
class Runs:
    """The same run, with complete and with sharded weights."""

    place: Path
    complete: TinyRun
    sharded: TinyRun


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = tmp_path_factory.mktemp("sharded")
    return Runs(place, run_two(place, "complete"), run_two(place, "sharded", fsdp_enable=True))


def test_sharded_weights_learn_what_complete_ones_learn(runs: Runs) -> None:
    assert values(runs.sharded, "loss") == pytest.approx(values(runs.complete, "loss"), rel=1e-6)
    assert_same_weights(
        runs.complete.output_dir / f"checkpoint-{STEPS}" / WEIGHTS, runs.sharded.output_dir / f"checkpoint-{STEPS}" / WEIGHTS
    )


def test_the_norm_of_sharded_gradients_is_that_of_all(runs: Runs) -> None:
    norms = values(runs.complete, "grad_norm")
    assert values(runs.sharded, "grad_norm") == pytest.approx(norms, rel=1e-5)
    assert min(norms) > OPTIONS["max_grad_norm"], "every step was clipped"


def test_checkpoints_hold_complete_weights_and_state(runs: Runs) -> None:
    ours, theirs = (runs.place / name / f"checkpoint-{STEPS}" for name in ("complete", "sharded"))
    assert sorted(files_of(ours)) == sorted(files_of(theirs))
    for name in ("optimizer.safetensors", EMA_TENSORS):
        complete, sharded = (load_file(folder / name) for folder in (ours, theirs))
        assert {key: tensor.shape for key, tensor in complete.items()} == {key: tensor.shape for key, tensor in sharded.items()}
    for key, tensor in complete.items():
        torch.testing.assert_close(sharded[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
    for name in ("samples.json", "optimizer.json", "transformer/config.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_the_result_is_a_pipeline_that_diffusers_loads(runs: Runs) -> None:
    network = PixArtTransformer2DModel.from_pretrained(runs.place / "sharded" / "pipeline" / "transformer")
    saved = load_file(runs.place / "sharded" / f"checkpoint-{STEPS}" / WEIGHTS)
    assert type(network) is PixArtTransformer2DModel
    averaged = load_file(runs.place / "sharded" / "pipeline_ema" / WEIGHTS)
    ema = load_file(runs.place / "sharded" / f"checkpoint-{STEPS}" / EMA_TENSORS)
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in ema.items())
    assert all(torch.equal(tensor, saved[name]) for name, tensor in network.state_dict().items())


def test_sharded_networks_are_evaluated_and_shown_together(runs: Runs) -> None:
    metrics = [
        [note.data["details"]["metrics"] for note in run.of_type("notification") if note.data["code"] == EVALUATION]
        for run in (runs.complete, runs.sharded)
    ]
    assert len(metrics[0]) == len(metrics[1]) == 3
    for mine, theirs in zip(*metrics, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    assert_same_images(*(run.output_dir / "validation_images" for run in (runs.complete, runs.sharded)))


def test_a_sharded_run_resumes_byte_for_byte(runs: Runs) -> None:
    shutil.copytree(runs.place / "sharded" / "checkpoint-2", runs.place / "resumed" / "checkpoint-2")
    resumed = run_two(runs.place, "resumed", fsdp_enable=True, resume_from_checkpoint="latest")
    assert values(resumed, "loss") == values(runs.sharded, "loss")[2:]
    assert_same_files(*(files_of(run.output_dir / f"checkpoint-{STEPS}") for run in (runs.sharded, resumed)))


@pytest.mark.slow
def test_a_run_goes_on_with_its_parts_on_the_host_and_one_reader_byte_for_byte(runs: Runs) -> None:
    """Without gradient_checkpointing, fsdp_activation_checkpointing turns that on, so that nothing but the place of the weights changes."""
    shutil.copytree(runs.place / "sharded" / "checkpoint-2", runs.place / "offloaded" / "checkpoint-2")
    on_host = {
        "fsdp_cpu_offload": True,
        "fsdp_cpu_ram_efficient_loading": True,
        "gradient_checkpointing": False,
        "fsdp_activation_checkpointing": True,
    }
    offloaded = run_two(runs.place, "offloaded", fsdp_enable=True, resume_from_checkpoint="latest", **on_host)
    assert values(offloaded, "grad_norm") == values(runs.sharded, "grad_norm")[2:]
    assert_same_files(*(files_of(run.output_dir / f"checkpoint-{STEPS}") for run in (runs.sharded, offloaded)))


@pytest.mark.slow
@pytest.mark.parametrize("to_sharded", [True, False])
def test_a_checkpoint_moves_between_sharded_and_complete_runs(runs: Runs, to_sharded: bool) -> None:
    origin, target = (runs.complete, runs.sharded) if to_sharded else (runs.sharded, runs.complete)
    name = f"moved-{to_sharded}"
    shutil.copytree(origin.output_dir / "checkpoint-2", runs.place / name / "checkpoint-2")
    moved = run_two(runs.place, name, fsdp_enable=to_sharded, resume_from_checkpoint="latest")
    assert values(moved, "loss") == pytest.approx(values(target, "loss")[2:], rel=1e-5)
    assert_same_weights(target.output_dir / f"checkpoint-{STEPS}" / WEIGHTS, moved.output_dir / f"checkpoint-{STEPS}" / WEIGHTS)


@pytest.mark.slow
def test_other_ways_of_wrapping_give_the_same_numbers(runs: Runs) -> None:
    for number, options in enumerate(({"fsdp_auto_wrap_policy": "NO_WRAP"}, {"fsdp_reshard_after_forward": False})):
        other = run_two(runs.place, f"wrapped-{number}", fsdp_enable=True, **options)
        assert values(other, "loss") == pytest.approx(values(runs.sharded, "loss"), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in specs() if name != "pixart_sigma"])
def test_networks_of_every_family_learn_sharded_what_they_learn_complete(family: str, tmp_path: Path) -> None:
    quiet = {"model_family": family, "model": str(tiny_model(family)), "max_train_steps": 2, "gradient_checkpointing": True}
    flavour = {"model_flavour": "base"} if family == "z_image" else {}
    how = dict.fromkeys(("fsdp_enable", "fsdp_cpu_offload", "fsdp_cpu_ram_efficient_loading"), True)
    complete, sharded = (
        run_of_ranks(tmp_path, f"run-{name}", output_dir=str(tmp_path / name), **quiet, **flavour, **spread)
        for name, spread in (("complete", {}), ("sharded", how))
    )
    for name in ("loss", "grad_norm"):
        assert values(sharded, name) == pytest.approx(values(complete, name), rel=1e-5), name
    assert sorted(files_of(sharded.newest_checkpoint().path)) == sorted(files_of(complete.newest_checkpoint().path))


def test_one_process_has_nothing_to_spread_weights_over(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptions) as refused:
        train_here(tmp_path, fsdp_enable=True)
    assert [(problem.option, problem.code) for problem in refused.value.problems] == [("fsdp_enable", "needs_processes")]
