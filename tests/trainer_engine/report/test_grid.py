"""The grid of validation images."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from tests.helpers.told_runs import ToldRun
from trainer_engine.report.grid import (
    LARGEST_GRID_PX,
    NARROWEST_CAPTION_PX,
    WIDEST_PX,
    Fonts,
    _caption,
    draw_grid,
    read_tile,
    tile_edge,
    wrapped,
)
from trainer_engine.report.journal import ReportImage, read_contents
from trainer_engine.report.layout import MOST_COLUMNS, MOST_ROWS, Column, ImageTable, tabulate


def images(step: int, *, prompt: str = "p", name: str = "validation", file: str = "", base: bool = False) -> ReportImage:
    return ReportImage(step=step, name=name, prompt=prompt, size=(64, 64), file=Path(file or f"{step}-{prompt}-{name}.png"), is_base=base)


def colours(content: bytes) -> set[tuple[int, ...]]:
    with Image.open(io.BytesIO(content)) as grid_image:
        return {colour for _, colour in grid_image.getcolors(1 << 24) or []}


def test_rows_are_steps_with_the_base_model_first_and_columns_are_prompts() -> None:
    table = tabulate([images(5, prompt="b"), images(5), images(0, prompt="b", base=True), images(0), images(10)])
    assert [(row.step, row.is_base) for row in table.rows] == [(0, True), (0, False), (5, False), (10, False)]
    assert [column.prompt for column in table.columns] == ["b", "p"]


def test_sizes_labels_and_numbers_have_columns_next_to_their_prompt() -> None:
    several = [
        images(1, file="a0"),
        images(1, file="a1"),
        images(1, prompt="other"),
        images(1, name="validation_ema"),
        images(2, file="b0"),
    ]
    table = tabulate(several)
    assert [(column.prompt, column.name, column.number) for column in table.columns] == [
        ("p", "validation", 0),
        ("p", "validation", 1),
        ("p", "validation_ema", 0),
        ("other", "validation", 0),
    ]


def test_image_has_the_column_of_its_number_if_an_earlier_one_is_missing() -> None:
    table = tabulate([images(1, file="a_0_8x8.png"), images(1, file="a_1_8x8.png"), images(2, file="b_1_8x8.webp")])
    assert [(row.step, column.number) for row, column in table.files] == [(1, 0), (1, 1), (2, 1)]


def test_image_generated_twice_at_a_step_is_shown_once() -> None:
    table = tabulate([images(1, file="same.png"), images(1, file="same.png")])
    assert len(table.columns) == 1 and len(table.files) == 1


def test_long_runs_are_thinned_and_keep_their_first_and_last_row() -> None:
    table = tabulate([images(step, prompt=str(prompt), base=step == 0) for step in range(200) for prompt in range(40)])
    assert len(table.rows) == MOST_ROWS and (table.rows[0].is_base, table.rows[-1].step) == (True, 199)
    assert len(set(table.rows)) == MOST_ROWS and len(table.columns) == MOST_COLUMNS
    assert table.left_out == f"{MOST_ROWS} of 200 validations, {MOST_COLUMNS} of 40 columns"


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (MOST_ROWS, 4), (MOST_ROWS, MOST_COLUMNS)])
def test_tiles_shrink_so_that_a_grid_stays_small(rows: int, columns: int) -> None:
    edge = tile_edge(rows, columns)
    assert rows * columns * edge * edge <= LARGEST_GRID_PX
    assert columns * edge <= WIDEST_PX


def test_largest_grid_is_bounded_without_any_file() -> None:
    table = tabulate([images(step, prompt=f"{prompt} " * 500) for step in range(MOST_ROWS) for prompt in range(MOST_COLUMNS)])
    with Image.open(io.BytesIO(draw_grid(table, title="t" * 5_000))) as grid_image:
        assert grid_image.width <= MOST_COLUMNS * (NARROWEST_CAPTION_PX + 20) + 400 and grid_image.height < 3_000


def test_grid_shows_every_image_and_an_empty_tile_for_a_missing_one(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    run.image(0, "#c80000", kind="base_model")
    run.image(9, "#00c800").unlink()
    run.image(12, "#0000c8", size=(1024, 512))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    run.emit_image(tmp_path / "broken.png", 12, name="validation", prompt="broken", size=(64, 64))
    seen = colours(draw_grid(tabulate(read_contents(run.folder.journal).images), title="A run"))
    assert {(200, 0, 0), (0, 0, 200), (255, 255, 255)} <= seen
    assert (0, 200, 0) not in seen


def test_a_clip_is_one_tile_with_its_first_frame(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("#c80000", "#0000c8")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:], duration=100)
    run.emit_image(tmp_path / "film.gif", 3, name="validation", prompt="p", size=(64, 64), mp4=tmp_path / "film.mp4")
    table = tabulate(read_contents(run.folder.journal).images)
    assert [file.name for file in table.files.values()] == ["film.gif"]
    seen = colours(draw_grid(table))
    assert (200, 0, 0) in seen and (0, 0, 200) not in seen


def test_large_images_are_scaled_down_and_small_ones_are_not_scaled_up(tmp_path: Path) -> None:
    Image.new("RGB", (1024, 512)).save(tmp_path / "large.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "small.png")
    large, small = read_tile(tmp_path / "large.png", (256, 256)), read_tile(tmp_path / "small.png", (256, 256))
    assert large is not None and large.size == (256, 128)
    assert small is not None and small.size == (32, 32)


def test_long_prompts_are_wrapped_and_end_in_an_ellipsis() -> None:
    font = ImageFont.load_default(14)
    lines = wrapped("a very long prompt about " + "many different things " * 20, font, 200)
    assert len(lines) == 4
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= 200 for line in lines)
    assert wrapped("x" * 200, font, 100)[0].endswith("…")
    assert wrapped("", font, 200) == ["(no prompt)"]


def test_caption_keeps_what_distinguishes_columns_of_one_prompt() -> None:
    every = [Column("a bench in a park", "p", (1024, edge), number) for edge in (1024, 1536) for number in (0, 1)]
    every.append(Column("a bench in a park_ema", "p", (1024, 1024), 0))
    captions = [_caption(column, every, Fonts.for_texts([]), NARROWEST_CAPTION_PX) for column in every]
    assert [line for line, _ in captions[0]] == ["p", "a bench in a park", "1024 x 1024", "no. 1"]
    assert len({str(caption[1:]) for caption in captions}) == len(every)


def test_prompts_in_other_scripts_have_a_font_with_their_letters() -> None:
    latin, greek, cyrillic = (Fonts.for_texts([text]).text for text in ("Zürich, œuvre", "καράβι", "лодка"))
    assert latin.getname()[0] != "DejaVu Sans"  # type: ignore[union-attr]
    assert greek.getname()[0] == cyrillic.getname()[0] == "DejaVu Sans"  # type: ignore[union-attr]


def test_grid_without_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs an image"):
        draw_grid(ImageTable([], [], {}))
