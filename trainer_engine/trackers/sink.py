"""The engine's voice with trackers listening."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trainer_engine.config.destinations import parse_trackers
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.events import MEASUREMENTS, Event, ImageEvent, Notification, ProgressEvent, Severity
from trainer_engine.runtime.environment import Environment
from trainer_engine.runtime.events import EventSink
from trainer_engine.trackers.base import RunFacts, Tracker
from trainer_engine.trackers.reporter import Reporter

SHOWN = "final"
"""Only finished images are sent on."""


@contextmanager
def tracked(sink: EventSink, options: TrainingOptions, environment: Environment) -> Iterator[EventSink]:
    """``sink`` itself, or one that the trackers of ``report_to`` hear too; they are closed with the block."""
    names = parse_trackers(options.reporting.report_to)
    if not names or not environment.is_first:
        yield sink
        return
    heard = TrackingSink(sink, [Reporter(name, MAKERS[name], _facts(options, environment)) for name in names])
    try:
        yield heard
    finally:
        heard.close()


class TrackingSink:
    """Says everything to ``inner`` first."""

    def __init__(self, inner: EventSink, reporters: list[Reporter]) -> None:
        self.inner = inner
        self.reporters = reporters
        self._told: set[str] = set()

    def emit(self, event: Event) -> None:
        self.inner.emit(event)
        for reporter in self.reporters:
            if isinstance(event, ProgressEvent):
                reporter.emit(_Metrics(event.step, _numbers(event)))
            elif isinstance(event, Notification) and event.code in MEASUREMENTS:
                reporter.emit(_Metrics(event.details["step"], _known(event.details["metrics"])))
            elif isinstance(event, ImageEvent) and event.validation_type == SHOWN:
                for image in event.images:
                    if image.file:
                        title = f"validation/{event.title.rpartition(': ')[2]}"
                        reporter.emit(_Picture(event.global_step, title, Path(image.file), event.prompt))
        self._warn()

    def close(self) -> None:
        for reporter in self.reporters:
            reporter.close()
        self._warn()

    def _warn(self) -> None:
        for reporter in self.reporters:
            if reporter.trouble and reporter.name not in self._told:
                self._told.add(reporter.name)
                message = f"The tracker {reporter.name} failed and is told nothing more; training goes on: {reporter.trouble}"
                title = "Tracker failed"
                self.inner.emit(Notification(code="tracker_failed", title=title, message=message, severity=Severity.WARNING))


class _Metrics:
    def __init__(self, step: int, values: Mapping[str, float]) -> None:
        self.step, self.values = step, values

    def __call__(self, tracker: Tracker) -> None:
        tracker.metrics(self.step, self.values)


class _Picture:
    def __init__(self, step: int, title: str, path: Path, caption: str) -> None:
        self.step, self.title, self.path, self.caption = step, title, path, caption

    def __call__(self, tracker: Tracker) -> None:
        tracker.image(self.step, self.title, self.path, self.caption)


def _numbers(event: ProgressEvent) -> dict[str, float]:
    numbers = {
        "loss": event.loss,
        "learning_rate": event.learning_rate,
        "grad_norm": event.grad_norm,
        "epoch": event.epoch,
        "seconds_per_step": event.seconds_per_step,
        "samples_per_second": event.samples_per_second,
    }
    return _known(numbers)


def _known(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items() if value is not None}


def _facts(options: TrainingOptions, environment: Environment) -> RunFacts:
    folder = Path(options.run.output_dir, options.reporting.logging_dir)
    reporting = options.reporting
    return RunFacts(reporting.tracker_project_name, reporting.tracker_run_name, folder, options.non_default(), environment.has_wandb_login)


def _tensorboard(facts: RunFacts) -> Tracker:
    from trainer_engine.trackers.tensorboard import TensorBoard

    return TensorBoard(facts)


def _wandb(facts: RunFacts) -> Tracker:
    from trainer_engine.trackers.weights_and_biases import WeightsAndBiases

    return WeightsAndBiases(facts)


MAKERS: Mapping[str, Callable[[RunFacts], Tracker]] = {"tensorboard": _tensorboard, "wandb": _wandb}
"""Each imports its library in the tracker's own thread: some take seconds, and one may be missing."""
