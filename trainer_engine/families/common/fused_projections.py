"""Computes the projections of attention that have the same input as one multiplication.

diffusers fuses by additional layers beside the old ones: training would change the new ones, and files and adapters would keep the old.
Here the layers and their weights stay, and only their multiplications are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROJECTIONS = (("to_q", "to_k", "to_v"), ("to_query", "to_key", "to_value"))
"""Names of the projections to queries, keys and values, as networks have them."""
CROSS = "cross"
"""What the name of an attention layer begins with that attends to the prompt, if its class does not say so."""
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


def fuse_projections(network: nn.Module) -> None:
    """Join the projections of each attention layer. Quantised layers, and those of other shapes, stay as they are."""
    for name, module in network.named_modules():
        for names in _groups(name, module):
            linears = [getattr(module, name) for name in names]
            if _can_be_joined(linears):
                _Joined(linears)


def _groups(place: str, module: nn.Module) -> Iterator[Sequence[str]]:
    """The names of projections of an attention layer that have the same input. ``place``: the layer's own name."""
    for names in PROJECTIONS:
        if all(isinstance(getattr(module, name, None), nn.Module) for name in names):
            crosses = getattr(module, "is_cross_attention", place.rpartition(".")[2].startswith(CROSS))
            yield names[1:] if crosses else names
    added = [name for name in ADDED if isinstance(getattr(module, name, None), nn.Module)]
    if len(added) > 1:
        yield added


def _can_be_joined(linears: Sequence[nn.Module]) -> bool:
    if not all(type(linear) is nn.Linear and type(linear.weight) is nn.Parameter for linear in linears):
        return False
    kinds = {(one.in_features, one.weight.dtype, one.weight.device, one.bias is None) for one in linears if isinstance(one, nn.Linear)}
    return len(kinds) == 1


class _Joined:
    """Linear layers with the same input: the first one that is called computes all of them, the others take their part."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self.linears = linears
        self.sizes = [linear.out_features for linear in linears]
        self.input: Tensor | None = None
        self.outputs: list[Tensor | None] = []
        if not any(linear.weight.requires_grad for linear in linears):
            _place_together([linear.weight for linear in linears])
        for number, linear in enumerate(linears):
            linear.forward = self._part(number)  # type: ignore[method-assign, assignment]

    def _part(self, number: int) -> Callable[[Tensor], Tensor]:
        def forward(tokens: Tensor) -> Tensor:
            """(..., in) -> (..., out) of one layer."""
            output = self.outputs[number] if self.input is tokens else None
            if output is None:
                self.outputs = list(self._computed(tokens))
                self.input, output = tokens, self.outputs[number]
            self.outputs[number] = None
            if all(one is None for one in self.outputs):
                self.input = None
            assert output is not None
            return output

        return forward

    def _computed(self, tokens: Tensor) -> tuple[Tensor, ...]:
        weight = _together([linear.weight for linear in self.linears])
        bias = torch.cat([linear.bias for linear in self.linears]) if self.linears[0].bias is not None else None
        return torch.split(F.linear(tokens, weight, bias), self.sizes, dim=-1)


def _place_together(weights: Sequence[Tensor]) -> None:
    """Give frozen weights one piece of memory, in order, so that their matrix is there without a copy."""
    joined = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, joined.split([len(weight) for weight in weights]), strict=True):
        weight.data = part


def _together(weights: Sequence[Tensor]) -> Tensor:
    """(out of all, in): a view of weights that lie together, else a copy, through which gradients reach each weight.

    NOTE: where weights lie is looked at in every pass: whoever moves a weight away, to offload it for example, breaks nothing.
    """
    first = weights[0]
    if torch.compiler.is_compiling() or any(weight.requires_grad for weight in weights):
        return torch.cat(list(weights))
    address = first.data_ptr()
    for weight in weights:
        if weight.data_ptr() != address or not weight.is_contiguous():
            return torch.cat(list(weights))
        address += weight.nbytes
    rows = sum(len(weight) for weight in weights)
    return first.detach().as_strided((rows, first.shape[1]), (first.shape[1], 1))
