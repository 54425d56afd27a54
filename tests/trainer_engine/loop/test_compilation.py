"""Compiled networks: what is compiled, what a run reports of it, and files that show nothing of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo import reset
from torch._dynamo.exc import TorchDynamoException

from tests.helpers.gradients import FAMILIES, LORA, one_pass, step_inputs, tiny, trainable_of
from tests.helpers.models import tiny_model
from tests.helpers.params import first_rows_fast
from tests.helpers.tiny_run import HereRun, run_of_ranks, train_here, with_held_out
from trainer_engine.config.families import specs
from trainer_engine.config.options.run import DistributedOptions
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.contract.events import Notification, StageEvent, StageKey, StageStatus
from trainer_engine.families.common.computation import uncompiled
from trainer_engine.loop.compilation import USUAL_GRAPHS, CompilationWatch, compile_network
from trainer_engine.runtime.events import EventSink
from trainer_engine.runtime.stages import Stages

EAGER = {"dynamo_backend": "eager"}
"""Traces as every backend does, and computes with the usual kernels."""
REGIONAL = {"dynamo_use_regional_compilation": True}
QUANTISED = ("int8-quanto", "int8-torchao", "fp8wo-torchao")
ADAPTER, UNET = "pytorch_lora_weights.safetensors", "pipeline/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _nothing_is_compiled_yet() -> Iterator[None]:
    reset()
    yield
    reset()


def lycoris(place: Path, name: str) -> dict[str, Any]:
    """An adapter file for the family's network."""
    path = place / "lycoris.json"
    path.write_text(json.dumps(dict(specs()[name].adapters.lycoris_start), default=list))
    return {"model_type": "lora", "lora_type": "lycoris", "lycoris_config": str(path)}


