"""Captions in text files: one of the same name for each image, in the same source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer_engine.contract.files import FileTooLarge
from trainer_engine.datasets.captions.base import CaptionsOf, CaptionStrategy, NoCaption
from trainer_engine.datasets.sources.base import Source, reason_of
from trainer_engine.datasets.text import NEWLINE, NotText, decode

if TYPE_CHECKING:
    from trainer_engine.config.datasets import ImageSet

LONGEST_CAPTION_FILE_BYTES = 1 << 20


def _prepare(entry: ImageSet, source: Source) -> CaptionsOf:
    split = not entry.disable_multiline_split
    return lambda name: from_text_file(source, name, split=split)


def from_text_file(source: Source, image_name: str, *, split: bool) -> tuple[str, ...]:
    """Returns the non-blank lines of the ``.txt`` file of an image, or its complete text if not ``split``. Raises NoCaption."""
    name = f"{image_name[: image_name.rindex('.')]}.txt"
    try:
        content = source.read_small(name, LONGEST_CAPTION_FILE_BYTES)
    except FileNotFoundError:
        raise NoCaption("it has no .txt file of the same name") from None
    except FileTooLarge:
        raise NoCaption("its .txt file is larger than a megabyte") from None
    except OSError as error:
        raise NoCaption(f"its .txt file cannot be read: {reason_of(error)}") from error
    try:
        text = decode(content)
    except NotText as error:
        raise NoCaption(f"its .txt file {error}") from None
    captions = _lines(text) if split else ("\n".join(line.strip() for line in NEWLINE.split(text)).strip(),)
    if not captions or not captions[0]:
        raise NoCaption("its .txt file is empty")
    return captions


def _lines(text: str) -> tuple[str, ...]:
    """Returns the lines that are not blank, without the blanks around them."""
    whole = text.strip()
    if "\n" not in whole and "\r" not in whole:
        return (whole,)
    return tuple(line for part in NEWLINE.split(whole) if (line := part.strip()))


STRATEGIES = (
    CaptionStrategy(
        name="textfile",
        help="a .txt file of the same name.",
        prepare=_prepare,
        reads_files=True,
    ),
)
