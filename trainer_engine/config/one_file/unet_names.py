"""Names the tensors of a UNet in the layout of its original code as diffusers does, and the other way round. Standard library only.

In the original layout the blocks that go down, ``input_blocks``, and those that go up, ``output_blocks``, are numbered through all
resolutions. Module 0 of a block is a residual block, or the convolution that halves the resolution; module 1 is attention if the block
has any; the last module of a block that doubles the resolution is a convolution.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
OUTER: Mapping[str, str] = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESIDUAL: Mapping[str, str] = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
BLOCK = re.compile(r"(input_blocks|output_blocks|middle_block)\.(\d+)\.(?:(\d+)\.)?(.+)\.(weight|bias)\Z")
MODULE = re.compile(r"(down|mid|up)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
FIRST_RESIDUAL = re.compile(r"down_blocks\.0\.resnets\.(\d+)\.")
SEEING = re.compile(r"up_blocks\.(\d+)\.attentions\.")
HALVING = re.compile(r"input_blocks\.(\d+)\.0\.op\.weight\Z")


def diffusers_names(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """The tensors of a network by their names in diffusers.

    Tensors that have these names already keep them. Empty if the network is neither in this layout nor in that of diffusers.
    """
    if "input_blocks.0.0.weight" not in tensors:
        return dict(tensors) if any(key.startswith(("down_blocks.", "transformer_blocks.")) for key in tensors) else {}
    layers = _layers_per_block(tensors)
    named = {_name(key, layers): value for key, value in tensors.items()}
    return {name: value for name, value in named.items() if name}


def original_names(modules: Collection[str]) -> dict[str, str]:
    """Module of a UNet by its name in diffusers -> its name in the original code. Empty for other networks.

    ``modules``: at least one of each residual block at full resolution, and of each block with attention.
    """
    found = [int(match[1]) for module in modules if (match := FIRST_RESIDUAL.match(module))]
    if not found:
        return {}
    outer = {name: original for original, name in OUTER.items()}
    seeing = {int(match[1]) for module in modules if (match := SEEING.match(module))}
    named = {module: outer.get(module) or _original(module, max(found) + 1, seeing) for module in modules}
    return {module: original for module, original in named.items() if original}


def _original(module: str, layers: int, seeing: Collection[int]) -> str:
    """The original name of one module of a block, or empty.

    ``layers``: residual blocks of each resolution on the way down; ``seeing``: numbers of the blocks on the way up that have attention.
    """
    match = MODULE.fullmatch(module)
    if match is None:
        return ""
    side, block, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    inner = {name: original for original, name in RESIDUAL.items()}.get(rest, rest) if kind == "resnets" else rest
    place = 1 if kind == "attentions" else 0
    if side == "mid":
        return f"middle_block.{place or 2 * index}.{inner}"
    first = block * (layers + 1) + (1 if side == "down" else 0)
    where = "input_blocks" if side == "down" else "output_blocks"
    if kind == "downsamplers":
        return f"{where}.{first + layers}.0.op"
    if kind == "upsamplers":
        return f"{where}.{first + layers}.{2 if block in seeing else 1}.conv"
    return f"{where}.{first + index}.{place}.{inner}"


def _layers_per_block(keys: Iterable[str]) -> int:
    """Residual blocks of each resolution on the way down: the first halving follows them."""
    found = [int(match[1]) for key in keys if (match := HALVING.match(key))]
    return min(found, default=1_000) - 1


def _name(key: str, layers: int) -> str:
    """The name of one tensor; empty if it belongs to no module that is known."""
    module, _, tensor = key.rpartition(".")
    if module in OUTER:
        return f"{OUTER[module]}.{tensor}"
    match = BLOCK.match(key)
    if match is None:
        return ""
    where, number, place, rest = match[1], int(match[2]), match[3], match[4]
    if where == "middle_block":
        inner = f"{place}.{rest}" if place else rest
        name = f"attentions.0.{inner}" if number == 1 else f"resnets.{number // 2}.{RESIDUAL.get(inner, inner)}"
        return f"mid_block.{name}.{tensor}"
    position = number - 1 if where == "input_blocks" else number
    block, index = divmod(position, layers + 1)
    side = "down_blocks" if where == "input_blocks" else "up_blocks"
    return f"{side}.{block}.{_module(int(place or 0), rest, index)}.{tensor}"


def _module(place: int, rest: str, index: int) -> str:
    """The name of a module in a block: the ``place`` in the block, the rest of its original name, the number of the residual block."""
    if rest == "op":
        return "downsamplers.0.conv"
    if rest == "conv" and place > 0:
        return "upsamplers.0.conv"
    return f"attentions.{index}.{rest}" if place == 1 else f"resnets.{index}.{RESIDUAL.get(rest, rest)}"
