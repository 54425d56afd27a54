"""Finds the references and masks of images by name, and checks the size of those that must have the size of their image."""

# ruff: noqa: PTH122
# Paths are text here, as in samples.py.
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trainer_engine.config.datasets import ImageSet, ReferenceSet
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.buckets import paired_bucket
from trainer_engine.datasets.index import Discovery, ImageFile
from trainer_engine.datasets.planning import Planner
from trainer_engine.datasets.samples import Reference, Sample
from trainer_engine.datasets.sources.base import LeftOut, printable

MAX_LISTED = 10
MakePlanner = Callable[[ImageSet], Planner]


@dataclass
class Pairing:
    """The images of one set with their references, or masks, of one conditioning set."""

    images: ImageSet
    references: ReferenceSet
    found: Discovery
    plan: Planner
    """Plans the references by themselves, for ``reference_loose``."""
    missing: list[str] = field(default_factory=list)
    """Images without a reference."""
    ambiguous: list[str] = field(default_factory=list)
    """Images with several possible references, with their names."""
    unlike: list[str] = field(default_factory=list)
    """Pairs of different sizes that must have the same one, with both sizes."""
    unusable: list[str] = field(default_factory=list)
    """References that cannot be read, with the reason."""
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._by_name: Mapping[str, ImageFile] = {file.name: file for file in self.found.images}
        self._by_stem: dict[str, list[ImageFile]] = {}
        for file in self.found.images:
            self._by_stem.setdefault(os.path.splitext(file.name)[0], []).append(file)
        self._broken = {os.path.splitext(file.name)[0]: file for file in self.found.left_out}

    def reference_of(self, sample: Sample) -> Reference | None:
        """Returns the reference of a sample, or None if there is no usable one; ``problems`` reports the reason."""
        found = self._partners(sample.name)
        self.used.update(file.name for file in found)
        if len(found) > 1:
            self.ambiguous.append(f"{printable(sample.name)} ({', '.join(printable(file.name) for file in found)})")
            return None
        if not found:
            broken = self._broken.get(os.path.splitext(sample.name)[0])
            if broken:
                self.unusable.append(f"{printable(broken.name)} ({broken.reason})")
            else:
                self.missing.append(printable(sample.name))
            return None
        [file] = found
        made = self._strict(sample, file) if self.references.shares_crops else self._loose(file)
        return Reference(self.references.id, made) if made else None

    def _partners(self, name: str) -> list[ImageFile]:
        """Returns the reference with the same file name, or else those that differ only in their suffix."""
        if name in self._by_name:
            return [self._by_name[name]]
        return self._by_stem.get(os.path.splitext(name)[0], [])

    def _strict(self, sample: Sample, file: ImageFile) -> Sample | None:
        if (file.width, file.height) != (sample.width, sample.height):
            sizes = f"{sample.width}x{sample.height} and {file.width}x{file.height}"
            self.unlike.append(f"{printable(sample.name)} ({sizes})")
            return None
        if file.frame_rate is not None and file.frames < sample.frames:
            self.unusable.append(f"{printable(file.name)} (it has {file.frames} frames, its clip {sample.frames})")
            return None
        return sample._replace(
            source=self.found.source,
            name=file.name,
            size_bytes=file.size_bytes,
            version=file.version,
            captions=self.references.captions,
            random_name=sample.name,
            references=(),
            remark=file.remark,
            frames=1 if file.frame_rate is None else sample.frames,
            frame_rate=file.frame_rate,
        )

    def _loose(self, file: ImageFile) -> Sample | None:
        planned = self.plan.plan(file)
        if isinstance(planned, LeftOut):
            self.unusable.append(f"{printable(file.name)} ({planned.reason})")
            return None
        return planned._replace(captions=self.references.captions)

    def problems(self, *, fetches_later: bool = False) -> Iterator[Problem]:
        """``fetches_later``: a run fetches files that are not here, so that none of them is missing yet."""
        images, option, noun = self.images, self.references.place_option, self.references.noun
        folder = printable(self.references.place)
        title = f"dataset {self.references.id}"
        if self.found.pending and fetches_later:
            message = f"{title}: {self.found.pending.files} {noun}s are fetched when the run starts."
            hint = f"images of {images.id} whose {noun} is not here yet are counted then"
            yield Problem.note(option, "files_pending", message, got=self.found.pending.files, hint=hint)
        elif self.missing:
            message = f"{title}: {len(self.missing)} images of {images.id} have no {noun} in {folder}: {_named(self.missing)}."
            hint = f"give each image a {noun} of the same name, or remove the image"
            yield Problem.error(option, "missing_reference", message, got=folder, expected=f"a {noun} of the same name", hint=hint)
        if self.ambiguous:
            message = f"{title}: {len(self.ambiguous)} images of {images.id} have several {noun}s in {folder}: {_named(self.ambiguous)}."
            hint = "keep one of them, or give it exactly the image's file name, including the suffix"
            yield Problem.error(option, "several_references", message, got=folder, expected=f"one {noun} of the same name", hint=hint)
        if self.unlike:
            message = f"{title}: {len(self.unlike)} {noun}s differ in size from their image: {_named(self.unlike)}."
            scaled = "scale each mask to the size of its image"
            hint = scaled if self.references.is_mask else "use conditioning_type=reference_loose for references of any size"
            yield Problem.error(option, "unlike_sizes", message, expected="the size of the image", hint=hint)
        if self.unusable:
            message = f"{title}: {len(self.unusable)} {noun}s cannot be used: {_named(self.unusable)}."
            yield Problem.error(option, "broken_reference", message, hint="repair or replace them, or also remove the images")
        alone = sorted(printable(name) for name in self._by_name.keys() - self.used)
        if alone and self.references.generated is None:
            message = f"{title}: {len(alone)} {noun}s have no usable image in {images.id}: {_named(alone)}."
            yield Problem.warning(option, "unused_reference", message)


def pair(samples: Sequence[Sample], pairings: Sequence[Pairing]) -> list[Sample]:
    """Returns the samples that have a reference in every conditioning set and a mask if there are masks, with these."""
    paired = []
    for sample in samples:
        found = [(pairing, partner) for pairing in pairings if (partner := pairing.reference_of(sample))]
        if len(found) == len(pairings):
            references = tuple(partner for pairing, partner in found if not pairing.references.is_mask)
            masks = [partner for pairing, partner in found if pairing.references.is_mask]
            bucket = paired_bucket(sample.bucket, sample.target, [reference.sample.target for reference in references])
            paired.append(sample._replace(references=references, bucket=bucket, mask=masks[0] if masks else None))
    return paired


def _named(names: Sequence[str]) -> str:
    more = f"; and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return "; ".join(names[:MAX_LISTED]) + more
