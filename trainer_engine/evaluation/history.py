"""The evaluations of a run so far: what a checkpoint keeps of them, and whether the run should go on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer_engine.config.options.evaluation import EvaluationOptions

VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """The losses of the weights after one step."""

    step: int
    at_interval: bool
    """Whether it was due by itself, and counts for an early stop; not where a checkpoint asked for it."""
    loss: float | None
    """What decides: the mean over every image and timestep. None where it is not finite."""
    metrics: Mapping[str, float | None]
    """``eval_loss/<dataset>``, and ``eval_loss/<dataset>/q1`` to ``q4`` from little noise to much; ``eval_loss_ema`` of the average."""

    @property
    def shown(self) -> dict[str, float]:
        """What every event of progress repeats: without the quarters."""
        return {name: value for name, value in self.metrics.items() if value is not None and name.count("/") == 1}


@dataclass
class History:
    """Early stopping follows from the evaluations alone, so that a run that goes on decides what one that never stopped does."""

    measure: str = ""
    """What is measured: images, captions, timesteps, whose weights. Losses of two measures cannot be compared."""
    datasets: Sequence[str] = ()
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def newest(self) -> Evaluation | None:
        return self.evaluations[-1] if self.evaluations else None

    def of_step(self, step: int) -> Evaluation | None:
        """None unless these very weights were evaluated."""
        return self.newest if self.newest and self.newest.step == step else None

    @property
    def best(self) -> Evaluation | None:
        """The lowest loss so far, the earliest of several."""
        finite = [one for one in self.evaluations if one.loss is not None]
        return min(finite, key=lambda one: one.loss or 0.0) if finite else None

    def without_improvement(self, min_delta: float) -> int:
        """How many evaluations at the interval there were since the last one whose loss was lower by more than ``min_delta``."""
        lowest, count = math.inf, -1
        for one in self.evaluations:
            if not one.at_interval:
                continue
            count += 1
            if one.loss is not None and one.loss < lowest - min_delta:
                lowest, count = one.loss, 0
        return max(0, count)

    def reason_to_stop(self, options: EvaluationOptions) -> str:
        """A sentence, or nothing."""
        idle = self.without_improvement(options.early_stop_min_delta)
        if not options.early_stop_patience or idle < options.early_stop_patience or self.best is None:
            return ""
        lowest = f"the lowest evaluation loss is {self.best.loss:.6g} at step {self.best.step}"
        return f"Ended early: no improvement in {idle} evaluations; {lowest}."

    def of_checkpoint(self, step: int) -> dict[str, Any] | None:
        """What a checkpoint's manifest says of its own weights."""
        found = self.of_step(step)
        return {"loss": found.loss, "measure": self.measure, "datasets": list(self.datasets)} if found else None

    def as_document(self) -> dict[str, Any]:
        return {"version": VERSION, "measure": self.measure, "evaluations": [asdict(one) for one in self.evaluations]}

    def restore(self, document: Mapping[str, Any]) -> bool:
        """Go on from a checkpoint's; False where it was measured otherwise, and is left behind. Raises KeyError, TypeError."""
        if document["measure"] != self.measure:
            return not document["evaluations"]
        self.evaluations = [Evaluation(**one) for one in document["evaluations"]]
        return True
