"""Token routing: in training, a random share of the image's tokens skips some blocks of a transformer, which saves their computation.

Krause et al., 2025, "TREAD: Token Routing for Efficient Architecture-agnostic Diffusion Training" (arXiv 2501.04765).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer_engine.config.routing import Route, RoutingSpec

COUNTS = 0.5
"""Least value of a mask at a token that the loss counts as the trained part of the image."""


class TokenRouter:
    """Lets tokens skip the blocks of a network inside ``routing``; outside it the network computes as ever.

    Each block of a route takes the tokens that stay out of all of them, and puts them back: the same as to take them once, before the first
    block, and to put them back after the last. So nothing passes from block to block, and a block that is computed again for its gradient
    needs only its own input.
    """

    def __init__(self, network: nn.Module, spec: RoutingSpec, routes: Sequence[Route]) -> None:
        """``network``: a bare component with the blocks of ``spec``. The routes fit it."""
        self.spec = spec
        self.routes = [route for route in routes if route.ratio > 0]
        self.staying: dict[int, Tensor] = {}
        """Number of a route -> (n,) indices of the tokens that its blocks compute; empty outside training."""
        self.image_tokens = 0
        blocks: list[tuple[Any, str]] = [(block, name) for name in spec.blocks for block in getattr(network, name)]
        for number, route in enumerate(self.routes):
            for block, name in (blocks[index] for index in route.within(len(blocks))):
                block.forward = self._routed(block.forward, number, name)

    @contextmanager
    def routing(
        self, generator: torch.Generator, image_tokens: int, device: torch.device, loss_mask: Tensor | None = None
    ) -> Iterator[None]:
        """Inside the block, random tokens skip the routes; it has to hold the backward pass too.

        ``image_tokens``: of one sample without its references, which never skip a block. ``loss_mask`` (B, 1, ...) on the CPU: tokens
        that it shows in one of the samples skip none either.
        """
        kept = None if loss_mask is None else self._shown(loss_mask)
        for number, route in enumerate(self.routes):
            chosen = choose(generator, image_tokens, route.ratio, kept)
            if len(chosen) < image_tokens:
                self.staying[number] = chosen.to(device, non_blocking=True)
        self.image_tokens = image_tokens
        try:
            yield
        finally:
            self.staying = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the block every token passes through every block, for a prediction without a gradient."""
        staying, self.staying = self.staying, {}
        try:
            yield
        finally:
            self.staying = staying

    def _shown(self, mask: Tensor) -> Tensor:
        """(B, 1, ...) -> (N,), true for tokens that the loss counts in one of the samples. Masks that show everything say nothing."""
        partial = mask[mask.flatten(1).amin(dim=1) < COUNTS]
        if not len(partial):
            return torch.zeros(0, dtype=torch.bool)
        pool = functional.max_pool3d if partial.ndim == 5 else functional.max_pool2d
        tokens: Tensor = pool(partial.float(), self.spec.cells)
        return tokens.amax(dim=0).flatten() >= COUNTS

    def _routed(self, forward: Callable[..., Any], number: int, blocks: str) -> Callable[..., Any]:
        names = list(inspect.signature(forward).parameters)
        spec, output_place = self.spec, None if blocks in self.spec.joined else self.spec.output

        def routed(*args: Any, **kwargs: Any) -> Any:
            staying = self.staying.get(number)
            if staying is None:
                return forward(*args, **kwargs)
            given = dict(zip(names, args, strict=False)) | kwargs
            tokens: Tensor = given[spec.tokens]
            count = tokens.shape[spec.axis]
            if blocks in spec.joined:
                prompt = count - self.image_tokens
                staying = torch.cat([torch.arange(prompt, device=staying.device), staying + prompt])
            elif count > self.image_tokens:  # references, or the prompt
                staying = torch.cat([staying, torch.arange(self.image_tokens, count, device=staying.device)])
            shorter = {name: _select(given[name], axis, staying, count) for name, axis in spec.along.items() if name in given}
            output = forward(**{**given, **shorter, spec.tokens: tokens.index_select(spec.axis, staying)})
            computed = output if output_place is None else output[output_place]
            whole = tokens.to(computed.dtype).index_copy(spec.axis, staying, computed)
            return whole if output_place is None else (*output[:output_place], whole, *output[output_place + 1 :])

        return routed


def choose(generator: torch.Generator, count: int, ratio: float, kept: Tensor | None = None) -> Tensor:
    """Indices of the tokens that stay, in order: all but a share ``ratio`` of ``count`` tokens, and those that are ``kept`` (count,)."""
    scores = torch.rand(count, generator=generator)
    number = count - int(ratio * count)
    if kept is not None and len(kept) == count:
        scores[kept] += 1
        number = max(number, int(kept.sum()))
    return scores.topk(number).indices.sort().values


def _select(value: Any, axis: int, staying: Tensor, count: int) -> Any:
    """Takes the rows of the prompt and of the tokens that stay from what has one for each of the prompt's and the ``count`` tokens."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: _select(one, axis, staying, count) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_select(one, axis, staying, count) for one in value)
    prompt = value.shape[axis] - count
    if prompt:
        staying = torch.cat([torch.arange(prompt, device=staying.device), staying + prompt])
    return value.index_select(axis, staying)
