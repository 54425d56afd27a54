"""Runs the uploads of a run one after the other in a thread, each in a process of its own, with retries and growing pauses."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainer_engine.config.publishing import PublishTarget
from trainer_engine.publishing.ledger import RESULT, Ledger, Upload, UploadState
from trainer_engine.publishing.staging import digest_of, files_below, ledger_file, stage, staging_folder, unstage_all_but
from trainer_engine.publishing.task import Mover, Task, TaskOutcome


@dataclass(frozen=True)
class Patience:
    """How often an upload is tried, and how long the pauses are."""

    first_seconds: float = 2.0
    most_seconds: float = 300.0
    attempts: int = 50
    """The most attempts in one run. After them the upload is left to the next run in the folder."""
    attempts_at_end: int = 3
    """The most attempts after the end of training."""
    most_seconds_at_end: float = 5.0

    def pause(self, attempts: int, *, at_end: bool) -> float:
        """Seconds to wait after ``attempts`` attempts, with random jitter."""
        pause: float = min(self.first_seconds * 2 ** min(attempts - 1, 16), self.most_seconds_at_end if at_end else self.most_seconds)
        return pause * random.uniform(0.8, 1.2)


PATIENT = Patience()
MOST_WAITING = 5
"""The most uploads that wait for one target. Each may hold the only copy of a checkpoint."""


@dataclass(frozen=True)
class Report:
    """Result of one attempt."""

    upload: Upload
    """A copy of its state after the attempt."""
    outcome: TaskOutcome
    gave_up: bool = False
    """Whether this run makes no further attempt."""
    first_try: bool = False


@dataclass
class _Tries:
    """Attempts of one upload in this run."""

    count: int = 0
    at_end: int = 0
    next_at: float = 0.0
    gave_up: bool = False


@dataclass
class UploadProgress:
    """Bytes uploaded and bytes in total."""

    done: int = 0
    total: int = 0


@dataclass
class Uploads:
    """The uploads of one run. Call the methods from the main thread; the upload thread puts its results into ``reports``."""

    output_dir: Path
    targets: Mapping[str, PublishTarget]
    """By ``PublishTarget.key``."""
    patience: Patience = PATIENT
    reports: queue.SimpleQueue[Report] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        self.ledger = Ledger(ledger_file(self.output_dir))
        self._tries: dict[str, _Tries] = {}
        self._changed = threading.Condition()
        self._mover: Mover | None = None
        self._current: Upload | None = None
        self._sent = 0
        self._at_end = self._closing = False
        self._thread: threading.Thread | None = None

    def take_up(self) -> list[Upload]:
        """Continue the unfinished and failed uploads of an earlier run whose files still exist; forget the others. Returns those left."""
        with self._changed:
            for upload in [one for one in self.ledger.uploads.values() if one.state is not UploadState.DONE]:
                if not self._is_staged_again(upload):
                    del self.ledger.uploads[upload.id]
                elif upload.target in self.targets:
                    upload.state = UploadState.PENDING
            left = self._open()
            if self.ledger.uploads:
                self.ledger.save()
                self._tidy()
            if left:
                self._wake()
            return left

    def _is_staged_again(self, upload: Upload) -> bool:
        if staging_folder(self.output_dir, upload.staged).is_dir():
            return True
        source = self.output_dir / upload.source
        try:
            if upload.what == RESULT or digest_of(source) not in upload.staged:
                return False
            stage(self.output_dir, upload.staged, files_below(source))
        except (OSError, ValueError):
            return False
        return True

    def add(self, uploads: list[Upload]) -> None:
        """Add new uploads to the ledger. Raises OSError."""
        with self._changed:
            for upload in uploads:
                known = self.ledger.uploads.get(upload.id)
                if known is None or known.state is UploadState.FAILED:
                    self._supersede(upload)
                    self.ledger.uploads[upload.id] = upload
                    self._make_room(upload.target)
            self.ledger.save()
            self._wake()

    def _supersede(self, upload: Upload) -> None:
        """Forget other uploads to the same remote folder: they must not arrive after this one, which replaces them."""
        for other in list(self.ledger.uploads.values()):
            if (other.target, other.remote) == (upload.target, upload.remote):
                del self.ledger.uploads[other.id]

    def _make_room(self, target: str) -> None:
        """Fail the oldest uploads of a target that is unreachable for days, so that their hard links do not fill the disk."""
        waiting = [one for one in self.ledger.pending if one.target == target and one is not self._current]
        for upload in waiting[: max(0, len(waiting) - MOST_WAITING)]:
            upload.becomes(UploadState.FAILED, trouble=f"more than {MOST_WAITING} uploads were waiting for this target")
            hint = "checkpoints are made faster than they are uploaded: raise checkpoint_step_interval"
            self.reports.put(Report(Upload(**vars(upload)), TaskOutcome(trouble=upload.trouble, hint=hint), gave_up=True))
        self._tidy()

    def is_done(self, id: str) -> bool:
        known = self.ledger.uploads.get(id)
        return known is not None and known.state is UploadState.DONE

    def hurry(self) -> int:
        """Switch to few attempts and short pauses, because training has ended. Returns how many uploads are left."""
        with self._changed:
            self._at_end = True
            now = time.monotonic()
            for tries in self._tries.values():
                tries.next_at = min(tries.next_at, now)
            self._changed.notify_all()
            return len(self._open())

    def left(self) -> int:
        """How many uploads this run still attempts."""
        with self._changed:
            return len(self._open())

    def pending(self) -> list[Upload]:
        """The pending uploads to the targets of this run."""
        with self._changed:
            return [one for one in self.ledger.pending if one.target in self.targets]

    def progress(self) -> UploadProgress:
        """Progress of all uploads since the run began."""
        with self._changed:
            tried = [one for one in self.ledger.uploads.values() if one.id in self._tries or one.is_pending]
            done = sum(one.size_bytes for one in tried if not one.is_pending)
            return UploadProgress(done + self._sent, sum(one.size_bytes for one in tried))

    def close(self) -> None:
        """End the upload in progress, which stays pending, and the thread."""
        with self._changed:
            self._closing = True
            if self._mover is not None:
                self._mover.end()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _open(self) -> list[Upload]:
        return [one for one in self.ledger.pending if one.target in self.targets and not self._of(one).gave_up]

    def _of(self, upload: Upload) -> _Tries:
        return self._tries.setdefault(upload.id, _Tries())

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    # ---- the thread ----
    def _work(self) -> None:
        while (upload := self._next()) is not None:
            outcome = self._move(upload)
            self._note(upload, outcome)

    def _next(self) -> Upload | None:
        """Wait for the oldest upload that is due; None once the run closes."""
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                waiting = {one.id: self._of(one).next_at for one in self._open()}
                due = [id for id, at in waiting.items() if at <= now]
                if due:
                    self._current, self._sent = self.ledger.uploads[due[0]], 0
                    return self._current
                self._changed.wait(min(waiting.values()) - now if waiting else None)
            return None

    def _move(self, upload: Upload) -> TaskOutcome:
        folder = staging_folder(self.output_dir, upload.staged)
        task = Task("send", self.targets[upload.target].as_dict(), str(folder), upload.remote)
        with self._changed:
            if self._closing:
                return TaskOutcome(trouble="the run has ended")
            try:
                self._mover = mover = Mover(task)
            except OSError as error:
                return TaskOutcome(trouble=f"The transfer process could not be started: {error}")
        outcome = mover.wait(self._moved)
        with self._changed:
            self._mover = None
        return outcome

    def _moved(self, done: int, total: int) -> None:
        self._sent = done

    def _note(self, upload: Upload, outcome: TaskOutcome) -> None:
        with self._changed:
            self._current, self._sent = None, 0
            if self._closing and not outcome.arrived:
                return
            tries = self._of(upload)
            tries.count += 1
            tries.at_end += self._at_end
            upload.attempts += 1
            if outcome.arrived:
                upload.becomes(UploadState.DONE, address=outcome.address)
            elif outcome.permanent:
                upload.becomes(UploadState.FAILED, trouble=outcome.trouble)
                tries.gave_up = True
            else:
                self._later(upload, tries, outcome.trouble)
            report = Report(Upload(**vars(upload)), outcome, gave_up=tries.gave_up, first_try=tries.count == 1)
            try:
                self.ledger.save()
            except OSError as error:
                report = Report(report.upload, TaskOutcome(outcome.address, f"The ledger could not be written: {error}"), gave_up=True)
            self._tidy()
        self.reports.put(report)

    def _later(self, upload: Upload, tries: _Tries, trouble: str) -> None:
        """Plan the next attempt, or give up in this run. At the end of the run, a target that fails is given up for all its uploads."""
        upload.becomes(UploadState.PENDING, trouble=trouble)
        tries.next_at = time.monotonic() + self.patience.pause(tries.count, at_end=self._at_end)
        tries.gave_up = tries.count >= self.patience.attempts or tries.at_end >= self.patience.attempts_at_end
        if tries.gave_up and self._at_end:
            for other in self.ledger.pending:
                if other.target == upload.target:
                    self._of(other).gave_up = True

    def _tidy(self) -> None:
        """Delete staging folders that no pending upload needs."""
        needed = [*self.ledger.pending, *([self._current] if self._current is not None else [])]
        unstage_all_but(self.output_dir, {one.staged for one in needed})
