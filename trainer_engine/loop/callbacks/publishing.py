from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.config.publishing import HUB, PublishTarget
from trainer_engine.contract.checkpoint_files import CheckpointInfo
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.events import ErrorEvent, Notification, Severity, StageKey
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.publishing.ledger import RESULT, Upload
from trainer_engine.publishing.staging import digest_of, files_below, joined_size, result_files, stage
from trainer_engine.publishing.uploads import Report, Uploads
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.stages import Stages

LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class UploadDone:
    """A folder that has arrived."""

    provider: str
    address: str
    """Where it is: ``{remote_checkpoint_path}``."""
    path: Path
    """Where it was taken from."""
    step: int
    what: str
    """``checkpoint-<step>`` or ``result``."""


def nobody(done: UploadDone) -> None:
    """Listens to nothing."""


@dataclass
class PublishingCallback(Callback):
    """Has checkpoints and the result uploaded beside training, and says what became of it. An upload that fails ends no run."""

    uploads: Uploads
    run_name: str
    """Folder of the run at every store but the hub."""
    results: dict[str, str]
    """What a finished run leaves in the output folder: name -> path; the first is what people use."""
    troubles: Sequence[Problem]
    """What is wrong with stores that had to be left out."""
    stages: Stages
    processes: Processes
    requests: ControlRequests
    on_uploaded: Callable[[UploadDone], None] = nobody
    """Hears of each upload that has arrived, between two steps."""
    _has_ended: bool = False

    def before_training(self, state: TrainState) -> None:
        if not self.processes.is_first:
            return
        for trouble in self.troubles:
            self._warn("publishing_unusable", f"A store is left out: {trouble.option}: {trouble.message}", trouble.hint)
        try:
            left = self.uploads.take_up()
        except OSError as error:
            self._warn("upload_failed", f"Uploads of an earlier run cannot be taken up: {error}", "look at the disk and its permissions")
            return
        if left:
            names = ", ".join(sorted({upload.what for upload in left}))
            message = f"{len(left)} uploads of an earlier run are taken up again: {names}."
            self.stages.sink.emit(Notification(code="uploads_taken_up", title="Uploads taken up again", message=message))

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        self._emit_reports()

    def after_checkpoint(self, state: TrainState, saved: CheckpointInfo) -> None:
        targets = [target for target in self.uploads.targets.values() if target.takes_checkpoints]
        if not targets:
            return
        try:
            files, digest = files_below(saved.path), digest_of(saved.path)
        except (OSError, ValueError) as error:  # somebody has removed it while the run was at something else
            self._cannot_prepare(saved.name, error)
            return
        self._add(saved.name, saved.step, files, digest, targets)

    def after_training(self, state: TrainState) -> None:
        with self.processes.first_alone() as is_first:
            if is_first:
                if state.is_finished:
                    self._add_result(state)
                self._wait()

    def close(self, state: TrainState) -> None:
        """Where an error ends the run, nothing waits for the uploads: the next run takes up what has not arrived."""
        if self.processes.is_first and not self._has_ended:
            with suppress(OSError):
                self._end()

    def is_settled(self, state: TrainState) -> bool:
        """Whether the result of a finished run is at every place, and nothing else waits."""
        ids = [_id(target, RESULT, _state_digest(state)) for target in self.uploads.targets.values()]
        return not self.uploads.pending() and all(self.uploads.is_done(id) for id in ids)

    def _add_result(self, state: TrainState) -> None:
        targets = list(self.uploads.targets.values())
        if targets:
            self._add(RESULT, state.step, result_files(self.uploads.output_dir, self.results), _state_digest(state), targets)

    def _add(self, what: str, step: int, files: list[tuple[Path, str]], digest: str, targets: Sequence[PublishTarget]) -> None:
        staged = f"{what}-{digest}"
        wanted = [target for target in targets if not self.uploads.is_done(_id(target, what, digest))]
        uploads = [
            Upload(
                id=_id(target, what, digest),
                target=target.key,
                provider=target.provider,
                what=what,
                step=step,
                source="" if what == RESULT else what,
                staged=staged,
                remote=self._remote(target, what),
                size_bytes=joined_size(files),
            )
            for target in wanted
        ]
        if not uploads:
            return
        try:
            stage(self.uploads.output_dir, staged, files)
            self.uploads.add(uploads)
        except OSError as error:
            self._cannot_prepare(what, error)

    def _cannot_prepare(self, what: str, error: Exception) -> None:
        self._warn("upload_failed", f"{what} cannot be prepared for its upload: {error}", "look at the disk and its permissions")

    def _remote(self, target: PublishTarget, what: str) -> str:
        """The result stands at the top of a repository, or of the run's folder at a store; each checkpoint in a folder of its own."""
        parts = ([] if target.provider == HUB else [self.run_name]) + ([] if what == RESULT else [what])
        return "/".join(parts)

    def _wait(self) -> None:
        """Until everything has arrived or was given up. A stop ends the wait; what is left stays in the ledger."""
        if self.uploads.hurry() and not self.requests.stop_asked():
            with self.stages.stage(StageKey.PUBLISHING) as advance:
                reported = None
                while self.uploads.left() and not self.requests.stop_asked():
                    progress = self.uploads.progress()
                    if progress != reported:  # an upload that makes no progress adds no events
                        reported = progress
                        advance(progress.done, progress.total)
                    self._emit_reports(LOOK_SECONDS)
        self._end()

    def _end(self) -> None:
        self._has_ended = True
        self.uploads.close()
        self._emit_reports()
        left = self.uploads.pending()
        if left:
            names = ", ".join(dict.fromkeys(upload.what for upload in left))
            message = f"{len(left)} uploads are left ({names}); the next run in this output_dir takes them up."
            self.stages.sink.emit(Notification(code="uploads_left", title="Uploads left", message=message, severity=Severity.WARNING))

    def _emit_reports(self, seconds: float = 0.0) -> None:
        """Everything that was reported so far; waits so long for the first of it."""
        try:
            while True:
                report = self.uploads.reports.get(timeout=seconds) if seconds else self.uploads.reports.get_nowait()
                seconds = 0.0
                self._emit(report)
        except queue.Empty:
            return

    def _emit(self, report: Report) -> None:
        upload, outcome = report.upload, report.outcome
        label = self.uploads.targets[upload.target].label
        if outcome.address:
            details = {"provider": upload.provider, "place": label, "address": outcome.address, "what": upload.what, "step": upload.step}
            message = f"{upload.what} is at {outcome.address}."
            self.stages.sink.emit(Notification(code="uploaded", title="Uploaded", message=message, details=details))
            path = self.uploads.output_dir / upload.source
            self.on_uploaded(UploadDone(upload.provider, outcome.address, path, upload.step, upload.what))
        if outcome.trouble and report.gave_up:
            message = f"{upload.what} was not uploaded to {label}: {outcome.trouble}"
            self._warn("upload_gave_up", message, outcome.hint or "start a run in this output_dir again to try once more")
        elif outcome.trouble and report.first_try:
            message = f"{upload.what} was not uploaded to {label} yet, and is tried again: {outcome.trouble}"
            self._warn("upload_failed", message, outcome.hint)

    def _warn(self, code: str, message: str, hint: str) -> None:
        self.stages.sink.emit(ErrorEvent(severity=Severity.WARNING, title="Upload", message=message, code=code, hint=hint))


def _id(target: PublishTarget, what: str, digest: str) -> str:
    return f"{target.key} {what} {digest}"


def _state_digest(state: TrainState) -> str:
    """Names what the run has come to, by its last checkpoint."""
    try:
        return digest_of(Path(state.newest_checkpoint))
    except (OSError, ValueError):
        return f"step-{state.step}"
