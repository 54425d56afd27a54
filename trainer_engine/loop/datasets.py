"""From the datasets of a job to samples whose latents and embeddings are on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer_engine.batches.batch import reference_choices
from trainer_engine.batches.sampler import DataSource, Item
from trainer_engine.batches.sources import data_source, trained_sets
from trainer_engine.caches.latents import LatentCache, cache_latents
from trainer_engine.caches.masks import MaskCache, cache_masks
from trainer_engine.caches.prompts import Prompt, PromptCache, cache_prompts
from trainer_engine.caches.store import CacheStore, Encoded
from trainer_engine.config.datasets import Dataloader, ImageSet, ReferenceSet, TextSet
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.errors import DatasetUnusable, Problem, errors_in
from trainer_engine.contract.events import Notification, Severity, StageKey
from trainer_engine.datasets.egress import Reach
from trainer_engine.datasets.examine import examine, fetch_datasets
from trainer_engine.datasets.report import DatasetReport, SetReport
from trainer_engine.datasets.samples import Sample, fingerprint, reference_cache, settings_of
from trainer_engine.datasets.sources.base import Fetching
from trainer_engine.datasets.summary import report_document
from trainer_engine.evaluation.eval_sets import evaluated_sets, lent_prompts, trained_copies
from trainer_engine.families.base import Family
from trainer_engine.families.inputs import PromptEmbedding
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.environment import private_networks_are_open
from trainer_engine.runtime.stages import Advance, Stages, advance_after
from trainer_engine.validation.generate import Edit, ValidationPrompt, texts_to_encode
from trainer_engine.validation.names import name_after

MAX_LISTED = 20


@dataclass(frozen=True)
class Prepared:
    """Datasets that can be trained on."""

    sources: tuple[DataSource, ...]
    latents: Mapping[str, LatentCache]
    """By dataset id."""
    masks: Mapping[str, MaskCache]
    """By ``reference_cache`` of a dataset and its set of masks."""
    captions: Mapping[str, PromptCache]
    """By dataset id: where the embeddings of its captions are."""
    prompts: PromptCache
    """Embeddings of the empty prompt and of the prompts of validations."""
    edits: tuple[Edit, ...] = ()
    """Pairs whose references validations use."""
    eval_prompts: tuple[ValidationPrompt, ...] = ()
    """Captions of held-out images, as prompts of validations."""
    held_out: tuple[Item, ...] = ()
    """Images that are evaluated on."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By dataset id: the fields that decide how its samples are trained."""
    frequencies: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """By dataset id: the part of its samples' fingerprints that says how often they are seen."""
    dropped: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    """By dataset id: samples that could not be encoded."""

    def read_latents(self, source: str, sample: Sample) -> Tensor:
        """(C, h, w)"""
        return self.latents[source].read(sample)

    def read_mask(self, source: str, sample: Sample, size: tuple[int, int]) -> Tensor:
        """(1, h, w) for a sample that has a mask."""
        assert sample.mask is not None
        return self.masks[reference_cache(source, sample.mask.set)].read(sample.mask.sample, size)

    def read_prompt(self, source: str, caption: str, references: Sequence[Sample] = ()) -> PromptEmbedding:
        """The embedding of a caption; ``references`` are those that the text encoder looks at."""
        return (self.captions[source] if caption or references else self.prompts).read(caption, references)

    def sample_names(self) -> dict[str, dict[str, str]]:
        """Dataset id -> name of each sample -> a fingerprint of all that decides how it is trained."""
        return {source.id: self._fingerprints(source, chain.from_iterable(source.buckets)) for source in self.sources}

    def left_out(self) -> dict[str, dict[str, str]]:
        """As ``sample_names``, of the samples that could not be encoded."""
        return {source.id: self._fingerprints(source, lost) for source in self.sources if (lost := self.dropped.get(source.id))}

    def _fingerprints(self, source: DataSource, samples: Iterable[Sample]) -> dict[str, str]:
        frequency = self.frequencies[source.id]

        def content_of(cache: str, sample: Sample) -> str:
            found = self.masks[cache] if cache in self.masks else self.latents[cache]
            return found.contents.get(sample.name, "")

        return {sample.name: fingerprint(source.id, sample, frequency, content_of) for sample in samples}


CachesByName = Mapping[str, LatentCache | MaskCache]
"""Caches of images, of references and of masks: by dataset id or ``reference_cache``."""


