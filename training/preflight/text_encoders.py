"""Estimates the memory of text encoders: their weights, and what lives while they read captions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.precisions import PRECISIONS, QUANTISED, Precision, activated
from training.preflight.on_device import EstimatedRun
from training.preflight.weights import Tensors, quantised_bytes

FLOAT32_BYTES, SHORT_BYTES = 4, 2
LAYER = re.compile(r"\b(?:layers|block)\.(\d+)\.")
LEFT_OUT = re.compile(r"\blm_head\.|\bvis(?:ual|ion)|\bmulti_modal_projector\.")
"""Parts of a language model that make no states of a text."""
EMBEDDING = re.compile(r"embed|\bshared\.")
"""Tables that no library quantises."""
QUERIES = re.compile(r"\b(?:q_proj|SelfAttention\.q)\.weight$")
KEYS = re.compile(r"\bk_proj\.weight$")
FEED_FORWARD = re.compile(r"\b(?:fc1|gate_proj|wi|wi_0)\.weight$")
BIAS, POSITIONS = "relative_attention_bias.weight", "position_embedding.weight"
UNKNOWN_SHARE = 0.015
"""What lives while one caption is read, as a share of the weights, if their shapes are not known."""
PIECES_ON_DEVICE = 2
"""Layers that have room on the device at once while weights wait on the host."""


@dataclass(frozen=True)
class _Encoder:
    """The sizes of one text encoder."""

    layers: int
    width: int
    queries: int
    """Width of the queries of all heads."""
    keys: int
    feed_forward: int
    heads: int
    """Heads with a bias of positions, as T5 has it; 0 for other encoders."""
    positions: int
    """Most tokens that it takes; 0 if it has no limit."""


@dataclass(frozen=True)
class TextEncoderMemory:
    """Bytes on the device."""

    weights: int
    host: int
    """Weights that wait in the memory of the host."""
    reading: int
    """What lives while one batch of captions is read."""


def text_encoder_memory(run: EstimatedRun, batch: int) -> TextEncoderMemory:
    """The frozen text encoders of a run, all of them on the device, reading so many captions at once."""
    plain = FLOAT32_BYTES if run.on_cpu or run.options.precision.mixed_precision == "no" else SHORT_BYTES
    facts = run.spec.prompts.encoders_of(run.options.model.model_flavour)
    own = [component.parameters for component in run.spec.components.values() if component.parameters]
    numbers = [*(facts.parameters or own), *[0] * len(run.spec.prompts.text_encoder_folders)]
    trained = {component.folder for component in run.spec.trained_text_encoders.values()}
    weights, layers, reading = 0, 1, 0
    for folder, count, row in zip(run.spec.prompts.text_encoder_folders, numbers, _precisions(run.options), strict=False):
        stored = run.parts.get(folder)
        if folder in trained or stored == {}:
            continue
        tensors = _loaded(stored or {}, facts.layers)
        weights += _weight_bytes(tensors, count, row, run.options, plain)
        encoder = _sizes_of(tensors)
        layers = max(layers, encoder.layers if encoder else 1)
        known = sum(map(math.prod, tensors.values())) or count
        lives = _lives(encoder, run, batch) * plain if encoder else int(UNKNOWN_SHARE * known * plain * batch)
        reading = max(reading, lives)
    if not run.options.memory.streams_encoders:
        return TextEncoderMemory(weights, 0, reading)
    on_device = min(weights, PIECES_ON_DEVICE * weights // layers)
    return TextEncoderMemory(on_device, weights - on_device, reading)


def _precisions(options: TrainingOptions) -> Iterator[Precision | None]:
    """The quantised type of each text encoder, or None."""
    chosen = options.precision
    first, second = chosen.text_encoder_1_precision, chosen.text_encoder_2_precision
    for asked in (first, second, chosen.text_encoder_3_precision, chosen.text_encoder_4_precision):
        name = activated(asked, quantize_activations=chosen.quantize_activations)
        yield PRECISIONS[name] if name in QUANTISED else None


def _loaded(tensors: Tensors, layers: int) -> Tensors:
    """The tensors that a run loads of a text encoder. ``layers``: those behind so many are left out; 0 for none."""
    numbers = ((name, LAYER.search(name)) for name in tensors)
    kept = (name for name, found in numbers if not layers or not found or int(found[1]) < layers)
    return {name: tensors[name] for name in kept if not LEFT_OUT.search(name)}


def _weight_bytes(tensors: Tensors, count: int, row: Precision | None, options: TrainingOptions, plain: int) -> int:
    """``count``: the number of weights if their shapes are not known."""
    if row is None:
        return plain * (sum(map(math.prod, tensors.values())) or count)
    quantised = sum(math.prod(shape) for name, shape in tensors.items() if len(shape) == 2 and not EMBEDDING.search(name))
    exact = sum(map(math.prod, tensors.values())) - quantised
    return int(exact * plain + (quantised or count) * quantised_bytes(options, row))


def _sizes_of(tensors: Tensors) -> _Encoder | None:
    """None if the tensors are not those of T5, CLIP or a language model like Qwen3."""
    queries = next((shape for name, shape in tensors.items() if QUERIES.search(name)), None)
    feed_forward = next((shape[0] for name, shape in tensors.items() if FEED_FORWARD.search(name)), 0)
    if queries is None or not feed_forward:
        return None
    return _Encoder(
        layers=len({found[1] for name in tensors if (found := LAYER.search(name))}),
        width=queries[1],
        queries=queries[0],
        keys=next((shape[0] for name, shape in tensors.items() if KEYS.search(name)), 0),
        feed_forward=feed_forward,
        heads=next((shape[1] for name, shape in tensors.items() if name.endswith(BIAS)), 0),
        positions=next((shape[0] for name, shape in tensors.items() if name.endswith(POSITIONS)), 0),
    )


def _lives(encoder: _Encoder, run: EstimatedRun, batch: int) -> int:
    """Numbers that live at the largest moment. The factors were measured: see ``test_measured_phases``."""
    tokens = run.spec.tokens_of(run.options.model.model_flavour, run.options.model.tokenizer_max_length)
    tokens = min(tokens, encoder.positions) if encoder.positions else tokens
    width, feed_forward = encoder.width, encoder.feed_forward
    if encoder.heads:  # the bias of all pairs of positions is made of whole numbers first, and then added to the mask of each sample
        pairs = tokens**2 * encoder.heads
        masks = 0 if run.spec.prompts.stores_padding else pairs * batch
        first = tokens**2 * (8 + 4.2 / 4 * encoder.heads) + batch * tokens * 6 * width
        later = max(batch * tokens * 4 * (feed_forward + width), batch * tokens * 8 * encoder.queries + masks)
        return int(max(first, pairs + masks + later))
    if encoder.positions:
        return batch * tokens * (max(4 * width + 3 * feed_forward, 8 * width) + encoder.layers * width)
    states = encoder.layers * (width + 2 * encoder.keys)  # all layers keep theirs, with their keys and values
    return int(batch * tokens * (states + max(2 * width + 3 * feed_forward, 6.6 * encoder.queries)))
