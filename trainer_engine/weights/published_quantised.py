"""Loads weights that their publisher has quantised, which diffusers and transformers would read as if they had no scales.

Two layouts are known. The 8-bit one holds a linear layer as ``NAME.weight`` (out, in) in float8_e4m3fn and ``NAME.weight_scale`` (out,)
in float32; the weight is their product. The 4-bit one is that of bitsandbytes (Dettmers et al., 2023): two codes a byte in
``NAME.weight``, and beside it the values of the codes, the largest number of each block of weights, and a JSON text with sizes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn

from trainer_engine.config.model_files import QUANTISER
from trainer_engine.config.published_quantised import QUANT_STATE, SCALE, is_published_quantised
from trainer_engine.contract.files import read_small_json
from trainer_engine.weights.hub import Part, loading, refuse_gaps

BESIDE = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
"""Tensors beside a weight in the layout of bitsandbytes."""
Renaming = Callable[[str, Tensor], Mapping[str, Tensor]]
"""(name of a tensor, its values) -> the tensors that the module has in its place."""


def is_quantised_part(part: Part) -> bool:
    """Whether the weights of a component are quantised in one of these layouts. Raises ModelUnavailable."""
    with loading(part, reads_quantised=True):
        return any(is_published_quantised(_names(part, number)) for number in range(len(part.weights())))


def load_dequantised(make: Callable[[Mapping[str, Any]], nn.Module], part: Part, dtype: torch.dtype, rename: Renaming) -> nn.Module:
    """The module that ``make`` builds of its ``config.json``, in evaluation mode, with the dequantised weights in ``dtype``.

    Tensors that the module does not have are left out. Raises ModelUnavailable, also for weights that are missing.
    """
    with loading(part, reads_quantised=True):
        config = read_small_json(part.folder / "config.json")
        if not isinstance(config, dict):
            raise TypeError("config.json does not contain an object")
        config.pop(QUANTISER, None)  # the libraries would make layers of bitsandbytes
        with init_empty_weights(include_buffers=False):
            module = make(config)
        wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
        found: dict[str, Tensor] = {}
        for name, tensor in dequantised_tensors(part, dtype):
            found |= {own: one for own, one in rename(name, tensor).items() if own in wanted}
        mismatched = [name for name, tensor in found.items() if tensor.shape != wanted[name]]
        fitting = {name: tensor for name, tensor in found.items() if name not in mismatched}
        module.load_state_dict(fitting, strict=False, assign=True)
    refuse_gaps(part, sorted(wanted.keys() - found.keys()), mismatched)
    return module.eval()


def dequantised_tensors(part: Part, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(name, values in ``dtype``) of all weights of a component, one at a time; scales are part of the weights that they belong to."""
    for path in part.weights():
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names):
                if not _is_beside(name):
                    yield name, _dequantised(file, name, names).to(dtype)


def _is_beside(name: str) -> bool:
    return name.endswith(SCALE) or QUANT_STATE in name or name.rpartition(".")[2] in BESIDE


def _dequantised(file: Any, name: str, names: set[str]) -> Tensor:
    """A tensor in float32 if it is quantised, and otherwise as it is stored."""
    tensor: Tensor = file.get_tensor(name)
    scale = f"{name.removesuffix('.weight')}{SCALE}"
    if scale in names:
        scales: Tensor = file.get_tensor(scale)
        return tensor.float() * scales.float().view(-1, *[1] * (tensor.dim() - 1))
    state = next((one for one in names if one.startswith(f"{name}{QUANT_STATE}")), None)
    return tensor if state is None else from_codes(tensor, {one: file.get_tensor(one) for one in names if one.startswith(f"{name}.")}, name)


def from_codes(packed: Tensor, beside: Mapping[str, Tensor], name: str) -> Tensor:
    """The weights (out, in) of a layer in the layout of bitsandbytes, in float32.

    ``packed``: two codes a byte, the first one in the upper four bits. ``beside``: the tensors whose names begin with ``name``, that of the
    weight. The largest numbers of the blocks may be quantised themselves, to 8 bits around an offset. Raises KeyError and ValueError.
    """
    text = next(tensor for one, tensor in beside.items() if one.startswith(f"{name}{QUANT_STATE}"))
    sizes = json.loads(bytes(text.tolist()).decode("utf-8"))
    largest = beside[f"{name}.absmax"]
    if f"{name}.nested_absmax" in beside:
        values, blocks = beside[f"{name}.nested_quant_map"].float(), beside[f"{name}.nested_absmax"].float()
        of_each = blocks.repeat_interleave(int(sizes["nested_blocksize"]))[: largest.numel()]
        largest = values[largest.flatten().long()] * of_each + float(sizes["nested_offset"])
    codes = packed.flatten().view(torch.uint8)
    both = torch.stack([codes >> 4, codes & 15], dim=1).flatten()
    shape = [int(size) for size in sizes["shape"]]
    weights = beside[f"{name}.quant_map"].float()[both[: torch.Size(shape).numel()].long()]
    scales = largest.float().flatten().repeat_interleave(int(sizes["blocksize"]))[: len(weights)]
    return (weights * scales).view(shape)


def _names(part: Part, number: int) -> tuple[str, ...]:
    with safe_open(part.weights()[number], framework="pt") as file:
        return tuple(file.keys())


def in_thirds(name: str, tensor: Tensor, *, whole: str, parts: tuple[str, ...]) -> Mapping[str, Tensor]:
    """Splits the layers that match the regular expression ``whole`` into ``parts`` of as many rows each.

    ``parts`` may refer to groups of ``whole``.
    """
    found = re.fullmatch(whole, name)
    if found is None:
        return {name: tensor}
    return {found.expand(part): rows.clone() for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True)}
