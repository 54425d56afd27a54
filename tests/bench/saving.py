"""Saving: for how long a checkpoint stops the steps, as a multiple of a step, when it is written beside them and when they wait."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.table import Table, milliseconds
from tests.bench.training import without_result
from tests.helpers.pictures import generate_images
from trainer_engine.checkpointing.snapshot import room_for
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.checkpoint_files import CheckpointInfo, list_checkpoints
from trainer_engine.contract.run import RunFolder
from trainer_engine.families.flux.tiny import make_tiny
from trainer_engine.loop.assemble import assemble
from trainer_engine.loop.callbacks.base import Callback, Callbacks
from trainer_engine.loop.callbacks.checkpointing import CheckpointCallback
from trainer_engine.loop.context import RunContext
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.loop.trainer import Trainer
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.environment import read_environment
from trainer_engine.runtime.events import Journal
from trainer_engine.runtime.stages import Stages

SECTION = "saving"
EDGE = 128
INTERVAL, SAVES = 12, 8
"""Steps between two checkpoints, long enough for one to be whole; every other one is written while the steps wait."""
KINDS: dict[str, dict[str, Any]] = {
    "an adapter": {"model_type": "lora", "lora_rank": 16, "lora_dropout": 0, "base_model_precision": "int8-quanto"},
    "a full fine-tune": {"model_type": "full"},
}


@dataclass
class Watching(Callback):
    """Stands around the part that saves: how long each call of it took, when checkpoints were whole, and how long steps took."""

    saving: CheckpointCallback
    stalls: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    """Written beside the steps -> seconds."""
    whole_after: list[float] = field(default_factory=list)
    steps: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    """A checkpoint was being written -> seconds of a step."""
    _beside: bool = True
    _began: float = 0.0

    def before_training(self, state: TrainState) -> None:
        self.saving.before_training(state)
        self.saving.has_room = lambda size: self._beside and room_for(size)

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        is_due = state.step % INTERVAL == 0
        writing = self.saving._under_way is not None
        if state.step > INTERVAL and not is_due:
            self.steps[writing].append(state.seconds_per_step)
        self._beside = state.step // INTERVAL % 2 == 0
        began = time.perf_counter()
        self.saving.after_step(state, outcome)
        if is_due and not state.is_finished:
            self.stalls[self._beside].append(time.perf_counter() - began)
            self._began = began
            if self.saving._under_way is not None:
                self.saving._under_way.written.add_done_callback(lambda _: self.whole_after.append(time.perf_counter() - self._began))

    def after_checkpoint(self, state: TrainState, saved: CheckpointInfo) -> None:
        """Nothing is measured here."""

    def after_training(self, state: TrainState) -> None:
        self.saving.after_training(state)

    def close(self, state: TrainState) -> None:
        self.saving.close(state)


def prepared(place: Path, how: dict[str, Any]) -> tuple[Trainer, Watching]:
    options = parse_options(
        {
            "model_family": "flux",
            "model_flavour": "dev",
            "pretrained_model_name_or_path": str(place / "model"),
            "data_backend_config": "none.json",
            "output_dir": str(place / f"output-{how['model_type']}"),
            "cache_dir": str(place / "cache"),
            "max_train_steps": INTERVAL * (SAVES + 1),
            "train_batch_size": 1,
            "optimizer": "torch-adamw",
            "mixed_precision": "no",
            "gradient_checkpointing": False,
            "dataloader_prefetch": True,
            "learning_rate": 1e-4,
            "resolution": EDGE,
            "validation_disable": True,
            "checkpoint_step_interval": INTERVAL,
            "checkpoints_total_limit": 1,
            **how,
        }
    )
    dataloader, _ = parse_dataloader([{"id": "pictures", "type": "local", "instance_data_dir": str(place / "images")}], options)
    folder = RunFolder(place / f"run-{how['model_type']}").create()
    sink = Stages(Journal(folder.journal))
    trainer = assemble(
        RunContext(
            options=options,
            dataloader=dataloader,
            processes=Processes(read_environment()),
            stages=sink,
            requests=ControlRequests(folder),
            media=folder.media,
        )
    )
    assert isinstance(trainer.callbacks, Callbacks)
    (saving,) = (callback for callback in trainer.callbacks.callbacks if isinstance(callback, CheckpointCallback))
    watching = Watching(saving)
    trainer.callbacks = Callbacks([watching if callback is saving else callback for callback in without_result(trainer)])
    return trainer, watching


def measure(table: Table, place: Path, what: str, how: dict[str, Any]) -> None:
    trainer, watching = prepared(place, how)
    trainer.fit()
    size = list_checkpoints(place / f"output-{how['model_type']}")[0].size_bytes
    step = statistics.median(watching.steps[False])
    beside, waited = (statistics.median(watching.stalls[way]) for way in (True, False))
    name = f"{what} of {size / 1e6:.1f} MB (small Flux)"
    value = f"{beside / step:.2f} steps ({milliseconds(beside)} of {milliseconds(step)})"
    aim = "under one step" if how["model_type"] == "lora" else ""
    table.add(SECTION, f"steps stand still for a checkpoint of {name}, written beside them", value, aim=aim)
    table.add(SECTION, "the same, where they wait for it to be whole", f"{waited / step:.2f} steps ({milliseconds(waited)})")
    table.add(SECTION, "seconds until it is whole, written beside", f"{statistics.median(watching.whole_after):.3f} s")
    if watching.steps[True]:
        slower = statistics.median(watching.steps[True]) / step
        table.add(SECTION, f"a step while it is written, beside one without ({len(watching.steps[True])} steps)", f"{100 * slower:.0f} %")


def run(table: Table) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-saving-") as folder:
        place = Path(folder)
        make_tiny(place / "model", size="demo")
        generate_images(place / "images", count=16, size=(EDGE, EDGE))
        for what, how in KINDS.items():
            measure(table, place, what, how)
