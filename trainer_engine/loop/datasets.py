"""From the datasets of a job to samples whose latents and embeddings are on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer_engine.batches.batch import reference_choices
from trainer_engine.batches.sampler import DataSource, Item
from trainer_engine.batches.sources import data_source, trained_sets
from trainer_engine.caches.latents import LatentCache, cache_latents
from trainer_engine.caches.prompts import Prompt, PromptCache, cache_prompts
from trainer_engine.caches.store import CacheStore
from trainer_engine.config.addresses import Reach
from trainer_engine.config.datasets import Dataloader, ImageSet, ReferenceSet, TextSet
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import DatasetUnusable, Problem, errors_in
from trainer_engine.contract.events import Notification, Severity, StageKey
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.report import DatasetReport, SetReport
from trainer_engine.datasets.samples import Sample, fingerprint, reference_cache, settings_of
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
    dropped: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    """By dataset id: samples that could not be encoded."""

    def read_latents(self, source: str, sample: Sample) -> Tensor:
        """(C, h, w)"""
        return self.latents[source].read(sample)

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
        sampling = (source.passes, source.at_least, source.weight)

        def content_of(cache: str, sample: Sample) -> str:
            return self.latents[cache].contents.get(sample.name, "")

        return {sample.name: fingerprint(source.id, sample, sampling, content_of) for sample in samples}


def _usable(found: SetReport, latents: Mapping[str, LatentCache]) -> list[Sample]:
    """An image that cannot be encoded is left out, and so is one with such a reference."""
    known = latents[found.entry.id].addresses
    return [sample for sample in found.samples if sample.name in known and _has_references(found.entry.id, sample, latents)]


def _dropped(found: SetReport, latents: Mapping[str, LatentCache]) -> list[Sample]:
    usable = {sample.name for sample in _usable(found, latents)}
    return [sample for sample in found.samples if sample.name not in usable]


def _has_references(set_id: str, sample: Sample, latents: Mapping[str, LatentCache]) -> bool:
    """Whether each of its references could be encoded."""
    return all(one.sample.name in latents[reference_cache(set_id, one.set)].addresses for one in sample.references)


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
        sources = tuple(data_source(found, _usable(found, latents)) for found in trained)
        if not any(source.samples for source in sources):
            raise DatasetUnusable([Problem.error("dataloader", "no_samples", "No image of any dataset can be trained on.")])
        edits = tuple(_edit(set_id, sample, latents, prompts) for set_id, sample in shown if _has_references(set_id, sample, latents))
        held_out = tuple(Item(found.entry.id, sample) for found in evaluated for sample in _usable(found, latents))
        copies = trained_copies(latents, [found.entry.id for found in trained], held_out)
        if copies:
            self.stages.sink.emit(copies)
        return Prepared(
            sources=tuple(source for source in sources if source.samples),
            latents=latents,
            captions=captions,
            prompts=prompts,
            edits=edits,
            eval_prompts=lent,
            held_out=held_out,
            settings={found.entry.id: settings_of(found.entry) for found in trained},
            dropped={found.entry.id: _dropped(found, latents) for found in trained},
        )

    def _examine(self, dataloader: Dataloader) -> DatasetReport:
        root = Path(self.options.data.cache_dir or Path(self.options.run.output_dir, "cache"))
        with self.stages.stage(StageKey.DATA_BACKEND) as advance:
            report = self.processes.first_then_others(
                lambda: examine(
                    dataloader,
                    self.options,
                    self.family.spec,
                    on_progress=lambda _label, done, total: advance(done, total),
                    index_dir=root / "index",
                    processes=self.processes.count,
                    reach=Reach(private=private_networks_are_open()),
                    should_stop=self.requests.stop_asked,
                )
            )
            self.requests.raise_if_stopped()
            if errors_in(report.problems):
                raise DatasetUnusable(errors_in(report.problems))
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
        cache = self.processes.first_then_others(
            lambda: cache_prompts(
                self.family,
                prompts,
                CacheStore(Path(text.text_cache)),
                seed=self.options.run.seed,
                batch_size=self.options.data.text_encoder_batch_size,
                write_batch_size=text.write_batch_size,
                on_progress=advance,
                should_stop=self.requests.stop_asked,
            )
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
        cache = self.processes.first_then_others(
            lambda: cache_latents(
                self.family,
                samples,
                CacheStore(Path(entry.vae_cache)),
                seed=self.options.run.seed,
                batch_size=entry.vae_batch_size,
                write_batch_size=entry.write_batch_size,
                workers=self.options.data.max_workers,
                on_progress=advance,
                should_stop=self.requests.stop_asked,
            )
        )
        self.requests.raise_if_stopped()
        return cache

    def _emit_left_out(self, set_id: str, files: Sequence[tuple[str, str]]) -> None:
        if not files:
            return
        named = "; ".join(f"{name} ({reason})" for name, reason in files[:MAX_LISTED])
        more = f"; and {len(files) - MAX_LISTED} more" if len(files) > MAX_LISTED else ""
        message = f"Dataset {set_id}: {len(files)} files are left out: {named}{more}."
        self.stages.sink.emit(Notification(code="files_left_out", title="Files left out", message=message, severity=Severity.WARNING))
