"""TensorBoard."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from trainer_engine.trackers.base import RunFacts, Tracker

UNSAFE = re.compile(r"[^\w-]+")


class TensorBoard(Tracker):
    """Writes event files to ``<logging_dir>/<run name>``; unsafe characters of the name become ``_``."""

    def __init__(self, facts: RunFacts) -> None:
        self.writer = SummaryWriter(str(facts.folder / UNSAFE.sub("_", facts.name)))
        self.writer.add_text("settings", f"```\n{json.dumps(dict(facts.settings), indent=2, default=str)}\n```")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def image(self, step: int, title: str, path: Path, caption: str) -> None:
        with Image.open(path) as file:
            self.writer.add_image(title, np.asarray(file.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()
