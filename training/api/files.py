"""``/api/training/jobs/{id}/files``: checkpoints and results of a run, listed and downloaded, also in parts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, BinaryIO
from urllib.parse import quote

from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from training.api import media, parse, schema
from training.api.renderers import FileNegotiation
from training.errors import TrainingRefused
from training.jobs import results

PIECE_BYTES = 64 << 10
"""A client that reads so much in the patience of `backpressure` is not cut off."""
LARGEST_FILE = 1 << 60
FILE_PATH = OpenApiParameter("path", str, OpenApiParameter.PATH, description="As listed, with slashes.")
IF_RANGE = OpenApiParameter("If-Range", str, OpenApiParameter.HEADER, description="`ETag` of the part that is there already.")


class RunFileSerializer(serializers.Serializer[object]):
    """One file."""

    path = serializers.CharField(help_text="Relative to the output folder.")
    kind = serializers.ChoiceField(choices=["checkpoint", "result"])
    size_bytes = serializers.IntegerField()
    url = serializers.CharField()


class RunFilesSerializer(serializers.Serializer[object]):
    """The files of a run."""

    job_id = serializers.UUIDField()
    output_dir = serializers.CharField()
    files = RunFileSerializer(many=True)
    count = serializers.IntegerField()


class JobFiles(APIView):
    """The checkpoints and results of a run."""

    @schema.described("training_job_files", "Files of a run", RunFilesSerializer, 404, parameters=[schema.JOB_PATH])
    def get(self, request: Request, job_id: str) -> Response:
        job = parse.named_job(job_id)
        files = [
            {
                "path": str(one.path),
                "kind": one.kind,
                "size_bytes": one.size_bytes,
                "url": f"/api/training/jobs/{job.pk}/files/{quote(str(one.path))}",
            }
            for one in results.list_files(job)
        ]
        return Response({"job_id": str(job.pk), "output_dir": job.output_dir, "files": files, "count": len(files)})


class JobFile(APIView):
    """One file of a run, or the part of it that a Range header asks for, so that a broken download goes on."""

    content_negotiation_class = FileNegotiation

    @schema.described(
        "training_job_file",
        "Download a file of a run",
        schema.BINARY,
        404,
        parameters=[schema.JOB_PATH, FILE_PATH, IF_RANGE],
        has_parts=True,
        media_types=(media.UNKNOWN_TYPE,),
    )
    def get(self, request: Request, job_id: str, path: str) -> HttpResponseBase:
        stream = results.open_file(parse.named_job(job_id), path)
        if stream is None:
            raise NoSuchFile(path)
        facts = os.fstat(stream.fileno())
        tag = f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"'
        is_current = request.headers.get("If-Range", tag) == tag
        asked = request.headers.get("Range", "") if is_current else ""
        if media.begins_behind(asked, facts.st_size):
            stream.close()
            return HttpResponse(status=416, headers={"Content-Range": f"bytes */{facts.st_size}"})
        part = media.part_of(asked, facts.st_size, LARGEST_FILE)
        first, behind = part or (0, facts.st_size)
        headers = {
            "Content-Length": str(behind - first),
            "Content-Disposition": "attachment",
            "X-Content-Type-Options": "nosniff",
            "Accept-Ranges": "bytes",
            "ETag": tag,
        }
        if part is not None:
            headers["Content-Range"] = f"bytes {first}-{behind - 1}/{facts.st_size}"
        status = 200 if part is None else 206
        return Download(_pieces(stream, first, behind), status=status, content_type=media.UNKNOWN_TYPE, headers=headers)


class Download(StreamingHttpResponse):
    """Closes its file with the answer: Django closes what ``__aiter__`` returns, by default a generator around ours."""

    def __init__(self, pieces: AsyncIterator[bytes], **facts: Any) -> None:
        super().__init__(pieces, **facts)
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces


class NoSuchFile(TrainingRefused):
    """The run has no such file."""

    status_code = 404

    def __init__(self, path: str) -> None:
        super().__init__(f"The run has no file '{path[:200]}'")


async def _pieces(stream: BinaryIO, first: int, behind: int) -> AsyncIterator[bytes]:
    """Yields the bytes from ``first`` to before ``behind``. Django would read the whole of an iterator that is not asynchronous."""
    with stream:
        await asyncio.to_thread(stream.seek, first)
        left = behind - first
        while left > 0:
            piece = await asyncio.to_thread(stream.read, min(PIECE_BYTES, left))
            if not piece:
                return
            left -= len(piece)
            yield piece
