"""Estimates the activations that a step keeps for its backward pass: of a transformer from the shapes of its linear layers."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.optimizers import FLOAT32_BYTES
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.precisions import PRECISIONS, QUANTISED, activated, compute_precision
from trainer_engine.contract.files import read_small_json
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.report import DatasetReport
from training.preflight.adapter import of_class
from training.preflight.adapter_inputs import own_inputs
from training.preflight.recomputed import ATTENTION, FEED_FORWARD, SPLIT, SPLIT_RECOMPUTED, BlockNumbers, kept_of_blocks
from training.preflight.tokens import (
    BLOCK,
    CROSS_SIDE,
    EXPERT,
    FUSION,
    TEXT_PROJECTION,
    Tokens,
    convolved,
    counts_prompts,
    crosses,
    in_sequence,
    modulated,
    passed,
    prompt_tokens,
    routed_tokens,
    sees_tokens,
)
from training.preflight.unet_activations import UnetInputs, is_unet, kept_by_unet
from training.preflight.weights import NUMBERS_A_WIDTH, Tensors, layer_count, split_layers

HIDDEN_PX = 1152
"""Width of the transformers that the model without shapes was fitted to."""
KEPT_WIDTHS = 34
"""What one layer keeps, as a multiple of its width and of the tokens (Korthikanti et al., 2022, section 4.1)."""
UNET_CELLS = 2
"""Edge of the square of latents that one token stands for in a UNet whose shapes are not known."""
PARALLEL = re.compile(r"\.to_qkv_mlp_proj$")
"""Layers that make queries, keys, values and a gated unit at once: what the gate lets through, a third of their output, is kept as well."""
KEPT: Mapping[tuple[str, str], float] = {
    ("full", ""): 1.0,
    ("standard", ""): 0.62,
    ("standard", "quanto"): 0.79,
    ("lycoris", ""): 0.70,
    ("lycoris", "quanto"): 0.79,
}
"""(What is trained, library that keeps the inputs of frozen layers) -> numbers kept, as a multiple of all layers' inputs and outputs.

The factors include what is kept between layers. When the backward pass of a recomputed block needs the most, some inputs are freed.
"""
KEYS_AND_VALUES = {False: 1.5, True: 2.0}
"""Whether norms are trained -> what is kept of keys and values of the prompt, as a multiple of both: keys as they are and normalised."""
GRADIENTS_OF_STATES = 3
"""The sum of the gradients of the prompt's states, and those of one block's keys and values, as a multiple of the states."""
BESIDE = 1.2
"""The factor of layers beside which a LyCORIS adapter is computed: it keeps outputs of its own."""
RECOMPUTED: Mapping[tuple[str, str], float] = {
    ("full", ""): 1.1,
    ("standard", ""): 1.4,
    ("standard", "quanto"): 1.25,
    ("lycoris", ""): 1.2,
    ("lycoris", "quanto"): 1.3,
}
"""(What is trained, library that keeps the inputs of frozen layers) -> what the backward pass of a recomputed block needs, as a multiple of
what the block keeps.

