"""From the datasets of a job to samples whose latents and embeddings are on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer_engine.batches.batch import captions_of, reference_choices
from trainer_engine.batches.sampler import Item
from trainer_engine.batches.sources import data_source, trained_sets
from trainer_engine.caches.control_images import ControlImages
from trainer_engine.caches.encoding import BatchEncoder
from trainer_engine.caches.latents import LatentCache, cache_latents
from trainer_engine.caches.masks import MaskCache
from trainer_engine.caches.prompts import Prompt, PromptCache, cache_prompts
from trainer_engine.caches.store import CacheStore, Encoded
from trainer_engine.config.datasets import Dataloader, ImageSet, ReferenceSet, TextSet
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.run_paths import index_folder
from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.errors import DatasetUnusable, Problem, errors_in
from trainer_engine.contract.events import StageKey
from trainer_engine.contract.path_rule import EVERYWHERE, PlaceRule
from trainer_engine.contract.run import RunFolder
from trainer_engine.datasets.examine import examine, fetch_datasets
from trainer_engine.datasets.index_file import Indexes
from trainer_engine.datasets.long_edges import beyond_positions
from trainer_engine.datasets.report import DatasetReport, SetReport
from trainer_engine.datasets.samples import Sample, reference_cache, settings_of
from trainer_engine.datasets.scanning import MANY_OBJECTS
from trainer_engine.datasets.sources.base import Fetching
from trainer_engine.datasets.summary import report_document
from trainer_engine.datasets.validation_inputs import PlannedInput
from trainer_engine.evaluation.eval_sets import evaluated_sets, lent_prompts, trained_copies
from trainer_engine.families.base import Family
from trainer_engine.loop.conditioning import ConditioningFiles, emit_left_out
from trainer_engine.loop.edits import edit_of_frame, edit_of_input, edit_of_pair, shown_caption
from trainer_engine.loop.prepared import Prepared
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.environment import reach_of_sources
from trainer_engine.runtime.stages import Advance, Stages, advance_after
from trainer_engine.validation.generate import Edit, ValidationPrompt, texts_to_encode
from trainer_engine.weights.loading import read_network_config

MAX_LISTED = 20


CachesByName = Mapping[str, LatentCache | MaskCache | ControlImages]
"""Caches of images, of references, of masks and of control images: by dataset id or ``reference_cache``."""


def _usable(found: SetReport, caches: CachesByName) -> list[Sample]:
    return [sample for sample in found.samples if _is_usable(found.entry.id, sample, caches)]


def _dropped(found: SetReport, caches: CachesByName) -> list[Sample]:
    return [sample for sample in found.samples if not _is_usable(found.entry.id, sample, caches)]


def _is_usable(set_id: str, sample: Sample, caches: CachesByName) -> bool:
    """An image that cannot be encoded is left out, and so is one with such a reference or an unreadable mask."""
    return sample.name in caches[set_id].addresses and _has_partners(set_id, sample, caches)


def _has_partners(set_id: str, sample: Sample, caches: CachesByName) -> bool:
    """Whether each of its references could be encoded, and its mask be read."""
    if not sample.references and sample.mask is None:
        return True
    partners = (*sample.references, *([sample.mask] if sample.mask else []))
    return all(one.sample.name in caches[reference_cache(set_id, one.set)].addresses for one in partners)


@dataclass(frozen=True)
class Preparation:
    """Looks at the datasets and fills the caches, one stage after another."""

    options: TrainingOptions
    family: Family
    processes: Processes
    stages: Stages
    requests: ControlRequests
    run_folder: RunFolder | None = None
    """Where the report about the datasets is written; None for nowhere."""
    places: PlaceRule = EVERYWHERE
    """From where captions may be read that links lead to."""

    def run(self, dataloader: Dataloader) -> Prepared:
        """Raises DatasetUnusable, ModelUnavailable, OutOfMemory, DiskFull, Stopped."""
        report = self._examine(dataloader)
        trained = trained_sets(report)
        evaluated = evaluated_sets(report, self.options)
        made = ConditioningFiles(self.options, self.family, self.processes, self.stages, self.requests)
        made.generate([*trained, *evaluated])
        shown = self._shown_pairs(evaluated, report.inputs) or self._shown_pairs(trained, report.inputs)
        lent = lent_prompts(evaluated, self.options)
        captions, prompts = self._cache_texts(dataloader, [*trained, *evaluated], self._shown_prompts(shown, lent, report.inputs))
        latents = self._cache_images([*trained, *evaluated], dataloader)
        inputs = made.cache_inputs(report.inputs)
        self.family.free_encoders()
        masks = made.cache_masks([*trained, *evaluated], dataloader)
        controls = made.examine_controls([*trained, *evaluated], dataloader)
        seed = self.options.run.seed
        caches: CachesByName = {**latents, **masks, **controls}
        self._keep_encoders(latents.values(), [*captions.values(), prompts])
        sources = tuple(data_source(found, _usable(found, caches)) for found in trained)
        if not any(source.samples for source in sources):
            raise DatasetUnusable([Problem.error("dataloader", "no_samples", "No image of any dataset can be trained on.")])
        pairs = tuple(self._edits_of(shown, caches, latents, prompts))
        own = [edit_of_input(one, inputs, prompts, seed) for one in report.inputs if inputs and one.sample.name in inputs.addresses]
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
            edits=(*own, *pairs),
            eval_prompts=lent,
            held_out=held_out,
            settings={found.entry.id: settings_of(found.entry) for found in trained},
            frequencies={found.entry.id: found.frequency for found in trained},
            dropped={found.entry.id: _dropped(found, caches) for found in trained},
            controls=controls,
        )

    def _edits_of(
        self, shown: Sequence[tuple[str, Sample]], caches: CachesByName, latents: Mapping[str, LatentCache], prompts: PromptCache
    ) -> Iterator[Edit]:
        """The inputs of validations that samples lend: their first frames, or their references."""
        seed = self.options.run.seed
        for set_id, sample in shown:
            if self.family.animates and _is_usable(set_id, sample, caches):
                yield edit_of_frame(sample, prompts, seed)
            elif not self.family.animates and _has_partners(set_id, sample, caches):
                yield edit_of_pair(set_id, sample, latents, prompts, seed)

    def _examine(self, dataloader: Dataloader) -> DatasetReport:
        shared = (self.run_folder.shared_index,) if self.run_folder else ()
        with self.stages.stage(StageKey.DATA_BACKEND) as advance:

            def examined() -> DatasetReport:
                reach = reach_of_sources()
                fetch_datasets(dataloader, self.family.spec, Fetching(advance, self.requests.raise_if_stopped, reach))
                found = examine(
                    dataloader,
                    self.options,
                    self.family.spec,
                    on_progress=lambda _label, done, total: advance(done, total),
                    index_dir=Indexes(index_folder(self.options), shared),
                    processes=self.processes.count,
                    reach=reach,
                    places=self.places,
                )
                found.problems += beyond_positions(self.options, self.family.spec, found, self._network_config())
                return found

            report = self.processes.first_then_others(examined)
            self.requests.raise_if_stopped()
            if errors_in(report.problems):
                raise DatasetUnusable(errors_in(report.problems))
            if self.run_folder and self.processes.is_first:
                # A full disk below the run's journal costs no training; the server shows the report of validate instead.
                with suppress(OSError):
                    write_atomically(self.run_folder.datasets, json.dumps(report_document(report, self.options)).encode("ascii"))
        for found in (*report.sets, *report.eval_sets):
            emit_left_out(self.stages.sink, found.entry.id, [(file.name, file.reason) for file in found.left_out if file.broken])
        self.requests.raise_if_stopped()
        return report

    def _network_config(self) -> Mapping[str, Any]:
        """The configuration of the network, where its positions bound the sizes of images. Raises ModelUnavailable."""
        spec, found = self.family.spec, self.family.parts.find
        return read_network_config(found(spec.components[spec.network].folder)) if spec.positions else {}

    def _shown_pairs(self, sets: Sequence[SetReport], inputs: Sequence[PlannedInput]) -> list[tuple[str, Sample]]:
        """(dataset id, sample) of the pairs, or first frames, that validations use: the first of each set, by name."""
        validation = self.options.validation
        wanted = not inputs if validation.validation_using_datasets is None else validation.validation_using_datasets
        if validation.validation_disable or not wanted:
            return []
        lending = [found for found in sets if not found.entry.disable_validation]
        chosen = [found for found in lending if validation.eval_dataset_id in (None, found.entry.id)]
        pairs = []
        for found in chosen:
            lent = (sample for sample in found.samples if sample.references or self.family.animates)
            paired = sorted(lent, key=lambda sample: sample.name)
            pairs += [(found.entry.id, sample) for sample in paired[: validation.num_eval_images]]
        return pairs

    def _shown_prompts(
        self, shown: Sequence[tuple[str, Sample]], lent: Sequence[ValidationPrompt], inputs: Sequence[PlannedInput]
    ) -> list[Prompt]:
        """Every prompt that validations read."""
        validation, sees = self.options.validation, self.family.prompts_see_references
        negative = [self.family.negative_text(validation.validation_negative_prompt)] if lent or shown or inputs else []
        edited = [(one.input.prompt, (one.sample,) if sees else ()) for one in inputs]
        pairs = [(shown_caption(sample), tuple(one.sample for one in sample.references) if sees else ()) for _, sample in shown]
        shared = [text for text in (validation.validation_prompt, *negative) if text is not None]
        return [
            *map(Prompt, texts_to_encode(self.options, self.family.negative_text)),
            *(Prompt(caption, references) for caption, references in (*pairs, *edited)),
            *(Prompt(prompt.text) for prompt in lent),
            *map(Prompt, negative),
            *(Prompt(text, references) for _, references in pairs if references for text in shared),
            *(Prompt(text, references) for _, references in edited if references for text in negative),
        ]

    def _trained_prompts(self, samples: Sequence[Sample]) -> Iterator[Prompt]:
        """Every prompt that training and evaluation read for these samples, but for the empty one without references."""
        combined = self.options.data.conditioning_multidataset_sampling == "combined"
        may_drop = self.options.data.caption_dropout_probability > 0
        for sample in samples:
            for chosen in reference_choices(sample, combined=combined):
                captions = captions_of(sample, chosen)
                if not (sample.references and self.family.prompts_see_references):
                    yield from map(Prompt, captions)
                    continue
                seen = tuple(sample.references[position].sample for position in chosen)
                yield from (Prompt(text, seen) for text in (*captions, *([""] if may_drop else [])))

    def _cache_texts(
        self, dataloader: Dataloader, sets: Sequence[SetReport], shown: Sequence[Prompt]
    ) -> tuple[dict[str, PromptCache], PromptCache]:
        default = dataloader.default_text_set
        wanted: dict[str, list[Prompt]] = {default.id: [Prompt(""), *shown]}
        with MANY_OBJECTS.being_made():
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
            CacheStore(Path(text.text_cache), compress=_chosen(text.compress_cache, data.compress_disk_cache)),
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
        changing: set[str] = set()
        for found in sets:
            wanted[found.entry.id] = found.entry, found.samples
            changing.update([found.entry.id] if found.entry.changes_crops else [])
            if self.family.spec.sees_control_pixels:
                continue
            for number, one in enumerate(dataloader.references_of(found.entry)):
                samples = [sample.references[number].sample for sample in found.samples]
                name = reference_cache(found.entry.id, one.id)
                wanted[name] = one, samples
                changing.update([name] if found.entry.changes_crops and one.shares_crops else [])
        made: dict[str, LatentCache] = {}
        total, before = sum(len(samples) for _, samples in wanted.values()), 0
        with self.stages.stage(StageKey.VAE_CACHE) as advance:
            for name, (entry, samples) in wanted.items():
                part = advance_after(advance, before, total)
                made[name] = self._cache_samples(entry, samples, part, crops_change=name in changing)
                before += len(samples)
        for name, (entry, _) in wanted.items():
            emit_left_out(self.stages.sink, entry.id, [(sample.name, reason) for sample, reason in made[name].left_out])
        return made

    def _cache_samples(
        self, entry: ImageSet | ReferenceSet, samples: Sequence[Sample], advance: Advance, *, crops_change: bool
    ) -> LatentCache:
        data = self.options.data
        cache = cache_latents(
            self.family,
            samples,
            CacheStore(Path(entry.vae_cache), compress=_chosen(entry.compress_cache, data.compress_disk_cache)),
            seed=self.options.run.seed,
            batch_size=entry.vae_batch_size,
            write_batch_size=entry.write_batch_size,
            workers=entry.max_workers,
            when=Encoded.of(
                on_demand=entry.vae_cache_ondemand or data.vae_cache_ondemand or crops_change,
                disabled=entry.vae_cache_disable or data.vae_cache_disable,
            ),
            crops_change=crops_change,
            ranks=self.processes,
            on_progress=advance,
            should_stop=self.requests.stop_asked,
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
            BatchEncoder(self.family).encode(torch.zeros(1, 3, edge, edge))
        if texts:
            self.family.encode_prompts([""], [[]])


def _chosen(of_the_set: bool | None, of_the_run: bool) -> bool:
    return of_the_run if of_the_set is None else of_the_set
