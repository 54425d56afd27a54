"""The calls that act on runs: validate, start, stop, cancel. Views translate between HTTP and ``services``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from rest_framework.parsers import FormParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from environments import services as environments
from environments.api.parsers import FormBody, JsonBody
from environments.api.schema import WITH_BODY
from environments.files.config_files import dashed
from trainer_engine.config.options import REGISTRY
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import limited
from training import services
from training.api import parse, representations, schema, serializers
from training.api.renderers import Answer, PageRenderer, SnippetNegotiation, SnippetRenderer
from training.errors import CannotStart
from training.jobs import queue
from training.models import Status
from training.preflight.summary import PreflightReport
from training.services import Started

KEY_HEADER = "Idempotency-Key"
COMMAND_ERRORS = (404, *WITH_BODY)


class SnippetView(APIView):
    """A call for forms (HTML snippets) and programs (JSON)."""

    renderer_classes = (SnippetRenderer, JSONRenderer, PageRenderer)
    parser_classes = (JsonBody, FormParser, FormBody)
    content_negotiation_class = SnippetNegotiation
    refusal = "Request Refused"


def report_answer(report: PreflightReport, detail: str) -> dict[str, Any]:
    return {
        "valid": not report.errors,
        "detail": detail,
        "problems": [problem.as_dict() for problem in limited(report.errors)],
        "warnings": [problem.as_dict() for problem in limited(report.warnings)],
        "notes": [problem.as_dict() for problem in limited(report.notes)],
        "understood": report.understood,
    }


class RunView(SnippetView):
    """A call that takes a run's options."""

    def initial_form(self) -> dict[str, Any]:
        """The initial form of the browsable API: the active environment, else the required options."""
        environment = environments.active()
        return dashed(environment.config) if environment else {f"--{name}": "" for name, spec in REGISTRY.items() if spec.required}


class Validate(RunView):
    """Checks a configuration without starting it."""

    refusal = "Validation Failed"

    @schema.described(
        "training_validate",
        "Check a configuration without starting it",
        serializers.ValidationSerializer,
        *WITH_BODY,
        html=True,
        request=schema.forms(schema.option_fields()),
        refused=serializers.InvalidSerializer,
    )
    def post(self, request: Request) -> Response:
        report = services.check(parse.submitted(request))
        if report.errors:
            detail = "The configuration has problems."
            return Answer(report_answer(report, detail), template="training/failed.html", context={"title": self.refusal}, status=422)
        if report.warnings:
            return Answer(report_answer(report, "The run can be started; read the warnings first."), template="training/warnings.html")
        return Answer(report_answer(report, "The run can be started."), template="training/valid.html")


class StartView(RunView):
    """A call that starts a run."""

    def answer(self, start: Callable[[str], Started], request: Request) -> Response:
        """The answer of ``start``, which is called with the request's idempotency key."""
        try:
            started = start(request.headers.get(KEY_HEADER, ""))
        except CannotStart as refusal:
            data = report_answer(refusal.report, str(refusal.detail))
            return Answer(data, template="training/failed.html", context={"title": self.refusal}, status=422)
        job = started.job
        about_to_start = job.status == Status.QUEUED and started.queue_position is None
        status = Status.STARTING.value if about_to_start else job.status
        data = {
            "job_id": str(job.pk),
            "status": status,
            "queue_position": started.queue_position,
            "changed": [one.as_dict() for one in started.record.changed] if started.record else [],
            "revision": started.record.revision if started.record else None,
            "warnings": [problem.as_dict() for problem in started.report.warnings] if started.report else [],
        }
        answer = Answer(data, template="training/started.html", context={"environment": job.environment})
        answer["X-Job-Id"] = str(job.pk)
        return answer


class Start(StartView):
    """Check, freeze and queue a run."""

    refusal = "Cannot Start Training"

    @schema.described(
        "training_start",
        "Start a run",
        serializers.StartedSerializer,
        *WITH_BODY,
        409,
        html=True,
        request=schema.forms(schema.option_fields()),
        parameters=[schema.KEY_HEADER],
        refused=serializers.InvalidSerializer,
    )
    def post(self, request: Request) -> Response:
        return self.answer(lambda key: services.start_training(parse.submitted(request), key=key), request)


