"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from trainer_engine.trackers.base import RunFacts, Tracker

TABLE = "validation"
COLUMNS: list[str | int] = ["title", "prompt", "image"]


class WeightsAndBiases(Tracker):
    """Logs online if a login exists, otherwise to files that ``wandb sync`` uploads. ``WANDB_MODE`` overrides this.

    With the layout ``table``, the images of a step wait until the next step or the end and become one table.
    """

    def __init__(self, facts: RunFacts) -> None:
        self.is_table = facts.image_layout == "table"
        self.rows: list[list[Any]] = []
        """Title, prompt and image of each validation image of ``step`` that is not logged yet."""
        self.step = 0
        self.run = wandb.init(
            project=facts.project,
            name=facts.name,
            config=dict(facts.settings),
            dir=str(facts.folder),
            mode=None if facts.is_online else "offline",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._log_table(before=step)
        self.run.log(dict(values), step=step)

    def image(self, step: int, title: str, path: Path, caption: str) -> None:
        self._show(step, title, wandb.Image(str(path), caption=caption), caption)

    def clip(self, step: int, title: str, path: Path, caption: str) -> None:
        self._show(step, title, wandb.Video(str(path), caption=caption, format="gif"), caption)

    def _show(self, step: int, title: str, media: Any, caption: str) -> None:
        if not self.is_table:
            self.run.log({title: media}, step=step)
            return
        self._log_table(before=step)
        self.step = step
        self.rows.append([title, caption, media])

    def _log_table(self, before: int | None = None) -> None:
        """Log the rows as a table, unless they are of step ``before``: further ones may follow."""
        if self.rows and self.step != before:
            self.run.log({TABLE: wandb.Table(columns=COLUMNS, data=self.rows)}, step=self.step)
            self.rows = []

    def close(self) -> None:
        self._log_table()
        self.run.finish()
