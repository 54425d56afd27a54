"""Frozen weights in fewer bits, with optimum-quanto. They are never written back: a run quantises what it loaded, each time anew."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from optimum.quanto import freeze, qfloat8, qint2, qint4, qint8, quantize
from torch import nn

PRESETS: Mapping[str, object] = {"int8-quanto": qint8, "int4-quanto": qint4, "int2-quanto": qint2, "fp8-quanto": qfloat8}
"""``base_model_precision`` and ``text_encoder_N_precision`` -> type of the weights of linear layers and convolutions."""


def is_quantised(preset: str) -> bool:
    return preset in PRESETS


def quantise(module: nn.Module, preset: str, device: torch.device, *, on_cpu: bool) -> None:
    """Replace the weights of every linear layer and convolution, and bring the module to ``device``.

    Layer by layer, so that the device never holds the whole module unquantised; ``on_cpu`` computes on the CPU. Nothing of it learns.
    """
    module.requires_grad_(False)
    layers = [name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    for name in layers:
        parent, _, own = name.rpartition(".")
        holder = module.get_submodule(parent)
        if not on_cpu:
            getattr(holder, own).to(device)
        alone = nn.Module()
        alone.add_module(own, getattr(holder, own))
        quantize(alone, weights=PRESETS[preset])
        freeze(alone)
        setattr(holder, own, getattr(alone, own))
    module.to(device)
