from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from trainer_engine.contract.checkpoint_files import list_checkpoints
from trainer_engine.contract.events import StageKey, SummaryEvent
from trainer_engine.ema import MovingAverage
from trainer_engine.families.base import Family
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.stages import Stages
from trainer_engine.loop.state import TrainState
from trainer_engine.processes import Processes
from trainer_engine.validation import FOLDER as IMAGES

PIPELINE = "pipeline"
AVERAGED_PIPELINE = "pipeline_ema"


@dataclass
class Finishing(Callback):
    """Writes the result of a finished run, and says what there is."""

    output_dir: Path
    family: Family
    denoiser: nn.Module
    average: MovingAverage | None
    stages: Stages
    processes: Processes

    def after_training(self, state: TrainState) -> None:
        with self.processes.first_alone() as is_first:
            if is_first and state.is_finished:
                self._save_pipelines()
        if is_first:
            self._summarise(state)

    def _save_pipelines(self) -> None:
        with self.stages.stage(StageKey.MODEL_SAVE):
            self.family.save_pipeline(self.output_dir / PIPELINE, self.denoiser)
            if self.average is not None:
                with self.average.in_place():
                    self.family.save_pipeline(self.output_dir / AVERAGED_PIPELINE, self.denoiser)

    def _summarise(self, state: TrainState) -> None:
        key = StageKey.TRAINING_COMPLETE if state.is_finished else StageKey.TRAINING_ABORT
        word = "complete" if state.is_finished else "stopped and saved"
        with self.stages.stage(key, "" if state.is_finished else "Stopped and saved"):
            self.stages.voice.tell(
                SummaryEvent(
                    title=f"Training {word}",
                    message=f"Training is {word} after {state.step} of {state.total_steps} steps.",
                    steps=state.step,
                    seconds=round(time.monotonic() - state.began, 3),
                    final_loss=state.loss,
                    artefacts=self._artefacts(finished=state.is_finished),
                    time_split={what: round(seconds, 4) for what, seconds in state.seconds.items()},
                )
            )

    def _artefacts(self, *, finished: bool) -> dict[str, str]:
        folders = {IMAGES: IMAGES, **({"pipeline": PIPELINE, "pipeline_ema": AVERAGED_PIPELINE} if finished else {})}
        artefacts = {name: str(self.output_dir / folder) for name, folder in folders.items() if (self.output_dir / folder).is_dir()}
        newest = list_checkpoints(self.output_dir)
        return artefacts | ({"checkpoint": str(newest[0].path)} if newest else {})
