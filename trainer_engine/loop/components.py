"""What a run is made of, once it has been put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer_engine.adapters.assistant import Assistant
from trainer_engine.adapters.base import Trainable
from trainer_engine.adapters.validation_adapter import ValidationAdapter
from trainer_engine.batches.loader import Loader
from trainer_engine.batches.sampler import BatchSizes
from trainer_engine.checkpointing.optimizer_state import all_finite, pack_optimizer
from trainer_engine.checkpointing.save import Content, FixedFile
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.resuming.base_weights import BaseWeights, base_document
from trainer_engine.config.resuming.identity import ORDER_KEY, ORDER_VERSION, layout_of, run_identity
from trainer_engine.contract.checkpoint_files import (
    EMA_TENSORS,
    EVALUATIONS_FILE,
    OPTIMIZER_DOCUMENT,
    OPTIMIZER_TENSORS,
    SAMPLES_FILE,
    STATE_FILE,
)
from trainer_engine.contract.errors import NonFiniteLoss
from trainer_engine.evaluation.history import History
from trainer_engine.families.base import Family
from trainer_engine.loop.prepared import Prepared
from trainer_engine.loop.state import TrainState
from trainer_engine.loop.step import Step
from trainer_engine.optim.ema import MovingAverage


@dataclass(kw_only=True)
class RunComponents:
    """Everything that a checkpoint is made of, or that is restored from one."""

    options: TrainingOptions
    family: Family
    trainable: Trainable
    optimizer: Optimizer
    average: MovingAverage | None
    prepared: Prepared
    layout: BatchSizes
    loader: Loader
    step: Step
    state: TrainState
    samples_file: FixedFile
    """``samples.json`` of every checkpoint: made once, since samples do not change during a run."""
    history: History = field(default_factory=History)
    base: BaseWeights = field(default_factory=dict)
    """What the run is trained beside, or began from."""
    assistant: Assistant | None = None
    """The frozen adapter that is trained beside; no checkpoint holds anything of it."""
    validation_adapters: Sequence[ValidationAdapter] = ()
    """Adapters that only draw; no checkpoint holds anything of them."""

    @property
    def processes(self) -> int:
        """How many share the run."""
        return self.layout.batch // self.options.run.train_batch_size

    @property
    def output_dir(self) -> Path:
        return Path(self.options.run.output_dir)

    def has_results(self) -> bool:
        """Whether everything that a finished run leaves is there."""
        wanted = [path for name, path in self.trainable.results.items() if self.average is not None or not name.endswith("_ema")]
        return all((self.output_dir / path).exists() for path in wanted)

    def content(self, state: TrainState, *, rolling: bool = False) -> Content:
        """What a checkpoint holds now. Raises NonFiniteLoss where the weights are not finite."""
        self._refuse_non_finite(state)
        document, optimizer_tensors = pack_optimizer(self.optimizer, self.trainable.names)
        tensors: dict[str, dict[str, Tensor]] = {OPTIMIZER_TENSORS: optimizer_tensors}
        if self.average is not None:
            tensors[EMA_TENSORS] = self.average.tensors()
        return Content(
            step=state.step,
            epoch=state.epoch,
            loss=state.loss,
            learning_rate=state.learning_rate,
            model_family=self.family.spec.name,
            model_type=self.options.model.model_type,
            save_weights=self.trainable.save,
            weights_bytes=self.trainable.size_bytes,
            hold_weights=self.trainable.snapshot,
            rolling=rolling,
            documents={
                STATE_FILE: self._training_state(state),
                OPTIMIZER_DOCUMENT: document,
                **({EVALUATIONS_FILE: self.history.as_document()} if self.history.evaluations else {}),
            },
            fixed={SAMPLES_FILE: self.samples_file},
            tensors=tensors,
            evaluation=self.history.of_checkpoint(state.step),
        )

    def _refuse_non_finite(self, state: TrainState) -> None:
        with torch.no_grad():
            is_bad = not all_finite(self.trainable.parameters)
            if self.step.processes.any_of([is_bad])[0] if self.trainable.is_sharded else is_bad:
                raise NonFiniteLoss(
                    f"The weights are not finite after step {state.step}; they are not saved, and older checkpoints are untouched.",
                    hint="lower learning_rate, or set mixed_precision=no",
                )

    def _training_state(self, state: TrainState) -> dict[str, Any]:
        epoch = state.timeline.epoch_of(state.step)
        return {
            "version": 1,
            "step": state.step,
            "epoch": state.epoch,
            "position": {"epoch": epoch, "index": state.step - state.timeline.start_of(epoch)},
            "loss": state.loss,
            "schedule": {"name": self.options.schedule.lr_scheduler, "learning_rate": state.learning_rate},
            "identity": run_identity(self.options, self.family.spec, self.family.prediction_type),
            "base": base_document(self.base),
            "settings": self.prepared.settings,
            "left_out": self.prepared.left_out(),
            "layout": layout_of(self.options, self.processes),
            ORDER_KEY: ORDER_VERSION,
            "scaler": self.step.scaler.state_dict(),
            "average_updates": self.average.updates if self.average is not None else None,
        }
