"""A sample: which file is trained on, at which size, cropped where, with which captions; and its fingerprint in checkpoints."""

# ruff: noqa: PTH110, PTH116, PTH118, PTH122, PTH123
# Paths are text here: over 20,000 files, Path objects cost as much as reading the headers.
from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from trainer_engine.config.datasets import ImageSet
from trainer_engine.datasets.geometry import Size


class CropPlan(NamedTuple):
    """Which part of a picture is taken."""

    style: str
    """``random``, ``center`` or ``corner``."""
    aspect: float
    """Width / height that the target was computed for."""


class Reference(NamedTuple):
    """A sample that is only looked at."""

    set: str
    """Id of its conditioning set."""
    sample: Sample


@dataclass(frozen=True, slots=True)
class Sample:
    """A file of a dataset. Many thousand of them are held at once, so they share what they can."""

    root: str
    """The dataset's folder."""
    name: str
    """The file, relative to it; the sample's identity wherever something is drawn by chance."""
    size_bytes: int
    mtime_ns: int
    width: int
    """Pixels, after the EXIF orientation."""
    height: int
    resized: Size
    """The scaled picture, before the target is cut out of it."""
    target: Size
    """What the network sees."""
    crop: CropPlan
    bucket: str
    """``1.33 (1152x896)``: samples of one bucket have one target size."""
    captions: tuple[str, ...]
    """Alternatives; one is taken at a time."""
    random_name: str = ""
    """The name that places random crops where it is not its own: that of the image a reference belongs to."""
    references: tuple[Reference, ...] = ()
    """What the network sees besides, one of each conditioning set."""
    remark: str = ""
    """What people should know about the file, such as a colour profile that cannot be used."""

    @property
    def path(self) -> str:
        return os.path.join(self.root, self.name)


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
