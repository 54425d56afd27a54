"""A LoRA beside its definition: at each of its layers in a bare network of diffusers, a product of two matrices is added to the output."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import fixed
from trainer_engine.adapters.base import Trainable
from trainer_engine.families.modules import unmap_weights

RANK, SCALE = 3, 2
"""The rank of ``LORA``, and its alpha over the rank."""
LORA = {"model_type": "lora", "lora_rank": RANK, "lora_alpha": SCALE * RANK, "lora_dropout": 0}


def placed_beside(trainable: Trainable, theirs: nn.Module) -> dict[str, Tensor]:
    """Fill an adapter with numbers, and place copies of its matrices in a network that PEFT has not touched.

    Returns the copies, by the names of the parameters. They alone have gradients in ``theirs``.
    """
    theirs.requires_grad_(False)
    unmap_weights(theirs)
    copies: dict[str, Tensor] = {}
    for number, (name, parameter) in enumerate(trainable.named_parameters):
        with torch.no_grad():
            parameter.copy_(fixed(*parameter.shape, seed=number) * 0.1)
        copies[name] = parameter.detach().clone().requires_grad_()
    for name, down in copies.items():
        layer, found, rest = name.partition(".lora_A")
        if found:
            up = copies[f"{layer}.lora_B{rest}"]
            theirs.get_submodule(layer).register_forward_hook(
                lambda _, args, output, down=down, up=up: output + SCALE * (args[0] @ down.T) @ up.T
            )
    return copies


def assert_adapter_is_its_definition(
    trainable: Trainable, theirs: nn.Module, losses: Callable[[nn.Module, nn.Module], tuple[Tensor, Tensor]]
) -> None:
    """The loss and the gradient of each matrix of an adapter of ``LORA`` are those that its definition gives.

    ``theirs``: the same network, as diffusers makes it. ``losses``: from the network of the adapter and from ``theirs``, each computed
    its own way.
    """
    copies = placed_beside(trainable, theirs)
    loss, wanted = losses(trainable.network, theirs)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    loss.backward()
    wanted.backward()
    read = {name for name, copy in copies.items() if copy.grad is not None and copy.grad.any()}
    assert len(read) > len(copies) / 2 >= 2, "blocks for references have no part in a loss without one"
    for name, parameter in trainable.named_parameters:
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert bool(found.any()) is (name in read), name
        if name in read:
            torch.testing.assert_close(found, copies[name].grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
