"""What is said about an image."""

# ruff: noqa: PTH110, PTH116, PTH118, PTH119, PTH122, PTH123
# Paths are text here: over 20,000 files, Path objects cost as much as reading the headers.
from __future__ import annotations

import os

from trainer_engine.contract.dataloader import ImageSet
from trainer_engine.contract.small_files import FileTooLarge, read_small
from trainer_engine.datasets.sources.local import reason_of

LONGEST_CAPTION_FILE_BYTES = 1 << 20


class NoCaption(ValueError):
    """An image without a caption; the message says why."""


def captions_of(entry: ImageSet, root: str, name: str) -> tuple[str, ...]:
    """The alternatives for one image, at least one. Raises NoCaption."""
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
    """The name without folders and ending, underscores as spaces. Bytes that are no text are dropped; raises NoCaption if none is left."""
    stem = os.path.splitext(os.path.basename(name))[0]
    caption = os.fsencode(stem).decode("utf-8", "ignore").replace("_", " ").strip()
    if not caption:
        raise NoCaption("its name holds no text for a caption")
    return caption


def from_text_file(image_path: str, *, split: bool) -> tuple[str, ...]:
    """The lines of the ``.txt`` file beside an image that are not blank, or all of it as one. Raises NoCaption."""
    path = f"{os.path.splitext(image_path)[0]}.txt"
    try:
        content = read_small(path, LONGEST_CAPTION_FILE_BYTES)
    except FileNotFoundError:
        raise NoCaption("it has no .txt file beside it") from None
    except FileTooLarge:
        raise NoCaption("its .txt file is larger than a megabyte") from None
    except OSError as error:
        raise NoCaption(f"its .txt file cannot be read: {reason_of(error)}") from error
    lines = [line.strip() for line in _decode(content).splitlines()]
    captions = tuple(line for line in lines if line) if split else ("\n".join(lines).strip(),)
    if not any(captions):
        raise NoCaption("its .txt file is empty")
    return captions


def _decode(content: bytes) -> str:
    """UTF-8 with or without a byte order mark, or UTF-16 with one. Raises NoCaption."""
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        raise NoCaption("its .txt file is not UTF-8 text") from None
    return text.replace("\0", "")
