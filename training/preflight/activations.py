"""Estimates the activations that a step keeps for its backward pass: of a transformer from the shapes of its linear layers."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.precisions import QUANTISED
from trainer_engine.datasets.report import DatasetReport
from training.preflight.unet_activations import UnetInputs, is_unet, kept_by_unet
from training.preflight.weights import NUMBERS_A_WIDTH, Tensors, layer_count, split_layers

HIDDEN_PX = 1152
"""Width of the transformers that the model without shapes was fitted to."""
PATCH = 2
"""Edge of the square of latents that one token stands for."""
BLOCK = re.compile(r"(?:^|\.)(\w*blocks\.\d+|layers\.\d+)\.")
PER_SAMPLE = ("norm", "adaln", "embed")
"""Parts of the names of layers that see one vector a sample instead of one a token."""
PROMPT_SIDE = ("add_", "context")
"""Parts of the names of layers that see only the tokens of the prompt."""
KEPT: Mapping[tuple[str, bool], float] = {
    ("full", False): 0.92,
    ("standard", False): 0.62,
    ("standard", True): 0.79,
    ("lycoris", False): 0.70,
    ("lycoris", True): 1.0,
}
"""(What is trained, whether the base is quantised) -> numbers kept, as a multiple of the inputs and outputs of all layers.

The factors include what is kept between layers. ``make bench`` fitted them to runs whose allocator returns freed memory at once.
"""


@dataclass(frozen=True)
class Tokens:
    """Sizes of one micro-batch, over all samples."""

    image: int
    """Tokens of the image and of its reference images."""
    prompt: int
    """Tokens of the prompts; 0 if the prompt is not part of the sequence of the image."""


def activation_numbers(options: TrainingOptions, parameters: int, report: DatasetReport, spec: FamilySpec, tensors: Tensors | None) -> int:
    """Numbers that a step keeps for its backward pass, modelled from the number of ``parameters`` if there are no ``tensors``."""
    buckets = [bucket for one in report.sets for bucket in one.counts]
    cells = max((bucket.size[0] * bucket.size[1] * spec.latent_frames(bucket.frames) for bucket in buckets), default=0)
    seen = cells * (1 + max((len(one.samples[0].references) for one in report.sets if one.samples), default=0))
    image_tokens = seen // (spec.latents.scale_factor_px * PATCH) ** 2
    batch = max((one.effective.train_batch_size for one in report.sets), default=options.run.train_batch_size)
    prompt_tokens = spec.tokens_of(options.model.model_flavour)
    sequence = Tokens(image_tokens * batch, prompt_tokens * batch if spec.prompts.joins_sequence else 0)
    layers, of_text = split_layers(tensors or {}, spec)
    if is_unet(layers):
        inputs = UnetInputs(cells // spec.latents.scale_factor_px**2 * batch, prompt_tokens * batch)
        prompts = kept_numbers(of_text, Tokens(prompt_tokens * batch, 0), options, spec)
        return kept_by_unet(layers, inputs, options, spec) + prompts
    if tensors:
        return kept_numbers({name: shape for name, shape in layers.items() if len(shape) == 2}, sequence, options, spec)
    layer_number = layer_count(parameters)
    width = min(HIDDEN_PX, max(16, math.isqrt(parameters // layer_number // NUMBERS_A_WIDTH)))
    kept = layer_number + 40 if options.model.gradient_checkpointing else layer_number * 34
    return (sequence.image + sequence.prompt) * width * kept


def kept_share(options: TrainingOptions, spec: FamilySpec) -> float:
    """Returns the factor of ``KEPT`` for this run."""
    is_full = options.model.model_type == "full"
    quantised = not is_full and options.precision.base_model_precision in QUANTISED
    return KEPT["full" if is_full else options.adapter.lora_type, quantised] * spec.activation_share


def kept_numbers(shapes: Mapping[str, tuple[int, ...]], tokens: Tokens, options: TrainingOptions, spec: FamilySpec) -> int:
    """Returns the numbers (not bytes) that are alive when the backward pass begins. ``shapes``: module name -> (out, in)."""
    blocks: dict[str, dict[str, int]] = defaultdict(dict)
    for name, shape in shapes.items():
        found = BLOCK.search(f"{name}.")
        if found and not any(mark in name.rpartition(found[1])[2] for mark in PER_SAMPLE):
            blocks[found[1]][name] = shape[0] + shape[1]
    share = kept_share(options, spec)
    kept = {block: share * _passed(layers, tokens) for block, layers in blocks.items()}
    if not options.model.gradient_checkpointing or not kept:
        return int(sum(kept.values()))
    widths = [min(shapes[name][:2]) for layers in blocks.values() for name in list(layers)[:1]]
    return int(2 * sum(widths) * (tokens.image + tokens.prompt) + max(kept.values()))


def _passed(layers: Mapping[str, int], tokens: Tokens) -> int:
    """Returns the numbers that go into and out of the layers of one block."""
    prompt_side = {name for name in layers if any(mark in name for mark in PROMPT_SIDE)}
    if not prompt_side or not tokens.prompt:
        return sum(layers.values()) * (tokens.image + tokens.prompt)
    return sum(size * (tokens.prompt if name in prompt_side else tokens.image) for name, size in layers.items())
