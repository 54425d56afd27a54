"""What a sample is trained as, in a few letters: kept in every checkpoint, and compared before a run goes on from one. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from trainer_engine.config.datasets import ImageSet
from trainer_engine.datasets.samples import Sample

ContentOf = Callable[[str, Sample], str]
"""(cache, sample) -> sha256 of its file; empty where it is not known. ``cache`` is the id of an image set, or ``reference_cache``."""
SETTINGS = (
    *("resolution", "resolution_type", "minimum_image_size", "maximum_image_size", "target_downsample_size"),
    *("minimum_aspect_ratio", "maximum_aspect_ratio", "crop", "crop_style", "crop_aspect", "crop_aspect_buckets"),
    *("caption_strategy", "instance_prompt", "prepend_instance_prompt", "only_instance_prompt", "disable_multiline_split"),
    *("repeats", "probability", "max_num_samples", "conditioning_data"),
)
"""Fields of a dataset that decide how its samples are trained: they say why fingerprints differ."""


def settings_of(entry: ImageSet) -> dict[str, Any]:
    """As ``training_state.json`` keeps them."""
    values = entry.model_dump(mode="json")
    return {name: values[name] for name in SETTINGS}


def reference_cache(set_id: str, reference_id: str) -> str:
    """Under which name the latents of a set's references are read: how they are cut depends on both sets."""
    return f"{set_id} with {reference_id}"


def fingerprint(set_id: str, sample: Sample, drawn: tuple[object, ...], content_of: ContentOf) -> str:
    """Geometry, captions and how often it is drawn; then, after a space, what its files hold, where that is known."""
    parts: tuple[object, ...] = (sample.size_bytes, sample.resized, sample.target, sample.crop, sample.captions, *drawn)
    contents = [content_of(set_id, sample)]
    for reference_id, reference in sample.references:
        parts += (reference_id, reference.name, reference.size_bytes, reference.resized, reference.target, reference.crop)
        contents.append(content_of(reference_cache(set_id, reference_id), reference))
    shape = _short(repr(parts))
    return f"{shape} {_short(' '.join(contents))}" if all(contents) else shape


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
