"""Images that other processes drew, on their way to the first one, which alone speaks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.events import ErrorEvent
from trainer_engine.validation.failures import GenerationFailed
from trainer_engine.validation.generate import ValidationImage


@dataclass(frozen=True)
class GeneratedImages:
    """What one process made of its share of a validation."""

    images: Sequence[ValidationImage] = ()
    failure: ErrorEvent | None = None
    """Why the rest is missing."""

    def pack(self) -> bytes:
        """With the files' contents: a host need not see the disk of another. One line of JSON, then the files one after the other.

        Raises OSError.
        """
        files = [path.read_bytes() for image in self.images for path in image.files]
        sizes = [len(file) for file in files]
        header: dict[str, Any] = {
            "images": [dataclasses.asdict(image) for image in self.images],
            "sizes": sizes,
            "failure": self.failure.model_dump(mode="json") if self.failure else None,
        }
        return b"\n".join([json.dumps(header, default=str).encode(), b"".join(files)])


def pack_or_say(generated: GeneratedImages, step: int) -> bytes:
    """Where a file of it cannot be read again, that alone is said: the other processes wait for a word, and the run is worth more."""
    try:
        return generated.pack()
    except OSError as error:
        return GeneratedImages(failure=GenerationFailed("", "", error).as_event(step)).pack()


def unpack(packed: bytes) -> GeneratedImages:
    """The inverse of ``GeneratedImages.pack``; a file that is not on this disk is written. Raises OSError."""
    line, _, content = packed.partition(b"\n")
    header = json.loads(line)
    images = [_image(fields) for fields in header["images"]]
    for path, size in zip((path for image in images for path in image.files), header["sizes"], strict=True):
        file, content = content[:size], content[size:]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != file:
            write_atomically(path, file)
    return GeneratedImages(images, ErrorEvent(**header["failure"]) if header["failure"] else None)


def _image(fields: dict[str, Any]) -> ValidationImage:
    video = Path(fields["video"]) if fields["video"] else None
    return ValidationImage(**{**fields, "path": Path(fields["path"]), "video": video, "resolution": tuple(fields["resolution"])})
