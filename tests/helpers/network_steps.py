"""Steps of the micro model of every family, for comparisons bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.helpers.models import embedded, options_with, tiny_model
from trainer_engine.adapters.build import make_trainable
from trainer_engine.config.families import specs
from trainer_engine.families.base import Family
from trainer_engine.families.inputs import SampleFacts, StepInputs
from trainer_engine.families.load import load_family
from trainer_engine.runtime.devices import resolve_devices

FAMILIES = sorted(specs())


@dataclass
class Step:
    """What one step computes."""

    loss: float
    gradients: dict[str, Tensor]


def family_of(name: str, **values: Any) -> Family:
    """A family on the CPU, with its micro model."""
    options = options_with(model_family=name, pretrained_model_name_or_path=str(tiny_model(name)), **values)
    return load_family(options, resolve_devices(options, torch.device("cpu")))


def step_inputs(family: Family) -> StepInputs:
    """Random inputs of a step; the same for the same family."""
    generator = torch.Generator().manual_seed(3)
    prompts = embedded(family, ["one picture", "another one of a longer name"])
    pixels = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    latents = family.encode_images(pixels)
    is_flow = family.spec.objective == "flow_matching"
    facts = [SampleFacts(original_size=(64, 64), crop_corner=(0, 0), target_size=(64, 64))] * 2
    return StepInputs(
        noisy_latents=torch.randn(latents.shape, generator=generator),
        timesteps=torch.tensor([0.3, 0.8]) if is_flow else torch.tensor([100, 700]),
        prompts=family.collate_prompts(prompts),
        conditions=family.conditions(facts),
    )


def loss_of(family: Family, *, steps: int = 1) -> Step:
    """The last of some equal steps; what is random inside the network, such as dropout, is seeded."""
    inputs, trainable = step_inputs(family), make_trainable(family, None)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter in trainable.parameters:  # an adapter starts with zeros, which hide errors in what is below it
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    loss = torch.zeros(())
    for _ in range(steps):
        for parameter in trainable.parameters:
            parameter.grad = None
        torch.manual_seed(11)
        loss = family.predict(trainable.network, inputs).float().square().mean()
        loss.backward()
    return Step(
        float(loss.detach()), {name: parameter.grad for name, parameter in trainable.named_parameters if parameter.grad is not None}
    )


@cache
def usual_step(name: str, **values: Any) -> Step:
    """``loss_of`` a family's micro model, once for all ways of computing it that are compared with it."""
    return loss_of(family_of(name, **values))
