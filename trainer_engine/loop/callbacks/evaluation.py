from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.best_checkpoint import BEST_FILE, point_to_best
from trainer_engine.contract.checkpoint_files import CheckpointInfo
from trainer_engine.contract.errors import EngineError
from trainer_engine.contract.events import EVALUATION, ErrorEvent, Notification, Severity, StageKey, StatusEvent
from trainer_engine.evaluation.history import Evaluation, History
from trainer_engine.evaluation.measure import Measuring, mean, means
from trainer_engine.families.common.computation import uncompiled
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.optim.ema import MovingAverage
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.devices import ran_out_of_memory
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.reproducibility import preserve_training_state
from trainer_engine.runtime.stages import Advance, Stages, advance_in_part

FINEST_EPOCH = 10_000
"""Parts of an epoch that an interval is a whole number of."""


@dataclass
class EvaluationCallback(Callback):
    """Measures the loss on held-out images before the first step, at the intervals and for every checkpoint; points to the best one."""

    showing: Callable[[], AbstractContextManager[None]]
    """Puts the weights that the optimizer means into place."""
    options: TrainingOptions
    measuring: Measuring
    average: MovingAverage | None
    history: History
    stages: Stages
    processes: Processes
    requests: ControlRequests
    _failed_at: int | None = None
    """The step whose loss could not be measured last: it is not tried again for the step's checkpoint."""

    def before_training(self, state: TrainState) -> None:
        """Where a run stopped before an evaluation that was due, it is made up for. Checkpoints may have been moved or removed since."""
        with self.processes.first_alone() as is_first:
            if is_first:
                self._point()
        if self._is_due(state) and not state.should_stop:
            self._evaluate(state)

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        if self._is_due(state) and not state.should_stop:
            self._evaluate(state)

    def before_checkpoint(self, state: TrainState) -> None:
        """A checkpoint says how good its own weights are, unless somebody waits for the run to stop."""
        if not state.should_stop:
            self._evaluate(state)

    def after_checkpoint(self, state: TrainState, saved: CheckpointInfo) -> None:
        self._point()

    def _point(self) -> None:
        """On the first process. Which checkpoint is the best one does not hang on the file that names it."""
        try:
            point_to_best(Path(self.options.run.output_dir))
        except OSError as error:
            message = f"{BEST_FILE} could not be written: {error}"
            hint = "GET /api/training/checkpoints says which checkpoint is the best"
            self.stages.sink.emit(ErrorEvent(code="best_checkpoint_not_written", message=message, hint=hint, severity=Severity.WARNING))

    def _is_due(self, state: TrainState) -> bool:
        steps, epochs = self.options.evaluation.eval_steps_interval, self.options.evaluation.eval_epoch_interval
        if not state.step or (steps and state.step % steps == 0):
            return True
        if not epochs:
            return False
        interval, passed = Fraction(epochs).limit_denominator(FINEST_EPOCH), state.timeline.passed
        return interval > 0 and passed(state.step) // interval > passed(state.step - 1) // interval

    def _evaluate(self, state: TrainState) -> None:
        if not self.measuring.images or self.history.of_step(state.step) or state.step == self._failed_at:
            return
        with state.timed("evaluation"), self.stages.stage(StageKey.VALIDATION, "Evaluating") as advance:
            losses = self._losses(state, advance)
        if losses is None:
            return
        metrics: dict[str, float | None] = {}
        for label, measured in losses.items():
            metrics |= means(measured, self.measuring.images, pooled=self.options.evaluation.eval_dataset_pooling, label=label)
        done = Evaluation(state.step, self._is_due(state), mean(next(iter(losses.values()))), metrics)
        self.history.evaluations.append(done)
        state.metrics = done.shown
        self._emit(done)
        reason = self.history.reason_to_stop(self.options.evaluation)
        if reason and not state.is_finished:
            state.end_early(reason)
            self.stages.sink.emit(Notification(code="early_stop", title="Ending early", message=reason))

    def _losses(self, state: TrainState, advance: Advance) -> dict[str, Tensor] | None:
        """Label -> (images, points) on the CPU; whose comes first decides. None where it could not be measured, or was stopped."""
        found: dict[str, Tensor] = {}
        passes = self._passes()
        for number, (label, weights) in enumerate(passes.items()):
            local, trouble = self._measure(weights, advance_in_part(advance, number, len(passes)))
            failed, stopped = self.processes.any_of([bool(trouble), local is None and not trouble])
            if failed:
                self._failed_at = state.step
                self._emit_failure(state, trouble)
            elif stopped:
                self._stop(state)
            if failed or stopped or local is None:
                return None
            found[label] = self.processes.sum(local).cpu()
        return found

    def _passes(self) -> Mapping[str, Callable[[], AbstractContextManager[object]]]:
        """Label -> what puts the weights into place, as ``ema_validation`` says."""
        wanted = self.options.validation.ema_validation
        if self.average is None or wanted == "none":
            return {"": nullcontext}
        averaged = {"_ema": self.average.in_place}
        return averaged if wanted == "ema_only" else {"": nullcontext, **averaged}

    def _measure(self, weights: Callable[[], AbstractContextManager[object]], on_image: Advance) -> tuple[Tensor | None, str]:
        """(what this process measured, why it could not)."""
        network = self.measuring.network
        try:
            with preserve_training_state(network), uncompiled(network, self.options), self.showing(), weights():
                network.eval()
                return self.measuring.local_losses(on_image, self.requests.stop_asked), ""
        except (RuntimeError, MemoryError, OSError, EngineError) as error:
            # The run is worth more than its measure, unless the other processes of a group wait for this one for ever.
            if self.processes.together.size > 1 or (isinstance(error, RuntimeError) and not ran_out_of_memory(error)):
                raise
            return None, str(error) or type(error).__name__

    def _emit_failure(self, state: TrainState, trouble: str) -> None:
        message = f"The evaluation loss of step {state.step} could not be measured: {trouble or 'another process failed'}."
        hint = "training goes on; eval_loss_disable=true turns evaluations off"
        self.stages.sink.emit(ErrorEvent(code="evaluation_failed", message=message, hint=hint, severity=Severity.WARNING))

    def _stop(self, state: TrainState) -> None:
        """At this very step: what was due is measured once the run goes on, so that it ends as one that never stopped."""
        if not state.is_finished:
            state.should_stop = True
            self.stages.sink.emit(StatusEvent(status="stopping", message=f"Asked to stop after step {state.step}; saving first."))

    def _emit(self, done: Evaluation) -> None:
        best = self.history.best
        loss = "not finite" if done.loss is None else f"{done.loss:.6g}"
        beside = f"; the lowest so far is {best.loss:.6g} at step {best.step}" if best and best is not done else ""
        details = {
            "step": done.step,
            "loss": done.loss,
            "metrics": dict(done.metrics),
            "best": {"step": best.step, "loss": best.loss} if best else None,
            "evaluations_without_improvement": self.history.without_improvement(self.options.evaluation.early_stop_min_delta),
        }
        message = f"Step {done.step}: evaluation loss {loss}{beside}."
        self.stages.sink.emit(Notification(code=EVALUATION, title="Evaluation", message=message, details=details))