The gradients of the feed-forward layers are the same whatever is trained. The more a block keeps, the more of it is freed before them.
"""
BORDER = 1.0
"""What is kept between recomputed blocks, as a multiple of their inputs."""
AROUND = 5.0
"""What each further pass of a step keeps around its blocks, as a multiple of their inputs; the factors of the blocks include it for one."""


@dataclass(frozen=True)
class Kept:
    """Numbers (not bytes) that live when the backward pass begins."""

    total: int
    block: int = 0
    """Those of the largest block; the others are freed before the last gradients are computed."""
    block_weights: int = 0
    """Weights of one block: if they are trained, their gradients do not exist yet when the backward pass is at it."""


def activation_numbers(options: TrainingOptions, parameters: int, report: DatasetReport, spec: FamilySpec, tensors: Tensors | None) -> Kept:
    """Numbers that a step keeps for its backward pass, modelled from the number of ``parameters`` if there are no ``tensors``."""
    buckets = [bucket for one in report.sets for bucket in one.counts]
    cells = max((seen_pixels(bucket.size, spec) * spec.latent_frames(bucket.frames) for bucket in buckets), default=0)
    references = max((len(one.samples[0].references) for one in report.sets if one.samples), default=0)
    adds_none = options.model.sees_control or spec.edits_in_place(options.model.model_flavour)  # they are further channels of the image
    seen = cells * (1 + (0 if adds_none else references))
    in_a_token = token_px(spec) ** 2 * options.distributed.group_size
    image_tokens, of_references = seen // in_a_token, (seen - cells) // in_a_token
    batch = max((one.effective.train_batch_size for one in report.sets), default=options.run.train_batch_size)
    of_prompt = prompt_tokens(options, spec)
    has_tokens = counts_prompts(tensors or (), spec)
    passes = batch if spec.passes_alone else 1
    tokens = Tokens(
        image=image_tokens * batch,
        prompt=of_prompt * batch if has_tokens else 0,
        joined=spec.prompts.joins_sequence,
        references=of_references * batch,
        stacked=spec.prompts.stacked_layers,
        samples=batch,
        passes=passes,
    )
    layers, of_text = split_layers(tensors or {}, spec)
    if is_unet(layers):
        inputs = UnetInputs(cells // spec.latents.scale_factor_px**2 * batch, of_prompt * batch)
        prompts = kept_numbers(of_text, Tokens(of_prompt * batch, 0), options, spec)
        unet = kept_by_unet(layers, inputs, options, spec)
        return Kept(unet + prompts.total, int(unet * (0.7 if options.model.gradient_checkpointing else 0.125)))
    if tensors:
        in_blocks = convolved(layers)
        return kept_numbers({name: one for name, one in layers.items() if len(one) == 2 or name in in_blocks}, tokens, options, spec)
    layer_number, width = layer_count(parameters), modelled_width(parameters)
    row = (tokens.image + tokens.prompt * tokens.joined) * width
    modelled = [BlockNumbers(row, row * KEPT_WIDTHS, row * 8, row * 10)] * layer_number
    around = row * (40 - KEPT_WIDTHS) if options.model.gradient_checkpointing else 0
    return Kept(int(kept_of_blocks(modelled, options)) + around, row * KEPT_WIDTHS)


def seen_pixels(size: Size, spec: FamilySpec) -> int:
    """Pixels of an image as the network sees it, with its padding."""
    width, height = size
    return max(width * height, spec.latents.canvas_px if width != height else 0)


def token_px(spec: FamilySpec) -> int:
    """Edge of the square of pixels that one token of the network stands for."""
    usual = UNET_CELLS * spec.latents.scale_factor_px if spec.convolution_share else spec.sampling.multiple_px
    return spec.latents.token_px or usual


def modelled_width(parameters: int) -> int:
    """Width of a transformer with so many weights, if their shapes are not known."""
    return min(HIDDEN_PX, max(16, math.isqrt(parameters // layer_count(parameters) // NUMBERS_A_WIDTH)))


def is_beside(options: TrainingOptions) -> bool:
    """Whether a LyCORIS adapter is computed beside the layers that it is on, rather than added to their weights."""
    if options.precision.base_model_precision in QUANTISED:
        return True
    return _adapter_file(options).get("bypass_mode") is True


def _adapter_file(options: TrainingOptions) -> Mapping[str, Any]:
    try:
        document = read_small_json(Path(options.adapter.lycoris_config))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, Mapping) else {}


def _beside(shapes: Mapping[str, tuple[int, ...]], options: TrainingOptions) -> set[str]:
    """The layers beside which an adapter is computed, as far as their names tell."""
    if options.model.model_type == "full" or options.adapter.lora_type != "lycoris" or not is_beside(options):
        return set()
    preset = _adapter_file(options).get("apply_preset")
    classes = preset.get("target_module") if isinstance(preset, Mapping) else None
    named = [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
    return {layer for name in named for layer in of_class(name, shapes)} if named else set(shapes)


def kind_of_kept(options: TrainingOptions) -> tuple[str, str]:
    """What this run trains and the library that keeps inputs, as in ``KEPT`` and ``RECOMPUTED``."""
    if options.model.model_type == "full":
        return "full", ""
    chosen = options.precision.base_model_precision
    return options.adapter.lora_type, "quanto" if chosen in QUANTISED and PRECISIONS[chosen].library == "quanto" else ""


def kept_share(options: TrainingOptions, spec: FamilySpec) -> float:
    """Returns the factor of ``KEPT`` for this run."""
    kind, library = kind_of_kept(options)
    kept = KEPT["standard" if kind == "lycoris" and is_beside(options) else kind, library]
    return kept * spec.activation_share_of(options.model.model_flavour) * _short_shares(options, spec)[0]


def _short_shares(options: TrainingOptions, spec: FamilySpec) -> tuple[float, float]:
    """``short_shares`` of the family if the arithmetic of the run is in a short type."""
    return spec.short_shares if compute_precision(options.precision.mixed_precision).weight_bytes < FLOAT32_BYTES else (1.0, 1.0)


def kept_numbers(shapes: Mapping[str, tuple[int, ...]], tokens: Tokens, options: TrainingOptions, spec: FamilySpec) -> Kept:
    """Returns the numbers that are alive when the backward pass begins. ``shapes``: module name -> (out, in)."""
    blocks: dict[str, dict[str, float]] = defaultdict(dict)
    share, beside = kept_share(options, spec), _beside(shapes, options)
    copies, convolutions = own_inputs(shapes, options, spec), convolved(shapes)
    outside = of_states = 0
    is_full = options.model.model_type == "full"
    for name, shape in shapes.items():
        found = BLOCK.search(f"{name}.")
        if found and name in convolutions:
            blocks[found[1]][name] = convolutions[name]
        elif found and sees_tokens(name):
            factor = BESIDE * spec.activation_share_of(options.model.model_flavour) if name in beside else share
            sides = shape[0] + shape[1] + (shape[0] / 3 if PARALLEL.search(name) else 0)
            sides *= spec.expert_share if EXPERT.search(name) else 1
            if crosses(name, tokens) and name not in beside:  # the states of the prompt are the same for all of them
                factor, sides = KEYS_AND_VALUES[is_full], shape[0]
                of_states = max(of_states, GRADIENTS_OF_STATES * shape[1] * tokens.prompt if is_full else 0)
            blocks[found[1]][name] = factor * sides + (0 if CROSS_SIDE.search(name) and not tokens.prompt else copies.get(name, 0))
        elif not found and not tokens.joined and TEXT_PROJECTION.search(name):
            outside += int(share * (shape[0] + shape[1]) * tokens.prompt)
        elif not found:
            outside += shape[0] * modulated(name, tokens)
    adds_weights = options.model.model_type == "lora" and options.adapter.lora_type == "lycoris" and not is_beside(options)
    numbers = []
    routed = routed_tokens(blocks, tokens, options, spec)
    for block, layers in blocks.items():
        width, seen = min(shapes[next(iter(layers))][:2]), routed.get(block, tokens)
        whole, feed_forward, attention = (passed(_named(layers, pattern), seen) for pattern in (None, FEED_FORWARD, ATTENTION))
        if spec.prompts.masks_pairs:
            pairs = in_sequence(layers, seen) ** 2 / tokens.samples
            whole, attention = whole + pairs, attention + pairs
        if adds_weights:  # the sums of weights and adapter
            whole += sum(math.prod(shapes[name]) for name in layers)
        split = max((passed({name: shapes[name][0]}, seen) for name in layers if SPLIT.search(name)), default=0)
        border = BORDER * width * in_sequence(layers, tokens)
        recomputes = not any(FUSION in name for name in layers)
        numbers.append(BlockNumbers(border, whole, feed_forward, attention, split, can_recompute=recomputes))
    whole_share, recomputed_share = _short_shares(options, spec)
    recomputed = RECOMPUTED[kind_of_kept(options)] / tokens.passes * recomputed_share / whole_share
    kept = kept_of_blocks(numbers, options, recomputed)
    kept += AROUND * (1 - 1 / tokens.passes) * max((block.input for block in numbers), default=0)
    if options.model.gradient_checkpointing and _rounds_inputs(options):
        widest = max((sum(shape[:2]) for name, shape in shapes.items() if BLOCK.search(f"{name}.")), default=0)
        kept += 2 * widest * (tokens.image + tokens.prompt * tokens.joined)
    share = recomputed if options.model.gradient_checkpointing else 1 / tokens.passes
    largest = max((max(block.whole * share, block.split * SPLIT_RECOMPUTED) for block in numbers), default=0)
    smallest = min((sum(math.prod(shapes[name]) for name in layers) for layers in blocks.values()), default=0)
    waiting = (1 - 1 / tokens.passes) * max(0.0, kept - largest)  # of passes whose backward pass comes when all gradients exist
    return Kept(int(outside + of_states + kept), int(largest + waiting + of_states), smallest)


def _rounds_inputs(options: TrainingOptions) -> bool:
    """Whether frozen layers round their inputs: rounded copies of inputs and whole-number outputs live while a product is computed."""
    precision = options.precision
    chosen = activated(precision.base_model_precision, quantize_activations=precision.quantize_activations)
    return options.model.model_type == "lora" and chosen in QUANTISED and PRECISIONS[chosen].with_activations == chosen


def _named(layers: Mapping[str, float], pattern: re.Pattern[str] | None) -> Mapping[str, float]:
    return {name: size for name, size in layers.items() if pattern is None or pattern.search(f"{name}.")}
