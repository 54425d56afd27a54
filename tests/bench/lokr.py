"""LoKr adapters on the host: the engine's step beside a bare loop with the library's adapter, and every operator that the adapter adds.

Full depth and tiny width, on a bf16 base, with the adapter file that a new environment begins with.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel
from lycoris import LycorisNetwork, create_lycoris
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.bench import gpu_flux, gpu_pixart, host
from tests.bench.gpu_device import Subject
from tests.bench.gpu_flux import CLIPS, FLUX, Case
from tests.bench.host import CPU, PIXART_DEPTH, Pair
from tests.bench.table import Table
from trainer_engine.adapters.build import make_trainable
from trainer_engine.batches.loader import StepBatches
from trainer_engine.config.families import find_spec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.families.pixart_sigma.family import PixArtSigma
from trainer_engine.loop.step import Step
from trainer_engine.objectives.build import make_objective
from trainer_engine.optim.lr_schedules import Schedule
from trainer_engine.optim.optimizers import build_optimizer
from trainer_engine.optim.updates import make_update
from trainer_engine.runtime.devices import resolve_devices
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.environment import read_environment

SECTION = "lokr"
NAMED = 8
"""Operators that a row names, those that occur most."""
NARROW = {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 32, "sample_size": 8}
FLUX_NARROW = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "axes_dims_rope": (4, 6, 6),
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
}


@contextmanager
def adapter_file(family: str, bypass: bool) -> Iterator[Path]:
    """The file of a new environment, with ``bypass_mode`` as given."""
    spec = find_spec(family)
    assert spec is not None
    with tempfile.TemporaryDirectory(prefix="bench-lokr-") as folder:
        path = Path(folder) / "lycoris_config.json"
        path.write_text(json.dumps({**spec.adapters.lycoris_start, "bypass_mode": bypass}))
        yield path


def with_the_library(network: nn.Module, adapter: Path) -> tuple[nn.Module, list[nn.Parameter]]:
    """The frozen network with an adapter that LyCORIS alone has put on, in the network's type, and what is trained."""
    given = json.loads(adapter.read_text())
    preset = {"target_module": [], "target_name": [], "module_algo_map": {}, "name_algo_map": {}, **given.pop("apply_preset")}
    network.requires_grad_(False)
    LycorisNetwork.apply_preset(preset)
    names = ("linear_dim", "linear_alpha", "algo")
    made = create_lycoris(network, given.pop("multiplier"), **{name: given.pop(name) for name in names}, **given)
    made.apply_to()
    network.add_module("lycoris", made.to(network.dtype))
    return network, list(made.parameters())


@dataclass(frozen=True)
class UnderAutocast:
    """A network as ``gpu_pixart.bare_loop`` calls it, with the parameters that are trained."""

    network: nn.Module
    trained: Sequence[nn.Parameter]
    device: torch.device = CPU

    def parameters(self) -> Sequence[nn.Parameter]:
        return self.trained

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.network(*arguments, **named)


class RandomPixArt(PixArtSigma):
    """The family with a network of random weights in place of the hub's."""

    subject: Subject

    def load_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        return gpu_pixart.make_network(self.subject, False).to(dtype)

    def scheduler_config(self) -> Mapping[str, Any]:
        return gpu_pixart.NOISE


def pixart_options(adapter: Path, optimizer: str) -> TrainingOptions:
    full = gpu_pixart.options_for(batch_size=1, checkpointing=False, backend="no", clip="norm").as_values()
    changed = {"model_type": "lora", "lora_type": "lycoris", "lycoris_config": str(adapter), "optimizer": optimizer}
    return parse_options({**full, **changed})


