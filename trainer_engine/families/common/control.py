"""Widens networks so that they see a control image as further channels of their input (the option ``control``)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer_engine.config.components import component_source
from trainer_engine.config.control import ControlSpec, width_problem
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.families.inputs import StepInputs


def fit_to_control(network: nn.Module, model: ModelOptions, spec: FamilySpec) -> None:
    """Widens a network for a run with ``control``, unless its weights are wide already; those of other runs are left alone.

    ``spec`` are the facts of the run. Raises InvalidOptions if the network has another width than the run needs.
    """
    if spec.control is None:
        return
    source, channels = component_source(model, spec, spec.components[spec.network].folder), cast("Any", network).config.in_channels
    problem = width_problem(source.option, source.name, channels, spec.control, with_control=spec.widened is not None)
    if problem:
        raise InvalidOptions([problem])
    if spec.widened and not spec.widened.is_wide(channels):
        widen(network, spec.widened)


def widen(network: nn.Module, spec: ControlSpec) -> None:
    """Doubles the input channels of a network of diffusers; its configuration states it.

    The weights of the new channels, which come last, are zero: whatever the control image shows, the prediction stays what it was.
    """
    layer, own = network.get_submodule(spec.input_layer), cast("Any", network)
    assert isinstance(layer, (nn.Linear, nn.Conv2d)), "the first layer of a network is linear or a convolution"
    weight = layer.weight
    layer.weight = nn.Parameter(torch.cat([weight.detach(), torch.zeros_like(weight)], dim=1), requires_grad=weight.requires_grad)
    name = "in_features" if isinstance(layer, nn.Linear) else "in_channels"
    setattr(layer, name, 2 * spec.channels)
    own.register_to_config(in_channels=2 * spec.channels, out_channels=own.out_channels)


def control_latents(inputs: StepInputs) -> Tensor:
    """(B, C, h, w): the scaled latents of the control images, of the shape of the noisy latents."""
    assert inputs.control is not None, "every sample of a run with control has a control image"
    return inputs.control
