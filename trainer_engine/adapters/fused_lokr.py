"""Calls LoKr layers with fewer operators than the library does, and the same result.

In small networks and batches a step takes as long as its operators take to launch, and an adapter of hundreds of layers has most of them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lycoris.functional.lokr import kron_bypass
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fuse(lora: LokrModule) -> None:
    """Replace the two ways in which the library computes a layer, where the layer has nothing that they are needed for.

    - ``bypass_mode``: the output is not multiplied by the constant 1, which costs a product, its gradient and a conversion.
    - else: the input is multiplied by the sum of both weights, once. The library multiplies it by the weight of the layer and by what the
      adapter adds to it, which takes two products forward and two more for the gradient of the input.

    A layer with a trained scalar, or of another class, is computed by the library.
    """
    if isinstance(lora.scalar, nn.Parameter):
        return
    if lora.bypass_mode and lora.module_type == "linear":
        lora.bypass_forward_diff = partial(_added_to_output, lora)
    elif not lora.bypass_mode and _is_plain(lora):
        lora._rebuild_forward = partial(_in_one_product, lora, lora._rebuild_forward)


def _is_plain(lora: LokrModule) -> bool:
    """Whether the layer is computed by its class alone, from a weight that is an ordinary tensor."""
    layer = lora.org_module[0]
    is_own = getattr(lora.org_forward, "__func__", None) is type(layer).forward
    is_zero_padded = getattr(layer, "padding_mode", "zeros") == "zeros"
    return type(layer) in PLAIN and is_own and is_zero_padded and type(layer.weight) is nn.Parameter


def _added_to_output(lora: LokrModule, inputs: Tensor, scale: float = 1.0) -> Tensor:
    """What the adapter adds to the output (..., out) of a linear layer for ``inputs`` (..., in)."""
    names = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
    factors = (getattr(lora, name, None) for name in names)
    cast = [None if factor is None else factor.to(inputs.device, inputs.dtype) for factor in factors]
    added: Tensor = lora.drop(kron_bypass(inputs, *cast, None, scale=lora.scale * scale))
    return added


def _in_one_product(lora: LokrModule, by_the_library: Any, inputs: Tensor, *arguments: Any, **named: Any) -> Tensor:
    """The output of a layer whose weight is the sum of its own and the adapter's.

    Where autocast would convert the sum, what is added could fall below the precision of the type: the library converts both apart.
    """
    layer = lora.org_module[0]
    weight = layer.weight.detach() if layer.weight.requires_grad else layer.weight
    device = inputs.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != weight.dtype:
        return torch.as_tensor(by_the_library(inputs, *arguments, **named))
    added = lora.get_weight(lora.shape).to(weight.dtype)
    if lora.wd:
        weight = lora.apply_weight_decompose(weight + added, lora.multiplier)
    else:
        weight = torch.add(weight, added, alpha=lora.multiplier)
    output: Tensor = lora.op(inputs, weight, layer.bias, **lora.kw_dict)
    return output
