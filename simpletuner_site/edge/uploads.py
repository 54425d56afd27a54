"""Bodies of uploads: they may be longer than others, and lie in a file of the home, so that they take no memory.

The edge writes such a body to a file while it arrives and hands the file to Django with the scope. Space for it and for the copies that
Django and the upload make is kept free before the first byte is read.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

from asgiref.sync import sync_to_async
from django.core.files.uploadhandler import FileUploadHandler
from django.core.handlers.asgi import ASGIHandler, ASGIRequest

from simpletuner_site.edge.refusals import Refusal
from simpletuner_site.security.requests import Message, Receive, Scope

UPLOAD = re.compile(r"/api/folders/[^/]+/images/?")
BODY_FILE = "simpletuner.body_file"
"""Key of a scope: the open file that holds the body."""
REQUEST = "simpletuner.request"
"""Key of a scope: Django's request, until it is closed."""
FILES_A_REQUEST = 4
"""A request may hold so many files of the largest size."""
FRAME_BYTES = 1 << 20
"""What the form around the files takes."""
COPIES = 3
"""The body, each file as Django takes it out of the body, and its place in the dataset."""
FULL_DISK = Refusal(HTTPStatus.INSUFFICIENT_STORAGE, "The disk of the server has too little space for this upload.")


def is_upload(scope: Scope) -> bool:
    """Whether a request sends files of datasets."""
    return scope["type"] == "http" and scope.get("method") == "POST" and UPLOAD.fullmatch(str(scope.get("path", ""))) is not None


@dataclass(frozen=True)
class BodySizes:
    """The longest bodies, in bytes."""

    usual: int
    upload: int

    def of(self, scope: Scope) -> int:
        """The limit of a request."""
        return self.upload if is_upload(scope) else self.usual


class DiskSpace:
    """Keeps space for uploads that are under way, so that several at once cannot fill a disk either. Runs on one thread."""

    def __init__(self, folder: Path, kept_free_bytes: int, free_bytes: Callable[[Path], int] | None = None) -> None:
        self.folder = folder
        self._kept_free_bytes = kept_free_bytes
        self._free_bytes = free_bytes or (lambda folder: shutil.disk_usage(folder).free)
        self._kept: dict[Any, int] = {}

    def keep(self, owner: object, body_bytes: int) -> bool:
        """Keep space for a body of an owner. Returns whether there is so much. What others have written by now counts twice."""
        others = sum(size for one, size in self._kept.items() if one is not owner)
        try:
            free = self._free_bytes(self.folder)
        except OSError:
            return False
        if free - others - self._kept_free_bytes < COPIES * body_bytes:
            return False
        self._kept[owner] = COPIES * body_bytes
        return True

    def give_back(self, owner: object) -> None:
        self._kept.pop(owner, None)


class FiledBody:
    """``receive`` of a request whose body lies in a file."""

    def __init__(self, receive: Receive, file: IO[bytes]) -> None:
        self._receive = receive
        self.file = file

    async def __call__(self) -> Message:
        return await self._receive()


class FormRequest(ASGIRequest):
    """A request that leaves no file of its form. Django closes those alone that it hands out, and not the one at which a form broke off."""

    _upload_handlers: list[FileUploadHandler]
    """Of Django: empty until a form is read."""

    @property
    def has_form(self) -> bool:
        """Whether files of a form may be left."""
        return bool(self._upload_handlers)

    def close(self) -> None:
        """Remove every file of the form. Afterwards there is no form."""
        super().close()
        handlers, self._upload_handlers = self._upload_handlers, []
        for handler in handlers:
            handler.upload_interrupted()


class UploadHandler(ASGIHandler):
    """Django's handler, which reads a body that the edge has written to a file from there, and closes every request.

    Django closes a request with its response: one whose client has gone has none.
    """

    request_class = FormRequest

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        file = scope.get(BODY_FILE)
        try:
            with file or nullcontext():
                await super().handle(scope, receive if file is None else FiledBody(receive, file), send)
        finally:
            request = scope.pop(REQUEST, None)
            if request is not None and request.has_form:
                await sync_to_async(request.close)()  # on the thread of the view, which may still read the form

    def create_request(self, scope: Any, body_file: Any) -> Any:
        request, refusal = super().create_request(scope, body_file)
        scope[REQUEST] = request
        return request, refusal

    async def read_body(self, receive: Any) -> Any:
        """The body as a file. Django closes it with the request."""
        if not isinstance(receive, FiledBody):
            return await super().read_body(receive)
        await receive()  # the empty message that stands for the body
        receive.file.seek(0)
        return receive.file


def remove_leftovers(state: Path) -> None:
    """Remove what uploads left behind when a server was killed. No other server may use the home."""
    for folder in state.glob("upload-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for file in state.glob("tmp*.upload*"):
        with suppress(OSError):
            file.unlink()