class Heard(EventSink):
    """Keeps what was emitted."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def emit(self, event: Any) -> None:
        self.events.append(event)


def stage_events(run: HereRun) -> list[StageStatus]:
    return [event.status for event in run.heard.of(StageEvent) if event.key is StageKey.COMPILE]


QUICK = [("sd1x", True, "full"), ("pixart_sigma", True, "lycoris"), ("pixart_sigma", False, "checkpointed")]
EVERY = [(name, regional, kind) for name in FAMILIES for regional in (False, True) for kind in ("full", "lora", "lycoris", "checkpointed")]


@pytest.mark.parametrize(
    ("name", "regional", "kind"), [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in EVERY]
)
def test_traced_networks_equal_eager_ones(tmp_path: Path, name: str, regional: bool, kind: str) -> None:
    values = {"full": {}, "lora": LORA, "lycoris": lycoris(tmp_path, name), "checkpointed": {**LORA, "gradient_checkpointing": True}}[kind]
    family = tiny(name, **EAGER, dynamo_use_regional_compilation=regional, **values)
    trainable, inputs = trainable_of(family), step_inputs(family)
    wanted, names = one_pass(family, trainable, inputs=inputs), set(trainable.network.state_dict())
    network = compile_network(trainable.network, family.options.distributed, family.spec)
    assert (network is trainable.network) is regional
    assert one_pass(family, trainable, network, inputs).is_close_to(wanted, rtol=1e-6)
    assert set(trainable.network.state_dict()) == names and not any("_orig_mod" in key for key in names)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", [{}, LORA], ids=["full", "lora"])
def test_the_inductor_computes_what_the_eager_network_computes(name: str, kind: dict[str, Any]) -> None:
    """Where it also rounds as the network does: it leaves out what Kandinsky rounds to bfloat16 on the way."""
    family = tiny(name, dynamo_backend="inductor", **REGIONAL, **kind)
    trainable, inputs = trainable_of(family), step_inputs(family)
    wanted = one_pass(family, trainable, inputs=inputs)
    network = compile_network(trainable.network, family.options.distributed, family.spec)
    with torch._inductor.config.patch(emulate_precision_casts=True):
        assert one_pass(family, trainable, network, inputs).is_close_to(wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "precision"),
    first_rows_fast(
        [("flux", precision) for precision in QUANTISED] + [(name, one) for name in FAMILIES if name != "flux" for one in QUANTISED]
    ),
)
def test_blocks_of_quantised_weights_are_compiled_one_by_one(name: str, precision: str) -> None:
    """The single blocks of Flux return two views of one tensor, which PyTorch does not compile with weights of these classes."""
    family = tiny(name, dynamo_backend="aot_eager", base_model_precision=precision, **REGIONAL, **LORA)
    trainable, inputs = trainable_of(family), step_inputs(family)
    wanted = one_pass(family, trainable, inputs=inputs)
    network = compile_network(trainable.network, family.options.distributed, family.spec)
    watch = CompilationWatch(family.options.distributed, Stages(Heard()))
    with watch.step(1):
        assert one_pass(family, trainable, network, inputs).is_close_to(wanted, rtol=1e-4, atol=1e-6)
    assert watch.graphs >= 1


def test_blocks_share_their_graphs() -> None:
    family = tiny("pixart_sigma", **EAGER, **REGIONAL)
    network = compile_network(family.load_network(), family.options.distributed, family.spec)
    watch = CompilationWatch(family.options.distributed, Stages(Heard()))
    with watch.step(1):
        family.predict(network, step_inputs(family))
    blocks = [module for module in network.modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert len(blocks) == 2 and watch.graphs == 2  # of the first block, whose input needs no gradient, and of all others


def test_nothing_is_compiled_without_a_backend() -> None:
    network = nn.Linear(2, 2)
    assert compile_network(network, DistributedOptions(dynamo_use_regional_compilation=True), specs()["flux"]) is network


def test_evaluations_and_images_run_without_compilation() -> None:
    family = tiny("pixart_sigma", **EAGER, **REGIONAL)
    network = compile_network(family.load_network(), family.options.distributed, family.spec)
    watch = CompilationWatch(family.options.distributed, Stages(Heard()))
    with watch.step(1), uncompiled(network, family.options), torch.no_grad():
        family.predict(network, step_inputs(family))
    assert watch.graphs == 1  # the least that a first step counts
    with watch.step(2):
        family.predict(network, step_inputs(family))
    assert watch.late_steps == 1


def test_every_size_is_compiled_once_or_one_graph_serves_all() -> None:
    counts = {}
    for dynamic in (False, True):
        reset()
        network = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        options = DistributedOptions(dynamo_backend="eager", dynamo_dynamic=dynamic)
        compiled, heard = compile_network(network, options, specs()["flux"]), Heard()
        watch = CompilationWatch(options, Stages(heard))
        for step, rows in enumerate((2, 3, 5, 3, 2), start=1):
            with watch.step(step):
                compiled(torch.ones(rows, 4))
        counts[dynamic] = watch.graphs
        reports = [event for event in heard.events if isinstance(event, Notification)]
        assert len(reports) == watch.late_steps == (0 if dynamic else 2)
        assert all(event.code == "recompiled" and "size mismatch" in event.message for event in reports)
    assert counts == {False: 3, True: 1}


def test_a_run_that_compiles_often_is_warned_once() -> None:
    options, heard = DistributedOptions(dynamo_backend="eager"), Heard()
    compiled = compile_network(nn.Linear(4, 4), options, specs()["flux"])
    watch = CompilationWatch(options, Stages(heard))
    for step in range(1, USUAL_GRAPHS + 5):
        with watch.step(step):
            compiled(torch.ones(step + 1, 4))
    codes = [event.code for event in heard.events if isinstance(event, Notification)]
    assert codes == ["recompiled"] * USUAL_GRAPHS + ["recompiled_often"]
    assert "dynamo_dynamic" in heard.events[-1].message


class Broken(nn.Module):
    """Has a place that no compiler can trace."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return numbers + 1


def test_a_network_of_several_graphs_is_refused_by_name_where_one_is_asked_for() -> None:
    options, heard = DistributedOptions(dynamo_backend="eager", dynamo_fullgraph=True), Heard()
    compiled = compile_network(Broken(), options, specs()["flux"])
    with pytest.raises(InvalidOptions) as refused, CompilationWatch(options, Stages(heard)).step(1):
        compiled(torch.ones(2))
    (problem,) = refused.value.problems
    assert (problem.option, problem.code, problem.expected) == ("dynamo_fullgraph", "several_graphs", "false")
    options = DistributedOptions(dynamo_backend="eager")
    assert compile_network(Broken(), options, specs()["flux"])(torch.ones(2)).tolist() == [2, 2]


