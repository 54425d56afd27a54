"""From the datasets of a job to samples whose latents and embeddings are on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from trainer_engine.batches.sampler import DataSource
from trainer_engine.caches.latents import LatentCache, cache_latents
from trainer_engine.caches.prompts import PromptCache, cache_prompts
from trainer_engine.caches.store import CacheStore
from trainer_engine.contract.dataloader import Dataloader, TextSet
from trainer_engine.contract.errors import DatasetUnusable, Problem, errors_in
from trainer_engine.contract.events import Notification, Severity, StageKey
from trainer_engine.contract.options import TrainingOptions
from trainer_engine.datasets.buckets import fill_buckets
from trainer_engine.datasets.report import DatasetReport, SetReport, examine
from trainer_engine.datasets.samples import Sample
from trainer_engine.families.base import Family, PromptEmbedding
from trainer_engine.loop.stages import Advance, Stages
from trainer_engine.processes import Processes
from trainer_engine.stopping import Requests
from trainer_engine.validation import texts_to_encode

MOST_NAMED = 20


@dataclass(frozen=True)
class Prepared:
    """Datasets that can be trained on."""

    sources: tuple[DataSource, ...]
    latents: Mapping[str, LatentCache]
    """By dataset id."""
    captions: Mapping[str, PromptCache]
    """By dataset id: where the embeddings of its captions are."""
    prompts: PromptCache
    """Of the empty prompt and of those that validations draw."""

    def read_latents(self, source: str, sample: Sample) -> Tensor:
        """(C, h, w)"""
        return self.latents[source].read(sample)

    def read_prompt(self, source: str, caption: str) -> PromptEmbedding:
        return (self.captions[source] if caption else self.prompts).read(caption)

    def sample_names(self) -> dict[str, dict[str, str]]:
        """Dataset id -> name of each sample -> a fingerprint of all that decides how it is trained."""
        return {
            source.id: {sample.name: _fingerprint(sample, source) for bucket in source.buckets for sample in bucket}
            for source in self.sources
        }


def _fingerprint(sample: Sample, source: DataSource) -> str:
    parts = (sample.size_bytes, sample.resized, sample.target, sample.crop, sample.captions, source.passes, source.at_least, source.weight)
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Preparation:
    """Looks at the datasets and fills the caches, one stage after another."""

    options: TrainingOptions
    family: Family
    processes: Processes
    stages: Stages
    requests: Requests

    def run(self, dataloader: Dataloader) -> Prepared:
        """Raises DatasetUnusable, ModelUnavailable, OutOfMemory, DiskFull, Stopped."""
        report = self._examine(dataloader)
        drawn = [found for found in report.sets if found.entry.probability]
        captions, prompts = self._cache_texts(dataloader, drawn)
        latents = self._cache_images(drawn)
        self.family.free_encoders()
        sources = tuple(self._source(found, latents[found.entry.id], report) for found in drawn)
        if not any(source.samples for source in sources):
            raise DatasetUnusable([Problem.error("dataloader", "no_samples", "No image of any dataset can be trained on.")])
        return Prepared(tuple(source for source in sources if source.samples), latents, captions, prompts)

    def _examine(self, dataloader: Dataloader) -> DatasetReport:
        root = Path(self.options.data.cache_dir or Path(self.options.run.output_dir, "cache"))
        with self.stages.stage(StageKey.DATA_BACKEND) as advance:
            report = self.processes.first_then_others(
                lambda: examine(
                    dataloader,
                    self.options,
                    self.family.card,
                    on_progress=lambda _label, done, total: advance(done, total),
                    index_dir=root / "index",
                    processes=self.processes.count,
                )
            )
            if errors_in(report.problems):
                raise DatasetUnusable(errors_in(report.problems))
        for found in report.sets:
            self._tell_left_out(found, [(file.name, file.reason) for file in found.left_out if file.broken])
        self.requests.raise_if_stopped()
        return report

    def _cache_texts(self, dataloader: Dataloader, sets: Sequence[SetReport]) -> tuple[dict[str, PromptCache], PromptCache]:
        default = dataloader.default_text_set
        wanted: dict[str, list[str]] = {default.id: ["", *texts_to_encode(self.options)]}
        for found in sets:
            captions = [caption for sample in found.samples for caption in sample.captions]
            wanted.setdefault(dataloader.text_set_of(found.entry).id, []).extend(captions)
        made: dict[str, PromptCache] = {}
        with self.stages.stage(StageKey.TEXT_EMBED_CACHE) as advance:
            for text in dataloader.text_sets:
                if text.id in wanted:
                    made[text.id] = self._cache_text_set(text, wanted[text.id], advance)
        self.family.free_encoders()
        return {found.entry.id: made[dataloader.text_set_of(found.entry).id] for found in sets}, made[default.id]

    def _cache_text_set(self, text: TextSet, prompts: Sequence[str], advance: Advance) -> PromptCache:
        cache = self.processes.first_then_others(
            lambda: cache_prompts(
                self.family,
                prompts,
                CacheStore(Path(text.text_cache)),
                batch_size=self.options.data.text_encoder_batch_size,
                write_batch_size=text.write_batch_size,
                on_progress=advance,
                should_stop=self.requests.stop_asked,
            )
        )
        self.requests.raise_if_stopped()
        return cache

    def _cache_images(self, sets: Sequence[SetReport]) -> dict[str, LatentCache]:
        made: dict[str, LatentCache] = {}
        total, before = sum(len(found.samples) for found in sets), 0
        with self.stages.stage(StageKey.VAE_CACHE) as advance:
            for found in sets:
                made[found.entry.id] = self._cache_image_set(found, lambda done, _, before=before: advance(before + done, total))
                before += len(found.samples)
        for found in sets:
            self._tell_left_out(found, [(sample.name, reason) for sample, reason in made[found.entry.id].left_out])
        return made

    def _cache_image_set(self, found: SetReport, advance: Advance) -> LatentCache:
        cache = self.processes.first_then_others(
            lambda: cache_latents(
                self.family,
                found.samples,
                CacheStore(Path(found.entry.vae_cache)),
                seed=self.options.run.seed,
                batch_size=found.entry.vae_batch_size,
                write_batch_size=found.entry.write_batch_size,
                workers=self.options.data.max_workers,
                on_progress=advance,
                should_stop=self.requests.stop_asked,
            )
        )
        self.requests.raise_if_stopped()
        return cache

    def _source(self, found: SetReport, cache: LatentCache, report: DatasetReport) -> DataSource:
        usable = [sample for sample in found.samples if sample.name in cache.addresses]
        repeated = self.options.data.allow_dataset_oversubscription and not found.entry.repeats
        return DataSource(
            id=found.entry.id,
            buckets=tuple(tuple(usable[index] for index in members) for members in fill_buckets(usable).values()),
            passes=found.entry.repeats + 1,
            weight=found.entry.probability,
            at_least=report.effective.samples if repeated else 0,
        )

    def _tell_left_out(self, found: SetReport, files: Sequence[tuple[str, str]]) -> None:
        if not files:
            return
        named = "; ".join(f"{name} ({reason})" for name, reason in files[:MOST_NAMED])
        more = f"; and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else ""
        message = f"Dataset {found.entry.id}: {len(files)} files are left out: {named}{more}."
        self.stages.voice.tell(Notification(code="files_left_out", title="Files left out", message=message, severity=Severity.WARNING))
