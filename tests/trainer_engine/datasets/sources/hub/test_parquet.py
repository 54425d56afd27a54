"""Cells of parquet files are read at random in bounded memory, and damaged or crafted files are named."""

from __future__ import annotations

import io
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from trainer_engine.datasets.sources.hub import parquet as reader
from trainer_engine.datasets.sources.hub.parquet import Table, Windows

COUNT = 90


@pytest.fixture
def contents() -> list[bytes]:
    made = random.Random(3)
    return [made.randbytes(made.randint(1_000, 30_000)) for _ in range(COUNT)]


def written(place: Path, contents: list[bytes | None], *, group: int = 40, **settings: object) -> Path:
    cells = [{"image": {"bytes": content, "path": f"{number}.png"}, "number": number} for number, content in enumerate(contents)]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.Table.from_pylist(cells, pyarrow.schema([("image", kind), ("number", pyarrow.int64())]))
    parquet.write_table(table, place / "rows.parquet", row_group_size=group, **settings)
    return place / "rows.parquet"


def opened(file: Path, windows: Windows | None = None) -> Table:
    return Table(lambda: file.open("rb"), windows or Windows())


@pytest.mark.parametrize("window_bytes", [1, 50_000, 16 << 20])
def test_every_cell_is_read_in_any_order(window_bytes: int, contents: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "WINDOW_BYTES", window_bytes)
    table = opened(written(tmp_path, list(contents)))
    order = [*range(COUNT), *random.Random(1).sample(range(COUNT), COUNT)]
    assert [bytes(table.cell("image.bytes", row)) for row in order] == [contents[row] for row in order]
    assert bytes(table.cell("image.path", 7)) == b"7.png"


def test_threads_share_a_table(contents: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "WINDOW_BYTES", 100_000)
    table = opened(written(tmp_path, list(contents)), Windows(largest=200_000))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda row: bytes(table.cell("image.bytes", row)), range(COUNT))) == contents


def test_what_is_kept_in_memory_is_bounded(contents: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "WINDOW_BYTES", 60_000)
    windows = Windows(largest=200_000)
    table = opened(written(tmp_path, list(contents), group=COUNT), windows)
    for row in range(COUNT):
        table.cell("image.bytes", row)
        assert sum(window.nbytes for window in windows._kept.values()) <= 300_000
    assert len(windows._kept) > 1


def test_readers_of_one_part_of_a_large_row_group_read_it_once(
    contents: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "WINDOW_BYTES", 40_000)
    file, opens = written(tmp_path, list(contents), group=COUNT), []

    def counted() -> io.BufferedReader:
        opens.append(1)
        return file.open("rb")

    table = Table(counted, Windows())
    interleaved = [row for start in range(0, COUNT, 30) for row in (*range(start + 29, start - 1, -2), *range(start, start + 30, 2))]
    assert [bytes(table.cell("image.bytes", row)) for row in interleaved] == [contents[row] for row in interleaved]
    assert len(opens) == 2, "its footer, and its rows in one pass"


def test_few_files_of_many_are_open_at_once(contents: list[bytes], tmp_path: Path) -> None:
    file, windows = written(tmp_path, list(contents[:4])), Windows(largest=1)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    tables = [opened(file, windows) for _ in range(100)]
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208
    for row in (0, 3, 1):
        assert [bytes(table.cell("image.bytes", row)) for table in tables] == [contents[row]] * 100
    assert len(os.listdir("/proc/self/fd")) <= before + reader.MOST_OPEN + 1  # noqa: PTH208


def test_small_columns_are_read_without_the_images(contents: list[bytes], tmp_path: Path) -> None:
    file = written(tmp_path, list(contents))
    read = 0

    class Counting(io.FileIO):
        def readinto(self, buffer: object, /) -> int | None:
            nonlocal read
            count = super().readinto(buffer)  # type: ignore[arg-type]
            read += count or 0
            return count

        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal read
            content = super().read(-1 if size is None else size) or b""
            read += len(content)
            return content

    table = Table(lambda: Counting(file), Windows())  # type: ignore[arg-type, return-value]
    rows = [row for batch in table.read(["image.path", "number"]) for row in batch]
    assert [row["number"] for row in rows] == list(range(COUNT)) and rows[3]["image"] == {"path": "3.png"}
    assert read < file.stat().st_size / 4


def test_an_empty_cell_is_none_and_a_row_beyond_the_end_is_missing(tmp_path: Path) -> None:
    table = opened(written(tmp_path, [b"x", None, b""]))
    assert (table.cell("image.bytes", 1), bytes(table.cell("image.bytes", 2))) == (None, b"")
    assert table.has_values("image.bytes") and not opened(written(tmp_path, [None, None])).has_values("image.bytes")
    for row in (3, -1):
        with pytest.raises(FileNotFoundError):
            table.cell("image.bytes", row)


@pytest.mark.parametrize("part", [0, 3, 100, -1, -5, -400])
def test_a_file_that_is_cut_off_is_named(part: int, contents: list[bytes], tmp_path: Path) -> None:
    file = written(tmp_path, list(contents))
    file.write_bytes(file.read_bytes()[:part])
    with pytest.raises(OSError, match="not a complete parquet file"):
        opened(file)


def test_damaged_bytes_end_in_an_error_and_never_in_a_crash(contents: list[bytes], tmp_path: Path) -> None:
    whole = written(tmp_path, list(contents[:20])).read_bytes()
    made = random.Random(5)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[made.randrange(len(damaged))] ^= 1 << made.randrange(8)
        file = tmp_path / "damaged.parquet"
        file.write_bytes(damaged)
        try:
            table = opened(file)
            for row in range(20):
                table.cell("image.bytes", row)
        except OSError:
            continue


def test_a_column_that_unpacks_to_far_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "WINDOW_BYTES", 100_000)
    file = written(tmp_path, [bytes(400_000)] * 20, compression="zstd", use_dictionary=False)
    assert file.stat().st_size < 20_000
    with pytest.raises(OSError, match="unpacks to"):
        opened(file).cell("image.bytes", 0)


def test_a_cell_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "WINDOW_BYTES", 1)
    monkeypatch.setattr(reader, "LARGEST_CELL_BYTES", 50_000)
    table = opened(written(tmp_path, [os.urandom(1000), os.urandom(100_000), os.urandom(2000)]))
    assert [len(table.cell("image.bytes", row)) for row in (0, 2)] == [1000, 2000]
    with pytest.raises(OSError, match="is larger than"):
        table.cell("image.bytes", 1)
