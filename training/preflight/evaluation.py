"""Estimates the cost of evaluations on the eval sets before a run starts."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.report import DatasetReport

PASSES_A_SAMPLE = 3
"""Cost of a training step for one sample (forward and backward), in forward passes."""
MOST_COUNTED = 100_000
FINEST_EPOCH = 10_000
"""Parts of an epoch that an interval is a whole number of."""
COSTLY_SHARE = 0.25
"""Share of the run's time from which a note is given."""


def understood_evaluation(options: TrainingOptions, report: DatasetReport, steps: int) -> tuple[dict[str, Any] | None, list[Problem]]:
    """(what is evaluated how often, notes about it); (None, []) if nothing is evaluated."""
    chosen = [found for found in report.eval_sets if options.validation.eval_dataset_id in (None, found.entry.id)]
    images = sum(min(len(found.samples), options.validation.num_eval_images) for found in chosen)
    if not images or options.evaluation.eval_loss_disable:
        return None, []
    points = options.evaluation.eval_timesteps
    twice = options.run.use_ema and options.validation.ema_validation == "comparison"
    passes = images * points * (2 if twice else 1)
    in_steps = passes / (PASSES_A_SAMPLE * report.effective.samples)
    count = _evaluation_count(options, report, steps)
    text = (
        f"{images} images at {points} timesteps{', by the average too' if twice else ''}: {passes} forward passes, about as long as "
        f"{in_steps:.2g} steps; {count} times in this run"
    )
    understood = {
        "datasets": [found.entry.id for found in chosen],
        "images": images,
        "timesteps": points,
        "forward_passes": passes,
        "in_steps": round(in_steps, 3),
        "evaluations": count,
        "text": text,
    }
    return understood, list(_notes(options, report, steps, share=count * in_steps / (steps + count * in_steps), text=text))


def _evaluation_count(options: TrainingOptions, report: DatasetReport, steps: int) -> int:
    """Number of evaluations: before the first step, at the intervals, and with every checkpoint.

    Exact up to ``MOST_COUNTED``; above that, steps may count twice.
    """
    timeline = report.timeline
    by_steps = (options.evaluation.eval_steps_interval, options.checkpointing.checkpoint_step_interval)
    by_epochs = (options.evaluation.eval_epoch_interval, options.checkpointing.checkpoint_epoch_interval)
    lengths = [length for length in by_steps if length]
    intervals = [interval for epochs in by_epochs if (interval := Fraction(epochs or 0).limit_denominator(FINEST_EPOCH))]
    counts = [steps // length for length in lengths]
    epoch_counts = [int(timeline.passed(steps) // interval) for interval in intervals]
    if sum(counts) + sum(epoch_counts) > MOST_COUNTED:
        return min(steps, sum(counts) + sum(epoch_counts)) + 1
    found = {0, steps}
    for length, count in zip(lengths, counts, strict=True):
        found.update(number * length for number in range(1, count + 1))
    for interval, count in zip(intervals, epoch_counts, strict=True):
        found.update(timeline.steps_for(number * interval) for number in range(1, count + 1))
    return len(found)


def _notes(options: TrainingOptions, report: DatasetReport, steps: int, *, share: float, text: str) -> Iterator[Problem]:
    evaluation = options.evaluation
    if not evaluation.eval_steps_interval and not evaluation.eval_epoch_interval:
        message = "No evaluation interval is set: the eval sets are evaluated before the first step and at checkpoints only."
        yield Problem.note("eval_steps_interval", "no_interval", message, hint="set eval_steps_interval, or eval_epoch_interval")
    interval = Fraction(evaluation.eval_epoch_interval or 0).limit_denominator(FINEST_EPOCH)
    length = report.timeline.steps_for(interval)
    if options.run.max_train_steps and length > steps:
        message = f"eval_epoch_interval={evaluation.eval_epoch_interval:g} is {length} steps, and the run has {steps}."
        yield Problem.note("eval_epoch_interval", "longer_than_run", message, got=evaluation.eval_epoch_interval)
    if share > COSTLY_SHARE:
        message = f"Evaluations take about {100 * share:.0f} % of the run's time: {text}."
        hint = "evaluate less often, or lower num_eval_images or eval_timesteps"
        yield Problem.note("eval_timesteps", "evaluations_take_long", message, got=evaluation.eval_timesteps, hint=hint)
