"""Prints ``docs/activations.md``: the memory of activations of each network at its real size, measured with fake tensors, and the estimate.

A fake tensor has a shape, a type and a device, and no memory (torch's ``FakeTensorMode``): a forward and backward pass of a network of any
size takes seconds on any machine. What is counted is the storages that live at once, each of them once, beyond weights and inputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from tests.bench.network_loops import Setting, make_batch, make_family
from tests.bench.networks import Architecture, Network
from tests.bench.published import NETWORKS, architecture_of, written
from tests.bench.real_indices import RealIndices, real_masks
from tests.helpers.live_bytes import LiveBytes
from trainer_engine.adapters.build import make_trainable
from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.objectives.build import make_objective
from training.preflight.memory_table import GIB, images_of, published_run, table_options, usual_edge
from training.preflight.published_shapes import published_tensors
from training.preflight.step import step_memory

CPU = torch.device("cpu")
SMALL_EDGE = 512
FAMILIES = tuple(NETWORKS)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "activations.md"
COMMAND = "python -m tests.bench.activations > docs/activations.md"
INTRODUCTION = f"""# Activations at real size

What a training step keeps beyond its weights, for each network at the size of its published weights: measured, and as `validate` estimates
it ([memory.md](memory.md)). This page is printed by `{COMMAND}`, which takes about 20 minutes and no
GPU. With `--estimates` it keeps what was measured, and estimates again.

- The engine makes its own network, adapter, batch and prediction, of fake tensors. *Kept* is what lives when the backward pass begins;
  *most* is the largest moment of both passes, with the gradients of the trained weights. The estimate is of that moment.
- One image, prompts as long as the family takes, bfloat16 and `adamw_bf16`. Adapters of rank 16 on the family's default layers.
- *Dropout* is `lora_dropout=0.1`, the default. Each adapted layer then keeps the inputs that its dropout left, and which these are.
- Experts of a network have the same number of tokens each.

| family | weights | pixels | trained | gradient checkpointing | kept, GiB | most, GiB | estimated, GiB | estimated beside measured |
|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Case:
    """One row."""

    family: str
    flavour: str
    edge: int
    """Of the image, in pixels."""
    model_type: str
    checkpointing: bool
    dropout: float = 0.0

    @property
    def options(self) -> Mapping[str, Any]:
        return {
            "model_type": self.model_type,
            "gradient_checkpointing": self.checkpointing,
            "lora_dropout": self.dropout,
            "mixed_precision": "bf16",
            "optimizer": "adamw_bf16",
            **({"lora_rank": 16} if self.model_type == "lora" else {}),
        }

    @property
    def words(self) -> str:
        kind = "LoRA, dropout" if self.dropout else "LoRA" if self.model_type == "lora" else "full"
        title = f"{specs()[self.family].title} | `{self.flavour}`"
        return f"| {title} | {self.edge} | {kind} | {'yes' if self.checkpointing else 'no'} |"


@dataclass(frozen=True, kw_only=True)
class CaseSetting(Setting):
    """A setting with options of its own."""

    given: Mapping[str, Any]

    def options(self, network: Network) -> TrainingOptions:
        return parse_options({**super().options(network).as_values(), **self.given})


def cases(families: Iterable[str] = FAMILIES) -> Iterator[Case]:
    """Those of the default flavour, and fewer of each other shape. Flavours that are given a first frame, or see a reference in
    further channels, are left out."""
    for family in families:
        spec = specs()[family]
        for flavour in dict.fromkeys((spec.default_flavour, *(group["flavours"][0] for group in written(family)))):
            usual = usual_edge(spec, flavour)
            sees = spec.animates(flavour) or spec.edits_in_place(flavour)
            if sees or (flavour != spec.default_flavour and _is_default(spec, flavour)):
                continue
            recomputed = Case(family, flavour, usual, "lora", checkpointing=True)
            yield from (recomputed, replace(recomputed, checkpointing=False))
            if flavour == spec.default_flavour:
                yield replace(recomputed, edge=SMALL_EDGE if usual != SMALL_EDGE else 2 * SMALL_EDGE)
                yield replace(recomputed, checkpointing=False, dropout=0.1)


