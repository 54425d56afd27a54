"""The shapes of the answers, for the schema."""

from __future__ import annotations

from rest_framework import serializers

from environments.api.history import ChangedOptionSerializer
from environments.api.serializers import ErrorSerializer, MessageSerializer, ProblemSerializer


class TrainingProblemSerializer(ProblemSerializer):
    """One problem and how to fix it."""


class RefusalSerializer(ErrorSerializer):
    """Every error as JSON."""

    problems = TrainingProblemSerializer(many=True)


class ValidationSerializer(serializers.Serializer[object]):
    """The result of ``validate``."""

    valid = serializers.BooleanField()
    detail = serializers.CharField()
    problems = TrainingProblemSerializer(many=True)
    warnings = TrainingProblemSerializer(many=True)
    notes = TrainingProblemSerializer(many=True)
    understood = serializers.DictField(help_text="datasets, steps, epochs, batches, memory, disk")


class InvalidSerializer(RefusalSerializer):
    """Why a run cannot be started; the fields from ``valid`` on are missing if the request itself could not be read."""

    valid = serializers.BooleanField(required=False)
    warnings = TrainingProblemSerializer(many=True, required=False)
    notes = TrainingProblemSerializer(many=True, required=False)
    understood = serializers.DictField(required=False)


class StartedSerializer(serializers.Serializer[object]):
    """A job that was accepted."""

    job_id = serializers.UUIDField()
    status = serializers.CharField()
    queue_position = serializers.IntegerField(allow_null=True)
    changed = ChangedOptionSerializer(many=True, help_text="What the start changed in the environment that it started from.")
    revision = serializers.IntegerField(allow_null=True, help_text="The environment's revision before that; null if nothing changed.")
    warnings = TrainingProblemSerializer(many=True, help_text="Problems to look at although the run was accepted.")


class JobInfoSerializer(serializers.Serializer[object]):
    """State of a job, with messages."""

    status = serializers.CharField()
    message = serializers.CharField(allow_blank=True)
    error = serializers.CharField(allow_null=True)
    error_code = serializers.CharField(allow_null=True)
    hint = serializers.CharField(allow_null=True)
    queue_position = serializers.IntegerField(allow_null=True)
    checkpoint = serializers.CharField(allow_null=True)
    environment = serializers.CharField(allow_null=True)
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)


class ProgressSerializer(serializers.Serializer[object]):
    """The last optimizer step."""

    percent = serializers.FloatField()
    step = serializers.IntegerField()
    total_steps = serializers.IntegerField()
    epoch = serializers.IntegerField(allow_null=True)
    total_epochs = serializers.IntegerField(allow_null=True)
    loss = serializers.FloatField(allow_null=True)
    learning_rate = serializers.FloatField(allow_null=True)
    eta_seconds = serializers.FloatField(allow_null=True)
    samples_per_second = serializers.FloatField(allow_null=True)
    metrics = serializers.DictField()


class StageProgressSerializer(serializers.Serializer[object]):
    """Progress of one stage."""

    label = serializers.CharField()  # type: ignore[assignment]
    progress_type = serializers.CharField()
    status = serializers.ChoiceField(["running", "completed", "failed"])
    percent = serializers.FloatField()
    current = serializers.IntegerField()
    total = serializers.IntegerField()


class StatusSerializer(serializers.Serializer[object]):
    """The state of the server or of one job."""

    status = serializers.ChoiceField(["idle", "queued", "starting", "running", "stopping", "completed", "stopped", "cancelled", "error"])
    config = serializers.DictField()
    job_id = serializers.UUIDField(allow_null=True)
    job_info = JobInfoSerializer(allow_null=True)
    progress = ProgressSerializer(allow_null=True)
    startup_progress = serializers.DictField(child=StageProgressSerializer())


class LogEventSerializer(serializers.Serializer[object]):
    """One entry of a job's log; some types add ``stage``, ``checkpoint``, ``images`` or ``videos``. ``thinned`` says which progress events
    before this one were removed, long after the run ended: ``count`` events with indexes from ``since_index`` on."""

    index = serializers.IntegerField()
    type = serializers.CharField()
    job_id = serializers.UUIDField()
    timestamp = serializers.DateTimeField()
    severity = serializers.ChoiceField(["debug", "info", "warning", "error"])
    title = serializers.CharField(allow_blank=True)
    message = serializers.CharField(allow_blank=True)
    body = serializers.CharField(allow_blank=True)
    data = serializers.DictField()  # type: ignore[assignment]
    stage = serializers.DictField(required=False)
    checkpoint = serializers.DictField(required=False)
    images = serializers.ListField(child=serializers.DictField(), required=False)
    videos = serializers.ListField(child=serializers.DictField(), required=False)
    thinned = serializers.DictField(child=serializers.IntegerField(), required=False)


class EventPageSerializer(serializers.Serializer[object]):
    """A page of the log."""

    events = LogEventSerializer(many=True)
    job_id = serializers.UUIDField(allow_null=True)
    next_index = serializers.IntegerField()


class RunMessageSerializer(MessageSerializer):
    """What was done."""

    job_id = serializers.UUIDField(required=False, allow_null=True)
    status = serializers.CharField(required=False)


class CommandSerializer(MessageSerializer):
    """What was asked of a run."""

    job_id = serializers.UUIDField()


class CheckpointSerializer(serializers.Serializer[object]):
    """A checkpoint on disk."""

    name = serializers.CharField()
    path = serializers.CharField()
    step = serializers.IntegerField()
    epoch = serializers.IntegerField(allow_null=True)
    loss = serializers.FloatField(allow_null=True)
    learning_rate = serializers.FloatField(allow_null=True)
    timestamp = serializers.CharField(allow_null=True)
    size_bytes = serializers.IntegerField()
    is_latest = serializers.BooleanField()
    is_best = serializers.BooleanField(help_text="lowest evaluation loss of those in the folder")
    eval_loss = serializers.FloatField(allow_null=True, help_text="of these weights on held-out images; null where it was not measured")
    is_rolling = serializers.BooleanField()
    verified = serializers.BooleanField()


class CheckpointListSerializer(serializers.Serializer[object]):
    """The checkpoints of a job, newest first."""

    output_dir = serializers.CharField(allow_null=True)
    checkpoints = CheckpointSerializer(many=True)
    total = serializers.IntegerField()


class CheckpointVerdictSerializer(serializers.Serializer[object]):
    """Whether a checkpoint's files are what was saved."""

    checkpoint = serializers.CharField()
    valid = serializers.BooleanField()
    message = serializers.CharField()


class JobRowSerializer(JobInfoSerializer):
    """One line of the history."""

    job_id = serializers.UUIDField()
    number = serializers.IntegerField()
    output_dir = serializers.CharField()
    percent = serializers.FloatField(allow_null=True)
    step = serializers.IntegerField(allow_null=True)
    total_steps = serializers.IntegerField(allow_null=True)


class JobListSerializer(serializers.Serializer[object]):
    """The history, newest first."""

    jobs = JobRowSerializer(many=True)
    count = serializers.IntegerField()


class QueueSerializer(serializers.Serializer[object]):
    """What trains and what waits."""

    running = JobRowSerializer(many=True)
    queued = JobRowSerializer(many=True)


class DeletedJobSerializer(serializers.Serializer[object]):
    """A job that is gone."""

    message = serializers.CharField()
    job_id = serializers.UUIDField()
    output_dir = serializers.CharField(help_text="Checkpoints and results, which stay.")
