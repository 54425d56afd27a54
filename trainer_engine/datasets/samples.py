"""A sample: which file is trained on, at which size, cropped where, with which captions; and its fingerprint in checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

from trainer_engine.config.datasets import ImageSet
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.sources.base import Source, SourceFile, Version


class CropPlan(NamedTuple):
    """How the crop of an image is placed."""

    style: str
    """``random``, ``center`` or ``corner``."""
    aspect: float
    """Width / height of the target before its edges are aligned."""


class Reference(NamedTuple):
    """The reference of a sample in one conditioning set."""

    set: str
    """Id of its conditioning set."""
    sample: Sample


class Sample(NamedTuple):
    """A file of a dataset as it is trained on. There may be many thousands at once, so they share values.

    A tuple is made in a third of the time that a frozen dataclass with so many fields takes.
    """

    source: Source
    """Where its file lies. All samples of a dataset share it."""
    name: str
    """Name of the file in its source. It identifies the sample wherever something is random."""
    size_bytes: int
    version: Version
    """Version of the file when it was measured."""
    width: int
    """In pixels, after the EXIF orientation is applied."""
    height: int
    resized: Size
    """Size of the scaled image, before the target is cropped out of it."""
    target: Size
    """Size that the network sees."""
    crop: CropPlan
    bucket: str
    """``1.33 (1152x896)``. Samples of one bucket have the same target size."""
    captions: tuple[str, ...]
    """Alternative captions; one is used at a time. Those of a reference count instead of its image's, if it is the only one in use."""
    random_name: str = ""
    """Name that places random crops if it is not the sample's own: a reference uses that of its image."""
    references: tuple[Reference, ...] = ()
    """Its references, one of each conditioning set that the network looks at."""
    mask: Reference | None = None
    """The mask that weights its loss."""
    remark: str = ""
    """A note about the file for people, such as an unusable colour profile; empty if there is none."""
    frames: int = 1
    """Number of frames that are trained on, the first ones of a clip; 1 for an image."""
    frame_rate: float | None = None
    """Frames a second of a clip; None for an image."""
    epoch: int = 0
    """The epoch, from 0, whose random crop this is; 0 for a crop that does not change."""

    @property
    def is_clip(self) -> bool:
        return self.frame_rate is not None

    @property
    def location(self) -> str:
        """Where the file lies, for messages: a path, or an address in its source."""
        return self.source.location(self.name)

    @property
    def file(self) -> SourceFile:
        return SourceFile(self.source, self.name, self.size_bytes)


ContentOf = Callable[[str, Sample], str]
"""(cache, sample) -> sha256 of its file, or an empty string if unknown. ``cache`` is the id of an image set, or a ``reference_cache``."""
SETTINGS = (
    *("resolution", "resolution_type", "minimum_image_size", "maximum_image_size", "target_downsample_size"),
    *("minimum_aspect_ratio", "maximum_aspect_ratio", "crop", "crop_style", "crop_aspect", "crop_aspect_buckets", "max_upscale_threshold"),
    *("caption_strategy", "instance_prompt", "prepend_instance_prompt", "only_instance_prompt", "disable_multiline_split"),
    *("caption_shuffle", "repeats", "probability", "max_num_samples", "conditioning_data", "conditioning", "is_regularisation_data"),
    *("train_batch_size", "start_epoch", "start_step", "end_epoch", "end_step", "video", "vae_cache_clear_each_epoch"),
    "slider_strength",
)
"""Fields of a dataset that decide how its samples are trained, and therefore explain why fingerprints differ."""


def settings_of(entry: ImageSet) -> dict[str, Any]:
    """Returns the settings of an image set as ``training_state.json`` records them."""
    values = entry.model_dump(mode="json")
    return {name: values[name] for name in SETTINGS}


def reference_cache(set_id: str, reference_id: str) -> str:
    """Returns the name of the cache of a set's references or masks. Their crops depend on both sets."""
    return f"{set_id} with {reference_id}"


def fingerprint(set_id: str, sample: Sample, trained: tuple[object, ...], content_of: ContentOf) -> str:
    """Returns a hash of geometry, captions and frequency, followed by a space and a hash of the contents of its files if known.

    ``trained`` is the ``frequency`` of the report of its set.
    """
    parts: tuple[object, ...] = (sample.size_bytes, sample.resized, sample.target, sample.crop, sample.captions, *trained)
    parts += (sample.frames, sample.frame_rate) if sample.frame_rate else ()
    contents = [content_of(set_id, sample)]
    for reference_id, reference in sample.references:
        parts += (reference_id, reference.name, reference.size_bytes, reference.resized, reference.target, reference.crop)
        parts += (reference.captions,) if reference.captions else ()
        contents.append(content_of(reference_cache(set_id, reference_id), reference))
    if sample.mask is not None:
        mask_id, mask = sample.mask
        parts += ("mask", mask_id, mask.name, mask.size_bytes)
        contents.append(content_of(reference_cache(set_id, mask_id), mask))
    shape = _short(repr(parts))
    return f"{shape} {_short(' '.join(contents))}" if all(contents) else shape


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