def _is_default(spec: FamilySpec, flavour: str) -> bool:
    """Whether the network of a flavour has the shapes of the default one."""
    return published_tensors(spec, flavour) == published_tensors(spec, spec.default_flavour)


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Every tensor that is made inside the block is fake. Modules are made where they belong, and cannot be moved.

    Dropout is computed as GPUs do: its mask has one byte for each number.
    """
    stay = mock.patch.object(nn.Module, "to", lambda module, *_, **__: module)
    fused = mock.patch.object(
        functional, "dropout", lambda numbers, p, train, _: torch.native_dropout(numbers, p, train)[0] if p else numbers
    )
    with FakeTensorMode(allow_non_fake_inputs=True), stay, fused:
        yield


def with_longest_prompts(network: Network, tokens: int) -> Network:
    """The network with prompts of so many tokens."""

    def text(architecture: Architecture) -> Mapping[str, tuple[int, ...]]:
        shapes = network.text(architecture)
        return {name: (tokens, *shape[1:]) if name in ("embeds", "mask", "slots") else shape for name, shape in shapes.items()}

    return replace(network, text=text)


def measured(case: Case) -> tuple[int, int]:
    """(bytes that live when the backward pass begins, most bytes at once), beyond weights and inputs."""
    spec, architecture = specs()[case.family], architecture_of(case.family, case.flavour)
    network = with_longest_prompts(NETWORKS[case.family], spec.tokens_of(case.flavour))
    edge = case.edge // spec.latents.scale_factor_px
    setting = CaseSetting(device=CPU, model_type=case.model_type, latent_edge=edge, precision="bf16", given=case.options)
    with fake_tensors():
        family = make_family(network, architecture, setting)
        trainable = make_trainable(family, None)
        batch = make_batch(network, architecture, setting, 0)
        objective = make_objective(family.prediction_type, network.schedule, family.options.objective)
        inputs = batch.inputs(objective.add_noise(batch.latents, batch.noise, batch.timesteps))
        inputs = replace(inputs, prompts=real_masks(inputs.prompts)) if network.reads_numbers else inputs
        with (
            RealIndices() if network.reads_numbers else nullcontext(),
            LiveBytes([*trainable.network.parameters(), *trainable.network.buffers()]) as live,
        ):
            weights = live.bytes
            loss = family.predict(trainable.network, inputs).float().square().mean()
            kept = live.bytes - weights
            loss.backward()
    return kept, live.peak - weights


def estimated(case: Case) -> int:
    """The most bytes at once that ``validate`` estimates, beyond weights and the state of the optimizer."""
    spec = specs()[case.family]
    options = table_options(spec, case.flavour, case.options)
    held = step_memory(published_run(spec, case.flavour, options), images_of(case.edge, options))
    return held.gradients + held.activations - held.freed


def row(case: Case, kept: float, most: float) -> str:
    """``kept`` and ``most``: what was measured, in GiB."""
    estimate = estimated(case) / GIB
    return f"{case.words} {kept:.3f} | {most:.3f} | {estimate:.3f} | {100 * estimate / most:.0f} % |"


def rows_on(page: Path) -> dict[Case, tuple[float, float]]:
    """What the page says was measured of each case, in GiB."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found = {case: next((line for line in lines if line.startswith(case.words)), "") for case in cases()}
    cells = {case: line.removeprefix(case.words).split(" | ") for case, line in found.items() if line}
    return {case: (float(kept), float(most)) for case, (kept, most, *_) in cells.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.activations")
    parser.add_argument("families", nargs="*", default=list(FAMILIES), help="families to measure (default: all)")
    parser.add_argument("--estimates", action="store_true", help="keep what the page says was measured, and estimate again")
    arguments = parser.parse_args()
    print(INTRODUCTION, end="", flush=True)
    known = rows_on(PAGE) if arguments.estimates else {}
    for case in cases(arguments.families):
        kept, most = known.get(case) or (number / GIB for number in measured(case))
        print(row(case, kept, most), flush=True)


if __name__ == "__main__":
    main()
