"""The programs of a run: started, looked at between two steps, waited for at the end. Every fault is a warning; training goes on."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.hooks import DISK_LOW, EXTERNAL_SCRIPT, POST_CHECKPOINT, POST_UPLOAD
from trainer_engine.config.options.placeholders import known_placeholders, values_of
from trainer_engine.contract.checkpoint_files import MANIFEST, folders
from trainer_engine.contract.errors import EngineError
from trainer_engine.contract.events import ErrorEvent, Notification, Severity
from trainer_engine.contract.hooks import ScriptRule, Template, start_of_command
from trainer_engine.hooks.process import Outcome, RunningScript
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.events import EventSink

AT_ONCE = 2
"""Programs of hooks that run beside training; the others wait their turn."""
MOST_IN_BACKGROUND = 4
"""Validations that nobody waits for: where so many run still, the next is left out."""
PATIENCE_SECONDS = 20.0
"""For programs that run when a run ends because it was asked to stop, or by an error. Less than the minute that a stop may take."""
LOOK_SECONDS = 0.05


class NotStarted(EngineError):
    """A program that may not, or cannot, be started. ``reason`` is the stable word."""

    code = "script_not_started"

    def __init__(self, reason: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


@dataclass(frozen=True)
class Wanted:
    """One start of one program."""

    option: str
    """The option that holds its template."""
    step: int
    local: str = ""
    remote: str = ""

    @property
    def named(self) -> str:
        """For people."""
        about = Path(self.local).name if self.local and self.option != DISK_LOW else f"step {self.step}"
        return f"{self.option} of {about}"


@dataclass(frozen=True)
class Setting:
    """What every program of a run is started with."""

    options: TrainingOptions
    rule: ScriptRule
    environment: Mapping[str, str]
    """All that a program may see, besides what tells it of its moment."""

    def template(self, option: str) -> Template | None:
        """None where the option is empty."""
        hooks = self.options.hooks
        texts = {
            EXTERNAL_SCRIPT: hooks.validation_external_script,
            POST_CHECKPOINT: hooks.post_checkpoint_script,
            POST_UPLOAD: hooks.post_upload_script,
            DISK_LOW: self.options.checkpointing.disk_low_script,
        }
        text = texts[option].strip()
        return Template.parse(text, known_placeholders()) if text else None

    def start(self, wanted: Wanted, *, outlives: bool = False) -> RunningScript:
        """Raises NotStarted."""
        template = self.template(wanted.option)
        assert template is not None
        program = Path(template.program)
        refusal = self.rule.refusal(program)  # asked again: the file may have changed since the run was checked
        if refusal is not None:
            raise NotStarted(refusal.code, refusal.message, hint=refusal.hint)
        values = values_of(self.options, step=wanted.step, local=wanted.local, remote=wanted.remote)
        folder = Path(self.options.run.output_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return RunningScript(
                [*start_of_command(program), *template.fill(values)[1:]],
                prefix=wanted.option,
                seconds=self.options.hooks.script_timeout,
                environment={**self.environment, **_facts(wanted, folder)},
                folder=folder,
                outlives=outlives,
            )
        except OSError as error:
            raise NotStarted(
                NotStarted.code, f"it could not be started: {error.strerror or error}", hint="look at its arguments"
            ) from error


def _facts(wanted: Wanted, folder: Path) -> dict[str, str]:
    return {
        "SIMPLETUNER_HOOK": wanted.option,
        "SIMPLETUNER_GLOBAL_STEP": str(wanted.step),
        "SIMPLETUNER_CHECKPOINT": wanted.local,
        "SIMPLETUNER_OUTPUT_DIR": str(folder),
    }


class Scripts:
    """Everything here is for the main thread of the first process. Only ``validate``, ``make_room`` and ``wait`` take time."""

    def __init__(self, setting: Setting, sink: EventSink, requests: ControlRequests) -> None:
        self.setting = setting
        self.sink = sink
        self.requests = requests
        self.newest: Path | None = None
        """The checkpoint saved last by this process."""
        self._waiting: deque[Wanted] = deque()
        self._running: list[tuple[Wanted, RunningScript]] = []
        self._background: list[tuple[Wanted, RunningScript]] = []

    # ---- the hooks ----
    def after_checkpoint(self, checkpoint: Path, step: int) -> None:
        """A checkpoint is whole on disk, and not uploaded yet."""
        self.newest = checkpoint
        self._want(Wanted(POST_CHECKPOINT, step, str(checkpoint)))

    def after_upload(self, remote_path: str, local: Path, step: int) -> None:
        """One upload of ``local``, a checkpoint or the run's result, is complete. ``remote_path``: its address; empty where nothing is
        uploaded, which is said once a checkpoint."""
        self._want(Wanted(POST_UPLOAD, step, str(local), remote_path))

    def validate(self, step: int) -> None:
        """Run the program that validates, to its end or in the background."""
        template = self.setting.template(EXTERNAL_SCRIPT)
        assert template is not None
        checkpoint = self.newest_checkpoint()
        wanted = Wanted(EXTERNAL_SCRIPT, step, str(checkpoint or ""))
        if checkpoint is None and "local_checkpoint_path" in template.placeholders:
            message = f"There is no checkpoint yet that {wanted.named} could look at; it was left out."
            self._warn(wanted, "no_checkpoint", message, "let checkpoint_step_interval be no larger than validation_step_interval")
        elif self.setting.options.hooks.validation_external_background:
            self._start_in_background(wanted)
        else:
            running = self._start(wanted)
            if running is not None:
                self._stay_with(wanted, running)

    def make_room(self, step: int) -> None:
        """Run the program that frees some space on the disk, to its end. A stop allows it a little: what is saved then needs the space."""
        wanted = Wanted(DISK_LOW, step, str(self.newest_checkpoint() or ""))
        running = self._start(wanted)
        if running is not None:
            self._stay_with(wanted, running, patience=PATIENCE_SECONDS)

    def newest_checkpoint(self) -> Path | None:
        """The newest whole one, also of an earlier process."""
        if self.newest is not None and self.newest.is_dir():
            return self.newest
        found = folders(Path(self.setting.options.run.output_dir))
        return next((folder for folder in found if (folder / MANIFEST).is_file()), None)

    # ---- between two steps ----
    def look(self) -> None:
        """Tell of programs that have ended, and start those whose turn it is."""
        for group in (self._running, self._background):
            for entry in list(group):
                outcome = entry[1].poll()
                if outcome is not None:
                    group.remove(entry)
                    self._emit(entry[0], outcome)
        while self._waiting and len(self._running) < AT_ONCE:
            wanted = self._waiting.popleft()
            running = self._start(wanted)
            if running is not None:
                self._running.append((wanted, running))

    # ---- at the end ----
    @property
    def unfinished(self) -> list[str]:
        """What ``wait`` would wait for, for people; programs in the background are not."""
        return [wanted.named for wanted in (*(entry[0] for entry in self._running), *self._waiting)]

    def wait(self, advance: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Until every program has ended, each by itself or by its time limit. A stop ends them; one that came before allows a little."""
        patience_ends = time.monotonic() + PATIENCE_SECONDS if self.requests.stop_asked() else 0.0
        self._wait(advance, lambda: self.requests.stop_asked() and time.monotonic() >= patience_ends)

    def wait_a_little(self, advance: Callable[[int, int], None] = lambda done, total: None) -> None:
        """The same where an error ends the run: what still runs then is ended, and all of it at once where a stop is asked for."""
        patience_ends = time.monotonic() + PATIENCE_SECONDS
        self._wait(advance, lambda: self.requests.stop_asked() or time.monotonic() >= patience_ends)

    def _wait(self, advance: Callable[[int, int], None], is_over: Callable[[], bool]) -> None:
        total, was_cut_off = len(self.unfinished), False
        while self.unfinished:
            if not was_cut_off and is_over():
                was_cut_off = True
                self._cut_off()
            self.look()
            advance(total - len(self.unfinished), total)
            time.sleep(LOOK_SECONDS if self.unfinished else 0.0)

    def close(self) -> None:
        """Nothing is left behind but programs in the background, each with its time limit."""
        for _, running in (*self._running, *self._background):
            running.abandon()
        self._waiting.clear()
        self._running.clear()
        self._background.clear()

    def _cut_off(self) -> None:
        if self._waiting:
            names = ", ".join(wanted.named for wanted in self._waiting)
            message = f"The run ends: {names} did not get a turn."
            self.sink.emit(Notification(code="scripts_left_out", title="Scripts left out", message=message, severity=Severity.WARNING))
        self._waiting.clear()
        for _, running in self._running:
            running.let_go()

    # ---- one program ----
    def _want(self, wanted: Wanted) -> None:
        if self.setting.template(wanted.option) is not None:
            self._waiting.append(wanted)
            self.look()

    def _start(self, wanted: Wanted, *, outlives: bool = False) -> RunningScript | None:
        try:
            return self.setting.start(wanted, outlives=outlives)
        except NotStarted as refused:
            self._warn(wanted, refused.reason, f"{wanted.named} was not run: {refused.message}.", refused.hint)
            return None

    def _start_in_background(self, wanted: Wanted) -> None:
        if len(self._background) >= MOST_IN_BACKGROUND:
            message = f"{wanted.named} was left out: {len(self._background)} earlier ones still run."
            self._warn(wanted, "too_many_scripts", message, "validate less often, or lower script_timeout")
            return
        running = self._start(wanted, outlives=True)
        if running is not None:
            self._background.append((wanted, running))

    def _stay_with(self, wanted: Wanted, running: RunningScript, *, patience: float = 0.0) -> None:
        """``patience``: seconds that a stop leaves it."""
        stopped_at = math.inf
        while (outcome := running.poll()) is None:
            if self.requests.stop_asked():
                stopped_at = min(stopped_at, time.monotonic())
            if time.monotonic() - stopped_at >= patience:
                running.let_go()
            self.look()
            time.sleep(LOOK_SECONDS)
        self._emit(wanted, outcome)

    def _emit(self, wanted: Wanted, outcome: Outcome) -> None:
        details = {"hook": wanted.option, "step": wanted.step, "exit_code": outcome.code, "seconds": outcome.seconds}
        if outcome.is_well:
            message = f"{wanted.named} ended well after {outcome.seconds:.1f} s."
            self.sink.emit(Notification(code="script_completed", title="Script ended", message=message, details=details))
        elif outcome.ended == "cut_off":
            message = f"{wanted.named} was ended after {outcome.seconds:.1f} s, because the run ends."
            self.sink.emit(
                Notification(code="script_cut_off", title="Script ended", message=message, severity=Severity.WARNING, details=details)
            )
        elif outcome.ended == "timed_out":
            message = f"{wanted.named} was ended: it took longer than script_timeout={self.setting.options.hooks.script_timeout} s."
            self._warn(
                wanted, "script_timed_out", message, "raise script_timeout, or let it do less; the run's log has its output", details
            )
        elif outcome.ended == "not_started":
            message = f"{wanted.named} was not run: {outcome.error}."
            self._warn(wanted, "script_not_started", message, "give it an interpreter line (#!) that exists here", details)
        else:
            code = outcome.code or 0
            how = f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
            message = f"{wanted.named} {how} after {outcome.seconds:.1f} s."
            self._warn(wanted, "script_failed", message, "the run's log has its output, each line with the option's name", details)

    def _warn(self, wanted: Wanted, code: str, message: str, hint: str, details: Mapping[str, object] | None = None) -> None:
        found = dict(details or {"hook": wanted.option, "step": wanted.step})
        message = f"{message} {'The free space is looked at again' if wanted.option == DISK_LOW else 'Training goes on'}."
        self.sink.emit(ErrorEvent(code=code, title="Script trouble", message=message, hint=hint, severity=Severity.WARNING, details=found))
