"""The calls that only read: status, events, checkpoints, history, log."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from django.http import FileResponse, HttpResponse, HttpResponseBase
from rest_framework.parsers import FormParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from environments.api.parsers import FormBody, JsonBody
from environments.api.schema import WITH_BODY
from environments.paths import expanded, wrong_text
from trainer_engine.contract.checkpoint_files import verify
from trainer_engine.contract.events import MEDIA_TYPES
from training.api import fast_reads, media, parse, representations, schema, serializers
from training.api.renderers import FileNegotiation
from training.errors import TrainingRefused
from training.models import Job
from training.upkeep.deletion import delete_job

JSON = "application/json"
LARGEST_LOG_BYTES = 4 * 1024 * 1024
MOST_JOBS = 500


def wants_page(request: Request) -> bool:
    """Whether the browsable API renders the answer: it needs data instead of JSON text."""
    return request.accepted_renderer.format == "api"


def _answer(request: Request, text: str) -> HttpResponseBase:
    """JSON text as it is, or as data for the browsable API."""
    return Response(json.loads(text)) if wants_page(request) else HttpResponse(text, content_type=JSON)


class StatusView(APIView):
    """State of the current run."""

    @schema.described("training_status", "State of the current or last run", serializers.StatusSerializer)
    def get(self, request: Request) -> HttpResponseBase:
        return _answer(request, fast_reads.status_text(request.query_params))


class EventsView(APIView):
    """The event log from an index on."""

    @schema.described(
        "training_events",
        "Events from an index on",
        serializers.EventPageSerializer,
        404,
        422,
        parameters=[schema.SINCE, schema.JOB_ID, schema.LIMIT, schema.MEDIA],
    )
    def get(self, request: Request) -> HttpResponseBase:
        return _answer(request, fast_reads.events_text(request.query_params))


class StreamView(APIView):
    """The events of a run as they happen, the past ones first. `Last-Event-ID` continues after an event.

    Without `job_id` the stream follows the current run and goes on to the next one. A comment is sent every 15 s.
    """

    # NOTE: ``consumers.py`` serves this address before Django sees it.

    @schema.described(
        "training_events_stream",
        "Events as they happen: server-sent events, or a WebSocket",
        {"type": "string", "description": "`event:` type, `data:` event, `id:` its index. WebSocket frames: `{job_id, event}`."},
        404,
        422,
        426,
        parameters=[schema.JOB_ID, schema.SINCE, schema.MEDIA],
        media_types=("text/event-stream",),
    )
    def get(self, request: Request) -> Response:
        raise NotStreaming


class CheckpointsView(APIView):
    """The checkpoints of a run."""

    parser_classes = (JsonBody, FormParser, FormBody)
    PARAMETERS = [schema.JOB_ID, schema.OUTPUT_DIR]

    @schema.described("training_checkpoints", "Checkpoints of a run", serializers.CheckpointListSerializer, 404, parameters=PARAMETERS)
    def get(self, request: Request) -> Response:
        return Response(representations.checkpoints(self._job(request.query_params)))

    @schema.described(
        "training_checkpoints_list",
        "Checkpoints of a run",
        serializers.CheckpointListSerializer,
        404,
        *WITH_BODY,
        request=schema.forms(schema.CHECKPOINTS_FORM),
    )
    def post(self, request: Request) -> Response:
        fields = parse.named_fields(request)
        return Response(representations.checkpoints(self._job({**request.query_params.dict(), **fields})))

    def _job(self, asked: Any) -> Job | None:
        """The job of a request. An output folder stands for the newest job that wrote there; other paths are not read."""
        folder, job_id = (parse.text_or_none(asked, name) for name in ("output_dir", "job_id"))
        if not folder or job_id:
            return parse.job_of(job_id)
        is_path = wrong_text(folder, "output_dir") is None
        job = Job.objects.filter(output_dir=str(expanded(folder))).order_by("-number").first() if is_path else None
        if job is None:
            raise NoSuchFolder(folder)
        return job


class NotStreaming(TrainingRefused):
    """The server does not run this project's ASGI application."""

    status_code = 426

    def __init__(self) -> None:
        super().__init__("Streams need the ASGI server: simpletuner server")


class NoSuchFolder(TrainingRefused):
    """No job wrote to this folder, so it is not read."""

    status_code = 404

    def __init__(self, folder: str) -> None:
        super().__init__(f"No job of this server writes to '{folder[:200]}'")


class NoSuchCheckpoint(TrainingRefused):
    """The job's output folder holds no such checkpoint."""

    status_code = 404

    def __init__(self, name: str) -> None:
        super().__init__(f"Checkpoint '{name[:200]}' not found")


