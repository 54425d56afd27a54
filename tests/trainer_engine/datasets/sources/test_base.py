"""What every source offers, shown with one whose files lie in memory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pytest
from PIL import Image

from trainer_engine.config.datasets import ImageSet
from trainer_engine.contract.files import FileTooLarge
from trainer_engine.datasets.captions.textfile import from_text_file
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.datasets.index import discover
from trainer_engine.datasets.samples import CropPlan, Sample, fingerprint
from trainer_engine.datasets.sources.base import FoundFile, Listing, Source, SourceFile, Suffixes, open_source
from trainer_engine.datasets.sources.local import LocalSource


@dataclass(frozen=True)
class MemorySource(Source):
    """Files in memory; the version of each is an ETag."""

    place: str = "memory://here"
    contents: dict[str, bytes] = field(default_factory=dict, compare=False)
    opened: list[str] = field(default_factory=list, compare=False)

    def list_files(self, suffixes: Suffixes) -> Listing:
        names = sorted(name for name in self.contents if f".{name.rpartition('.')[2]}" in suffixes.usable)
        return Listing([self.stat(name) for name in names])

    def stat(self, name: str) -> FoundFile:
        return FoundFile(name, len(self.contents[name]), f"etag-{hashlib.md5(self.contents[name]).hexdigest()}")

    def open(self, name: str) -> BinaryIO:
        if name not in self.contents:
            raise FileNotFoundError(2, "there is no such object")
        self.opened.append(name)
        return io.BytesIO(self.contents[name])


def encoded(size: tuple[int, int] = (40, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def memory() -> Iterator[MemorySource]:
    yield MemorySource(contents={"a.png": encoded(), "deep/b.png": encoded((7, 9)), "broken.png": b"nothing", "a.txt": b"a cat\na tabby\n"})


def sample_in(source: Source, name: str = "a.png", **changes: object) -> Sample:
    made = Sample(
        source=source,
        name=name,
        size_bytes=1,
        version=1,
        width=40,
        height=30,
        resized=(40, 30),
        target=(40, 30),
        crop=CropPlan("center", 1.33),
        bucket="1.33 (40x30)",
        captions=("a cat",),
    )
    return made._replace(**changes)  # type: ignore[arg-type]


def test_files_of_any_source_are_measured_and_broken_ones_named(memory: MemorySource) -> None:
    found = discover(memory)
    assert [(file.name, file.width, file.height) for file in found.images] == [("a.png", 40, 30), ("deep/b.png", 7, 9)]
    assert [(file.name, file.broken) for file in found.left_out] == [("broken.png", True)]
    assert found.source is memory


def test_an_unchanged_version_is_opened_once_and_a_new_one_again(memory: MemorySource, tmp_path: Path) -> None:
    first = discover(memory, index_dir=tmp_path)
    memory.opened.clear()
    second = discover(memory, index_dir=tmp_path)
    assert (second.images, second.opened, memory.opened) == (first.images, 0, [])
    memory.contents["a.png"] = encoded((41, 30))
    third = discover(memory, index_dir=tmp_path)
    assert (third.opened, third.images[0].width, set(memory.opened)) == (1, 41, {"a.png"})


def test_two_places_have_two_indexes(memory: MemorySource, tmp_path: Path) -> None:
    other = MemorySource("memory://there", {"a.png": encoded((5, 5))})
    for source in (memory, other):
        discover(source, index_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert discover(other, index_dir=tmp_path).images[0].width == 5


def test_a_caption_file_is_read_through_its_source(memory: MemorySource) -> None:
    assert from_text_file(memory, "a.png", split=True) == ("a cat", "a tabby")


def test_a_small_file_is_read_up_to_its_limit(memory: MemorySource) -> None:
    assert memory.read_small("a.txt", 14) == memory.contents["a.txt"]
    with pytest.raises(FileTooLarge):
        memory.read_small("a.txt", 13)
    with pytest.raises(FileNotFoundError):
        memory.read_small("b.txt", 13)


def test_the_hash_of_a_content_is_the_same_in_every_source(memory: MemorySource, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(memory.contents["a.png"])
    hashes = FileHashes(tmp_path / "hashes.jsonl")
    assert hashes.of_entry(memory, "a.png") == hashes.of_entry(LocalSource(str(tmp_path)), "a.png") == memory.sha256("a.png")


def test_a_hash_is_computed_once_for_a_version(memory: MemorySource, tmp_path: Path) -> None:
    index = tmp_path / "hashes.jsonl"
    first = FileHashes(index).of_entry(memory, "a.png")
    memory.opened.clear()
    again = FileHashes(index)
    _, size, version, _ = memory.stat("a.png")
    assert again.of_entry(memory, "a.png") == first == again.known("memory://here/a.png", size, version)
    assert memory.opened == []
    memory.contents["a.png"] = encoded((1, 1))
    assert again.of_entry(memory, "a.png") != first
    assert again.known("memory://here/a.png", size, version) is None


def test_sources_of_one_place_are_equal_and_so_are_their_samples() -> None:
    assert LocalSource("/data") == LocalSource("/data") != LocalSource("/other")
    assert len({sample_in(LocalSource("/data")), sample_in(LocalSource("/data")), sample_in(LocalSource("/other"))}) == 2


def test_a_sample_knows_where_its_file_lies(memory: MemorySource) -> None:
    assert sample_in(memory).location == "memory://here/a.png"
    assert sample_in(LocalSource("/data")).location == "/data/a.png"
    assert sample_in(memory).file == SourceFile(memory, "a.png", 1)
    assert memory.local_path("a.png") is None and LocalSource("/data").local_path("a.png") == "/data/a.png"


def test_a_fingerprint_depends_on_frames_and_not_on_the_source(memory: MemorySource) -> None:
    def of(sample: Sample) -> str:
        return fingerprint("set", sample, (1, 0, 1.0), lambda cache, one: "content")

    still = of(sample_in(memory))
    assert still == of(sample_in(LocalSource("/data"), version=7))
    clips = {of(sample_in(memory, frames=frames, frame_rate=rate)) for frames, rate in ((1, 8.0), (5, 8.0), (5, 16.0))}
    assert len({still, *clips}) == 4


def test_the_type_of_a_dataset_chooses_its_source(tmp_path: Path) -> None:
    images = ImageSet.model_validate({"position": 0, "id": "set", "instance_data_dir": str(tmp_path)})
    assert open_source(images) == LocalSource(str(tmp_path))
    assert (images.place, images.place_option) == (str(tmp_path), "dataloader[0].instance_data_dir")
