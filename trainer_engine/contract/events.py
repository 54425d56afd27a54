"""Every event that a run can emit, and its encoding as a line of the journal.

A journal line is ``{"seq", "type", "timestamp", "severity", "title", "message", "body", "data", ...}``. Some types add a key at the top
level: ``stage``, ``checkpoint`` or ``images``. The journal names images as files; the server turns them into data URIs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class EventType(str, Enum):
    """The ``type`` of an event."""

    STAGE = "lifecycle.stage"
    STATUS = "training.status"
    PROGRESS = "training.progress"
    CHECKPOINT = "training.checkpoint"
    SUMMARY = "training.summary"
    IMAGE = "validation.image"
    NOTIFICATION = "notification"
    ERROR = "error"


class Severity(str, Enum):
    """Severity of an event."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class StageKey(str, Enum):
    """The stages of a run, which report their own progress."""

    LOAD_BASE_MODEL = "init_load_base_model"
    DATA_BACKEND = "init_data_backend"
    TEXT_EMBED_CACHE = "init_text_embed_cache"
    VAE_CACHE = "init_vae_cache"
    PREPARE_MODELS = "init_prepare_models"
    RESUME_CHECKPOINT = "init_resume_checkpoint"
    COMPILE = "compile"
    BENCHMARK_BASE_MODEL = "benchmark_base_model"
    VALIDATION = "validation"
    CHECKPOINT_SAVE = "checkpoint_save"
    FINAL_VALIDATION = "final_validation"
    MODEL_SAVE = "model_save"
    PUBLISHING = "publishing"
    SCRIPTS = "scripts"
    TRAINING_ABORT = "training_abort"
    TRAINING_COMPLETE = "training_complete"


STAGE_LABELS: dict[StageKey, str] = {
    StageKey.LOAD_BASE_MODEL: "Loading the base model",
    StageKey.DATA_BACKEND: "Examining the datasets",
    StageKey.TEXT_EMBED_CACHE: "Caching text embeddings",
    StageKey.VAE_CACHE: "Caching image latents",
    StageKey.PREPARE_MODELS: "Preparing the model",
    StageKey.RESUME_CHECKPOINT: "Resuming from a checkpoint",
    StageKey.COMPILE: "Compiling the first step",
    StageKey.BENCHMARK_BASE_MODEL: "Generating with the base model",
    StageKey.VALIDATION: "Validating",
    StageKey.CHECKPOINT_SAVE: "Saving a checkpoint",
    StageKey.FINAL_VALIDATION: "Validating the result",
    StageKey.MODEL_SAVE: "Saving the model",
    StageKey.PUBLISHING: "Finishing uploads",
    StageKey.SCRIPTS: "Waiting for scripts",
    StageKey.TRAINING_ABORT: "Ending early",
    StageKey.TRAINING_COMPLETE: "Training complete",
}


