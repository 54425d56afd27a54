"""Quantises frozen weights. They are never saved: each run quantises the weights that it loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.precisions import PRECISIONS, QUANTISED, Precision
from trainer_engine.config.sdnq_settings import settings_of
from trainer_engine.runtime.devices import ran_out_of_memory
from trainer_engine.weights.layer_trial import Trial, shape_of
from trainer_engine.weights.quantised.bnb import Bitsandbytes
from trainer_engine.weights.quantised.layer import Float8, Library
from trainer_engine.weights.quantised.quanto import Quanto
from trainer_engine.weights.quantised.sdnq_types import Sdnq
from trainer_engine.weights.quantised.torchao_types import Torchao

MAX_LISTED = 8
LIBRARIES: Mapping[str, Callable[[TrainingOptions], Library]] = MappingProxyType(
    {
        "quanto": lambda options: Quanto(),
        "torchao": lambda options: Torchao(),
        "bnb": lambda options: Bitsandbytes(),
        "float8": lambda options: Float8(),
        "sdnq": lambda options: Sdnq(settings_of(options.sdnq), options.run.seed),
    }
)
"""``Precision.library`` -> the library with the options of a run. Each imports its packages when it quantises its first layer."""


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

    row: Precision
    library: Library
    device: torch.device
    on_cpu: bool = False
    """Whether weights are quantised on the CPU before they are moved to ``device``."""
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    """The context in which the module computes."""
    compute: torch.dtype | None = None
    """Type of the arithmetic inside ``autocast``; None means the type of the weights."""

    def apply(self, module: nn.Module) -> list[ExactLayers]:
        """Quantise every layer that the library takes, move the module to ``device``, and return the layers that were not quantised.

        Works layer by layer, so that the device never holds the complete module unquantised. The first layer of each shape is compared
        with its original weights, because a kernel may refuse a shape or compute wrong values.
        """
        module.requires_grad_(False)
        tried: dict[str, str] = {}
        exact: dict[str, ExactLayers] = {}
        for name in [name for name, layer in module.named_modules() if isinstance(layer, self.library.layers)]:
            if self.library.keeps(name):
                continue
            parent, _, own = name.rpartition(".")
            holder = module.get_submodule(parent)
            layer: Any = getattr(holder, own)
            shape = " ".join(filter(None, (shape_of(layer), self.library.variant(name))))
            if shape in tried and not tried[shape]:
                setattr(holder, own, self._quantised(name, layer))
                continue
            if shape not in tried:
                chosen, tried[shape] = self._tried(name, layer)
                setattr(holder, own, chosen)
            if tried[shape]:
                kept = exact.setdefault(shape, ExactLayers(shape, tried[shape]))
                kept.count += 1
                kept.nbytes += layer.weight.nbytes
        module.to(self.device)
        return list(exact.values())

    def _quantised(self, name: str, layer: Any) -> nn.Module:
        return self.library.quantised(name, layer if self.on_cpu else layer.to(self.device), self.row)

    def _tried(self, name: str, layer: Any) -> tuple[nn.Module, str]:
        """(layer to use, fault of the quantised layer or an empty text)."""
        inputs = self._input_types(layer)
        fault = self.library.fault_before(layer, self.row, self.device, inputs)
        if fault:
            return layer, fault
        parameters = dict(layer.named_parameters())  # a library may take them from the layer that it replaces
        try:
            made = self._quantised(name, layer).to(self.device)
            fault = Trial(layer, parameters, inputs, self.device, self.autocast).fault_of(made, self.library.dequantised(made))
        except (RuntimeError, ValueError, TypeError, AssertionError, ImportError) as error:
            if ran_out_of_memory(error):
                raise
            fault = f"{type(error).__name__}: {error}".partition("\n")[0]
        for own, parameter in parameters.items():
            setattr(layer, own, parameter)
        return (layer, fault) if fault else (made, "")

    def _input_types(self, layer: Any) -> tuple[torch.dtype, ...]:
        """Number types of a layer's inputs: that of its weights, and that of the arithmetic if it differs."""
        return tuple(dict.fromkeys((layer.weight.dtype, self.compute or layer.weight.dtype)))


def is_quantised(preset: str) -> bool:
    return preset in QUANTISED


def quantiser(preset: str, options: TrainingOptions, device: torch.device, **how: Any) -> Quantiser:
    """The quantiser of a type in ``QUANTISED``. ``how``: the further fields of ``Quantiser``."""
    row = PRECISIONS[preset]
    return Quantiser(row, LIBRARIES[row.library](options), device, options.precision.quantize_via == "cpu", **how)


def exact_layers_message(module: str, preset: str, layers: Sequence[ExactLayers]) -> str:
    """A message that names the layers that were not quantised."""
    count, nbytes = sum(one.count for one in layers), sum(one.nbytes for one in layers)
    each = "; ".join(f"{one.count} of {one.shape}, {one.nbytes:,} bytes ({one.fault})" for one in layers[:MAX_LISTED])
    more = f"; and {len(layers) - MAX_LISTED} more shapes" if len(layers) > MAX_LISTED else ""
    return f"{count} layers of the {module} keep their own weights, {nbytes:,} bytes: {preset} computes them wrongly here. {each}{more}."