class Resume(StartView):
    """Goes on with a run that has ended, from its newest checkpoint. The body may hold options that are different from then on."""

    refusal = "Cannot Resume Training"

    @schema.described(
        "training_job_resume",
        "Go on with a run that has ended",
        serializers.StartedSerializer,
        404,
        *WITH_BODY,
        409,
        html=True,
        request=schema.forms(schema.option_fields()),
        parameters=[schema.JOB_PATH, schema.KEY_HEADER],
        refused=serializers.InvalidSerializer,
    )
    def post(self, request: Request, job_id: str) -> Response:
        job = parse.named_job(job_id)
        return self.answer(lambda key: services.resume_training(job, parse.submitted(request), key=key), request)


class Stop(APIView):
    """End the run after a verified checkpoint."""

    parser_classes = (JsonBody, FormParser, FormBody)

    @schema.described(
        "training_stop",
        "Stop: save and end",
        serializers.RunMessageSerializer,
        404,
        *WITH_BODY,
        request=schema.forms(schema.JOB_FORM),
    )
    def post(self, request: Request) -> Response:
        job = parse.body_job(request)
        if job is None or not services.is_unfinished(job):
            return Response({"message": "No active training job to stop"})
        job = services.stop_training(job)
        words = "cancelled while it was queued" if job.status == Status.CANCELLED else "stop requested"
        return Response({"message": f"Training job {job.pk} {words}", "job_id": str(job.pk), "status": job.status})


class CommandView(APIView):
    """Sends a run a command, which it carries out between two steps."""

    parser_classes = (JsonBody, FormParser, FormBody)
    command: ClassVar[Command]
    words: ClassVar[str]

    def send(self, request: Request) -> Response:
        job = services.request_command(parse.body_job(request), self.command)
        return Response({"message": f"{self.words} queued for the next gradient sync.", "job_id": str(job.pk)})


class RunValidation(CommandView):
    """Generate the validation images after the next gradient synchronisation."""

    command, words = Command.VALIDATE, "Validation"

    @schema.described(
        "training_validation_run", "Validate now", serializers.CommandSerializer, *COMMAND_ERRORS, request=schema.forms(schema.JOB_FORM)
    )
    def post(self, request: Request) -> Response:
        return self.send(request)


class RunCheckpoint(CommandView):
    """Save a checkpoint after the next gradient synchronisation."""

    command, words = Command.CHECKPOINT, "Checkpoint"

    @schema.described(
        "training_checkpoint_run", "Save now", serializers.CommandSerializer, *COMMAND_ERRORS, request=schema.forms(schema.JOB_FORM)
    )
    def post(self, request: Request) -> Response:
        return self.send(request)


class Cancel(SnippetView):
    """End a run now and save nothing."""

    refusal = "Cannot Cancel Training"

    @schema.described(
        "training_cancel",
        "Cancel: end now, save nothing",
        serializers.RunMessageSerializer,
        404,
        *WITH_BODY,
        html=True,
        request=schema.forms(schema.JOB_FORM),
    )
    def post(self, request: Request) -> Response:
        job = parse.body_job(request)
        if job is None or not services.is_unfinished(job) or not services.cancel_training(job):
            ended = f"Training job {job.pk} has ended already." if job else "No run is under way."
            data = {"job_id": str(job.pk) if job else None, "status": job.status if job else "idle", "message": ended}
            return Answer(data, template="training/idle.html")
        data = {"job_id": str(job.pk), "status": Status.CANCELLED.value, "message": "The run was ended; nothing was saved."}
        return Answer(data, template="training/cancelled.html")


class MoveInQueue(APIView):
    """Gives a waiting run another place in the queue."""

    parser_classes = (JsonBody, FormParser, FormBody)

    @schema.described(
        "training_queue_move",
        "Move a waiting run",
        serializers.QueueSerializer,
        *COMMAND_ERRORS,
        409,
        request={"application/json": schema.PLACE_FORM},
        parameters=[schema.JOB_PATH],
    )
    def post(self, request: Request, job_id: str) -> Response:
        job = parse.named_job(job_id)
        queue.move(job, parse.place_in_queue(request))
        return Response(representations.queue_rows())
