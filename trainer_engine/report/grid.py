"""Draws validation images as a grid: a column for each prompt, a row for each step."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from trainer_engine.report.layout import Column, ImageTable, Row

BACKGROUND, CARD, EDGE, INK, FAINT, ACCENT = "#f6f5f1", "#ffffff", "#e3e1da", "#22252b", "#6b7078", "#b5451d"
MARGIN, GAP, STEP_WIDTH = 32, 14, 116
LARGEST_TILE_PX, SMALLEST_TILE_PX = 256, 48
NARROWEST_CAPTION_PX = 112
WIDEST_PX, LARGEST_GRID_PX = 3_000, 6_000_000
"""Limits of all tiles together, so that the file stays below some ten megabytes and a browser can show it."""
CAPTION_LINES = 4
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Boxes = Mapping[Column, tuple[int, int]]


@dataclass(frozen=True)
class Fonts:
    """The fonts of a grid."""

    text: Font
    small: Font
    large: Font

    @classmethod
    def for_texts(cls, texts: Iterable[str]) -> Fonts:
        """Pillow's own font if it has every letter: it has Latin only. Otherwise the font of matplotlib, with Greek, Cyrillic and more."""
        is_latin = all(ord(letter) < 0x180 or letter in "…–—‘’“”" for text in texts for letter in text)
        file = None if is_latin else _wider_font()
        return cls(*(ImageFont.truetype(file, size) if file else ImageFont.load_default(size) for size in (13, 12, 22)))


def _wider_font() -> Path | None:
    """The font file of matplotlib, found without importing it."""
    spec = find_spec("matplotlib")
    places = spec.submodule_search_locations if spec else None
    file = Path(places[0], "mpl-data/fonts/ttf/DejaVuSans.ttf") if places else None
    return file if file and file.is_file() else None


def draw_grid(table: ImageTable, *, title: str = "", subtitle: str = "") -> bytes:
    """The grid as PNG. An image that cannot be read becomes an empty tile. Raises ValueError without images."""
    if not table.files:
        raise ValueError("a grid needs an image")
    buffer = io.BytesIO()
    _draw(table, title, subtitle).save(buffer, format="PNG")
    return buffer.getvalue()


def tile_edge(rows: int, columns: int) -> int:
    """Longer side of a tile in pixels; smaller if there are many tiles."""
    by_width = WIDEST_PX // columns - GAP
    by_area = int((LARGEST_GRID_PX / (rows * columns)) ** 0.5) - GAP
    return max(SMALLEST_TILE_PX, min(LARGEST_TILE_PX, by_width, by_area))


