"""The loss and the gradients of a family's tiny network on a fixed batch, to compare ways of computing the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import embedded, options_with, tiny_model
from trainer_engine.adapters.base import Trainable
from trainer_engine.adapters.build import make_trainable
from trainer_engine.config.families import specs
from trainer_engine.families.base import Family
from trainer_engine.families.inputs import SampleFacts, StepInputs
from trainer_engine.families.load import load_family
from trainer_engine.objectives.randomness import seed_network
from trainer_engine.runtime.devices import resolve_devices

FAMILIES = tuple(specs())
PROMPTS = ["A red circle on blue glass ", "two small stars"]
LORA = {"model_type": "lora", "lora_rank": 2, "lora_init_type": "gaussian", "lora_dropout": 0}
CPU = torch.device("cpu")


def tiny(name: str, *, model: str | None = None, **values: Any) -> Family:
    """The micro model of a family on the CPU, in float32, without gradient checkpointing unless ``values`` ask for it.

    ``model``: its folder, if it has been made already.
    """
    usual = {"gradient_checkpointing": False, "model_family": name, "pretrained_model_name_or_path": model or str(tiny_model(name))}
    options = options_with(**{**usual, **values})
    return load_family(options, resolve_devices(options, CPU))


def step_inputs(family: Family, *, height: int = 8, width: int = 12) -> StepInputs:
    """Fixed noisy latents of that many cells, timesteps and prompts, a batch of two."""
    channels, frames = family.spec.latents.channels, (1,) if family.spec.sampling.clips else ()
    facts = SampleFacts(original_size=(640, 480), crop_corner=(16, 8), target_size=(8 * width, 8 * height))
    sigmas = family.spec.objective == "flow_matching"
    return StepInputs(
        noisy_latents=torch.randn(2, channels, *frames, height, width, generator=torch.Generator().manual_seed(3)),
        timesteps=torch.tensor([0.2, 0.9]) if sigmas else torch.tensor([30, 821]),
        prompts=family.collate_prompts(embedded(family, PROMPTS)),
        conditions=family.conditions([facts, facts]),
    )


@dataclass(frozen=True)
class Pass:
    """What one forward and backward pass gives."""

    prediction: Tensor
    gradients: dict[str, Tensor]
    names: tuple[str, ...] = ()
    """Of every tensor of the network."""

    def is_close_to(self, other: Pass, *, rtol: float = 1e-4, atol: float = 1e-6) -> bool:
        """Whether the predictions and every gradient agree."""
        assert self.gradients.keys() == other.gradients.keys()
        pairs = [(self.prediction, other.prediction), *((self.gradients[name], other.gradients[name]) for name in self.gradients)]
        return all(torch.allclose(one, two, rtol=rtol, atol=atol) for one, two in pairs)


def trainable_of(family: Family) -> Trainable:
    """What the options train, with an adapter that is not zero."""
    trainable = make_trainable(family, None)
    with torch.no_grad():
        for name, parameter in trainable.named_parameters:
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.02)
    return trainable


def one_pass(family: Family, trainable: Trainable, network: nn.Module | None = None, inputs: StepInputs | None = None) -> Pass:
    """Forward and backward of the mean square of the prediction. ``network``: the wrapped one, if it is not the bare one."""
    trainable.network.zero_grad()
    seed_network(1, CPU)
    prediction = family.predict(trainable.network if network is None else network, inputs or step_inputs(family))
    prediction.float().square().mean().backward()
    gradients = {name: one.grad.clone() for name, one in trainable.named_parameters if one.grad is not None}
    return Pass(prediction.detach().clone(), gradients, tuple(trainable.network.state_dict()))


@cache
def usual_pass(name: str, **values: Any) -> Pass:
    """``one_pass`` of a family's micro model as the library computes it, once for all ways that are compared with it."""
    family = tiny(name, **values)
    return one_pass(family, trainable_of(family))


def assert_same_gradients(loss: Tensor, network: nn.Module, wanted: Tensor, theirs: nn.Module, unread: Sequence[nn.Parameter] = ()) -> None:
    """The losses of two networks agree, and so does the gradient of every parameter.

    Each has one, but for the parameters of ``network`` that no prediction depends on.
    """
    without = {id(parameter) for parameter in unread}
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    loss.backward()
    wanted.backward()
    for (name, one), other in zip(network.named_parameters(), theirs.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) == (id(one) in without), name
        if one.grad is None or other.grad is None:
            continue
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6), name
