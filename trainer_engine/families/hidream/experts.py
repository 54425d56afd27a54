"""The mixtures of experts of HiDream-I1: gradients through them, and how evenly they are used."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import HiDreamImageTransformer2DModel
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU, MoEGate
from torch import Tensor, nn

MIXTURES = (MOEFeedForwardSwiGLU, MoEGate)


def make_trainable(network: HiDreamImageTransformer2DModel) -> None:
    """Lets a network in training mode compute with gradients through its experts, whatever its configuration says.

    ``force_inference_output`` is for networks that only generate: diffusers then computes the experts without gradients.
    """
    network.register_to_config(force_inference_output=False)
    for module in network.modules():
        if isinstance(module, MIXTURES):
            module._force_inference_output = False


class Balance:
    """How unevenly the tokens of a batch are spread over the experts, as ``MoEGate`` of diffusers computes and drops it.

    For each block with experts it is N sum_i f_i P_i: of N experts, expert i is chosen for the share f_i of the choices and has the mean
    score P_i (Fedus et al., 2022, "Switch Transformers", eq. 4). It is 1 if all are used evenly.
    """

    def __init__(self, network: nn.Module, weight: float) -> None:
        """``weight``: the factor of the sum over all blocks."""
        self._losses: dict[nn.Module, Tensor] = {}
        for module in network.modules():
            if isinstance(module, MoEGate):
                module.alpha = weight
                module.register_forward_hook(self._keep)

    def _keep(self, gate: nn.Module, _: Any, output: tuple[Tensor, Tensor, Tensor | None]) -> None:
        # A block that the backward pass computes again has the same value, which nobody asks for then.
        loss = output[2]
        if loss is not None and torch.is_grad_enabled():
            self._losses[gate] = loss

    def clear(self) -> None:
        self._losses = {}

    def take(self) -> Tensor | None:
        """The sum over the blocks of the last prediction with gradients; None if there was none."""
        losses, self._losses = list(self._losses.values()), {}
        return torch.stack(losses).sum() if losses else None


def image_of(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, C, S, patch^2), what a network in training mode returns -> (B, C, h, w). Tokens of padding come last.

    ``height`` and ``width`` in latent cells.
    """
    batch, channels, _, cells = tokens.shape
    edge = int(cells**0.5)
    rows, columns = height // edge, width // edge
    squares = tokens[:, :, : rows * columns].reshape(batch, channels, rows, columns, edge, edge)
    return squares.permute(0, 1, 2, 4, 3, 5).reshape(batch, channels, height, width)
