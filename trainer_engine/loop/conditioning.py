"""Files and tensors beside the images of datasets: what is generated from them, their masks, and the inputs of validations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.caches.control_images import ControlImages, examine_controls
from trainer_engine.caches.latents import LatentCache, cache_latents
from trainer_engine.caches.masks import MaskCache, cache_masks
from trainer_engine.caches.store import CacheStore
from trainer_engine.config.datasets import Dataloader, ReferenceSet
from trainer_engine.config.datasets.parse import EntryContext
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.validation_inputs import OPTION as OF_INPUTS
from trainer_engine.contract.events import Notification, Severity, StageKey
from trainer_engine.datasets.generated import make_files
from trainer_engine.datasets.report import SetReport
from trainer_engine.datasets.samples import Sample, reference_cache
from trainer_engine.datasets.validation_inputs import PlannedInput
from trainer_engine.families.base import Family
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.events import EventSink
from trainer_engine.runtime.stages import Advance, Stages

MAX_LISTED = 20


@dataclass(frozen=True)
class ConditioningFiles:
    """Makes on the first process what is missing, while the others wait."""

    options: TrainingOptions
    family: Family
    processes: Processes
    stages: Stages
    requests: ControlRequests

    def generate(self, sets: Sequence[SetReport]) -> None:
        """Makes the references and masks that are generated from images."""
        for found in sets:
            partners = (one for sample in found.samples for one in (*sample.references, *([sample.mask] if sample.mask else [])))
            wanted = [one.sample for one in partners if one.sample.source.is_generated]
            if wanted:
                with self.stages.stage(StageKey.DATA_BACKEND, f"references of {found.entry.id}") as advance:
                    self._make_files(wanted, advance)

    def _make_files(self, wanted: Sequence[Sample], advance: Advance) -> None:
        workers, should_stop = self.options.data.max_workers, self.requests.stop_asked
        self.processes.first_then_others(lambda: make_files(wanted, workers=workers, on_progress=advance, should_stop=should_stop))
        self.requests.raise_if_stopped()

    def cache_inputs(self, inputs: Sequence[PlannedInput]) -> LatentCache | None:
        """Latents of the images that validations edit, if there are any."""
        if not inputs:
            return None
        folder, data = EntryContext.of(self.options).latents_folder("validation_input"), self.options.data
        cache = self.processes.first_then_others(
            lambda: cache_latents(
                self.family,
                [one.sample for one in inputs],
                CacheStore(Path(folder)),
                seed=self.options.run.seed,
                batch_size=data.vae_batch_size,
                write_batch_size=data.write_batch_size,
                workers=data.max_workers,
                should_stop=self.requests.stop_asked,
            )
        )
        self.requests.raise_if_stopped()
        emit_left_out(self.stages.sink, OF_INPUTS, [(sample.location, reason) for sample, reason in cache.left_out])
        return cache

    def cache_masks(self, sets: Sequence[SetReport], dataloader: Dataloader) -> dict[str, MaskCache]:
        """By ``reference_cache`` of a set and its masks."""
        made: dict[str, MaskCache] = {}
        for found, masks in [(found, masks) for found in sets if (masks := dataloader.mask_of(found.entry))]:
            samples = [sample.mask.sample for sample in found.samples if sample.mask]
            with self.stages.stage(StageKey.VAE_CACHE, f"masks of {found.entry.id}") as advance:
                made[reference_cache(found.entry.id, masks.id)] = cache = self._cache_mask_set(masks, samples, advance)
            emit_left_out(self.stages.sink, masks.id, [(sample.name, reason) for sample, reason in cache.left_out])
            if cache.empty:
                self.stages.sink.emit(_empty_masks(masks, cache.empty))
        return made

    def examine_controls(self, sets: Sequence[SetReport], dataloader: Dataloader) -> dict[str, ControlImages]:
        """By ``reference_cache`` of a set and its control images; empty in runs that look at no pixels of them."""
        if not self.family.spec.sees_control_pixels:
            return {}
        made: dict[str, ControlImages] = {}
        partners = [(found, place) for found in sets for place in range(len(dataloader.references_of(found.entry)))]
        for found, number in partners:
            one = dataloader.references_of(found.entry)[number]
            samples = [sample.references[number].sample for sample in found.samples]
            with self.stages.stage(StageKey.VAE_CACHE, f"control images of {found.entry.id}") as advance:
                made[reference_cache(found.entry.id, one.id)] = images = self._examine_control_set(one, samples, advance)
            emit_left_out(self.stages.sink, one.id, [(sample.name, reason) for sample, reason in images.left_out])
        return made

    def _examine_control_set(self, controls: ReferenceSet, samples: Sequence[Sample], advance: Advance) -> ControlImages:
        images = self.processes.first_then_others(
            lambda: examine_controls(
                samples,
                CacheStore(Path(controls.vae_cache)),
                seed=self.options.run.seed,
                workers=self.options.data.max_workers,
                on_progress=advance,
                should_stop=self.requests.stop_asked,
            )
        )
        self.requests.raise_if_stopped()
        return images

    def _cache_mask_set(self, masks: ReferenceSet, samples: Sequence[Sample], advance: Advance) -> MaskCache:
        cache = self.processes.first_then_others(
            lambda: cache_masks(
                samples,
                CacheStore(Path(masks.vae_cache)),
                seed=self.options.run.seed,
                segments=masks.conditioning_type == "segmentation",
                scale_factor_px=self.family.spec.latents.scale_factor_px,
                workers=self.options.data.max_workers,
                on_progress=advance,
                should_stop=self.requests.stop_asked,
            )
        )
        self.requests.raise_if_stopped()
        return cache


def emit_left_out(sink: EventSink, set_id: str, files: Sequence[tuple[str, str]]) -> None:
    """Name the files of a dataset that are not used, each with the reason."""
    if not files:
        return
    named = "; ".join(f"{name} ({reason})" for name, reason in files[:MAX_LISTED])
    more = f"; and {len(files) - MAX_LISTED} more" if len(files) > MAX_LISTED else ""
    message = f"Dataset {set_id}: {len(files)} files are left out: {named}{more}."
    sink.emit(Notification(code="files_left_out", title="Files left out", message=message, severity=Severity.WARNING))


def _empty_masks(masks: ReferenceSet, samples: Sequence[Sample]) -> Notification:
    named = "; ".join(sample.name for sample in samples[:MAX_LISTED])
    more = f"; and {len(samples) - MAX_LISTED} more" if len(samples) > MAX_LISTED else ""
    message = f"Dataset {masks.id}: {len(samples)} masks are all black, so nothing is learned from their images: {named}{more}."
    return Notification(code="masks_empty", title="Empty masks", message=message, severity=Severity.WARNING)
