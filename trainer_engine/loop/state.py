"""How far a run is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from trainer_engine.datasets.timeline import Timeline


@dataclass(frozen=True)
class StepOutcome:
    """What one optimizer step came to."""

    loss: float
    """Mean over the samples of all processes and passes."""
    pass_losses: tuple[float, ...]
    """The same for each pass."""
    grad_norm: float
    """L2 norm of all gradients together, before clipping."""
    learning_rate: float
    samples: int
    """Over all processes and passes."""
    taken: bool
    """Whether the weights moved: not where loss or gradients were not finite."""
    overflowed: bool = False
    """Whether gradients were too large for the loss scale of float16, which has been lowered."""
    text_encoder_rate: float | None = None
    """Learning rate of trained text encoders; None if they are frozen."""


@dataclass
class TrainState:
    """Changed by the trainer and its callbacks, read by all of them."""

    total_steps: int
    timeline: Timeline
    first_step: int = 0
    """Optimizer steps that were done when this process began."""
    step: int = 0
    """Optimizer steps done."""
    loss: float | None = None
    """Of the last step, None where it was not finite or there was none."""
    learning_rate: float = 0.0
    seconds_per_step: float = 0.0
    """Of the last step, waiting for data included."""
    should_stop: bool = False
    ended_early: str = ""
    """Why the run is finished before its last step; empty where it is not."""
    failure: str = ""
    """Why the run saves and ends with an error; empty where it does not. Known to the first process alone."""
    checkpoint_asked: bool = False
    validation_asked: bool = False
    newest_checkpoint: str = ""
    """Path of the one saved last by this process; empty before."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Further values in the events of progress: the newest evaluation."""
    scores: dict[str, float] = field(default_factory=dict)
    """What they say as well: the means of the newest validation's CLIP scores."""
    memory: dict[str, int] = field(default_factory=dict)
    """At the end: the most that was taken, and what was expected."""
    began: float = field(default_factory=time.monotonic)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Where the time went: ``data_wait``, ``step``, ``checkpoint`` (steps stood still for one), ``checkpoint_wait`` (for an earlier one to
    be whole), ``validation``, ``evaluation``, ``cache_release`` (removing latents of the epoch before)."""

    @property
    def epoch(self) -> int:
        """The epoch, from 1, of the last step done; 1 before the first."""
        return self.timeline.epoch_of(max(0, self.step - 1)) + 1

    @property
    def ends_epoch(self) -> bool:
        """Whether the last step done was the last of its epoch."""
        return self.step == self.timeline.start_of(self.timeline.epoch_of(self.step))

    @property
    def is_finished(self) -> bool:
        return self.step >= self.total_steps or bool(self.ended_early)

    def end_early(self, reason: str) -> None:
        """Take no more steps: the run is as good as it gets."""
        self.ended_early = reason
        self.should_stop = True

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the block's time as ``what``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - start
