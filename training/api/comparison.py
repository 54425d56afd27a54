"""``/api/training/jobs/{id}/diff/{other}``: in what two runs differ."""

from __future__ import annotations

from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from environments.api.history import ChangedOptionSerializer
from environments.files.json_text import write_json
from environments.history import lines_between, options_between
from trainer_engine.config.datasets.secrets import hide_datasets
from training.api import parse, schema
from training.api.representations import shown_options
from training.models import Job

OTHER = OpenApiParameter("other", {"type": "string", "format": "uuid"}, OpenApiParameter.PATH, description="Id of the other job.")


class JobDiffSerializer(serializers.Serializer[object]):
    """What differs between two runs."""

    job_id = serializers.UUIDField()
    other = serializers.UUIDField()
    changed = ChangedOptionSerializer(many=True, help_text="Options; `from` is the value of the job, `to` that of the other one.")
    datasets = serializers.ListField(child=serializers.CharField(), help_text="Lines of a unified diff; empty if they are equal.")


class JobDiff(APIView):
    """Compares two runs."""

    @schema.described("training_job_diff", "Compare two runs", JobDiffSerializer, 404, parameters=[schema.JOB_PATH, OTHER])
    def get(self, request: Request, job_id: str, other: str) -> Response:
        one, two = parse.named_job(job_id), parse.named_job(other)
        return Response(
            {
                "job_id": str(one.pk),
                "other": str(two.pk),
                "changed": [changed.as_dict() for changed in options_between(shown_options(one), shown_options(two))],
                "datasets": lines_between(_datasets(one), _datasets(two), str(one.pk), str(two.pk)),
            }
        )


def _datasets(job: Job) -> str:
    """The datasets of a run as text. Rows of older versions may hold what is secret now."""
    return write_json(hide_datasets(job.datasets))
