"""The buttons of a run: each is a POST with a CSRF token, which acts through ``services`` and returns a sentence about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from django.urls import reverse

from environments.models import Environment
from trainer_engine.contract.commands import Command
from training import services
from training.jobs import queue
from training.jobs.export import export_for_comfyui, newest_adapter
from training.models import Job, Status
from training.upkeep.deletion import delete_job

CAN_TAKE_COMMANDS = (Status.STARTING, Status.RUNNING)


@dataclass(frozen=True)
class Pressed:
    """What a button did."""

    message: str
    address: str
    """The page to show next."""


@dataclass(frozen=True)
class Button:
    """One button. It is shown where ``applies``, and does nothing elsewhere, as when it is pressed on an old page."""

    slug: str
    label: str
    press: Callable[[Job], Pressed]
    """Raises TrainingRefused or EnvironmentRefused if the run cannot do it."""
    applies: Callable[[Job], bool]
    question: str = ""
    """What the page asks before; empty for a button that acts at once."""
    is_on_list: bool = False
    is_dangerous: bool = False


def page_of(job: Job) -> str:
    """The address of a run's page."""
    return reverse("run", args=[job.number])


def environment_of(job: Job) -> Environment | None:
    """The environment that a run was started from; None if it was deleted since."""
    return Environment.objects.filter(name=job.environment).first() if job.environment else None


def _trains(job: Job) -> bool:
    return job.status in CAN_TAKE_COMMANDS or queue.is_about_to_start(job)


def _waits(job: Job) -> bool:
    return job.status == Status.QUEUED


def _can_start(job: Job) -> bool:
    return job.has_ended and environment_of(job) is not None


def _sample(job: Job) -> Pressed:
    services.request_command(job, Command.VALIDATE)
    return Pressed("Validation images are generated after the current step.", page_of(job))


def _save(job: Job) -> Pressed:
    services.request_command(job, Command.CHECKPOINT)
    return Pressed("A checkpoint is saved after the current step.", page_of(job))


def _stop(job: Job) -> Pressed:
    if job.has_ended:
        return Pressed(f"Run {job.number} had ended already.", page_of(job))
    ended = services.stop_training(job)
    words = "is taken out of the queue." if ended.status == Status.CANCELLED else "finishes its step, saves a checkpoint and ends."
    return Pressed(f"Run {job.number} {words}", page_of(job))


def _go_first(job: Job) -> Pressed:
    queue.move(job, 1)
    return Pressed(f"Run {job.number} is the next to start.", page_of(job))


def _cancel(job: Job) -> Pressed:
    words = "was cancelled." if services.cancel_training(job) else "had ended already."
    return Pressed(f"Run {job.number} {words}", page_of(job))


def _start_again(job: Job) -> Pressed:
    environment = environment_of(job)
    if environment is None:
        return Pressed(f"The environment {job.environment} of run {job.number} was deleted; nothing was started.", page_of(job))
    started = services.start_training({}, environment=environment)
    waits = f" It waits at position {started.queue_position}." if started.queue_position else ""
    return Pressed(f"Run {started.job.number} was started from {environment.name}.{waits}", page_of(started.job))


def _go_on(job: Job) -> Pressed:
    started = services.resume_training(job, {})
    waits = f" It waits at position {started.queue_position}." if started.queue_position else ""
    return Pressed(f"Run {started.job.number} goes on from the newest checkpoint of run {job.number}.{waits}", page_of(started.job))


def _export(job: Job) -> Pressed:
    name = export_for_comfyui(job)
    return Pressed(f"Written to {name} in the output folder: copy it into ComfyUI's models/loras. It is among the files.", page_of(job))


def _delete(job: Job) -> Pressed:
    delete_job(job)
    return Pressed(f"Run {job.number} was deleted. What it saved stays in {job.output_dir}.", reverse("home"))


ALL = (
    Button("sample", "Sample now", _sample, _trains),
    Button("save", "Save now", _save, _trains),
    Button("stop", "Stop and save", _stop, lambda job: job.status in CAN_TAKE_COMMANDS, is_on_list=True),
    Button(
        "cancel",
        "Cancel",
        _cancel,
        lambda job: services.is_unfinished(job) and not _waits(job),
        question="End the run now? What it learned since its last checkpoint is lost.",
        is_on_list=True,
        is_dangerous=True,
    ),
    Button("go-first", "Go first", _go_first, lambda job: (queue.position(job) or 0) > 1, is_on_list=True),
    Button("dequeue", "Take out of the queue", _stop, _waits, is_on_list=True),
    Button("go-on", "Go on", _go_on, lambda job: _can_start(job) and bool(job.checkpoint)),
    Button("start-again", "Start again", _start_again, _can_start),
    Button("export", "Export for ComfyUI", _export, lambda job: job.has_ended and newest_adapter(job) is not None),
    Button(
        "delete",
        "Delete",
        _delete,
        lambda job: job.has_ended,
        question="Delete the run from this server, with its events and its log? Checkpoints and results stay where they are.",
        is_dangerous=True,
    ),
)
BUTTONS: Mapping[str, Button] = MappingProxyType({button.slug: button for button in ALL})


def buttons_of(job: Job, *, on_list: bool = False) -> list[Button]:
    """The buttons that are shown for a run."""
    return [button for button in ALL if (button.is_on_list or not on_list) and button.applies(job)]
