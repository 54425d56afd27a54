"""Estimates the memory of the autoencoder: its weights, and what lives while it encodes or decodes an image or a clip."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.report import DatasetReport
from training.preflight.on_device import EstimatedRun

FOLDER = "vae"
FIRST = "encoder.conv_in.weight"
FLOAT32_BYTES, SHORT_BYTES = 4, 2
COLOURS = 3


def autoencoder_bytes(run: EstimatedRun) -> int:
    """Bytes of its weights."""
    tensors = run.parts.get(FOLDER, {})
    return _number_bytes(run) * (sum(map(math.prod, tensors.values())) or run.spec.latents.autoencoder.parameters)


def encoding_bytes(run: EstimatedRun, report: DatasetReport, *, together: bool) -> int:
    """What lives while the largest images or clips of the datasets are encoded. ``together``: in batches, as before the training."""
    sizes = (encoded_bytes(run, size, frames, count if together else 1) for size, frames, count in _batches(report))
    return max(sizes, default=0)


def decoding_bytes(run: EstimatedRun) -> int:
    """What lives while the largest image or clip of a validation is decoded."""
    validation, facts = run.options.validation, run.spec.latents.autoencoder
    frames, multiples = validation.frames, (facts.decoding, facts.clip_decoding)
    return max((_lives(run, size, frames, multiples) for size in validation.resolutions), default=0)


def _batches(report: DatasetReport) -> Iterator[tuple[tuple[int, int], int, int]]:
    """(width and height, frames, samples that are encoded at once) of each bucket."""
    for found in (*report.sets, *report.eval_sets):
        for bucket in found.counts:
            yield bucket.size, bucket.frames, min(found.entry.vae_batch_size, max(1, bucket.images))


def encoded_bytes(run: EstimatedRun, size: tuple[int, int], frames: int, count: int) -> int:
    """What lives while so many images or clips of one size are encoded together."""
    facts = run.spec.latents.autoencoder
    at_once = 1 if _is_on(run.options, "vae_enable_slicing", run) else count
    pixels = COLOURS * FLOAT32_BYTES * count * frames * math.prod(size)
    return pixels + at_once * _lives(run, size, frames, (facts.encoding, facts.clip_encoding))


def _lives(run: EstimatedRun, size: tuple[int, int], frames: int, multiples: tuple[float, float]) -> int:
    """Of one sample. ``multiples``: of the width, for an image and for a clip."""
    facts = run.spec.latents.autoencoder
    width = run.parts.get(FOLDER, {}).get(FIRST, (facts.width,))[0]
    tile = facts.tile_px if _is_on(run.options, "vae_enable_tiling", run) else 0
    edges = [min(edge, tile) if tile else edge for edge in size]
    of_image, of_clip = multiples
    numbers = (of_clip if of_clip and frames > 1 else of_image * frames) * width * math.prod(edges)
    numbers += COLOURS * frames * math.prod(size) * (frames > 1 or bool(tile))  # what is done already
    return int(numbers * _number_bytes(run))


def _is_on(options: TrainingOptions, name: str, run: EstimatedRun) -> bool:
    return bool(getattr(options.autoencoder, name)) and name in run.spec.latents.memory_options


def _number_bytes(run: EstimatedRun) -> int:
    """Bytes of a number that it computes with. Published weights that keep their own type are taken for float32."""
    return FLOAT32_BYTES if run.on_cpu or run.options.precision.vae_dtype in ("fp32", "default") else SHORT_BYTES
