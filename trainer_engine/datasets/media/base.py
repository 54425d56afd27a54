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
    missing: Callable[[], Mapping[str, str]] = dict
    """Suffix -> why such files cannot be read on this machine, such as a library that is not installed."""
    is_clip: bool = False
    """Whether its pixels are (C, T, H, W), also with one frame; those of an image are (C, H, W). Clips are in sets of their own."""
    pixel_rule: int | str
    """Version of the pixels that a file gives, part of the addresses of cached latents. No two media have the same one."""
    measure: Callable[[SourceFile], MediaFacts]
    """Reads the header of a file. Raises BrokenImage. Pixels are decoded only to find out whether a suspicious file is complete."""
    frames: Callable[[SourceFile], Iterator[Image.Image]]
    """Decodes a file: its frames in order, each an RGB image (8 bits, sRGB) of the measured size. Raises BrokenImage."""


@cache
def media() -> Mapping[str, Medium]:
    """Returns every kind of media that has a file in this folder, by name. Raises TypeError if two of them share a name.

    Two media of images may not share a suffix, nor two of clips. A suffix of both, such as ``.gif``, is what the set is.
    """
    found: dict[str, Medium] = {}
    for module in modules_in(folder):
        medium = getattr(module, "MEDIUM", None)
        if not isinstance(medium, Medium):
            continue
        for other in found.values():
            if other.name == medium.name or (other.is_clip is medium.is_clip and other.suffixes & medium.suffixes):
                raise TypeError(f"{module.__name__} declares {medium.name!r}, whose name or suffixes {other.name!r} has too")
        found[medium.name] = medium
    return MappingProxyType(found)


@cache
def _by_suffix(*, is_clip: bool) -> Mapping[str, Medium]:
    """Returns the media by suffix; of two with the same one, that of clips or of images."""
    ordered = sorted(media().values(), key=lambda medium: medium.is_clip is is_clip)
    return MappingProxyType({suffix: medium for medium in ordered for suffix in medium.suffixes})


@cache
def media_suffixes() -> frozenset[str]:
    """Returns the suffixes of all media, and of related formats that cannot be read."""
    return frozenset(_by_suffix(is_clip=False)).union(*(medium.unsupported for medium in media().values()))


def medium_of(name: str, *, is_clip: bool = False) -> Medium:
    """Returns the medium of a file by its suffix. ``is_clip``: a suffix of both images and clips means a clip, as in sets of clips.

    Raises KeyError for a suffix that no medium has.
    """
    return _by_suffix(is_clip=is_clip)[name[name.rfind(".") :].lower()]


def holds_clips(names: Collection[str]) -> bool:
    """Whether one of the named media has clips."""
    return any(media()[name].is_clip for name in names)


def is_of_another_kind(name: str, names: Collection[str]) -> bool:
    """Whether a file is one of other media than those named, and therefore left out without being broken."""
    found = _by_suffix(is_clip=holds_clips(names)).get(name[name.rfind(".") :].lower())
    return found is not None and found.name not in names


def suffixes_of(names: Collection[str]) -> Suffixes:
    """Returns the suffixes of the named media. Formats that cannot be read are refused with a reason, and so are images in a set of clips.

    A set of images ignores video files, like every file that is no image.
    """
    missing = {suffix: why for name in names for suffix, why in media()[name].missing().items()}
    usable = frozenset(suffix for name in names for suffix in media()[name].suffixes) - missing.keys()
    refused = {suffix: f"{suffix} files are not supported" for medium in media().values() for suffix in medium.unsupported}
    for suffix, medium in _by_suffix(is_clip=holds_clips(names)).items():
        if medium.name not in names and not medium.is_clip:
            refused[suffix] = f"{suffix} files are trained on in a set of dataset_type image"
    refused |= missing
    return Suffixes(usable, MappingProxyType({suffix: reason for suffix, reason in refused.items() if suffix not in usable}))
