"""The assistant adapter: frozen, active beside the adapter that is trained, and no part of any result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from trainer_engine.adapters.validation_adapter import ValidationAdapter, load_validation_adapters
from trainer_engine.config.adapters.assistant import LABEL, assistant_of
from trainer_engine.config.adapters.validation_adapter import ValidationAdapterRun
from trainer_engine.config.options import TrainingOptions


class Assistant:
    """Distilled weights unlearn their few sampler steps while they are trained. An adapter that has unlearned them already takes this
    part: what the run learns beside it fits the distilled weights, which generate images without it.

    It stays in the network for the whole run, also between a forward and its backward pass, where checkpointed blocks compute again.
    """

    def __init__(self, adapter: ValidationAdapter, *, training: float, images: float) -> None:
        """``training`` and ``images`` are its strengths in training and in validation images."""
        self.images = images
        self.strength = training
        for layer, change, _ in adapter.changes:
            layer.register_forward_hook(adapter.hook(change, lambda: self.strength))

    @contextmanager
    def in_images(self) -> Iterator[None]:
        """Inside the block it has its strength in validation images, and then the former one again."""
        former, self.strength = self.strength, self.images
        try:
            yield
        finally:
            self.strength = former


def attach_assistant(
    network: nn.Module, options: TrainingOptions, device: torch.device, dtype: torch.dtype, prefixes: Mapping[str, str]
) -> Assistant | None:
    """Puts the assistant adapter of the options into a network; None if they name none. ``dtype`` is that of its arithmetic.

    ``prefixes`` are the ``key_prefixes`` of the family. Raises InvalidOptions and ModelUnavailable.
    """
    source = assistant_of(options.as_values())
    if source is None:
        return None
    (adapter,) = load_validation_adapters(network, [ValidationAdapterRun(LABEL, (source,))], device, dtype, prefixes)
    return Assistant(adapter, training=source.strength, images=options.adapter.assistant_lora_inference_strength)
