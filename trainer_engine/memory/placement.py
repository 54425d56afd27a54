"""Decides which frozen weights of a network wait in the memory of the host, and starts to stream them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer_engine.config.options.memory import MemoryOptions
from trainer_engine.contract.errors import InvalidOptions, Problem
from trainer_engine.memory.disk_weights import DiskBytes
from trainer_engine.memory.host_weights import unknown_kinds
from trainer_engine.memory.recompute import repeated_blocks
from trainer_engine.memory.transfers import Transfers, transfers_of
from trainer_engine.memory.weight_stream import WeightStream, make_units

Groups = list[list[nn.Module]]
"""Modules whose weights are copied together."""


def streamed_groups(module: nn.Module, options: MemoryOptions) -> Groups:
    """The modules of a network whose frozen weights wait in the memory of the host; empty if none do."""
    blocks = repeated_blocks(module)
    if options.musubi_blocks_to_swap:
        return [[block] for block in evenly(blocks, options.musubi_blocks_to_swap)]
    if options.enable_group_offload and options.group_offload_type == "block_level":
        size = options.group_offload_blocks_per_group
        return [blocks[start : start + size] for start in range(0, len(blocks), size)]
    if options.enable_group_offload:
        return [[leaf] for leaf in _leaves(module)]
    if options.ramtorch:
        linear_only = options.ramtorch_disable_extensions
        return _share(_matching(module, options.target_patterns, linear_only=linear_only), options.ramtorch_transformer_percent)
    return []


def encoder_groups(module: nn.Module, options: MemoryOptions) -> Groups:
    """As ``streamed_groups``, for a text encoder that is not trained."""
    if options.group_offload_text_encoder:
        return [[leaf] for leaf in _leaves(module)]
    if options.ramtorch_text_encoder:
        return _share(_matching(module, (), linear_only=options.ramtorch_disable_extensions), options.ramtorch_text_encoder_percent)
    return []


def evenly(blocks: Sequence[nn.Module], count: int) -> list[nn.Module]:
    """``count`` of the blocks, at equal distances, so that the blocks between two of them hide the copy; all if there are fewer."""
    count = min(count, len(blocks))
    return [blocks[(2 * index + 1) * len(blocks) // (2 * count)] for index in range(count)]


def _leaves(module: nn.Module) -> list[nn.Module]:
    """The modules that hold frozen weights themselves. The one with the first weight stays: libraries ask it for the device."""
    leaves = [part for part in module.modules() if _is_frozen_leaf(part)]
    first = next(module.parameters(), None)
    adapted = {part.base_layer: part for part in module.modules() if isinstance(getattr(part, "base_layer", None), nn.Module)}
    # NOTE: an adapter of PEFT around a layer may read the weight of the layer after the layer's own forward pass.
    return [adapted.get(leaf, leaf) for leaf in leaves if not any(one is first for one in leaf.parameters(recurse=False))]


def _is_frozen_leaf(part: nn.Module) -> bool:
    """Whether a module itself holds frozen weights, as parameters or, where it is quantised, as buffers, and nothing that is trained."""
    own = list(part.parameters(recurse=False))
    if any(one.requires_grad for one in own) or any(True for child in part.children() for _ in child.parameters()):
        return False
    return bool(own) or any(one.ndim > 1 for one in part.buffers(recurse=False))


def _matching(module: nn.Module, patterns: Sequence[str], *, linear_only: bool) -> list[nn.Module]:
    """Leaves whose name or class matches one of the patterns; all of them without patterns."""
    names = {part: name for name, part in module.named_modules()}
    found = [(leaf, getattr(leaf, "base_layer", leaf)) for leaf in _leaves(module)]
    found = [(leaf, bare) for leaf, bare in found if not linear_only or isinstance(bare, nn.Linear)]
    return [leaf for leaf, bare in found if not patterns or _matches(names[leaf], type(bare).__name__, patterns)]


def _matches(name: str, kind: str, patterns: Sequence[str]) -> bool:
    """A pattern without wildcards stands for what is inside the module of that name, too."""
    return any(fnmatchcase(one, pattern) for pattern in patterns for one in (name, kind)) or any(
        name.startswith(f"{pattern}.") for pattern in patterns
    )


def _share(leaves: Sequence[nn.Module], percent: int) -> Groups:
    return [[leaf] for leaf in leaves[: len(leaves) * percent // 100]]


@contextmanager
def held_back(module: nn.Module, groups: Groups) -> Iterator[None]:
    """Inside the block, ``module.to()`` leaves the blocks that hold streamed weights where they are."""
    streamed = {part for group in groups for one in group for part in one.modules()}
    blocks = [block for block in repeated_blocks(module) if any(part in streamed for part in block.modules())]
    try:
        for block in blocks:
            block._apply = lambda *_, block=block, **__: block  # type: ignore[method-assign]
        yield
    finally:
        for block in blocks:
            del block._apply


def stream_weights(network: nn.Module, groups: Groups, options: MemoryOptions, device: torch.device, *, prefetch: bool) -> WeightStream:
    """Moves the weights of the groups to the host and everything else to the device. Raises InvalidOptions for weights that cannot move.

    ``prefetch``: whether weights are copied before they are needed. DistributedDataParallel leaves the weights on the host alone.
    """
    transfers = transfers_of(device)
    unknown = unknown_kinds(module for group in groups for module in group)
    if unknown:
        message = f"Weights of the kind {', '.join(sorted(unknown))} cannot wait in the memory of the host."
        raise InvalidOptions([Problem.error("base_model_precision", "cannot_be_streamed", message, expected="another precision")])
    units = make_units(groups, _host_bytes(options, transfers))
    streamed = {id(owner.read()) for _, unit in units for owner in unit.owners}
    ignored = [name for name, weight in (*network.named_parameters(), *network.named_buffers()) if id(weight) in streamed]
    for _, unit in units:
        unit.take_out()
    network.to(device)
    for _, unit in units:
        unit.unbind()
    network._ddp_params_and_buffers_to_ignore = ignored  # type: ignore[assignment]  # read by DistributedDataParallel
    return WeightStream(units, transfers, prefetch=prefetch)


def _host_bytes(options: MemoryOptions, transfers: Transfers) -> Callable[[int], Tensor]:
    if options.enable_group_offload and options.group_offload_to_disk_path:
        return DiskBytes(Path(options.group_offload_to_disk_path))
    return transfers.host_bytes
