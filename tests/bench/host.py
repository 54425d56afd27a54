"""What the engine adds to a step on the host: operators and time at full depth and tiny width, beside a bare loop over the same modules."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.bench import gpu_flux, gpu_pixart
from tests.bench.gpu_device import WARM_UP, Clock, Subject, Work
from tests.bench.gpu_flux import CLIPS, FLUX, Case
from tests.bench.network_loops import Setting, bare_steps, engine_steps
from tests.bench.networks import Network
from tests.bench.published import NETWORKS
from tests.bench.table import Table, ratio_of
from trainer_engine.batches.loader import StepBatches
from trainer_engine.optim.optimizers import build_optimizer

SECTION = "host"
AIM = "102 % or less"
PIXART_DEPTH = 28
MEASURED = ("sdxl", "sd1x", "sd3", "z_image", "flux2", "wan")
"""Families that stand for the others."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pair:
    """The engine's step and a bare loop that does the same arithmetic."""

    name: str
    clock: Clock
    engine: Work
    bare: Work


class OperatorCount(TorchDispatchMode):
    """Counts the operators that reach the dispatcher, those of the backward pass and of the optimizer included."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        self.operators += 1
        return func(*args, **(kwargs or {}))


def operators_of(work: Work) -> int:
    with OperatorCount() as counter:
        work(1)
    return counter.operators


def pixart(layers: int = PIXART_DEPTH, *, rounds: int = 12, steps: int = 5) -> Pair:
    """Every weight of PixArt learns, in bf16 with adamw_bf16."""
    narrow = {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 16, "sample_size": 8}
    architecture = {**gpu_pixart.PIXART_900M, **narrow, "num_layers": layers}
    subject = Subject(device=CPU, architecture=architecture, latent_edge=8, tokens=8, steps=steps, rounds=rounds)
    options = gpu_pixart.options_for(batch_size=1, checkpointing=False, backend="no", clip="norm")
    batch, numbers = gpu_pixart.make_batch(subject, 1, 0), count()
    step = gpu_pixart.engine_step(subject, gpu_pixart.make_network(subject, False), options)

    def engine(how_many: int) -> None:
        for _ in range(how_many):
            step.take(StepBatches(next(numbers), 0, (batch,), 1))

    network = gpu_pixart.make_network(subject, False)
    bare = gpu_pixart.bare_loop(
        network, build_optimizer(options.optimizer, network.parameters()), batch, compiled=False, clip=CLIPS["norm"]
    )
    return Pair(f"PixArt, {layers} layers, full, bf16", subject, engine, bare)


def flux(double: int = int(FLUX["num_layers"]), single: int = int(FLUX["num_single_layers"]), *, rounds: int = 12, steps: int = 5) -> Pair:
    """A standard adapter of Flux learns, on a bf16 base."""
    narrow = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
    texts = {"joint_attention_dim": 16, "pooled_projection_dim": 16}
    architecture = {**FLUX, **narrow, **texts, "num_layers": double, "num_single_layers": single}
    subject = Subject(device=CPU, architecture=architecture, latent_edge=8, tokens=8, steps=steps, rounds=rounds)
    case = Case("no_change", compiled=False, checkpointing=False, clip="norm")
    engine, network = gpu_flux.engine_steps(subject, case)
    return Pair(f"Flux, {double} and {single} blocks, LoRA, bf16", subject, engine, gpu_flux.bare_steps(subject, case, network))


def of_network(network: Network, model_type: str, *, rounds: int = 12, steps: int = 5, **changes: Any) -> Pair:
    """Every weight of a network learns, or a standard adapter on it, in float32."""
    architecture = {**network.architecture, **network.narrow, **changes}
    setting = Setting(device=CPU, model_type=model_type, latent_edge=16, lora_rank=4)
    engine, module = engine_steps(network, architecture, setting)
    kind = "full" if model_type == "full" else "LoRA"
    clock = Clock(device=CPU, steps=steps, rounds=rounds)
    return Pair(f"{network.title}, {kind}, float32", clock, engine, bare_steps(network, architecture, setting, module))


def processor_seconds(pair: Pair, work: Work) -> float:
    """Seconds a step that this process computed: other work on the machine does not count."""
    began = time.process_time()
    work(pair.clock.steps)
    return (time.process_time() - began) / pair.clock.steps


def measure(table: Table, pair: Pair, section: str = SECTION) -> None:
    """Two rows: operators of a step, and the ratio of the times; the loops take turns, so that both see the same machine."""
    for work in (pair.engine, pair.bare):
        work(WARM_UP)
    ours, bare = operators_of(pair.engine), operators_of(pair.bare)
    table.add(section, f"operators a step ({pair.name})", f"{ours}", beside=f"bare loop: {bare} ({100 * (ours - bare) / bare:+.2f} %)")
    gc.collect()
    times = [(processor_seconds(pair, pair.engine), processor_seconds(pair, pair.bare)) for _ in range(pair.clock.rounds)]
    middle = statistics.median(engine for engine, _ in times)
    ratio = ratio_of([engine for engine, _ in times], [bare for _, bare in times])
    table.add(section, f"processor time a step ({pair.name})", f"{1000 * middle:.0f} ms; {ratio} of the bare loop's", aim=AIM)


def run(table: Table) -> None:
    others = [partial(of_network, network, kind) for network in map(NETWORKS.__getitem__, MEASURED) for kind in ("full", "lora")]
    makers: list[Callable[[], Pair]] = [pixart, flux, *others]
    for make in makers:
        measure(table, make())
