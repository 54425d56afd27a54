"""How long a run is, and problems of sets that begin late or end early. The server and the engine both count with these functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer_engine.config.datasets import ImageSet
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.timeline import Timeline

MAX_LISTED = 20
"""Parts of a run that a report lists."""


def run_steps(options: TrainingOptions, timeline: Timeline) -> int:
    """Returns the number of optimizer steps of a run."""
    return options.run.max_train_steps or timeline.start_of(options.run.num_train_epochs)


def schedule_problems(options: TrainingOptions, timeline: Timeline, entries: Sequence[ImageSet]) -> Iterator[Problem]:
    """Yields an error if no set is left before the run ends, a warning for each set that is never trained on, and notes on new crops."""
    steps, epochs, end = options.run.max_train_steps, options.run.num_train_epochs, timeline.end
    if end is not None and (steps > end or (not steps and epochs > timeline.epochs)):
        wanted = f"{steps} steps" if steps else f"{epochs} epochs"
        message = f"No image set is trained on after step {end}, the end of epoch {timeline.epochs}, and the run has {wanted}."
        hint = f"let one of the sets go on, or set max_train_steps to {end}" if end else "let one of the sets begin at once"
        yield Problem.error("dataloader", "nothing_to_train", message, got=steps or epochs, hint=hint)
    total, begin = run_steps(options, timeline), options.adapter.init_lora_step or 0
    if not steps and begin >= total and options.model.model_type == "lora" and options.adapter.init_lora:
        message = f"The run ends after {total} steps, and init_lora_step={begin} leaves none of them."
        yield Problem.error("init_lora_step", "nothing_to_train", message, got=begin, expected=f"less than {total}")
    timed = {one.id: one for one in timeline.sets}
    for entry in entries:
        if entry.id in timed and not timeline.is_trained(timed[entry.id], total):
            field = "start_epoch" if entry.start_epoch > 1 else "start_step"
            message = (
                f"dataset {entry.id}: it is never trained on, since the run ends after {total} steps in epoch {_epochs(timeline, total)}."
            )
            yield Problem.warning(entry.option(field), "never_trained", message, got=getattr(entry, field))
        elif entry.id in timed and entry.changes_crops:
            yield _new_crops(entry, timeline, total)


def _new_crops(entry: ImageSet, timeline: Timeline, steps: int) -> Problem:
    """Returns the note about a set whose images are cropped anew in each epoch: what it costs, and how long epochs are."""
    message = f"dataset {entry.id}: its images are cropped anew in each epoch, so they are encoded while training."
    if entry.changes_aspects:
        lengths = [one.length for one in timeline.stretches if one.start < steps]
        counted = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else str(lengths[0])
        message += f" Its buckets change too: epochs have {counted} steps."
    hint = "the autoencoder stays in memory; the cache holds the latents of one epoch"
    return Problem.note(entry.option("vae_cache_clear_each_epoch"), "new_crops", message, got=True, hint=hint)


def _epochs(timeline: Timeline, steps: int) -> int:
    """Returns the epoch, from 1, that a run of so many steps ends in."""
    return timeline.epoch_of(max(0, steps - 1)) + 1


def understood_length(options: TrainingOptions, timeline: Timeline) -> dict[str, object]:
    """Returns the steps and epochs of a run as ``validate`` reports them; with the parts of the run if its epochs differ."""
    total = run_steps(options, timeline)
    found: dict[str, object] = {"steps": total, "epochs": _epochs(timeline, total)}
    if any(one.gates.step_cuts or one.gates.epoch_cuts or one.changing for one in timeline.sets):
        found["schedule"] = [
            {
                "first_epoch": one.epoch + 1,
                "last_epoch": min(one.epoch + one.epochs, _epochs(timeline, total)),
                "first_step": one.start + 1,
                "steps_per_epoch": one.length,
                "datasets": [each.id for each in timeline.sets if one.has(each)],
            }
            for one in timeline.stretches[:MAX_LISTED]
            if one.start < total
        ]
    return found