class CheckpointVerdict(APIView):
    """Verifies a checkpoint by computing every hash again."""

    @schema.described(
        "training_checkpoint_validate",
        "Check the hashes of a checkpoint",
        serializers.CheckpointVerdictSerializer,
        404,
        parameters=[schema.CHECKPOINT, schema.JOB_ID],
    )
    def get(self, request: Request, name: str) -> Response:
        job = parse.job_of(request.query_params.get("job_id"))
        known = representations.checkpoints(job)["checkpoints"]
        paths = [row["path"] for row in known if row["name"] == name]
        if not paths:
            raise NoSuchCheckpoint(name)
        problems = verify(Path(paths[0]))
        message = "; ".join(problems) or "Every file exists and has the hash that it was saved with."
        return Response({"checkpoint": name, "valid": not problems, "message": message})


class JobList(APIView):
    """All jobs."""

    @schema.described("training_jobs", "All runs, newest first", serializers.JobListSerializer)
    def get(self, request: Request) -> Response:
        rows = representations.job_rows(Job.objects.order_by("-number")[:MOST_JOBS])
        return Response({"jobs": rows, "count": Job.objects.count()})


class JobDetail(APIView):
    """One run, in the shape of ``status``."""

    @schema.described("training_job", "State of one run", serializers.StatusSerializer, 404, parameters=[schema.JOB_PATH])
    def get(self, request: Request, job_id: str) -> Response:
        return Response(representations.job_status(parse.named_job(job_id)))

    @schema.described(
        "training_job_delete", "Delete a run that has ended", serializers.DeletedJobSerializer, 404, 409, parameters=[schema.JOB_PATH]
    )
    def delete(self, request: Request, job_id: str) -> Response:
        """Its events, webhooks and run folder go. Checkpoints and results in ``output_dir`` stay, and so do caches."""
        job = parse.named_job(job_id)
        delete_job(job)
        return Response({"message": f"Training job {job.pk} deleted", "job_id": str(job.pk), "output_dir": job.output_dir})


class JobLog(APIView):
    """What the engine printed, as text; its last 4 MiB."""

    content_negotiation_class = FileNegotiation

    @schema.described(
        "training_job_log",
        "The engine's output as text",
        {"type": "string"},
        404,
        parameters=[schema.JOB_PATH],
        media_types=("text/plain",),
    )
    def get(self, request: Request, job_id: str) -> HttpResponseBase:
        path = parse.named_job(job_id).folder.log
        try:
            with path.open("rb") as stream:
                stream.seek(max(0, path.stat().st_size - LARGEST_LOG_BYTES))
                text = stream.read(LARGEST_LOG_BYTES)
        except FileNotFoundError:
            text = b""
        return HttpResponse(text, content_type="text/plain; charset=utf-8", headers={"X-Content-Type-Options": "nosniff"})


class JobMedia(APIView):
    """An image or a clip of an event, or the part of it that a Range header asks for, as players do that seek.

    The path comes from the event, never from the request.
    """

    content_negotiation_class = FileNegotiation

    @schema.described(
        "training_job_media",
        "An image or a clip of an event",
        schema.BINARY,
        404,
        422,
        parameters=[schema.JOB_PATH, schema.EVENT_INDEX, schema.PLACE],
        has_parts=True,
        media_types=(*dict.fromkeys(MEDIA_TYPES.values()), media.UNKNOWN_TYPE),
    )
    def get(self, request: Request, job_id: str, index: str, place: str) -> HttpResponseBase:
        job = parse.named_job(job_id)
        event = job.events.filter(index=parse.whole_number(index, "index", default=0)).first()
        attached = media.attached(event.payload) if event else []
        number = parse.whole_number(place, "place", default=0)
        entry = attached[number] if number < len(attached) else {}
        stream = media.opened(job, entry)
        if stream is None:
            raise NoSuchMedia(index)
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "max-age=86400", "Accept-Ranges": "bytes"}
        kind, size = media.served_type(entry), os.fstat(stream.fileno()).st_size
        part = media.part_of(request.headers.get("Range", ""), size, media.LARGEST_PART_BYTES)
        if part is None:
            return FileResponse(stream, content_type=kind, headers=headers)
        first, behind = part
        with stream:
            stream.seek(first)
            content = stream.read(behind - first)
        headers["Content-Range"] = f"bytes {first}-{behind - 1}/{size}"
        return HttpResponse(content, status=206, content_type=kind, headers=headers)


class NoSuchMedia(TrainingRefused):
    """The event has no such image, or its file is gone."""

    status_code = 404

    def __init__(self, index: str) -> None:
        super().__init__(f"Event {index} has no such image")


class Queue(APIView):
    """The jobs that train and the jobs that wait."""

    @schema.described("training_queue", "Running and waiting jobs", serializers.QueueSerializer)
    def get(self, request: Request) -> Response:
        return Response(representations.queue_rows())
