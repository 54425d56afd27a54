"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import wandb

from trainer_engine.trackers.base import RunFacts, Tracker


class WeightsAndBiases(Tracker):
    """Logs online if a login exists, otherwise to files that ``wandb sync`` uploads. ``WANDB_MODE`` overrides this."""

    def __init__(self, facts: RunFacts) -> None:
        self.run = wandb.init(
            project=facts.project,
            name=facts.name,
            config=dict(facts.settings),
            dir=str(facts.folder),
            mode=None if facts.is_online else "offline",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def image(self, step: int, title: str, path: Path, caption: str) -> None:
        self.run.log({title: wandb.Image(str(path), caption=caption)}, step=step)

    def clip(self, step: int, title: str, path: Path, caption: str) -> None:
        self.run.log({title: wandb.Video(str(path), caption=caption, format="gif")}, step=step)

    def close(self) -> None:
        self.run.finish()
