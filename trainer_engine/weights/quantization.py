"""Quantises frozen weights with optimum-quanto. They are never saved: each run quantises the weights that it loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from trainer_engine.config.precisions import PRECISIONS, QUANTISED
from trainer_engine.runtime.devices import ran_out_of_memory
from trainer_engine.weights.layer_trial import Layer, fault_of, kernel_fault, shape_of

MAX_LISTED = 8


@dataclass
class ExactLayers:
    """Layers of one shape that are not quantised, because their quantised form computes wrong values."""

    shape: str
    fault: str
    count: int = 0
    nbytes: int = 0
    """Size of their weights."""


@dataclass(frozen=True)
class Quantiser:
    """Quantises the layers of a module, which is frozen afterwards."""

    preset: str
    device: torch.device
    on_cpu: bool = False
    """Whether weights are quantised on the CPU before they are moved to ``device``."""
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    """The context in which the module computes."""
    compute: torch.dtype | None = None
    """Type of the arithmetic inside ``autocast``; None means the type of the weights."""

    def apply(self, module: nn.Module) -> list[ExactLayers]:
        """Quantise every linear layer and convolution, move the module to ``device``, and return the layers that were not quantised.

        Works layer by layer, so that the device never holds the complete module unquantised. The first layer of each shape is compared
        with its original weights, because a kernel may refuse a shape or compute wrong values.
        """
        module.requires_grad_(False)
        tried: dict[str, str] = {}
        exact: dict[str, ExactLayers] = {}
        for name in [name for name, layer in module.named_modules() if isinstance(layer, Layer)]:
            parent, _, own = name.rpartition(".")
            holder = module.get_submodule(parent)
            layer: nn.Linear | nn.Conv2d = getattr(holder, own)
            shape = shape_of(layer)
            if shape in tried and not tried[shape]:
                setattr(holder, own, self._quantised(own, layer))
                continue
            if shape not in tried:
                chosen, tried[shape] = self._tried(own, layer)
                setattr(holder, own, chosen)
            if tried[shape]:
                kept = exact.setdefault(shape, ExactLayers(shape, tried[shape]))
                kept.count += 1
                kept.nbytes += layer.weight.nbytes
        module.to(self.device)
        return list(exact.values())

    def _quantised(self, name: str, layer: nn.Module) -> nn.Module:
        from optimum.quanto import freeze, qtypes, quantize

        alone = nn.Module()
        alone.add_module(name, layer if self.on_cpu else layer.to(self.device))
        quantize(alone, weights=qtypes[PRECISIONS[self.preset].library_name])
        freeze(alone)
        quantised: nn.Module = getattr(alone, name)
        return quantised

    def _tried(self, name: str, layer: nn.Linear | nn.Conv2d) -> tuple[nn.Module, str]:
        """(layer to use, fault of the quantised layer or an empty text)."""
        inputs = self._input_types(layer)
        fault = kernel_fault(layer, self.preset, self.device, inputs)
        if fault:
            return layer, fault
        parameters = dict(layer.named_parameters())  # quanto takes them from the layer that it replaces
        try:
            made = self._quantised(name, layer).to(self.device)
            fault = fault_of(made, layer, parameters, inputs, self.device, self.autocast)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            if ran_out_of_memory(error):
                raise
            fault = f"{type(error).__name__}: {error}".partition("\n")[0]
        for own, parameter in parameters.items():
            setattr(layer, own, parameter)
        return (layer, fault) if fault else (made, "")

    def _input_types(self, layer: nn.Linear | nn.Conv2d) -> Sequence[torch.dtype]:
        """Number types of a layer's inputs: that of its weights, and that of the arithmetic if it differs."""
        return tuple(dict.fromkeys((layer.weight.dtype, self.compute or layer.weight.dtype)))


def is_quantised(preset: str) -> bool:
    return preset in QUANTISED


def exact_layers_message(module: str, preset: str, layers: Sequence[ExactLayers]) -> str:
    """A message that names the layers that were not quantised."""
    count, nbytes = sum(one.count for one in layers), sum(one.nbytes for one in layers)
    each = "; ".join(f"{one.count} of {one.shape}, {one.nbytes:,} bytes ({one.fault})" for one in layers[:MAX_LISTED])
    more = f"; and {len(layers) - MAX_LISTED} more shapes" if len(layers) > MAX_LISTED else ""
    return f"{count} layers of the {module} keep their own weights, {nbytes:,} bytes: {preset} computes them wrongly here. {each}{more}."
