"""TensorBoard."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from trainer_engine.trackers.base import RunFacts, Tracker

RGB = 3
"""The number of the colour space in TensorBoard's format."""
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

    def clip(self, step: int, title: str, path: Path, caption: str) -> None:
        """TensorBoard plays a GIF that stands in place of an encoded image."""
        with Image.open(path) as file:
            width, height = file.size
        image = Summary.Image(width=width, height=height, colorspace=RGB, encoded_image_string=path.read_bytes())
        cast("Any", self.writer.file_writer).add_summary(Summary(value=[Summary.Value(tag=title, image=image)]), step)

    def close(self) -> None:
        self.writer.close()
