from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from trainer_engine.contract.events import ProgressEvent
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.runtime.events import EventSink

WEIGHT_OF_PAST = 0.9
"""In the time of a step that the estimate is made from: it should not jump with every step."""
STATM = Path("/proc/self/statm")


@dataclass
class ProgressCallback(Callback):
    """One event for every optimizer step."""

    sink: EventSink
    device: torch.device
    _smoothed: float = 0.0
    _samples: float = 0.0
    """Samples of a step, smoothed like its time: the batches of datasets may differ in size."""

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        seconds = max(state.seconds_per_step, 1e-9)
        first = state.step == state.first_step + 1
        self._smoothed = seconds if first else WEIGHT_OF_PAST * self._smoothed + (1 - WEIGHT_OF_PAST) * seconds
        self._samples = outcome.samples if first else WEIGHT_OF_PAST * self._samples + (1 - WEIGHT_OF_PAST) * outcome.samples
        if state.step == state.first_step + 2:
            self._smoothed, self._samples = seconds, outcome.samples  # the first step warms everything up
        self.sink.emit(
            ProgressEvent(
                step=state.step,
                total_steps=state.total_steps,
                epoch=state.epoch,
                loss=outcome.loss,
                learning_rate=outcome.learning_rate,
                grad_norm=outcome.grad_norm,
                samples_per_second=round(self._samples / self._smoothed, 3),
                seconds_per_step=round(seconds, 5),
                eta_seconds=round(self._smoothed * (state.total_steps - state.step), 1),
                memory=self._memory(),
                metrics={**state.metrics, **state.scores, **_further_rates(outcome)},
            )
        )

    def _memory(self) -> dict[str, int]:
        memory = {"resident": resident_bytes()}
        if self.device.type == "cuda":
            memory |= {"allocated": torch.cuda.memory_allocated(self.device), "peak": torch.cuda.max_memory_allocated(self.device)}
        return memory


def _further_rates(outcome: StepOutcome) -> dict[str, float]:
    return {} if outcome.text_encoder_rate is None else {"text_encoder_lr": outcome.text_encoder_rate}


def resident_bytes() -> int:
    """Of this process. On Linux from one small file: psutil's objects cost several times as much."""
    try:
        return int(STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return int(psutil.Process().memory_info().rss)
