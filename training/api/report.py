"""The report of a run: its grid of validation images and its curves, which ``trainer_engine.report`` writes to the run folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from django.http import HttpResponse, HttpResponseBase
from django.utils.cache import get_conditional_response
from django.utils.http import http_date
from rest_framework.request import Request
from rest_framework.views import APIView

from trainer_engine.contract.run import PICTURE_SECONDS
from training.api import parse, schema
from training.api.renderers import FileNegotiation
from training.errors import TrainingRefused
from training.models import Job

HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    # An SVG is a document: opened by itself it may apply its styles and nothing else.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox",
}
CURVES_APPEAR = f"appear after the first validation or checkpoint, or after {PICTURE_SECONDS:.0f} seconds of training"
GRIDS_APPEAR = "appear after the first validation image"


def command(job: Job) -> str:
    """The command that draws both pictures of a run."""
    return f"python -m trainer_engine.report {shlex.quote(job.run_dir)}"


class NoPicture(TrainingRefused):
    """The picture does not exist yet, or the run ended without one."""

    status_code = 404

    def __init__(self, job: Job, name: str, when: str) -> None:
        if job.has_ended:
            super().__init__(f"There is no {name} of this job. This command draws it from the job's journal: {command(job)}")
        else:
            super().__init__(f"There is no {name} of this job yet; pictures of a run {when}.")


def sent(request: Request, job: Job, path: Path, content_type: str, when: str) -> HttpResponseBase:
    """The file, or 304 if the client has this version. Raises NoPicture."""
    try:
        with path.open("rb") as stream:
            content, modified = stream.read(), os.fstat(stream.fileno())
    except OSError:
        raise NoPicture(job, path.name, when) from None
    etag, seconds = f'"{modified.st_mtime_ns:x}-{len(content):x}"', int(modified.st_mtime)
    headers = {**HEADERS, "ETag": etag, "Last-Modified": http_date(seconds)}
    response = HttpResponse(content, content_type=content_type, headers=headers)
    return get_conditional_response(request, etag, seconds, response) or response


class JobGrid(APIView):
    """Every validation image of a run: a row for each validation, the base model first; a column for each prompt."""

    content_negotiation_class = FileNegotiation

    @schema.described(
        "training_job_grid",
        "All validation images of a run as one PNG",
        schema.BINARY,
        404,
        parameters=[schema.JOB_PATH],
        media_types=("image/png",),
    )
    def get(self, request: Request, job_id: str) -> HttpResponseBase:
        job = parse.named_job(job_id)
        return sent(request, job, job.folder.grid, "image/png", GRIDS_APPEAR)


class JobCurves(APIView):
    """Loss and learning rate over the steps."""

    content_negotiation_class = FileNegotiation

    @schema.described(
        "training_job_curves",
        "Loss and learning rate of a run as an SVG",
        {"type": "string"},
        404,
        parameters=[schema.JOB_PATH],
        media_types=("image/svg+xml",),
    )
    def get(self, request: Request, job_id: str) -> HttpResponseBase:
        job = parse.named_job(job_id)
        return sent(request, job, job.folder.curves, "image/svg+xml", CURVES_APPEAR)