def _usable(found: SetReport, caches: CachesByName) -> list[Sample]:
    """An image that cannot be encoded is left out, and so is one with such a reference or an unreadable mask."""
    known = caches[found.entry.id].addresses
    return [sample for sample in found.samples if sample.name in known and _has_partners(found.entry.id, sample, caches)]


def _dropped(found: SetReport, caches: CachesByName) -> list[Sample]:
    usable = {sample.name for sample in _usable(found, caches)}
    return [sample for sample in found.samples if sample.name not in usable]


def _has_partners(set_id: str, sample: Sample, caches: CachesByName) -> bool:
    """Whether each of its references could be encoded, and its mask be read."""
    partners = (*sample.references, *([sample.mask] if sample.mask else []))
    return all(one.sample.name in caches[reference_cache(set_id, one.set)].addresses for one in partners)


def _edit(set_id: str, sample: Sample, latents: Mapping[str, LatentCache], prompts: PromptCache) -> Edit:
    def read() -> tuple[Tensor, ...]:
        return tuple(latents[reference_cache(set_id, one.set)].read(one.sample) for one in sample.references)

    seen = [one.sample for one in sample.references] if prompts.family.prompts_see_references else []
    return Edit(name_after(sample.name), sample.captions[0], read, lambda text: prompts.read(text, seen))


