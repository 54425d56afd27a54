from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trainer_engine.families.modules import free_device_memory
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.callbacks.progress import resident_bytes
from trainer_engine.loop.state import StepOutcome, TrainState


@dataclass
class MemoryCallback(Callback):
    """The most memory that training took: of the GPU's allocator, else what the process grew by, looked at after each step."""

    device: torch.device
    at_start: int
    """Resident bytes before anything of the run was loaded."""
    estimate: Mapping[str, int]
    """What the checks before the start expected: ``bytes``, ``low_bytes``, ``high_bytes``; empty where nobody did."""
    clear_interval: int = 0
    """Optimizer steps after which the GPU's allocator gives memory back that it keeps for reuse; 0 for never."""
    _highest: int = 0

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        if self.clear_interval and state.step % self.clear_interval == 0:
            free_device_memory(self.device)
        if self.device.type != "cuda":
            self._highest = max(self._highest, resident_bytes())

    def after_training(self, state: TrainState) -> None:
        on_gpu = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) if on_gpu else max(0, self._highest - self.at_start)
        state.memory = {"peak_bytes": peak, **{f"estimated_{name}": number for name, number in self.estimate.items()}}


def in_words(memory: Mapping[str, int]) -> str:
    """One sentence for people; empty where nothing was measured."""
    if not memory.get("peak_bytes"):
        return ""
    peak = f" At its peak it took {memory['peak_bytes'] / 1e9:.2f} GB of memory"
    if "estimated_bytes" not in memory:
        return f"{peak}."
    low, high = memory["estimated_low_bytes"] / 1e9, memory["estimated_high_bytes"] / 1e9
    return f"{peak}; {memory['estimated_bytes'] / 1e9:.2f} GB were expected ({low:.2f} to {high:.2f})."