def pixart(adapter: Path, name: str, layers: int = PIXART_DEPTH, *, optimizer: str = "adamw_bf16", rounds: int = 8, steps: int = 3) -> Pair:
    architecture = {**gpu_pixart.PIXART_900M, **NARROW, "num_layers": layers}
    subject = Subject(device=CPU, architecture=architecture, latent_edge=8, tokens=8, steps=steps, rounds=rounds)
    options = pixart_options(adapter, optimizer)
    family = RandomPixArt(options, resolve_devices(options, CPU))
    family.subject = subject
    trainable = make_trainable(family, None)
    step = Step(
        family=family,
        objective=make_objective("epsilon", gpu_pixart.NOISE, options.objective),
        devices=family.devices,
        processes=Processes(read_environment()),
        network=trainable.network,
        update=make_update(options.optimizer, [trainable.parameters], CPU),
        schedules=(Schedule(options.schedule, options.optimizer.learning_rate, options.run.max_train_steps),),
        seed=options.run.seed,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    batch, numbers = gpu_pixart.make_batch(subject, 1, 0), count()

    def engine(how_many: int) -> None:
        for _ in range(how_many):
            step.take(StepBatches(next(numbers), 0, (batch,), 1))

    network, trained = with_the_library(gpu_pixart.make_network(subject, False), adapter)
    called = cast(PixArtTransformer2DModel, UnderAutocast(network, trained))
    bare = gpu_pixart.bare_loop(called, build_optimizer(options.optimizer, trained), batch, compiled=False, clip=CLIPS["norm"])
    return Pair(f"PixArt, {layers} layers, LoKr, {name}, bf16", subject, engine, bare)


def flux(adapter: Path, name: str, double: int = 19, single: int = 38, *, rounds: int = 8, steps: int = 3) -> Pair:
    architecture = {**FLUX, **FLUX_NARROW, "num_layers": double, "num_single_layers": single}
    subject = Subject(device=CPU, architecture=architecture, latent_edge=8, tokens=8, steps=steps, rounds=rounds)
    memory = {"lora_type": "lycoris", "lycoris_config": str(adapter)}
    case = Case("no_change", compiled=False, checkpointing=False, clip="norm", memory=memory)
    engine, _ = gpu_flux.engine_steps(subject, case)
    torch.manual_seed(0)
    network, _ = with_the_library(FluxTransformer2DModel(**architecture).bfloat16(), adapter)
    bare = gpu_flux.bare_steps(subject, case, network)
    return Pair(f"Flux, {double} and {single} blocks, LoKr, {name}, bf16", subject, engine, bare)


class NamesOfOperators(TorchDispatchMode):
    """Counts the operators that reach the dispatcher, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def names_in(work: Callable[[], object]) -> Counter[str]:
    with NamesOfOperators() as seen:
        work()
    return seen.names


def added_operators(adapter: Path, layers: int = PIXART_DEPTH) -> dict[str, Counter[str]]:
    """What the engine's adapter adds to the forward pass of PixArt, by operator; its backward pass; and a step of two optimizers."""
    architecture = {**gpu_pixart.PIXART_900M, **NARROW, "num_layers": layers}
    subject = Subject(device=CPU, architecture=architecture, latent_edge=8, tokens=8, steps=1, rounds=1)
    options = pixart_options(adapter, "adamw_bf16")
    family = RandomPixArt(options, resolve_devices(options, CPU))
    family.subject = subject
    adapted = make_trainable(family, None)
    batch = gpu_pixart.make_batch(subject, 1, 0)
    base = gpu_pixart.make_network(subject, False).requires_grad_(False)

    def forward(network: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            output: Tensor = network(
                batch.latents.bfloat16(),
                encoder_hidden_states=batch.prompts["embeds"],
                encoder_attention_mask=batch.prompts["mask"],
                timestep=batch.timesteps,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                return_dict=False,
            )[0]
        return output

    forward(adapted.network).float().sum().backward()
    loss = forward(adapted.network).float().sum()
    found = {"forward": names_in(lambda: forward(adapted.network)) - names_in(lambda: forward(base))}
    found["backward"] = names_in(loss.backward)
    for name in ("adamw_bf16", "torch-adamw"):
        optimizer = build_optimizer(pixart_options(adapter, name).optimizer, adapted.parameters)
        optimizer.step()
        found[name] = names_in(optimizer.step)
    return found


def in_words(names: Counter[str]) -> str:
    most = [f"{times:,} {name}" for name, times in names.most_common(NAMED)]
    rest = names.total() - sum(times for _, times in names.most_common(NAMED))
    return f"{names.total():,}: {', '.join([*most, *([f'{rest:,} others'] if rest else [])])}"


def run(table: Table) -> None:
    for family, make in (("pixart_sigma", pixart), ("flux", flux)):
        for bypass in (True, False):
            name = "bypass" if bypass else "rebuilt weights"
            with adapter_file(family, bypass) as adapter:
                host.measure(table, partial(make, adapter, name)(), SECTION)
    for bypass in (True, False):
        with adapter_file("pixart_sigma", bypass) as adapter:
            found = added_operators(adapter)
        name = "bypass" if bypass else "rebuilt weights"
        for phase in ("forward", "backward"):
            added = "added to the forward pass" if phase == "forward" else "of the backward pass"
            table.add(SECTION, f"operators {added} (PixArt, {PIXART_DEPTH} layers, LoKr, {name}, bf16)", in_words(found[phase]))
    for optimizer in ("adamw_bf16", "torch-adamw"):
        table.add(SECTION, f"operators of {optimizer} on a CPU, the same adapter", in_words(found[optimizer]))
