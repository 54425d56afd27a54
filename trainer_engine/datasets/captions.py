"""Reads the captions of an image from its file name, a text file or the configuration."""

# ruff: noqa: PTH110, PTH116, PTH118, PTH119, PTH122, PTH123
# Paths are text here: over 20,000 files, Path objects cost as much as reading the headers.
from __future__ import annotations

import os
import re

from trainer_engine.config.datasets import ImageSet
from trainer_engine.contract.files import FileTooLarge, read_small
from trainer_engine.datasets.sources.local import reason_of

LONGEST_CAPTION_FILE_BYTES = 1 << 20
NEWLINE = re.compile(r"\r\n|\r|\n")
"""Line ends that editors write. Other Unicode separators (U+0085, U+2028, form feed) are part of a caption."""


class NoCaption(ValueError):
    """An image has no caption. The message says why."""


def captions_of(entry: ImageSet, root: str, name: str) -> tuple[str, ...]:
    """Returns the alternative captions of an image, at least one. Raises NoCaption."""
    if entry.only_instance_prompt or entry.caption_strategy == "instanceprompt":
        return entry.instance_prompt
    if entry.caption_strategy == "textfile":
        captions = from_text_file(os.path.join(root, name), split=not entry.disable_multiline_split)
    else:
        captions = (from_file_name(name),)
    if entry.prepend_instance_prompt:
        return tuple(f"{prompt} {caption}" for prompt in entry.instance_prompt for caption in captions)
    return captions


def from_file_name(name: str) -> str:
    """Returns the file name without folders and suffix, with spaces for underscores.

    Bytes that are not UTF-8 are dropped. Raises NoCaption if nothing is left.
    """
    stem = os.path.splitext(os.path.basename(name))[0]
    caption = os.fsencode(stem).decode("utf-8", "ignore").replace("_", " ").strip()
    if not caption:
        raise NoCaption("its name contains no text for a caption")
    return caption


def from_text_file(image_path: str, *, split: bool) -> tuple[str, ...]:
    """Returns the non-blank lines of the ``.txt`` file of an image, or its complete text if not ``split``. Raises NoCaption."""
    path = f"{os.path.splitext(image_path)[0]}.txt"
    try:
        content = read_small(path, LONGEST_CAPTION_FILE_BYTES)
    except FileNotFoundError:
        raise NoCaption("it has no .txt file of the same name") from None
    except FileTooLarge:
        raise NoCaption("its .txt file is larger than a megabyte") from None
    except OSError as error:
        raise NoCaption(f"its .txt file cannot be read: {reason_of(error)}") from error
    lines = [line.strip() for line in NEWLINE.split(_decode(content))]
    captions = tuple(line for line in lines if line) if split else ("\n".join(lines).strip(),)
    if not any(captions):
        raise NoCaption("its .txt file is empty")
    return captions


def _decode(content: bytes) -> str:
    """Decodes UTF-8, or UTF-16 with a byte order mark or a clear pattern of zero bytes. Raises NoCaption."""
    try:
        text = content.decode(_encoding(content))
    except UnicodeDecodeError:
        raise NoCaption("its .txt file is not UTF-8 text") from None
    if "\0" in text:
        raise NoCaption("its .txt file contains zero bytes: it is UTF-16 without a byte order mark, or not text; save it as UTF-8")
    return text


def _encoding(content: bytes) -> str:
    """Returns the encoding. Text in which exactly every second byte is zero is UTF-16 of Western letters."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    even, odd = content[::2], content[1::2]
    if len(even) == len(odd) > 0:
        if not any(odd) and all(even):
            return "utf-16-le"
        if not any(even) and all(odd):
            return "utf-16-be"
    return "utf-8-sig"