def test_a_failing_compiler_is_named() -> None:
    options = DistributedOptions(dynamo_backend="inductor")
    with pytest.raises(InvalidOptions) as refused, CompilationWatch(options, Stages(Heard())).step(1):
        raise TorchDynamoException("the backend failed\nbecause of this")
    (problem,) = refused.value.problems
    assert (problem.option, problem.code) == ("dynamo_backend", "cannot_compile") and "because of this" in problem.message


def test_a_run_shows_that_it_compiles_its_first_step(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=2, **EAGER, **REGIONAL)
    assert stage_events(run) == [StageStatus.RUNNING, StageStatus.COMPLETED]
    saved = load_file(run.output_dir / "pipeline/transformer/diffusion_pytorch_model.safetensors")
    assert saved and not [key for key in saved if "_orig_mod" in key]


@pytest.mark.slow
@pytest.mark.parametrize("regional", [False, True], ids=["complete", "regional"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_has_the_files_and_the_weights_of_an_eager_one(tmp_path: Path, regional: bool, kind: str) -> None:
    values: dict[str, Any] = {"model_family": "sd1x", "model": str(tiny_model("sd1x")), "use_ema": True, "max_train_steps": 3}
    values |= {"checkpoint_step_interval": 2, "eval_steps_interval": 2, **(LORA if kind == "lora" else {})}
    values |= {"validation_disable": False, "validation_prompt": "a cat", "validation_step_interval": 2, "validation_resolution": "64x64"}
    values |= {"validation_num_inference_steps": 1, "validation_disable_unconditional": True}
    runs = {}
    for name, more in (("eager", {}), ("compiled", {**EAGER, "dynamo_use_regional_compilation": regional})):
        place = tmp_path / name
        runs[name] = train_here(place, datasets=with_held_out(place, images=2), **values, **more)
    assert stage_events(runs["compiled"]) == [StageStatus.RUNNING, StageStatus.COMPLETED] and not stage_events(runs["eager"])
    result = ADAPTER if kind == "lora" else UNET
    files = {name: {path.relative_to(run.output_dir) for path in run.output_dir.rglob("*") if path.is_file()} for name, run in runs.items()}
    assert {path for path in files["compiled"] if "cache" not in path.parts} == {
        path for path in files["eager"] if "cache" not in path.parts
    }
    for path in files["compiled"]:
        if path.suffix == ".safetensors" and "checkpoint" in str(path):
            assert not [key for key in load_file(runs["compiled"].output_dir / path) if "_orig_mod" in key]
    ours, wanted = (load_file(runs[name].output_dir / result) for name in ("compiled", "eager"))
    assert ours.keys() == wanted.keys()
    assert all(torch.allclose(ours[key], wanted[key], atol=1e-6) for key in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("values", [REGIONAL, {**REGIONAL, **LORA, "gradient_checkpointing": True}], ids=["full", "lora"])
def test_a_compiled_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, values: dict[str, Any]) -> None:
    """Buckets of two sizes occur in another order after the stop: each has the same graph in both runs."""
    usual = {"model_family": "sd1x", "model": str(tiny_model("sd1x")), "max_train_steps": 5, "dynamo_backend": "inductor", **values}
    straight = train_here(tmp_path / "straight", **usual)
    train_here(tmp_path / "resumed", stop_after=3, **usual)
    reset()
    resumed = train_here(tmp_path / "resumed", **usual)
    result = ADAPTER if "lora_rank" in values else UNET
    assert (resumed.output_dir / result).read_bytes() == (straight.output_dir / result).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("regional", [False, True], ids=["complete", "regional"])
def test_two_processes_train_what_one_does(tmp_path: Path, regional: bool) -> None:
    shared: dict[str, Any] = {"max_train_steps": 2, "caption_dropout_probability": 0}
    alone = train_here(tmp_path, output_dir=str(tmp_path / "alone"), train_batch_size=2, **shared)
    compiled = {**EAGER, "dynamo_use_regional_compilation": regional}
    run = run_of_ranks(tmp_path, output_dir=str(tmp_path / "both"), **shared, **compiled)
    weights = "pipeline/transformer/diffusion_pytorch_model.safetensors"
    ours, wanted = load_file(run.output_dir / weights), load_file(alone.output_dir / weights)
    assert ours.keys() == wanted.keys()
    assert all(torch.allclose(ours[key], wanted[key], atol=1e-4) for key in wanted)
