"""Which images a run evaluates on, and which captions it lends to the validation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from trainer_engine.batches.sampler import Item
from trainer_engine.caches.latents import LatentCache
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.events import Notification, Severity
from trainer_engine.datasets.report import DatasetReport, SetReport
from trainer_engine.datasets.sources.base import printable
from trainer_engine.validation.generate import ValidationPrompt
from trainer_engine.validation.names import name_after

MOST_GENERATED = 10
"""Captions of a set that validations generate images for: one image takes as long as many losses."""
MAX_LISTED = 10


def evaluated_sets(report: DatasetReport, options: TrainingOptions) -> list[SetReport]:
    """The held-out sets in use, each with the images that are: the first ``num_eval_images`` by name."""
    validation = options.validation
    chosen = [found for found in report.eval_sets if validation.eval_dataset_id in (None, found.entry.id)]
    return [replace(found, samples=sorted(found.samples, key=lambda sample: sample.name)[: validation.num_eval_images]) for found in chosen]


def lent_prompts(sets: Sequence[SetReport], options: TrainingOptions) -> tuple[ValidationPrompt, ...]:
    """Prompts of the validation, from captions and named after their files. Sets with references are validated with these instead."""
    if options.validation.validation_disable:
        return ()
    captioned = [sample for found in sets for sample in found.samples[:MOST_GENERATED] if not sample.references]
    return tuple(ValidationPrompt(name_after(sample.name), sample.captions[0]) for sample in captioned)


def trained_copies(latents: Mapping[str, LatentCache], trained: Collection[str], held_out: Sequence[Item]) -> Notification | None:
    """A warning where an image of the same bytes, cut the same way, is trained on under another name."""
    known = {address for id in trained for address in latents[id].addresses.values()}
    seen = [item.sample.name for item in held_out if latents[item.source].addresses[item.sample.name] in known]
    if not seen:
        return None
    named = "; ".join(printable(name) for name in seen[:MAX_LISTED])
    message = f"{len(seen)} of {len(held_out)} held-out images are trained on as well, under the same name or another: {named}."
    return Notification(code="held_out_but_trained", title="Held-out images are trained on", message=message, severity=Severity.WARNING)
