"""An event sink that also sends events to the trackers of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trainer_engine.config.destinations import parse_trackers
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.events import MEASUREMENTS, Event, ImageEvent, Notification, ProgressEvent, Severity
from trainer_engine.runtime.environment import LaunchEnvironment
from trainer_engine.runtime.events import EventSink
from trainer_engine.trackers.base import Reporter, RunFacts, Tracker

SHOWN = "final"
"""Only images of this validation type are sent."""


@contextmanager
def tracked(sink: EventSink, options: TrainingOptions, environment: LaunchEnvironment) -> Iterator[EventSink]:
    """``sink`` itself, or one that also reports to the trackers of ``report_to``. They are closed at the end of the block."""
    names = parse_trackers(options.reporting.report_to)
    if not names or not environment.is_first:
        yield sink
        return
    tracking = TrackingSink(sink, [Reporter(name, MAKERS[name], _facts(options, environment)) for name in names])
    try:
        yield tracking
    finally:
        tracking.close()


class TrackingSink:
    """Emits each event to ``inner`` first, then to the trackers."""

    def __init__(self, inner: EventSink, reporters: list[Reporter]) -> None:
        self.inner = inner
        self.reporters = reporters
        self._warned: set[str] = set()

    def emit(self, event: Event) -> None:
        self.inner.emit(event)
        for reporter in self.reporters:
            if isinstance(event, ProgressEvent):
                reporter.emit(_MetricsMessage(event.step, _numbers(event)))
            elif isinstance(event, Notification) and event.code in MEASUREMENTS:
                reporter.emit(_MetricsMessage(event.details["step"], _known(event.details["metrics"])))
            elif isinstance(event, ImageEvent) and event.validation_type == SHOWN:
                title = f"validation/{event.title.rpartition(': ')[2]}"
                for file in (*event.images, *event.videos):
                    if file.file and file.mime_type.startswith("image/"):  # the mp4 file shows the frames of the GIF again
                        reporter.emit(_MediaMessage(event.global_step, title, Path(file.file), event.prompt, is_clip=file in event.videos))
        self._warn()

    def close(self) -> None:
        for reporter in self.reporters:
            reporter.close()
        self._warn()

    def _warn(self) -> None:
        for reporter in self.reporters:
            if reporter.trouble and reporter.name not in self._warned:
                self._warned.add(reporter.name)
                message = f"The tracker {reporter.name} failed and gets no further data. Training continues: {reporter.trouble}"
                title = "Tracker failed"
                self.inner.emit(Notification(code="tracker_failed", title=title, message=message, severity=Severity.WARNING))


class _MetricsMessage:
    def __init__(self, step: int, values: Mapping[str, float]) -> None:
        self.step, self.values = step, values

    def __call__(self, tracker: Tracker) -> None:
        tracker.metrics(self.step, self.values)


class _MediaMessage:
    def __init__(self, step: int, title: str, path: Path, caption: str, *, is_clip: bool) -> None:
        self.step, self.title, self.path, self.caption, self.is_clip = step, title, path, caption, is_clip

    def __call__(self, tracker: Tracker) -> None:
        show = tracker.clip if self.is_clip else tracker.image
        show(self.step, self.title, self.path, self.caption)


def _numbers(event: ProgressEvent) -> dict[str, float]:
    numbers = {
        "loss": event.loss,
        "learning_rate": event.learning_rate,
        "grad_norm": event.grad_norm,
        "epoch": event.epoch,
        "seconds_per_step": event.seconds_per_step,
        "samples_per_second": event.samples_per_second,
        "text_encoder_lr": event.metrics.get("text_encoder_lr"),
    }
    return _known(numbers)


def _known(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items() if value is not None}


def _facts(options: TrainingOptions, environment: LaunchEnvironment) -> RunFacts:
    folder = Path(options.run.output_dir, options.reporting.logging_dir)
    reporting = options.reporting
    return RunFacts(
        project=reporting.tracker_project_name,
        name=reporting.tracker_run_name,
        folder=folder,
        settings=options.non_default(),
        is_online=environment.has_wandb_login,
        image_layout=reporting.tracker_image_layout,
    )


def _tensorboard(facts: RunFacts) -> Tracker:
    from trainer_engine.trackers.tensorboard import TensorBoard

    return TensorBoard(facts)


def _wandb(facts: RunFacts) -> Tracker:
    from trainer_engine.trackers.weights_and_biases import WeightsAndBiases

    return WeightsAndBiases(facts)


MAKERS: Mapping[str, Callable[[RunFacts], Tracker]] = {"tensorboard": _tensorboard, "wandb": _wandb}
"""Each function imports its library in the tracker's thread, because an import can take seconds and a library can be missing."""
