"""Pictures as people have them: measured as they are opened, upright and whole, or named with the reason."""

from __future__ import annotations

import io
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.odd_pictures import LEFT_OUT, chunk, orientation_chunks, picture, png, stored, write_odd_pictures
from tests.helpers.samples import file_of
from trainer_engine.datasets.index import discover
from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.datasets.media.headers import read_header
from trainer_engine.datasets.media.image import inspect_image
from trainer_engine.datasets.media.pixels import open_rgb
from trainer_engine.datasets.sources.local import LocalSource


def test_every_unusual_image_is_measured_and_opened_as_a_viewer_shows_it(tmp_path: Path) -> None:
    seen = write_odd_pictures(tmp_path / "odd")
    found = discover(LocalSource(str(tmp_path / "odd")))
    assert {file.name for file in found.left_out} == set(LEFT_OUT)
    assert {file.name: (file.width, file.height) for file in found.images} == {name: image.size for name, image in seen.items()}
    for name, expected in seen.items():
        opened = open_rgb(file_of(tmp_path / "odd" / name))
        assert opened.size == expected.size, name
        difference = np.abs(np.asarray(opened, np.float32) - np.asarray(expected, np.float32)).mean()
        assert difference < 8, f"{name}: {difference}"


class Counted(io.BytesIO):
    """Counts what is read."""

    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        return super().read(size)


def test_pixels_in_many_pieces_are_passed_over_at_once() -> None:
    content = png(picture().resize((300, 200)), piece=16)
    stream = Counted(content)
    found = read_header(stream, len(content))
    assert found is not None and found[:3] == (300, 200, True)
    assert content.count(b"IDAT") > 20 and stream.reads < 10


def test_pieces_of_unlike_length_are_walked() -> None:
    content = png(picture(), piece=9, after=orientation_chunks(6)["exif"])
    first = content.index(b"IDAT") - 4
    uneven = content[:first] + chunk(b"IDAT", b"") + content[first:]
    assert read_header(io.BytesIO(uneven), len(uneven)) is None, "Pillow is to look at it"


def test_a_cut_off_png_with_an_orientation_is_left_out(tmp_path: Path) -> None:
    content = png(stored(6).resize((200, 300)), before=orientation_chunks(6)["xmp"])
    path = tmp_path / "cut.png"
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(BrokenImage):
        inspect_image(file_of(path))


HEAD = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
ENDLESS = {
    "fill.jpg": (b"\xff\xd8", b"\xff"),
    "all.jpg": (b"", b"\xff"),
    "zero.jpg": (b"", b"\0"),
    "restart.jpg": (b"\xff\xd8\xff\xd0", b"\xff\xd0"),
    "segments.jpg": (b"\xff\xd8", b"\xff\xe0\0\2"),
    "chunks.png": (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", HEAD), chunk(b"teXt", b"")),
    "extensions.gif": (b"GIF89a\x40\0\x40\0\0\0\0", b"\x21\xfe\0"),
    "comment.ppm": (b"P6\n#", b"a"),
    "spaces.ppm": (b"P6", b" "),
    "boxes.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x08free"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_header_that_never_ends_costs_as_much_in_a_large_file_as_in_a_small_one(tmp_path: Path, name: str) -> None:
    start, piece = ENDLESS[name]
    costs = {}
    for size in (1_000_000, 8_000_000):
        path = tmp_path / f"{size}-{name}"
        path.write_bytes(start + piece * (size // len(piece)))
        before = time.process_time()
        with pytest.raises(BrokenImage):
            inspect_image(file_of(path))
        costs[size] = time.process_time() - before
        path.unlink()
    assert costs[8_000_000] < 3 * costs[1_000_000] + 0.05, costs
