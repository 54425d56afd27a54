"""One of several images that stand side by side: ``composite_image_config``."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.datasets.media.pixels import open_rgb
from trainer_engine.datasets.sources.base import FoundFile, Listing, Source, SourceFile, Suffixes
from trainer_engine.datasets.sources.hub.options import Tile


@dataclass(frozen=True)
class StreamSource(Source):
    """A single stream as a source, for code that reads files of sources."""

    place: str
    open_stream: Callable[[], BinaryIO]

    def list_files(self, suffixes: Suffixes) -> Listing:
        return Listing()

    def stat(self, name: str) -> FoundFile:
        with self.open(name) as stream:
            return FoundFile(name, stream.seek(0, io.SEEK_END), 0)

    def open(self, name: str) -> BinaryIO:
        return self.open_stream()


def tile_of(location: str, open_stream: Callable[[], BinaryIO], tile: Tile) -> bytes:
    """Returns one of the images in a strip, as a PPM file: its bytes depend on no version of a library. Raises OSError.

    Pixels that the number of images does not divide are left out at the right edge.
    """
    source = StreamSource(location, open_stream)
    try:
        strip = open_rgb(SourceFile(source, "", 0))
    except BrokenImage as broken:
        raise OSError(broken.reason) from broken
    width = strip.width // tile.count
    if not width:
        raise OSError(f"it is {strip.width} pixels wide, too narrow for {tile.count} images")
    content = io.BytesIO()
    strip.crop((tile.index * width, 0, (tile.index + 1) * width, strip.height)).save(content, "PPM")
    return content.getvalue()
