from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer_engine.contract.events import StageKey
from trainer_engine.hooks.runner import HookRunner
from trainer_engine.loop.state import TrainState
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.stages import Stages


@dataclass
class ExternalValidation:
    """Validates with a program instead of the family's pipeline."""

    scripts: HookRunner
    stages: Stages
    processes: Processes
    settle: Callable[[TrainState], None]
    """Waits until a checkpoint that is being written is whole: the program looks at the newest."""

    def run(self, state: TrainState, key: StageKey) -> None:
        """To the program's end, or until it is started in the background. Called on every process."""
        with state.timed("validation"), self.processes.first_alone() as is_first:
            if is_first:
                self.settle(state)
                with self.stages.stage(key):
                    self.scripts.validate(state.step)