class StageStatus(str, Enum):
    """Status of a stage."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class Event(BaseModel):
    """Fields of every event. ``title`` is for lists, ``message`` is one sentence, ``body`` is longer text such as a prompt."""

    model_config = ConfigDict(frozen=True)
    type: ClassVar[EventType]
    added_keys: ClassVar[tuple[str, ...]] = ()
    """Fields that are encoded at the top level of the event instead of in ``data``."""

    severity: Severity = Severity.INFO
    title: str = ""
    message: str = ""
    body: str = ""

    def data(self) -> dict[str, Any]:
        """Returns the fields of this type of event, which the API calls ``data``."""
        return self.model_dump(mode="json", exclude={"severity", "title", "message", "body", *self.added_keys})

    def added(self) -> dict[str, Any]:
        """Returns the additional keys at the top level."""
        return {}

    def words(self) -> tuple[str, str]:
        """Returns title and message. Types of frequent events generate them."""
        return self.title, self.message


class StageEvent(Event):
    """A stage started, progressed or ended. ``current`` of ``total`` items are done; ``total`` is 0 if it is not known."""

    type = EventType.STAGE
    added_keys = ("key", "label", "status", "current", "total", "eta_seconds")

    key: StageKey
    label: str = ""
    status: StageStatus
    current: int = 0
    total: int = 0
    eta_seconds: float | None = None

    def words(self) -> tuple[str, str]:
        label = self.label or STAGE_LABELS[self.key]
        count = f", {self.current} of {self.total}" if self.total else ""
        return self.title or label, self.message or f"{label}: {self.status.value}{count}."

    def added(self) -> dict[str, Any]:
        label = self.label or STAGE_LABELS[self.key]
        ended = self.status is StageStatus.COMPLETED
        percent = round(100 * self.current / self.total, 1) if self.total else (100.0 if ended else 0.0)
        progress = {
            "label": label,
            "current": self.current,
            "total": self.total,
            "percent": percent,
            "eta_seconds": self.eta_seconds,
        }
        return {"stage": {"key": self.key.value, "label": label, "status": self.status.value, "progress": progress}}


REASON_IN_ERROR = "The error event says why."
"""Message of the other events of a failure, whose reason is only in the error event."""


class StatusEvent(Event):
    """The run changed its status to ``starting``, ``running``, ``stopping``, ``completed``, ``stopped`` or ``error``."""

    type = EventType.STATUS
    status: str


class ProgressEvent(Event):
    """One optimizer step was taken."""

    type = EventType.PROGRESS
    step: int
    total_steps: int
    epoch: int
    loss: float | None
    """Mean over the samples of the step; null if it is not finite."""
    learning_rate: float
    grad_norm: float | None
    samples_per_second: float
    seconds_per_step: float
    eta_seconds: float
    memory: dict[str, int] = Field(default_factory=dict)
    """In bytes: ``resident`` of the process and, on a GPU, ``allocated`` and ``peak``."""
    metrics: dict[str, float] = Field(default_factory=dict)

    def words(self) -> tuple[str, str]:
        title = f"Step {self.step} of {self.total_steps}"
        loss = "not finite" if self.loss is None or not math.isfinite(self.loss) else f"{self.loss:.4g}"
        return self.title or title, self.message or f"{title}: loss {loss}."


class CheckpointEvent(Event):
    """A checkpoint is complete on disk."""

    type = EventType.CHECKPOINT
    added_keys = ("path", "label", "step", "is_final", "size_bytes")

    path: str
    label: str
    step: int
    is_final: bool = False
    size_bytes: int

    def added(self) -> dict[str, Any]:
        return {"checkpoint": self.model_dump(mode="json", include=set(self.added_keys))}


class SummaryEvent(Event):
    """Totals at the end of a run that trained."""

    type = EventType.SUMMARY
    steps: int
    seconds: float
    final_loss: float | None
    artefacts: dict[str, str] = Field(default_factory=dict)
    """Kind of artefact (``checkpoint``, ``pipeline``, ``validation_images``) -> absolute path."""
    time_split: dict[str, float] = Field(default_factory=dict)
    """Seconds spent in ``data_wait``, ``step``, ``checkpoint``, ``checkpoint_wait`` and ``validation``."""
    memory: dict[str, int] = Field(default_factory=dict)
    """``peak_bytes``, and the estimates ``estimated_bytes``, ``estimated_low_bytes`` and ``estimated_high_bytes``."""


MEDIA_TYPES: Mapping[str, str] = MappingProxyType(
    {
        ".png": "image/png",
        ".webp": "image/webp",
        ".jpg": "image/jpeg",
        ".jpeg": "image/jpeg",
        ".gif": "image/gif",
        ".mp4": "video/mp4",
    }
)
"""Suffix of a media file -> its type. A run writes no other media, and the server serves no other type."""


class MediaFile(BaseModel):
    """An image or video file. ``file`` is absolute or relative to the run folder."""

    model_config = ConfigDict(frozen=True)
    file: str
    mime_type: str = "image/png"


class ImageEvent(Event):
    """An image or video of a validation. Its ``validation_type`` is ``intermediary`` while it is generated, and ``base_model`` or ``final``
    when it is finished."""

    type = EventType.IMAGE
    added_keys = ("images", "videos")

    step: int
    """Sampler step, from 1."""
    timestep: float | None = None
    global_step: int
    """Number of optimizer steps before it was generated."""
    resolution: tuple[int, int]
    """Width and height in pixels."""
    validation_type: str
    prompt: str
    step_label: str
    """Sampler step and their number: ``5/20``."""
    images: list[MediaFile] = Field(default_factory=list)
    videos: list[MediaFile] = Field(default_factory=list)
    """One clip: an animated GIF first, then the same frames as an mp4 file if the run could write one."""

    def added(self) -> dict[str, Any]:
        return {key: [file.model_dump() for file in found] for key, found in (("images", self.images), ("videos", self.videos)) if found}


EVALUATION = "evaluation"
CLIP_SCORES = "clip_scores"
MEASUREMENTS = (EVALUATION, CLIP_SCORES)
"""Codes of notifications whose details have a ``step`` and its ``metrics``. Trackers receive these too."""


class Notification(Event):
    """A message for people; its severity says how important it is."""

    type = EventType.NOTIFICATION
    code: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


class ErrorEvent(Event):
    """The reason why a run ends, or an error after which it continues."""

    type = EventType.ERROR
    severity: Severity = Severity.ERROR
    code: str
    hint: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class JournalEntry:
    """A decoded line of the journal."""

    seq: int
    type: str
    timestamp: str
    severity: str
    title: str
    message: str
    body: str
    data: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)
    """Additional keys at the top level: ``stage``, ``checkpoint``, ``images``."""


SHARED_KEYS = ("seq", "type", "timestamp", "severity", "title", "message", "body", "data")


def utc_now() -> str:
    """Returns the current time in ISO 8601 with microseconds and UTC offset."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def _finite(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON cannot hold, with null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def encode(event: Event, *, seq: int, timestamp: str | None = None) -> str:
    """Encodes an event as one line of JSON without a newline."""
    title, message = event.words()
    line = {
        "seq": seq,
        "type": event.type.value,
        "timestamp": timestamp or utc_now(),
        "severity": event.severity.value,
        "title": title,
        "message": message,
        "body": event.body,
        "data": _finite(event.data()),
        **_finite(event.added()),
    }
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def decode(line: str | bytes) -> JournalEntry:
    """Decodes a line of the journal. Raises ValueError if it is not an event."""
    try:
        document = json.loads(line)
    except RecursionError:
        raise ValueError("a journal line is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError(f"a journal line holds a JSON object, not {type(document).__name__}")
    missing = [key for key in SHARED_KEYS if key not in document]
    if missing:
        raise ValueError(f"a journal line lacks {', '.join(missing)}")
    extra = {key: value for key, value in document.items() if key not in SHARED_KEYS}
    return JournalEntry(**{key: document[key] for key in SHARED_KEYS}, extra=extra)
