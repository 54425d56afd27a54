"""Gradient checkpointing: which blocks of a network are computed again in the backward pass, and where their inputs wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer_engine.config.family_parts import FEED_FORWARD, MIXING_FEED_FORWARD
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.memory import MemoryOptions
from trainer_engine.memory.saved_tensors import SavedOnHost
from trainer_engine.memory.transfers import Transfers, transfers_of

Function = Callable[..., Any]


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a network of diffusers in order: those that its forward pass can checkpoint.

    They are the members of the lists in modules that have the switch ``gradient_checkpointing``, and of the lists that these hold by name.
    Modules with a switch of their own, such as the levels of a UNet, are made of blocks and are none.
    """
    holders = [holder for holder in module.modules() if hasattr(holder, "gradient_checkpointing")]
    children = [child for holder in holders for child in holder.children()]
    found = [one for child in children for one in (child.children() if isinstance(child, nn.ModuleDict) else [child])]
    lists = [one for one in found if isinstance(one, nn.ModuleList)]
    return [block for one in lists for block in one if not hasattr(block, "gradient_checkpointing")]


def enable_checkpointing(module: nn.Module, options: TrainingOptions, device: torch.device, *, is_network: bool) -> None:
    """Sets a trained component up as the options say. ``is_network``: a network of diffusers; text encoders are recomputed layer by layer.

    Does nothing if neither gradient checkpointing nor the offload of attention is on.
    """
    memory = options.memory
    if is_network:
        _Checkpointing(memory, transfers_of(device)).apply(module, recomputes=options.model.gradient_checkpointing)
    elif options.model.gradient_checkpointing:
        _enable_of_library(module)


def _enable_of_library(module: nn.Module) -> None:
    """The versions of transformers name the method differently. With re-entrant checkpoints, frozen embeddings below an adapter would
    cut its gradients off."""
    model: Any = module
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})


@dataclass
class _Checkpointing:
    """Recomputes blocks or their feed-forward parts, and keeps what is saved in the memory of the host where that is wanted."""

    options: MemoryOptions
    transfers: Transfers

    def apply(self, module: nn.Module, *, recomputes: bool) -> None:
        options = self.options
        chosen = {block for index, block in enumerate(repeated_blocks(module)) if recomputes and options.recomputes(index)}
        whole = set() if options.recomputes_parts else chosen
        if recomputes and not options.recomputes_parts:
            self._recompute_blocks(module, whole)
        elif recomputes:
            for part in _feed_forwards_in(chosen):
                part.forward = partial(self._recompute, part.forward)
        if options.gradient_checkpointing_offload_attention:
            self._offload_attention(module, whole)

    def _recompute_blocks(self, module: nn.Module, chosen: set[nn.Module]) -> None:
        network: Any = module
        if not self.options.offloads_inputs and not self.options.leaves_blocks_out:
            network.enable_gradient_checkpointing()
            return
        run = self._recompute

        def recompute(block: nn.Module, *arguments: Any) -> Any:
            return run(block, *arguments) if block in chosen else block(*arguments)

        network.enable_gradient_checkpointing(recompute)

    @property
    def _recompute(self) -> Function:
        """Calls a function whose activations are computed again in the backward pass. Random numbers repeat."""
        if not self.options.offloads_inputs:
            return _recomputed
        return _RecomputedFromHost(self._saved()).call

    def _offload_attention(self, module: nn.Module, recomputed: set[nn.Module]) -> None:
        hidden = {part for block in recomputed for part in block.modules()}
        saved = self._saved()
        for part in module.modules():
            if isinstance(part, (AttentionModuleMixin, Attention)) and part not in hidden:
                part.forward = partial(_saved_on_host, saved, part, part.forward)

    def _saved(self) -> SavedOnHost:
        return SavedOnHost(
            self.transfers,
            prefetch=self.options.gradient_checkpointing_offload_prefetch,
            pinned_sizes=self.options.gradient_checkpointing_offload_pin_memory_max_buckets,
        )


def is_feed_forward(module: nn.Module) -> bool:
    """Whether a module is the feed-forward part of a block. Networks of diffusers with a class of their own for it name it alike.

    Gated activations may have such a name too (``Flux2SwiGLU``). They have one layer with weights at most, a feed-forward part has more.
    In a mixture of experts each expert is such a part, and the mixture around them is none.
    """
    return _is_named_so(module) and not any(_is_named_so(part) for part in module.modules() if part is not module)


def _is_named_so(module: nn.Module) -> bool:
    return type(module).__name__.endswith((*FEED_FORWARD, *MIXING_FEED_FORWARD)) and sum(map(_has_weights, module.modules())) > 1


def _has_weights(layer: nn.Module) -> bool:
    """Whether a module has weights of its own; those of quantised layers may be buffers."""
    return any(True for _ in chain(layer.parameters(recurse=False), layer.buffers(recurse=False)))


def _feed_forwards_in(blocks: set[nn.Module]) -> Iterator[nn.Module]:
    """The feed-forward parts of blocks."""
    return (part for block in blocks for part in block.modules() if is_feed_forward(part))


def _recomputed(function: Function, *arguments: Any, **more: Any) -> Any:
    if not torch.is_grad_enabled():
        return function(*arguments, **more)
    return checkpoint(function, *arguments, use_reentrant=False, **more)


class _RecomputedFromHost:
    """Recomputes functions from inputs that wait in the memory of the host."""

    def __init__(self, saved: SavedOnHost) -> None:
        self._saved = saved
        self._shared: set[int] = set()
        """Addresses of the inputs of the last function: one that the next function takes too is needed on the device anyway."""

    def call(self, function: Function, *arguments: Any, **more: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*arguments, **more)
        inputs = {one.data_ptr() for one in (*arguments, *more.values()) if isinstance(one, Tensor) and one.requires_grad}
        leaving, self._shared = inputs - self._shared, inputs
        with self._saved.of(lambda tensor: tensor.data_ptr() in leaving):
            return checkpoint(function, *arguments, use_reentrant=False, **more)


def _saved_on_host(saved: SavedOnHost, part: nn.Module, forward: Function, *arguments: Any, **more: Any) -> Any:
    """Calls the forward pass of a part whose saved tensors, apart from its weights, wait in the memory of the host."""
    if not torch.is_grad_enabled():
        return forward(*arguments, **more)
    weights = {weight.data_ptr() for weight in part.parameters()}
    with saved.of(lambda tensor: tensor.data_ptr() not in weights):
        return forward(*arguments, **more)
