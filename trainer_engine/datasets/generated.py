"""The files that a generator makes of the images of another source: made once, by the engine, and found by what they are made of."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image

from trainer_engine.config.dataset_tables import generator_specs
from trainer_engine.config.datasets.generated import GeneratedReference
from trainer_engine.contract.atomic import means_full
from trainer_engine.contract.errors import DiskFull
from trainer_engine.contract.files import read_small
from trainer_engine.datasets.generators.base import Generator
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.datasets.index import Discovery, ImageFile
from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.datasets.media.pixels import DECODING_ERRORS, LARGEST_PIXELS, open_rgb
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.sources.base import FoundFile, LeftOut, Listing, Source, SourceFile, Suffixes

THREADS_PER_CORE = 2
LARGEST_BYTES = 4 * LARGEST_PIXELS
"""More than a PNG of the largest image needs."""


@dataclass(frozen=True)
class GeneratedSource(Source):
    """One generated file for each image of ``origin``, with the name and the size of the image.

    The files lie in ``place`` as PNG under the hash of the image's bytes, the generator and its fields: one image is generated from once,
    whatever it is called. Listing, sizes and hashes need no generated file; only ``open`` makes one that is missing or damaged.
    """

    origin: Source
    place: str
    generator: str
    settings: Mapping[str, Any] = field(hash=False)

    is_generated = True

    @property
    def identity(self) -> str:
        return f"{self.recipe} of {self.origin.identity}"

    @cached_property
    def recipe(self) -> str:
        """Changes whenever the same image would give another file."""
        version = cast(Generator, generator_specs()[self.generator]).version
        text = json.dumps([self.generator, version, dict(self.settings)], sort_keys=True)
        return f"{self.generator} {hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @cached_property
    def hashes(self) -> FileHashes:
        """Hashes of the images."""
        return FileHashes(Path(self.place, "hashes.jsonl"))

    def list_files(self, suffixes: Suffixes) -> Listing:
        found = self.origin.list_files(suffixes)
        return Listing([self._made_of(file) for file in found.files], found.left_out)

    def stat(self, name: str) -> FoundFile:
        return self._made_of(self.origin.stat(name))

    def _made_of(self, file: FoundFile) -> FoundFile:
        return FoundFile(file.name, file.size_bytes, f"{file.version} {self.recipe}")

    def location(self, name: str) -> str:
        return f"{self.origin.location(name)} ({self.generator})"

    def sha256(self, name: str) -> str:
        """Returns the hash of what the file is made of, which stands for the hash of its bytes."""
        status = self.origin.stat(name)
        known = self.hashes.known(self.origin.location(name), status.size_bytes, status.version)
        return self._key(known or self.origin.sha256(name))

    def open(self, name: str) -> BinaryIO:
        """Opens a generated file; makes it if it is missing or damaged. Raises OSError, BrokenImage if its image cannot be read."""
        path = self.path(name)
        try:
            content = read_small(str(path), LARGEST_BYTES)
        except FileNotFoundError:
            content = b""
        return io.BytesIO(content if _is_sound(content) else self._make(name, path))

    def path(self, name: str) -> Path:
        """Returns where the file of an image lies or will lie, and remembers the hash of the image. Raises OSError."""
        key = self._key(self.hashes.of_entry(self.origin, name))
        return Path(self.place, key[:2], f"{key}.png")

    def make_missing(self, name: str) -> None:
        """Makes the file of an image unless it exists. Raises OSError, BrokenImage."""
        path = self.path(name)
        if not path.is_file():
            self._make(name, path)

    def _key(self, content: str) -> str:
        return hashlib.sha256(f"{content} {self.recipe}".encode()).hexdigest()

    def _make(self, name: str, path: Path) -> bytes:
        generator = cast(Generator, generator_specs()[self.generator])
        assert generator.fields is not None
        image = open_rgb(SourceFile(self.origin, name, self.origin.stat(name).size_bytes))
        # Of the content and the recipe, so that neither the name nor the order of files counts.
        made = generator.make(image, generator.fields.model_validate(dict(self.settings)), int(path.stem[:15], 16))
        stream = io.BytesIO()
        made.save(stream, "PNG", compress_level=4)
        _write(path, stream.getvalue())
        return stream.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Writes a file that is complete or absent. Threads and ranks that make the same file write the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:16]}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_sound(content: bytes) -> bool:
    """Whether a PNG is complete and the checksums of its chunks are right."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.verify()
    except DECODING_ERRORS:
        return False
    return True


def discover_generated(found: Discovery, wanted: GeneratedReference) -> Discovery:
    """Returns what will be generated from the images of a source, without making anything: their names and sizes."""
    source = GeneratedSource(found.source, wanted.instance_data_dir, wanted.generator, wanted.settings)
    images = [image for image in found.images if image.frame_rate is None]
    clips = [LeftOut(image.name, "it is generated from images, not from clips", broken=True) for image in found.images if image.frame_rate]
    made = [ImageFile(image.name, image.size_bytes, f"{image.version} {source.recipe}", image.width, image.height) for image in images]
    return Discovery(source, made, [*found.left_out, *clips], 0)


def make_files(
    samples: Iterable[Sample],
    *,
    workers: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Makes the missing files of generated samples in ``workers`` threads; a stop takes effect after the files in work.

    An image that cannot be read gets no file: caching its latents reports it. Raises DiskFull.
    """
    wanted = list(samples)

    def make(sample: Sample) -> None:
        if should_stop():
            return
        try:
            cast(GeneratedSource, sample.source).make_missing(sample.name)
        except BrokenImage:
            return
        except OSError as error:
            if means_full(error):
                place = cast(GeneratedSource, sample.source).place
                raise DiskFull(f"No space is left for generated images in {place}.", hint="free some space, or set cache_dir") from error

    with ThreadPoolExecutor(max(1, min(workers, THREADS_PER_CORE * (os.cpu_count() or 1))), thread_name_prefix="generate") as pool:
        for done, _ in enumerate(pool.map(make, wanted), start=1):
            on_progress(done, len(wanted))
