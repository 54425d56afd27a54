"""Adapters that were trained before and that only validation images use: attached to the network inside a block.

It hangs in forward hooks, which add to what a layer answers: no module, parameter or buffer of the network is touched, and whatever
else is trained there, or quantised, stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer_engine.config.adapters.validation_adapter import USUAL_FILE, ValidationAdapterRun, ValidationAdapterSource, hub_file
from trainer_engine.config.lycoris.algorithms import algorithms_in
from trainer_engine.contract.errors import InvalidOptions, ModelUnavailable, Problem
from trainer_engine.export.adapter_file import AdapterTensors, kind_of, read_adapter, read_metadata
from trainer_engine.export.conversion import DORA, DOWN, UP, Tensors, alpha_of, lora_parts, scaled_lokr
from trainer_engine.weights.hub import Source, find_file

BY_TIMESTEP = "tlora"
KNOWN_PARTS: Mapping[str, frozenset[str]] = {
    "lora": frozenset((*DOWN, *UP, "alpha")),
    "lokr": frozenset(("alpha", *(f"lokr_{factor}{part}" for factor in ("w1", "w2") for part in ("", "_a", "_b")))),
    "loha": frozenset(("alpha", *(f"hada_{factor}_{part}" for factor in ("w1", "w2") for part in "ab"))),
    "full": frozenset(("alpha", "diff", "diff_b")),
}
"""Algorithm -> the tensors of a module whose meaning is known here; any other would change the images and be missed."""
KINDS = "LoRA, LoKr, LoHa or full differences on linear layers"


@dataclass(frozen=True)
class LayerChange:
    """What the adapter adds to the answer of one layer."""

    factors: tuple[Tensor, ...]
    answer: Callable[..., Tensor]
    """(input (..., in), *factors) -> (..., out)"""
    scale: float
    out_features: int
    in_features: int


@dataclass(frozen=True)
class ValidationAdapter:
    """Adapters that one image is generated with; their tensors stay in host memory until then."""

    label: str
    changes: Sequence[tuple[nn.Module, LayerChange, float]]
    """(layer, what is added there, how much of it)"""
    device: torch.device
    dtype: torch.dtype
    """Type of the arithmetic."""

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The network answers with the adapters inside the block, and as before once it ends, however it ends."""
        with ExitStack() as hooks:
            for layer, change, strength in self.changes:
                handle = layer.register_forward_hook(self.hook(change, partial(float, strength)))
                hooks.callback(handle.remove)
            yield

    def hook(self, change: LayerChange, strength: Callable[[], float]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        """A forward hook that adds a change to what a layer answers, as much of it as ``strength`` says at each call."""
        factors = [factor.to(self.device, self.dtype) for factor in change.factors]

        def add(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            amount = strength() * change.scale
            if not amount:
                return output
            return output + (amount * change.answer(inputs[0].to(factors[0].dtype), *factors)).to(output.dtype)

        return add


def load_validation_adapters(
    network: nn.Module,
    runs: Sequence[ValidationAdapterRun],
    device: torch.device,
    dtype: torch.dtype,
    prefixes: Mapping[str, str] | None = None,
) -> list[ValidationAdapter]:
    """Read the adapters of runs for a network, whatever is trained in that; a file once, however many runs it is in.

    ``prefixes`` are the ``key_prefixes`` of the family.

    Raises InvalidOptions with every adapter that does not fit, and ModelUnavailable where the hub does not hand one out.
    """
    read: dict[str, Mapping[nn.Module, LayerChange]] = {}
    problems: list[Problem] = []
    for source in (source for run in runs for source in run.sources if source.path not in read):
        try:
            read[source.path] = _read(network, source, prefixes)
        except InvalidOptions as error:
            problems += error.problems
    if problems:
        raise InvalidOptions(problems)
    return [
        ValidationAdapter(
            run.label,
            [(layer, change, source.strength) for source in run.sources for layer, change in read[source.path].items()],
            device,
            dtype,
        )
        for run in runs
    ]


def _read(network: nn.Module, source: ValidationAdapterSource, prefixes: Mapping[str, str] | None) -> Mapping[nn.Module, LayerChange]:
    file = _find(source)
    try:
        if BY_TIMESTEP in algorithms_in(json.loads(read_metadata(file).get("lycoris_config") or "{}")):
            raise ModelUnavailable(f"{file.name} is a T-LoRA: how much of it counts depends on the timestep.")
        adapter = read_adapter(file, (name for name, _ in network.named_modules()), prefixes)
        return {network.get_submodule(name): _change(adapter, name, network.get_submodule(name)) for name in adapter.modules}
    except ModelUnavailable as error:
        raise _refused("does_not_fit", error.message, source) from error
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise _refused("does_not_fit", f"{file.name} is not understood: {error}", source) from error


def _find(source: ValidationAdapterSource) -> Path:
    place, there = Path(source.path).expanduser(), hub_file(source.path)
    if place.is_dir() and not (place / USUAL_FILE).is_file():
        raise _refused("not_found", f"The folder {place} holds no {USUAL_FILE}.", source)
    if place.exists():
        return place / USUAL_FILE if place.is_dir() else place
    if there is None:
        raise _refused("not_found", f"There is no file {source.path}.", source)
    return find_file(Source(there.repository), there.file)


def _refused(code: str, message: str, source: ValidationAdapterSource) -> InvalidOptions:
    expected = f"an adapter of this base model: {KINDS}"
    return InvalidOptions([Problem.error(source.place, code, message, got=source.path, expected=expected)])


def _change(adapter: AdapterTensors, name: str, layer: nn.Module) -> LayerChange:
    """Raises ModelUnavailable where the tensors are of another layer, or of an algorithm that is not known here."""
    tensors, kind = adapter.modules[name], kind_of(adapter.modules[name])
    strange = sorted(set(tensors) - KNOWN_PARTS.get(kind, frozenset()))
    if set(strange) & set(DORA):
        raise ModelUnavailable(f"{adapter.path.name} is weight-decomposed (DoRA): it fits only the weights that it was trained on.")
    if kind not in KNOWN_PARTS or strange:
        raise ModelUnavailable(f"The algorithm of {name} in {adapter.path.name} ({', '.join(strange[:3])}) cannot be added to a layer.")
    found = MAKERS[kind](adapter, name, tensors)
    wanted = getattr(layer, "out_features", None), getattr(layer, "in_features", None)
    if (found.out_features, found.in_features) != wanted:
        sizes = "x".join(map(str, wanted)) if None not in wanted else f"a {type(layer).__name__}, not linear"
        message = f"{adapter.path.name} changes {name} as a layer of {found.out_features}x{found.in_features}; here it is {sizes}."
        raise ModelUnavailable(message)
    return found


def _lora(adapter: AdapterTensors, name: str, tensors: Tensors) -> LayerChange:
    if not (set(DOWN) & set(tensors) and set(UP) & set(tensors)):
        raise ModelUnavailable(f"{adapter.path.name} holds only one of the two matrices of {name}.")
    down, up, alpha = lora_parts(adapter, name, tensors)
    if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1]:
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise ModelUnavailable(f"The matrices of {name} in {adapter.path.name}, {shapes}, are not of one rank.")
    stabilised = adapter.peft_config(name)[0].get("use_rslora")
    scale = alpha / (len(down) ** 0.5 if stabilised else len(down))
    return LayerChange((down, up), _low_rank, scale, len(up), down.shape[1])


def _lokr(adapter: AdapterTensors, name: str, tensors: Tensors) -> LayerChange:
    parts = scaled_lokr(tensors, adapter.multiplier)
    left, right = (
        parts[factor] if factor in parts else parts[f"{factor}_a"].float() @ parts[f"{factor}_b"].float()
        for factor in ("lokr_w1", "lokr_w2")
    )
    return LayerChange((left, right), _kronecker, 1.0, len(left) * len(right), left.shape[1] * right.shape[1])


def _loha(adapter: AdapterTensors, name: str, tensors: Tensors) -> LayerChange:
    up_1, down_1, up_2, down_2 = (tensors[f"hada_{part}"] for part in ("w1_a", "w1_b", "w2_a", "w2_b"))
    scale = alpha_of(adapter, name, tensors, len(down_1)) / len(down_1)
    return LayerChange((up_1, down_1, up_2, down_2), _hadamard, scale, len(up_1), down_1.shape[1])


def _full(adapter: AdapterTensors, name: str, tensors: Tensors) -> LayerChange:
    whole = tensors["diff"]
    factors = (whole, tensors["diff_b"]) if "diff_b" in tensors else (whole,)
    return LayerChange(factors, functional.linear, adapter.multiplier, len(whole), whole[0].numel() if whole.ndim == 2 else 0)


MAKERS: Mapping[str, Callable[[AdapterTensors, str, Tensors], LayerChange]] = {"lora": _lora, "lokr": _lokr, "loha": _loha, "full": _full}


def _low_rank(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """(up down) x, with down (r, in) and up (out, r)."""
    return functional.linear(functional.linear(x, down), up)


def _kronecker(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(left ⊗ right) x without ever making the product: with x as a matrix X, left X rightᵀ."""
    table = x.unflatten(-1, (left.shape[1], right.shape[1]))
    return torch.matmul(left, functional.linear(table, right)).flatten(-2)


def _hadamard(x: Tensor, up_1: Tensor, down_1: Tensor, up_2: Tensor, down_2: Tensor) -> Tensor:
    """((up_1 down_1) * (up_2 down_2)) x, the product in the middle element by element."""
    return functional.linear(x, (up_1 @ down_1) * (up_2 @ down_2))