def _draw(table: ImageTable, title: str, subtitle: str) -> Image.Image:
    fonts = Fonts.for_texts([title, subtitle, *(column.prompt for column in table.columns)])
    edge = tile_edge(len(table.rows), len(table.columns))
    boxes = {column: _box(column.size, edge) for column in table.columns}
    lefts, left = {}, MARGIN + STEP_WIDTH
    for column, (width, _) in boxes.items():
        lefts[column] = left
        left += max(width, NARROWEST_CAPTION_PX) + GAP
    captions = {column: _caption(column, table.columns, fonts, max(boxes[column][0], NARROWEST_CAPTION_PX)) for column in table.columns}
    caption_height = max(map(len, captions.values())) * _line_height(fonts.text)
    captions_top = MARGIN + (_line_height(fonts.large) + _line_height(fonts.small) + 18 if title or subtitle else 0)
    top, row_height = captions_top + caption_height + 10, max(height for _, height in boxes.values())
    needed = MARGIN + max(fonts.large.getlength(title), fonts.small.getlength(subtitle))
    width = max(left - GAP + MARGIN, min(int(needed) + MARGIN, WIDEST_PX))
    grid = Image.new("RGB", (width, top + len(table.rows) * (row_height + GAP) - GAP + MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(grid)
    pen.text((MARGIN, MARGIN - 8), _shortened(title, fonts.large, width - 2 * MARGIN), font=fonts.large, fill=INK)
    subtitle_top = MARGIN + _line_height(fonts.large) - 2
    pen.text((MARGIN, subtitle_top), _shortened(subtitle, fonts.small, width - 2 * MARGIN), font=fonts.small, fill=FAINT)
    for column, lines in captions.items():
        for number, (line, colour) in enumerate(lines):
            line_top = captions_top + caption_height - (len(lines) - number) * _line_height(fonts.text)
            pen.text((lefts[column], line_top), line, font=fonts.text, fill=colour)
    for number, row in enumerate(table.rows):
        row_top = top + number * (row_height + GAP)
        _write_step(pen, row, row_top + row_height / 2, fonts)
        for column, box in boxes.items():
            if (row, column) in table.files:
                _put(grid, pen, (lefts[column], row_top), box, table.files[row, column], fonts.small)
    return grid


def _box(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """Width and height of the tiles of a column. Small images are not enlarged."""
    longest = max(*size, 1)
    scale = min(1.0, edge / longest)
    return max(1, round(size[0] * scale)) if size[0] else edge, max(1, round(size[1] * scale)) if size[1] else edge


def _write_step(pen: ImageDraw.ImageDraw, row: Row, middle: float, fonts: Fonts) -> None:
    if row.is_base:
        pen.text((MARGIN, middle), "base model", font=fonts.small, fill=FAINT, anchor="lm")
        return
    pen.text((MARGIN, middle - 16), "step", font=fonts.small, fill=FAINT, anchor="lm")
    pen.text((MARGIN, middle + 4), f"{row.step:,}", font=fonts.large, fill=ACCENT, anchor="lm")


def _put(grid: Image.Image, pen: ImageDraw.ImageDraw, corner: tuple[int, int], box: tuple[int, int], file: Path, font: Font) -> None:
    tile = read_tile(file, box)
    left, top = corner
    if tile is not None:
        grid.paste(tile, (left + (box[0] - tile.width) // 2, top + (box[1] - tile.height) // 2))
        return
    pen.rectangle((left, top, left + box[0] - 1, top + box[1] - 1), fill=CARD, outline=EDGE)
    pen.text((left + box[0] / 2, top + box[1] / 2), "gone", font=font, fill=FAINT, anchor="mm")


def read_tile(file: Path, box: tuple[int, int]) -> Image.Image | None:
    """The image, or the first frame of a video, scaled to fit ``box``; None if the file is missing or not an image."""
    try:
        with Image.open(file) as image:
            tile = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    tile.thumbnail(box, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return tile


def _caption(column: Column, every: list[Column], fonts: Fonts, width: int) -> list[tuple[str, str]]:
    """(line, colour) of a caption: the prompt, then what distinguishes the column from others of the same prompt."""
    lines = [(line, INK) for line in wrapped(column.prompt, fonts.text, width)]
    others = [other for other in every if other.prompt == column.prompt]
    apart = [column.name] if len({other.name for other in others}) > 1 else []
    if len({other.size for other in every}) > 1:
        apart.append(f"{column.size[0]} x {column.size[1]}")
    if len({other.number for other in others}) > 1:
        apart.append(f"no. {column.number + 1}")
    return [*lines, *((_shortened(line, fonts.text, width), FAINT) for line in apart)]


def _line_height(font: Font) -> int:
    box = font.getbbox("Ågjy")
    return int(box[3] - box[1]) + 4


def wrapped(text: str, font: Font, width: int) -> list[str]:
    """Wrap text to at most CAPTION_LINES lines of ``width`` pixels; longer text ends with an ellipsis."""
    words, lines = (text or "(no prompt)").split(), [""]
    for word in words[:200]:
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
    kept = line[:1000].rstrip("…")
    while kept and font.getlength(f"{kept}…") > width:
        kept = kept[:-1]
    return f"{kept}…"
