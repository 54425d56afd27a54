"""Compares the datasets with those that a checkpoint was trained on, from the scan that ``validate`` makes anyway."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from trainer_engine.config.datasets import Dataloader
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.resuming.choice import (
    SavedRun,
    changed_data,
    data_differences,
    is_same,
    left_out_of,
    read_samples,
    refuse_changed_data,
)
from trainer_engine.config.resuming.identity import layout_of
from trainer_engine.contract.errors import CheckpointUnusable, Problem, errors_in
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.datasets.media.base import BrokenImage, medium_of
from trainer_engine.datasets.report import DatasetReport, SetReport
from trainer_engine.datasets.samples import Sample, fingerprint, reference_cache, settings_of

OPTION = "resume_from_checkpoint"
MOST_READ_BYTES = 512 << 20
"""Limit for files whose hash is not cached: a second or two of reading. The engine reads them all."""
MOST_DECODED = 32
"""How many new or changed images are decoded to see whether they are usable."""


def data_problems(
    saved: SavedRun, report: DatasetReport, dataloader: Dataloader, options: TrainingOptions, processes: int
) -> Iterator[Problem]:
    """The problems that the engine would report once it has filled the caches."""
    if errors_in(report.problems) or report.is_incomplete:
        return
    contents = _Contents.of(report, dataloader)
    trained = [found for found in report.sets if found.entry.is_trained]
    wanted = options.checkpointing.resume_from_checkpoint
    try:
        samples = {found.entry.id: _samples(found, contents, saved) for found in trained}
        there = {set_id: found for set_id, found in samples.items() if found}
        layout = layout_of(options, options.distributed.groups_of(processes))
        differing = data_differences(saved, layout, there, {one.entry.id: settings_of(one.entry) for one in trained})
        if not options.run.i_know_what_i_am_doing:
            refuse_changed_data(saved, differing)
    except CheckpointUnusable as error:
        expected = "the datasets and batches that the checkpoint was trained with"
        yield Problem.error(OPTION, "data_changed", error.message, got=wanted, expected=expected, hint=error.hint)
        return
    if differing:
        yield Problem.warning(OPTION, "data_changed", changed_data(saved, differing), got=wanted)
    if contents.skipped:
        message = f"The contents of {contents.skipped} images are compared when the run starts: their sizes and captions are unchanged."
        yield Problem.note(OPTION, "contents_not_compared", message, got=wanted)


@dataclass
class _Contents:
    """Content hashes of files: from the caches, or computed up to a limit."""

    hashes: dict[str, FileHashes]
    read_bytes: int = 0
    skipped: int = 0
    _read: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, report: DatasetReport, dataloader: Dataloader) -> _Contents:
        hashes = {}
        for found in report.sets:
            hashes[found.entry.id] = FileHashes(Path(found.entry.vae_cache, "hashes.jsonl"))
            for one in dataloader.partners_of(found.entry):
                hashes[reference_cache(found.entry.id, one.id)] = FileHashes(Path(one.vae_cache, "hashes.jsonl"))
        return cls(hashes)

    def __call__(self, cache: str, sample: Sample) -> str:
        known = self.hashes[cache].known(sample.location, sample.size_bytes, sample.version)
        if known:
            return known
        if sample.location not in self._read:
            self._read[sample.location] = self._hash_file(sample)
        return self._read[sample.location]

    def _hash_file(self, sample: Sample) -> str:
        if self.read_bytes + sample.size_bytes > MOST_READ_BYTES:
            self.skipped += 1
            return ""
        try:
            self.read_bytes += sample.size_bytes or sample.source.size_of(sample.name)
            return sample.source.sha256(sample.name)
        except OSError:
            return ""


def _samples(found: SetReport, contents: _Contents, saved: SavedRun) -> dict[str, str]:
    """Name -> fingerprint of the samples that the engine would train on. Raises CheckpointUnusable."""
    entry = found.entry
    samples = {sample.name: fingerprint(entry.id, sample, found.frequency, contents) for sample in found.samples}
    for name, was in left_out_of(saved, entry.id).items():
        if name in samples and is_same(samples[name], str(was)):
            del samples[name]
    old = read_samples(saved).get(entry.id, {})
    changed = {name for name, now in samples.items() if not is_same(now, str(old.get(name, "")))} if samples != old else set[str]()
    fresh = [one for one in found.samples if one.name in changed] if changed else []
    for sample in fresh[:MOST_DECODED]:
        if not _is_decodable(sample):
            del samples[sample.name]
    return samples


def _is_decodable(sample: Sample) -> bool:
    try:
        partners = (*sample.references, *([sample.mask] if sample.mask else []))
        for one in (sample, *(partner.sample for partner in partners)):
            if one.source.is_generated:
                continue  # the engine makes it of the image
            for _ in islice(medium_of(one.name, is_clip=one.is_clip).frames(one.file), one.frames):
                pass
    except BrokenImage:
        return False
    return True
