"""The page of one run: its numbers, stages, checkpoints and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from django.utils import timezone

from trainer_engine.contract.events import StageKey, StageStatus
from trainer_engine.contract.files import is_file
from training.api import representations, run_overview
from training.jobs import series
from training.jobs.results import RunFile, list_files
from training.models import Checkpoint, Job
from training.pages.numbers import NOTHING, ShownImage, bytes_text, number_text, seconds_text, shown_image

SHOWN_IMAGES = 200
SHOWN_CHECKPOINTS = 8
SHOWN_OTHERS = 30
SHOWN_FILES = 12
STAGE_ORDER = {key.value: place for place, key in enumerate(StageKey)}


@dataclass(frozen=True)
class Fact:
    """A number of the head of the page. The script updates it under its key."""

    key: str
    label: str
    value: str


def facts_of(job: Job) -> list[Fact]:
    """The numbers of the newest step."""
    now = representations.progress_of(job)
    latest = job.progress or {}
    memory = latest.get("memory") or {}
    metrics: Mapping[str, Any] = now["metrics"] if now else {}
    left = seconds_text(now["eta_seconds"]) if now and now["eta_seconds"] and not job.has_ended else NOTHING
    epochs = f"{now['epoch']} of {now['total_epochs'] or '?'}" if now else NOTHING
    return [
        Fact("step", "Step", f"{now['step']:,} of {now['total_steps']:,}" if now else NOTHING),
        Fact("left", "Time left", left),
        Fact("pace", "Time per step", seconds_text(metrics.get("seconds_per_step"))),
        Fact("loss", "Loss", NOTHING if now is None else "not finite" if now["loss"] is None else number_text(now["loss"])),
        Fact("rate", "Learning rate", number_text(now["learning_rate"], 3) if now else NOTHING),
        Fact("norm", "Gradient norm", number_text(metrics.get("grad_norm"), 3)),
        Fact("epoch", "Epoch", epochs),
        Fact("memory", "GPU memory, peak" if "peak" in memory else "Memory", bytes_text(memory.get("peak", memory.get("resident")))),
        Fact("time", "Running for" if not job.has_ended else "Ran for", seconds_text(_seconds(job))),
        Fact("checkpoint", "Newest checkpoint", job.checkpoint or NOTHING),
    ]


def _seconds(job: Job) -> float | None:
    return None if job.started_at is None else ((job.finished_at or timezone.now()) - job.started_at).total_seconds()


def stages_of(job: Job) -> list[dict[str, Any]]:
    """The stages that the run reported, in their order, each with a label."""
    known = [(key, stage) for key, stage in job.startup.items() if isinstance(stage, dict)]
    known.sort(key=lambda pair: STAGE_ORDER.get(pair[0], len(STAGE_ORDER)))
    return [{**stage, "key": key, "label": stage.get("label") or key, "status": _stage_status(job, stage)} for key, stage in known]


def _stage_status(job: Job, stage: Mapping[str, Any]) -> str:
    status = str(stage.get("status", ""))
    return "not finished" if job.has_ended and status == StageStatus.RUNNING.value else status


def newest_checkpoints(job: Job) -> list[tuple[Checkpoint, str]]:
    """The checkpoints that were announced last, and what became of each."""
    rows = job.checkpoints.order_by("-step", "-pk")[:SHOWN_CHECKPOINTS]
    return [(row, run_overview.state_of(row.path, row.is_final)) for row in rows]


def weight_files(job: Job) -> list[RunFile]:
    """The weights among the results of a run, and exported adapters."""
    found = (one for one in list_files(job) if one.kind == "result" and one.path.suffix == ".safetensors")
    return list(islice(found, SHOWN_FILES))


def other_runs(job: Job) -> list[Job]:
    """The newest runs that have curves to compare with."""
    trained = Job.objects.filter(progress__isnull=False).exclude(pk=job.pk).order_by("-number")
    return list(trained.only("number", "environment")[:SHOWN_OTHERS])


def has_dataset_report(job: Job) -> bool:
    """Whether the API has a report about the run's datasets."""
    return is_file(job.folder.datasets) or "batches" in job.plan


@dataclass(frozen=True, kw_only=True)
class PromptImages:
    """The images of one prompt."""

    name: str
    prompt: str
    base: ShownImage | None
    newest: ShownImage | None
    earlier: Sequence[ShownImage]
    """Older than ``newest``, newest first."""


def prompt_images(job: Job) -> list[PromptImages]:
    """The newest finished images of each prompt beside the one of the base model."""
    found = [image for event in series.finished_images(job, SHOWN_IMAGES) if (image := shown_image(event)) is not None]
    first = [image for event in series.base_images(job, SHOWN_IMAGES) if (image := shown_image(event)) is not None]
    bases = {_prompt(image): image for image in reversed(first)}
    trained: dict[tuple[str, str], list[ShownImage]] = {key: [] for key in reversed([_prompt(image) for image in [*found, *first[::-1]]])}
    for image in found:
        if not image.is_base:
            trained[_prompt(image)].append(image)
    return [
        PromptImages(name=name, prompt=prompt, base=bases.get((name, prompt)), newest=next(iter(of), None), earlier=of[1:])
        for (name, prompt), of in trained.items()
    ]


def _prompt(image: ShownImage) -> tuple[str, str]:
    return image.title, image.prompt
