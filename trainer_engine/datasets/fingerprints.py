"""What a checkpoint remembers of each sample, to say later which ones were added, removed or changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from trainer_engine.datasets.samples import Sample


def set_fingerprints(samples: Iterable[Sample], *, passes: int, at_least: int, weight: float) -> dict[str, str]:
    """Name of each sample of a set -> a fingerprint of all that decides how it is trained; the numbers are those of its ``DataSource``."""
    return {sample.name: _fingerprint(sample, (passes, at_least, weight)) for sample in samples}


def _fingerprint(sample: Sample, of_set: tuple[int, int, float]) -> str:
    parts: tuple[object, ...] = (sample.size_bytes, sample.resized, sample.target, sample.crop, sample.captions, *of_set)
    for set_id, reference in sample.references:
        parts += (set_id, reference.name, reference.size_bytes, reference.resized, reference.target, reference.crop)
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
