"""Leaves blocks of a transformer out of the unguided prediction while an image is generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from trainer_engine.config.skipped_layers import SkippedLayers

PASSES = 2
"""Forward passes of a guided step: with the prompt, then with the negative one."""


@contextmanager
def layers_skipped(network: nn.Module, blocks: Sequence[nn.Module], skipped: SkippedLayers | None, steps: int) -> Iterator[None]:
    """Within it, the named blocks pass their input on in every second pass of ``network``, in the steps that ``skipped`` names.

    The pipeline calls the network twice in each of ``steps`` sampler steps, and predicts with the negative prompt second. The first
    argument of a block is the hidden state that it returns.
    """
    if skipped is None:
        yield
        return
    passes = 0
    is_skipping = False

    def count_pass(_: nn.Module, __: tuple[Any, ...]) -> None:
        nonlocal passes, is_skipping
        step, of_step = divmod(passes, PASSES)
        is_skipping = of_step == 1 and skipped.applies_to(step, steps)
        passes += 1

    def passing_on(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
            return hidden_states if is_skipping else forward(hidden_states, *arguments, **named)

        return call

    chosen = [blocks[layer] for layer in skipped.layers]
    # NOTE: offloading hooks of diffusers replace ``forward`` of a module too, so what is there is put back as it was.
    before = [block.__dict__.get("forward") for block in chosen]
    counter = network.register_forward_pre_hook(count_pass)
    try:
        for block in chosen:
            block.forward = passing_on(block.forward)
        yield
    finally:
        counter.remove()
        for block, forward in zip(chosen, before, strict=True):
            if forward is None:
                del block.__dict__["forward"]
            else:
                block.forward = forward
