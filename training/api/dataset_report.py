"""The report about the datasets of a run: what the engine found, or what ``validate`` found while the run waits."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from trainer_engine.contract.files import read_small_json
from training.api import parse, schema
from training.errors import TrainingRefused
from training.models import Job

LARGEST_BYTES = 16 * 1024 * 1024


class LeftOutFileSerializer(serializers.Serializer[object]):
    """A file that is not used, and why."""

    path = serializers.CharField()
    reason = serializers.CharField()


class LeftOutReasonSerializer(serializers.Serializer[object]):
    """Files that are left out for one reason."""

    reason = serializers.CharField()
    files = serializers.IntegerField()


class BucketSerializer(serializers.Serializer[object]):
    """The images of one size."""

    aspect = serializers.FloatField()
    width = serializers.IntegerField()
    height = serializers.IntegerField()
    frames = serializers.IntegerField(required=False, help_text="of each clip; absent for images")
    images = serializers.IntegerField()
    samples = serializers.IntegerField(help_text="in an epoch")
    batches = serializers.IntegerField(help_text="in an epoch")
    times_seen = serializers.FloatField(help_text="how often an image is seen in an epoch, on average, with full batches")


class RepeatedSerializer(serializers.Serializer[object]):
    """Buckets that are too small for a batch."""

    buckets = serializers.IntegerField()
    images = serializers.IntegerField()
    most_times_seen = serializers.FloatField(help_text="in an epoch; 0 without such buckets")


class CropExampleSerializer(serializers.Serializer[object]):
    """What is kept of an image."""

    path = serializers.CharField()
    size = serializers.ListField(child=serializers.IntegerField(), help_text="width, height of the file")
    resized = serializers.ListField(child=serializers.IntegerField(), help_text="width, height that it is scaled to")
    box = serializers.ListField(child=serializers.IntegerField(), help_text="left, top, right, bottom in the scaled image")


class CaptionExampleSerializer(serializers.Serializer[object]):
    """Captions of an image; long ones are cut."""

    path = serializers.CharField()
    captions = serializers.ListField(child=serializers.CharField(allow_blank=True))
    count = serializers.IntegerField()


class ShareSerializer(serializers.Serializer[object]):
    """The share of batches that come from a dataset, from 0 to 1."""

    at_start = serializers.FloatField()
    of_epoch = serializers.FloatField()
    text = serializers.CharField()


class FramesSerializer(serializers.Serializer[object]):
    """Frames of clips that are trained on."""

    fewest = serializers.IntegerField()
    most = serializers.IntegerField()
    total = serializers.IntegerField(help_text="over all clips of the set")


class FrameRateSerializer(serializers.Serializer[object]):
    """Frames a second of the files of a set."""

    lowest = serializers.FloatField()
    highest = serializers.FloatField()


class DatasetSerializer(serializers.Serializer[object]):
    """One dataset."""

    id = serializers.CharField()
    folder = serializers.CharField()
    files = serializers.IntegerField()
    usable = serializers.IntegerField()
    samples_per_epoch = serializers.IntegerField()
    batches_per_epoch = serializers.IntegerField()
    batch_size = serializers.IntegerField(help_text="over all processes")
    left_out_count = serializers.IntegerField()
    left_out = LeftOutFileSerializer(many=True)
    left_out_reasons = LeftOutReasonSerializer(many=True)
    bucket_count = serializers.IntegerField()
    buckets = BucketSerializer(many=True)
    frames = FramesSerializer(required=False)
    frame_rate = FrameRateSerializer(required=False)
    repeated = RepeatedSerializer()
    crops = CropExampleSerializer(many=True)
    captions = CaptionExampleSerializer(many=True)
    share = ShareSerializer(required=False)


class BatchesSerializer(serializers.Serializer[object]):
    """What batches and accumulation do."""

    train_batch_size = serializers.IntegerField()
    gradient_accumulation_steps = serializers.IntegerField()
    num_processes = serializers.IntegerField()
    filled_up = serializers.IntegerField(help_text="batches that complete the last step of an epoch")
    text = serializers.CharField()


class EpochsSerializer(serializers.Serializer[object]):
    """Epochs of one length, where sets begin late or end early, or get new buckets in each epoch."""

    first_epoch = serializers.IntegerField()
    last_epoch = serializers.IntegerField()
    first_step = serializers.IntegerField()
    steps_per_epoch = serializers.IntegerField()
    datasets = serializers.ListField(child=serializers.CharField())


class DatasetReportSerializer(serializers.Serializer[object]):
    """The datasets of a run."""

    job_id = serializers.UUIDField()
    found_by = serializers.ChoiceField(["engine", "validate"])
    steps = serializers.IntegerField()
    epochs = serializers.IntegerField()
    samples_per_epoch = serializers.IntegerField()
    batches_per_epoch = serializers.IntegerField()
    steps_per_epoch = serializers.IntegerField()
    samples_per_step = serializers.IntegerField()
    batches = BatchesSerializer()
    datasets = DatasetSerializer(many=True)
    eval_datasets = DatasetSerializer(many=True)
    schedule = EpochsSerializer(many=True, required=False)


NAMES = frozenset(DatasetReportSerializer().fields)


class NoDatasetReport(TrainingRefused):
    """The run was made by a version that recorded no report."""

    status_code = 404

    def __init__(self) -> None:
        super().__init__("There is no report about the datasets of this job")


def dataset_report(job: Job) -> dict[str, Any]:
    """The engine's report, or that of ``validate`` while there is none. Raises NoDatasetReport."""
    try:
        found, found_by = read_small_json(job.folder.datasets, LARGEST_BYTES), "engine"
    except (OSError, ValueError):
        found, found_by = job.plan, "validate"
    if not isinstance(found, dict) or "batches" not in found:
        raise NoDatasetReport
    return {**{name: value for name, value in found.items() if name in NAMES}, "job_id": str(job.pk), "found_by": found_by}


class JobDatasets(APIView):
    """What the datasets of a run hold and become: files, buckets, batches, crops and captions."""

    @schema.described(
        "training_job_datasets", "Report about the datasets of a run", DatasetReportSerializer, 404, parameters=[schema.JOB_PATH]
    )
    def get(self, request: Request, job_id: str) -> Response:
        return Response(dataset_report(parse.named_job(job_id)))
