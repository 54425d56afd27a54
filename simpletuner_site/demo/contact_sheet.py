"""One picture of a run's validation images: a row a prompt, a column a step, the prompt under each image."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

CELL = 192
MARGIN = 16
CAPTION_HEIGHT = 54
HEADER_HEIGHT = 62
LINE_CHARACTERS = 30
PAPER, INK, SOFT = (250, 250, 247), (28, 32, 40), (96, 102, 114)


FILE_NAME = re.compile(r"step_(?P<step>\d+)_(?P<shortname>.+)_(?P<number>\d+)_(?P<width>\d+)x(?P<height>\d+)\.png")


@dataclass(frozen=True)
class Drawn:
    """A finished validation image."""

    step: int
    """Optimizer steps that the model had taken; 0 is the base model."""
    prompt: str
    image: Image.Image


def prompts_of(events: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Short name -> prompt, as the image events tell: the title ends with the name, the body is the prompt."""
    images = (event for event in events if event["type"] == "validation.image")
    return {event["title"].rpartition(": ")[2]: event["body"] for event in images}


def drawn_images(folder: Path, prompts: Mapping[str, str]) -> list[Drawn]:
    """The images of a run's ``validation_images``, by step and name."""
    found: list[tuple[int, str, Path]] = []
    for path in folder.glob("step_*.png"):
        name = FILE_NAME.fullmatch(path.name)
        if name:
            found.append((int(name["step"]), name["shortname"], path))
    return [Drawn(step, prompts.get(shortname, shortname), Image.open(path).convert("RGB")) for step, shortname, path in sorted(found)]


def make_sheet(images: list[Drawn], path: Path, *, title: str) -> Path:
    """Write the sheet as PNG. Raises ValueError where there is nothing to show."""
    if not images:
        raise ValueError("the run drew no validation images")
    steps = sorted({drawn.step for drawn in images})
    prompts = list(dict.fromkeys(drawn.prompt for drawn in images))
    width = MARGIN + len(steps) * (CELL + MARGIN)
    height = HEADER_HEIGHT + len(prompts) * (CELL + CAPTION_HEIGHT + MARGIN)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 12), title, fill=INK, font=ImageFont.load_default(20))
    for column, step in enumerate(steps):
        label = "before training" if step == 0 else f"step {step}"
        pen.text((MARGIN + column * (CELL + MARGIN), HEADER_HEIGHT - 20), label, fill=SOFT, font=ImageFont.load_default(14))
    for drawn in images:
        corner = (
            MARGIN + steps.index(drawn.step) * (CELL + MARGIN),
            HEADER_HEIGHT + prompts.index(drawn.prompt) * (CELL + CAPTION_HEIGHT + MARGIN),
        )
        _place(sheet, pen, drawn, corner)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _place(sheet: Image.Image, pen: ImageDraw.ImageDraw, drawn: Drawn, corner: tuple[int, int]) -> None:
    shown = drawn.image.copy()
    scale = min(CELL / shown.width, CELL / shown.height)
    shown = shown.resize((max(1, round(shown.width * scale)), max(1, round(shown.height * scale))), Image.Resampling.BICUBIC)
    left, top = corner
    sheet.paste(shown, (left + (CELL - shown.width) // 2, top + (CELL - shown.height) // 2))
    lines = textwrap.wrap(drawn.prompt or "(no prompt)", LINE_CHARACTERS)[:3]
    pen.text((left, top + CELL + 4), "\n".join(lines), fill=INK, font=ImageFont.load_default(12))
