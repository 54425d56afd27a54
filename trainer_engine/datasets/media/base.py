"""What a kind of media offers. A new one is a file in this folder that declares ``MEDIUM``; docs/new-dataset-source.md builds one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

from PIL import Image

from trainer_engine.config.dataset_tables import modules_in
from trainer_engine.contract.errors import EngineError, ExitCode
from trainer_engine.datasets import media as folder
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.sources.base import SourceFile, Suffixes, printable


class BrokenImage(EngineError):
    """A media file that cannot be used. ``reason`` says why, without the name of the file."""

    code = "broken_image"
    exit_code = ExitCode.DATA

    def __init__(self, location: str, reason: str) -> None:
        super().__init__(f"{printable(location)}: {reason}", hint="remove the file, or replace it")
        self.reason = reason


class MediaFacts(NamedTuple):
    """Facts about a media file from its header."""

    size: Size
    """(width, height) in pixels, as it is shown: an image after its EXIF orientation is applied."""
    remark: str = ""
    """A note about the file for people, such as why its colours are not converted to sRGB; empty if there is none."""
    frames: int = 1
    """Number of frames; 1 for an image."""
    frame_rate: float | None = None
    """Frames a second; None for an image."""


@dataclass(frozen=True, kw_only=True)
class Medium:
    """The declaration of a kind of media."""

    name: str
    """The word in ``LatentSpec.media`` of the families that train on it."""
    suffixes: frozenset[str]
    """Suffixes of its files, in lower case with their dot."""
    unsupported: frozenset[str] = frozenset()
    """Suffixes of related formats that cannot be read. The report names such files as left out."""
    is_clip: bool = False
    """Whether its pixels are (C, T, H, W), also with one frame; those of an image are (C, H, W)."""
    pixel_rule: int | str
    """Version of the pixels that a file gives, part of the addresses of cached latents. No two media have the same one."""
    measure: Callable[[SourceFile], MediaFacts]
    """Reads the header of a file. Raises BrokenImage. Pixels are decoded only to find out whether a suspicious file is complete."""
    frames: Callable[[SourceFile], Iterator[Image.Image]]
    """Decodes a file: its frames in order, each an RGB image (8 bits, sRGB) of the measured size. Raises BrokenImage."""


@cache
def media() -> Mapping[str, Medium]:
    """Returns every kind of media that has a file in this folder, by name. Raises TypeError if two of them share a suffix."""
    found: dict[str, Medium] = {}
    for module in modules_in(folder):
        medium = getattr(module, "MEDIUM", None)
        if not isinstance(medium, Medium):
            continue
        for other in found.values():
            if other.name == medium.name or other.suffixes & medium.suffixes:
                raise TypeError(f"{module.__name__} declares {medium.name!r}, whose name or suffixes {other.name!r} has too")
        found[medium.name] = medium
    return MappingProxyType(found)


@cache
def _by_suffix() -> Mapping[str, Medium]:
    return MappingProxyType({suffix: medium for medium in media().values() for suffix in medium.suffixes})


@cache
def media_suffixes() -> frozenset[str]:
    """Returns the suffixes of all media, and of related formats that cannot be read."""
    return frozenset(_by_suffix()).union(*(medium.unsupported for medium in media().values()))


def medium_of(name: str) -> Medium:
    """Returns the medium of a file by its suffix. Raises KeyError for a suffix that no medium has."""
    return _by_suffix()[name[name.rfind(".") :].lower()]


def suffixes_of(names: Collection[str]) -> Suffixes:
    """Returns the suffixes of the named media. Files of other media, and of formats that no medium reads, are refused with a reason."""
    usable = frozenset(suffix for name in names for suffix in media()[name].suffixes)
    refused = {suffix: f"{suffix} files are not supported" for medium in media().values() for suffix in medium.unsupported}
    for suffix, medium in _by_suffix().items():
        if medium.name not in names:
            refused[suffix] = f"{suffix} files hold a {medium.name}, on which this model is not trained"
    return Suffixes(usable, MappingProxyType({suffix: reason for suffix, reason in refused.items() if suffix not in usable}))
