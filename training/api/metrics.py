"""The curves of a run for a chart: a bounded number of points, whatever the length of the run."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from training.api import parse, schema
from training.jobs import series
from training.models import Job

FEWEST_POINTS, MOST_POINTS = 10, 5_000
POINTS = OpenApiParameter(
    "points",
    {"type": "integer", "minimum": FEWEST_POINTS, "maximum": MOST_POINTS, "default": series.MOST_POINTS},
    description="Most points of a curve.",
)


class MeasurementSerializer(serializers.Serializer[object]):
    """One value of an evaluation."""

    step = serializers.IntegerField()
    value = serializers.FloatField()


class MarkSerializer(serializers.Serializer[object]):
    """A checkpoint on the axis of steps."""

    step = serializers.IntegerField()
    name = serializers.CharField()


class MetricsSerializer(serializers.Serializer[object]):
    """Points of the curves of a run, in the order of the steps. Null stands for a value that is not finite."""

    job_id = serializers.UUIDField()
    next_index = serializers.IntegerField(help_text="`since_index` of the events that are not among the points.")
    total_steps = serializers.IntegerField()
    is_complete = serializers.BooleanField(help_text="Whether every step is a point.")
    steps = serializers.ListField(child=serializers.IntegerField())
    loss = serializers.ListField(child=serializers.FloatField(allow_null=True))
    learning_rate = serializers.ListField(child=serializers.FloatField(allow_null=True))
    grad_norm = serializers.ListField(child=serializers.FloatField(allow_null=True))
    evaluations = serializers.DictField(child=MeasurementSerializer(many=True), help_text="Name of a measurement -> its values.")
    checkpoints = MarkSerializer(many=True)
    validations = serializers.ListField(child=serializers.IntegerField(), help_text="Steps of the newest validations.")


MOST_VALIDATION_IMAGES = 500


def metrics(job: Job, points: int = series.MOST_POINTS) -> dict[str, Any]:
    """The answer of ``/jobs/{id}/metrics``."""
    curves = series.read_curves(job, points)
    images = series.finished_images(job, MOST_VALIDATION_IMAGES)
    return {
        "job_id": str(job.pk),
        "next_index": job.next_index,  # read before the points, so that no event is missed
        "total_steps": curves.total_steps,
        "is_complete": curves.is_complete,
        "steps": curves.steps,
        **curves.values,
        "evaluations": {name: [{"step": step, "value": value} for step, value in of] for name, of in series.evaluations(job).items()},
        "checkpoints": [{"step": step, "name": name} for step, name in series.checkpoint_marks(job)],
        "validations": sorted({int(image.payload.get("data", {}).get("global_step") or 0) for image in images}),
    }


class JobMetrics(APIView):
    """Loss, learning rate, gradient norm and evaluations of a run over its steps."""

    @schema.described(
        "training_job_metrics",
        "Points of the curves of a run",
        MetricsSerializer,
        404,
        422,
        parameters=[schema.JOB_PATH, POINTS],
    )
    def get(self, request: Request, job_id: str) -> Response:
        asked = request.query_params.get("points")
        points = parse.whole_number(asked, "points", default=series.MOST_POINTS, smallest=FEWEST_POINTS, largest=MOST_POINTS)
        return Response(metrics(parse.named_job(job_id), points))