@dataclass(frozen=True)
class Preparation:
    """Looks at the datasets and fills the caches, one stage after another."""

    options: TrainingOptions
    family: Family
    processes: Processes
    stages: Stages
    requests: ControlRequests
    report_file: Path | None = None
    """Where the report about the datasets is written; None for nowhere."""

    def run(self, dataloader: Dataloader) -> Prepared:
        """Raises DatasetUnusable, ModelUnavailable, OutOfMemory, DiskFull, Stopped."""
        report = self._examine(dataloader)
        trained = trained_sets(report)
        evaluated = evaluated_sets(report, self.options)
        shown = self._shown_pairs(evaluated) or self._shown_pairs(trained)
        lent = lent_prompts(evaluated, self.options)
        captions, prompts = self._cache_texts(dataloader, [*trained, *evaluated], self._shown_prompts(shown, lent))
        latents = self._cache_images([*trained, *evaluated], dataloader)
        self.family.free_encoders()
        masks = self._cache_masks([*trained, *evaluated], dataloader)
        caches: CachesByName = {**latents, **masks}
        self._keep_encoders(latents.values(), [*captions.values(), prompts])
        sources = tuple(data_source(found, _usable(found, caches)) for found in trained)
        if not any(source.samples for source in sources):
            raise DatasetUnusable([Problem.error("dataloader", "no_samples", "No image of any dataset can be trained on.")])
        edits = tuple(_edit(set_id, sample, latents, prompts) for set_id, sample in shown if _has_partners(set_id, sample, caches))
        held_out = tuple(Item(found.entry.id, sample) for found in evaluated for sample in _usable(found, caches))
        copies = trained_copies(latents, [found.entry.id for found in trained], held_out)
        if copies:
            self.stages.sink.emit(copies)
        return Prepared(
            sources=tuple(source for source in sources if source.samples),
            latents=latents,
            masks=masks,
            captions=captions,
            prompts=prompts,
            edits=edits,
            eval_prompts=lent,
            held_out=held_out,
            settings={found.entry.id: settings_of(found.entry) for found in trained},
            frequencies={found.entry.id: found.frequency for found in trained},
            dropped={found.entry.id: _dropped(found, caches) for found in trained},
        )

    def _examine(self, dataloader: Dataloader) -> DatasetReport:
        root = Path(self.options.data.cache_dir or Path(self.options.run.output_dir, "cache"))
        with self.stages.stage(StageKey.DATA_BACKEND) as advance:

            def examined() -> DatasetReport:
                fetch_datasets(dataloader, Fetching(advance, self.requests.raise_if_stopped))
                return examine(
                    dataloader,
                    self.options,
                    self.family.spec,
                    on_progress=lambda _label, done, total: advance(done, total),
                    index_dir=root / "index",
                    processes=self.processes.count,
                    reach=Reach(private=private_networks_are_open()),
                )

            report = self.processes.first_then_others(examined)
            if errors_in(report.problems):
                raise DatasetUnusable(errors_in(report.problems))
            if self.report_file and self.processes.is_first:
                # A full disk below the run's journal costs no training; the server shows the report of validate instead.
                with suppress(OSError):
                    write_atomically(self.report_file, json.dumps(report_document(report, self.options)).encode("ascii"))
        for found in (*report.sets, *report.eval_sets):
            self._emit_left_out(found.entry.id, [(file.name, file.reason) for file in found.left_out if file.broken])
        self.requests.raise_if_stopped()
        return report

    def _shown_pairs(self, sets: Sequence[SetReport]) -> list[tuple[str, Sample]]:
        """(dataset id, image) of the pairs that validations use: the first of each set, by name."""
        validation = self.options.validation
        chosen = [found for found in sets if validation.eval_dataset_id in (None, found.entry.id)]
        if validation.validation_disable:
            return []
        pairs = []
        for found in chosen:
            paired = sorted((sample for sample in found.samples if sample.references), key=lambda sample: sample.name)
            pairs += [(found.entry.id, sample) for sample in paired[: validation.num_eval_images]]
        return pairs

    def _shown_prompts(self, shown: Sequence[tuple[str, Sample]], lent: Sequence[ValidationPrompt]) -> list[Prompt]:
        """Every prompt that validations read."""
        validation, sees = self.options.validation, self.family.prompts_see_references
        negative = [validation.validation_negative_prompt] if lent or shown else []
        pairs = [(sample.captions[0], tuple(one.sample for one in sample.references) if sees else ()) for _, sample in shown]
        shared = [text for text in (validation.validation_prompt, *negative) if text is not None]
        return [
            *map(Prompt, texts_to_encode(self.options)),
            *(Prompt(caption, references) for caption, references in pairs),
            *(Prompt(prompt.text) for prompt in lent),
            *map(Prompt, negative),
            *(Prompt(text, references) for _, references in pairs if references for text in shared),
        ]

    def _trained_prompts(self, samples: Sequence[Sample]) -> Iterator[Prompt]:
        """Every prompt that training and evaluation read for these samples, but for the empty one without references."""
        combined = self.options.data.conditioning_multidataset_sampling == "combined"
        may_drop = self.options.data.caption_dropout_probability > 0
        for sample in samples:
            if not (sample.references and self.family.prompts_see_references):
                yield from map(Prompt, sample.captions)
                continue
            for chosen in reference_choices(sample, combined=combined):
                seen = tuple(sample.references[position].sample for position in chosen)
                yield from (Prompt(text, seen) for text in (*sample.captions, *([""] if may_drop else [])))

    def _cache_texts(
        self, dataloader: Dataloader, sets: Sequence[SetReport], shown: Sequence[Prompt]
    ) -> tuple[dict[str, PromptCache], PromptCache]:
        default = dataloader.default_text_set
        wanted: dict[str, list[Prompt]] = {default.id: [Prompt(""), *shown]}
        for found in sets:
            wanted.setdefault(dataloader.text_set_of(found.entry).id, []).extend(self._trained_prompts(found.samples))
        made: dict[str, PromptCache] = {}
        with self.stages.stage(StageKey.TEXT_EMBED_CACHE) as advance:
            for text in dataloader.text_sets:
                if text.id in wanted:
                    made[text.id] = self._cache_text_set(text, wanted[text.id], advance)
        self.family.free_encoders()
        return {found.entry.id: made[dataloader.text_set_of(found.entry).id] for found in sets}, made[default.id]

    def _cache_text_set(self, text: TextSet, prompts: Sequence[Prompt], advance: Advance) -> PromptCache:
        data = self.options.data
        cache = cache_prompts(
            self.family,
            prompts,
            CacheStore(Path(text.text_cache), compress=data.compress_disk_cache),
            seed=self.options.run.seed,
            batch_size=text.text_encoder_batch_size,
            write_batch_size=text.write_batch_size,
            when=Encoded.of(
                on_demand=text.text_cache_ondemand or data.text_cache_ondemand,
                disabled=text.text_cache_disable or data.text_cache_disable,
            ),
            ranks=self.processes,
            on_progress=advance,
            should_stop=self.requests.stop_asked,
        )
        self.requests.raise_if_stopped()
        return cache

    def _cache_images(self, sets: Sequence[SetReport], dataloader: Dataloader) -> dict[str, LatentCache]:
        """By dataset id, and by ``reference_cache`` for the references of a set."""
        wanted: dict[str, tuple[ImageSet | ReferenceSet, list[Sample]]] = {}
        for found in sets:
            wanted[found.entry.id] = found.entry, found.samples
            for number, one in enumerate(dataloader.references_of(found.entry)):
                samples = [sample.references[number].sample for sample in found.samples]
                wanted[reference_cache(found.entry.id, one.id)] = one, samples
        made: dict[str, LatentCache] = {}
        total, before = sum(len(samples) for _, samples in wanted.values()), 0
        with self.stages.stage(StageKey.VAE_CACHE) as advance:
            for name, (entry, samples) in wanted.items():
                made[name] = self._cache_samples(entry, samples, advance_after(advance, before, total))
                before += len(samples)
        for name, (entry, _) in wanted.items():
            self._emit_left_out(entry.id, [(sample.name, reason) for sample, reason in made[name].left_out])
        return made

    def _cache_samples(self, entry: ImageSet | ReferenceSet, samples: Sequence[Sample], advance: Advance) -> LatentCache:
        data = self.options.data
        cache = cache_latents(
            self.family,
            samples,
            CacheStore(Path(entry.vae_cache), compress=data.compress_disk_cache),
            seed=self.options.run.seed,
            batch_size=entry.vae_batch_size,
            write_batch_size=entry.write_batch_size,
            workers=entry.max_workers,
            when=Encoded.of(
                on_demand=entry.vae_cache_ondemand or data.vae_cache_ondemand, disabled=entry.vae_cache_disable or data.vae_cache_disable
            ),
            ranks=self.processes,
            on_progress=advance,
            should_stop=self.requests.stop_asked,
        )
        self.requests.raise_if_stopped()
        return cache

    def _cache_masks(self, sets: Sequence[SetReport], dataloader: Dataloader) -> dict[str, MaskCache]:
        """By ``reference_cache`` of a set and its masks."""
        made: dict[str, MaskCache] = {}
        for found, masks in [(found, masks) for found in sets if (masks := dataloader.mask_of(found.entry))]:
            samples = [sample.mask.sample for sample in found.samples if sample.mask]
            with self.stages.stage(StageKey.VAE_CACHE, f"masks of {found.entry.id}") as advance:
                made[reference_cache(found.entry.id, masks.id)] = cache = self._cache_mask_set(masks, samples, advance)
            self._emit_left_out(masks.id, [(sample.name, reason) for sample, reason in cache.left_out])
            if cache.empty:
                self.stages.sink.emit(_empty_masks(masks, cache.empty))
        return made

    def _cache_mask_set(self, masks: ReferenceSet, samples: Sequence[Sample], advance: Advance) -> MaskCache:
        cache = self.processes.first_then_others(
            lambda: cache_masks(
                samples,
                CacheStore(Path(masks.vae_cache)),
                seed=self.options.run.seed,
                segments=masks.conditioning_type == "segmentation",
                scale_factor_px=self.family.spec.latents.scale_factor_px,
                workers=masks.max_workers,
                on_progress=advance,
                should_stop=self.requests.stop_asked,
            )
        )
        self.requests.raise_if_stopped()
        return cache

    def _keep_encoders(self, latents: Iterable[LatentCache], prompts: Iterable[PromptCache]) -> None:
        """Load the encoders that training itself needs, before the network fills the memory, and keep them until the run ends."""
        images = any(cache.when is not Encoded.AHEAD for cache in latents)
        texts = any(cache.when is not Encoded.AHEAD for cache in prompts)
        self.family.keeps_encoders = images or texts
        if images:
            edge = self.family.spec.latents.alignment_px
            self.family.encode_images(torch.zeros(1, 3, edge, edge))
        if texts:
            self.family.encode_prompts([""], [[]])

    def _emit_left_out(self, set_id: str, files: Sequence[tuple[str, str]]) -> None:
        if not files:
            return
        named = "; ".join(f"{name} ({reason})" for name, reason in files[:MAX_LISTED])
        more = f"; and {len(files) - MAX_LISTED} more" if len(files) > MAX_LISTED else ""
        message = f"Dataset {set_id}: {len(files)} files are left out: {named}{more}."
        self.stages.sink.emit(Notification(code="files_left_out", title="Files left out", message=message, severity=Severity.WARNING))


def _empty_masks(masks: ReferenceSet, samples: Sequence[Sample]) -> Notification:
    named = "; ".join(sample.name for sample in samples[:MAX_LISTED])
    more = f"; and {len(samples) - MAX_LISTED} more" if len(samples) > MAX_LISTED else ""
    message = f"Dataset {masks.id}: {len(samples)} masks are all black, so nothing is learned from their images: {named}{more}."
    return Notification(code="masks_empty", title="Empty masks", message=message, severity=Severity.WARNING)
