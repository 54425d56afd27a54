from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.adapters.base import Trainable
from trainer_engine.contract.best_checkpoint import best_of
from trainer_engine.contract.checkpoint_files import CheckpointInfo, list_checkpoints
from trainer_engine.contract.events import StageKey, SummaryEvent
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.callbacks.memory import in_words
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.optim.ema import MovingAverage
from trainer_engine.report.background import BackgroundRenderer
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.stages import Stages
from trainer_engine.validation.generate import FOLDER as IMAGES


@dataclass
class ResultsCallback(Callback):
    """Writes the result of a finished run, and says what there is."""

    showing: Callable[[], AbstractContextManager[None]]
    """Puts the weights that the optimizer means into place."""
    output_dir: Path
    trainable: Trainable
    average: MovingAverage | None
    stages: Stages
    processes: Processes

    def after_training(self, state: TrainState) -> None:
        with self.processes.first_alone() as is_first:
            if state.is_finished and (is_first or self.trainable.is_sharded):
                self._write_results(state)
        if is_first:
            self._summarise(state)

    def _write_results(self, state: TrainState) -> None:
        with self.stages.stage(StageKey.MODEL_SAVE), self.showing():
            self.trainable.write_result(self.output_dir, state.step)
            if self.average is not None:
                with self.average.in_place():
                    self.trainable.write_result(self.output_dir, state.step, averaged=True)

    def _summarise(self, state: TrainState) -> None:
        key = StageKey.TRAINING_COMPLETE if state.is_finished else StageKey.TRAINING_ABORT
        word = "complete" if state.is_finished else "stopped and saved"
        with self.stages.stage(key, "" if state.is_finished else "Stopped and saved"):
            self.stages.sink.emit(
                SummaryEvent(
                    title=f"Training {word}",
                    message=f"Training is {word} after {state.step} of {state.total_steps} steps.{_early(state)}{in_words(state.memory)}",
                    memory=state.memory,
                    steps=state.step,
                    seconds=round(time.monotonic() - state.began, 3),
                    final_loss=state.loss,
                    artefacts=self._artefacts(finished=state.is_finished),
                    time_split={what: round(seconds, 4) for what, seconds in state.seconds.items()},
                )
            )

    def _artefacts(self, *, finished: bool) -> dict[str, str]:
        results = self.trainable.results if finished else {}
        paths = {name: self.output_dir / path for name, path in {IMAGES: IMAGES, **results}.items()}
        artefacts = {name: str(path) for name, path in paths.items() if path.exists()}
        newest = list_checkpoints(self.output_dir)
        best = best_of(newest)
        artefacts |= {"best_checkpoint": str(best.path)} if best else {}
        return artefacts | ({"checkpoint": str(newest[0].path)} if newest else {})


def _early(state: TrainState) -> str:
    return f" {state.ended_early}" if state.ended_early else ""


@dataclass
class ReportCallback(Callback):
    """Renders the run report in the background after each validation and checkpoint, and from time to time between them."""

    renderer: BackgroundRenderer

    def before_training(self, state: TrainState) -> None:
        self.renderer.begin()
        self.renderer.look()

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        self.renderer.look()

    def after_checkpoint(self, state: TrainState, saved: CheckpointInfo) -> None:
        self.renderer.note_news()

    def after_validation(self, state: TrainState) -> None:
        self.renderer.note_news()
