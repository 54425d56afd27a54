"""Files of a form, as Django takes them out of a body: each is open only while it is written and while it is read.

Django's own are open from when they arrive until the request ends, so that one upload of many files takes as many descriptors.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import TemporaryFileUploadHandler

if TYPE_CHECKING:
    FileBase = UploadedFile[bytes]
else:  # Django's classes take no parameters when they run
    FileBase = UploadedFile

SUFFIX = ".upload"
"""Of their names, by which what a killed server leaves behind is found."""


class FiledUpload(FileBase):
    """A file of a form in a file of the home. It is removed when it is closed, or when nothing holds it any more."""

    def __init__(self, name: str, content_type: str, charset: str | None, extra: dict[str, bytes] | None) -> None:
        descriptor, path = tempfile.mkstemp(suffix=SUFFIX, dir=settings.FILE_UPLOAD_TEMP_DIR)
        self.path = Path(path)
        self._stream: IO[bytes] | None = os.fdopen(descriptor, "wb")
        self._remove = weakref.finalize(self, _unlink, path)
        super().__init__(self._stream, name, content_type, 0, charset, extra)

    @property
    def file(self) -> IO[bytes]:
        """The open file, from its beginning if it was closed. Raises FileNotFoundError once it is removed."""
        if self._stream is None:
            self._stream = self.path.open("rb")
        return self._stream

    @file.setter
    def file(self, stream: IO[bytes]) -> None:
        self._stream = stream

    @property
    def closed(self) -> bool:
        return self._stream is None

    def rest(self) -> None:
        """Close what was written until it is read."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        """Remove it."""
        self.rest()
        self._remove()


def _unlink(path: str) -> None:
    with suppress(OSError):
        Path(path).unlink()


class FileUploads(TemporaryFileUploadHandler):
    """Writes each file of a form into a file of the home."""

    file: Any = None
    """Of a form that is small enough for the memory, another handler takes every file."""

    def new_file(self, field_name: str, file_name: str, content_type: str, content_length: int | None, *rest: Any, **named: Any) -> None:
        super(TemporaryFileUploadHandler, self).new_file(field_name, file_name, content_type, content_length, *rest, **named)
        self.file = FiledUpload(file_name, content_type, self.charset, self.content_type_extra)

    def file_complete(self, file_size: int) -> FileBase:
        self.file.size = file_size
        self.file.rest()
        done: FileBase = self.file
        return done

    def upload_interrupted(self) -> None:
        if self.file is not None:
            self.file.close()
