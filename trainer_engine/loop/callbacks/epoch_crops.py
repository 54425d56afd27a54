"""Keeps the caches of sets that are cropped anew in each epoch from growing by an epoch each time."""

from __future__ import annotations

import logging

from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.prepared import Prepared
from trainer_engine.loop.state import StepOutcome, TrainState

log = logging.getLogger(__name__)


class EpochCropsCallback(Callback):
    """Removes the latents of an epoch that is over, between two steps.

    Each process removes what it has written itself, because it locks its shards while it writes. What a killed run left of the epoch before
    the one that it resumes in is removed before the first step.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    def before_training(self, state: TrainState) -> None:
        self._release(state)

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        if state.ends_epoch and not state.is_finished:
            self._release(state)

    def _release(self, state: TrainState) -> None:
        """Removes the latents of the epoch before that of the next step."""
        epoch = state.timeline.epoch_of(state.step)
        if epoch:
            with state.timed("cache_release"):
                removed = self.prepared.release_crops(epoch - 1)
            log.info("Removed %d latents of epoch %d from the caches.", removed, epoch)
