"""Validation images of a run as one picture: a row for each step, a column for each prompt, the prompt under its image."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from trainer_engine.contract.atomic import write_atomically

NAME = re.compile(r"step_(?P<step>\d+)_(?P<shortname>.+)_(?P<index>\d+)_(?P<width>\d+)x(?P<height>\d+)\.png")
BACKGROUND, CARD, INK, FAINT, ACCENT = "#f6f5f1", "#ffffff", "#22252b", "#7a7f87", "#c2562f"
MARGIN, GAP, PADDING, STEP_WIDTH = 36, 18, 10, 96
LARGEST_TILE_PX = 256
CAPTION_LINES = 3
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class SheetImage:
    """One validation image on the sheet."""

    path: Path
    step: int
    column: str
    """What makes a column: shortname, size and number."""
    caption: str


def find_images(folder: Path, prompts: Mapping[str, str]) -> list[SheetImage]:
    """The validation images in a folder; ``prompts`` gives the caption of a shortname. Other files are passed over."""
    found = []
    for path in sorted(folder.iterdir()):
        name = NAME.fullmatch(path.name)
        if name:
            column = f"{name['shortname']} {name['width']}x{name['height']} {name['index']}"
            found.append(SheetImage(path, int(name["step"]), column, prompts.get(name["shortname"], name["shortname"])))
    return found


def write_contact_sheet(path: Path, images: Sequence[SheetImage], *, title: str = "", subtitle: str = "") -> None:
    """Write the sheet as PNG, whole or not at all. ValueError without images."""
    if not images:
        raise ValueError("a contact sheet needs an image")
    buffer = io.BytesIO()
    _draw(images, title, subtitle).save(buffer, format="PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def _draw(images: Sequence[SheetImage], title: str, subtitle: str) -> Image.Image:
    steps, columns = sorted({image.step for image in images}), list(dict.fromkeys(image.column for image in images))
    tiles = {(image.step, image.column): _tile(image.path) for image in images}
    width = max(tile.width for tile in tiles.values())
    height = max(tile.height for tile in tiles.values())
    text, small, large = (ImageFont.load_default(size) for size in (14, 12, 24))
    line = _line_height(text)
    captions = {image.column: _wrapped(image.caption, text, width) for image in images}
    caption_height = max(map(len, captions.values())) * line
    card = (width + 2 * PADDING, height + 2 * PADDING + caption_height + 6)
    top = MARGIN + (_line_height(large) + _line_height(small) + 24 if title or subtitle else 0)
    size = (2 * MARGIN + STEP_WIDTH + len(columns) * (card[0] + GAP) - GAP, top + len(steps) * (card[1] + GAP) - GAP + MARGIN)
    sheet = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 6), title, font=large, fill=INK)
    pen.text((MARGIN, MARGIN + _line_height(large) + 2), subtitle, font=small, fill=FAINT)
    for row, step in enumerate(steps):
        y = top + row * (card[1] + GAP)
        pen.text((MARGIN, y + card[1] / 2 - line), "base model" if step == 0 else "step", font=small, fill=FAINT)
        if step:
            pen.text((MARGIN, y + card[1] / 2), f"{step:,}", font=large, fill=ACCENT)
        for number, column in enumerate(columns):
            if (step, column) in tiles:
                corner = (MARGIN + STEP_WIDTH + number * (card[0] + GAP), y)
                _draw_card(sheet, corner, card, tiles[step, column], captions[column], text)
    return sheet


def _draw_card(sheet: Image.Image, corner: tuple[int, int], size: tuple[int, int], tile: Image.Image, lines: list[str], font: Font) -> None:
    pen = ImageDraw.Draw(sheet)
    left, top = corner
    pen.rounded_rectangle((left, top, left + size[0] - 1, top + size[1] - 1), radius=8, fill=CARD, outline="#e3e1da")
    sheet.paste(tile, (left + (size[0] - tile.width) // 2, top + PADDING))
    for number, line in enumerate(lines):
        text_top = top + PADDING + tile.height + 5 + number * _line_height(font)
        pen.text((left + PADDING, text_top), line, font=font, fill=INK)


def _tile(path: Path) -> Image.Image:
    with Image.open(path) as image:
        tile = image.convert("RGB")
    tile.thumbnail((LARGEST_TILE_PX, LARGEST_TILE_PX), Image.Resampling.LANCZOS)
    return tile


def _line_height(font: Font) -> int:
    box = font.getbbox("Ågjy")
    return int(box[3] - box[1]) + 4


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """At most CAPTION_LINES lines that fit ``width`` pixels; what does not fit ends in an ellipsis."""
    words, lines = (text or "(no prompt)").split(), [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    shown = lines[:CAPTION_LINES]
    if len(lines) > CAPTION_LINES:
        shown[-1] += "…"
    return [_shortened(line, font, width) for line in shown]


def _shortened(line: str, font: Font, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    kept = line.rstrip("…")
    while kept and font.getlength(f"{kept}…") > width:
        kept = kept[:-1]
    return f"{kept}…"
