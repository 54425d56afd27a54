"""Runs the hooks of a run: starts them, polls them between steps and waits for them at the end.

Every failure of a hook is a warning; training continues.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.config.families import find_spec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.hooks import DISK_LOW, EXTERNAL_SCRIPT, POST_CHECKPOINT, POST_UPLOAD
from trainer_engine.contract.checkpoint_files import MANIFEST, folders
from trainer_engine.contract.events import ErrorEvent, Notification, Severity
from trainer_engine.contract.hooks import NOTHING, HookRule
from trainer_engine.hooks.launch import HookCall, HookLauncher, NotStarted
from trainer_engine.hooks.process import HookOutcome, RunningHook
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.environment import hook_environment
from trainer_engine.runtime.events import EventSink

AT_ONCE = 2
"""The most hooks that run at the same time; further calls wait in a queue."""
MOST_IN_BACKGROUND = 4
"""The most validations that run in the background; while that many run, further ones are skipped."""
PATIENCE_SECONDS = 20.0
"""How long hooks may still run after a stop request or an error. Less than the minute that a stop may take."""
LOOK_SECONDS = 0.05


class HookRunner:
    """The hooks of one run, used by the main thread of the first process. Only ``validate``, ``make_room`` and the waits block."""

    def __init__(self, launcher: HookLauncher, sink: EventSink, requests: ControlRequests) -> None:
        self.launcher = launcher
        self.sink = sink
        self.requests = requests
        self.newest: Path | None = None
        """The last checkpoint that this process saved."""
        self._waiting: deque[HookCall] = deque()
        self._running: list[tuple[HookCall, RunningHook]] = []
        self._background: list[tuple[HookCall, RunningHook]] = []

    # ---- when hooks run ----
    def after_checkpoint(self, checkpoint: Path, step: int) -> None:
        """Call once a checkpoint is complete on disk and before it is uploaded."""
        self.newest = checkpoint
        self._enqueue(HookCall(POST_CHECKPOINT, step, str(checkpoint)))

    def after_upload(self, remote_path: str, local: Path, step: int) -> None:
        """Call after each complete upload of ``local``, a checkpoint or the run's result.

        ``remote_path`` is its address. A run that uploads nothing calls this once a checkpoint with an empty address.
        """
        self._enqueue(HookCall(POST_UPLOAD, step, str(local), remote_path))

    def validate(self, step: int) -> None:
        """Run the external validation: to its end, or in the background if the options say so."""
        template = self.launcher.template(EXTERNAL_SCRIPT)
        assert template is not None
        checkpoint = self.newest_checkpoint()
        call = HookCall(EXTERNAL_SCRIPT, step, str(checkpoint or ""))
        if checkpoint is None and "local_checkpoint_path" in template.placeholders:
            message = f"{call.title} was skipped: there is no checkpoint yet."
            self._warn(call, "no_checkpoint", message, "let checkpoint_step_interval be no larger than validation_step_interval")
        elif self.launcher.options.hooks.validation_external_background:
            self._start_in_background(call)
        else:
            running = self._start(call)
            if running is not None:
                self._wait_for(call, running)

    def make_room(self, step: int) -> None:
        """Run the hook that frees disk space, to its end. A stop request leaves it some seconds, because the last save needs the space."""
        call = HookCall(DISK_LOW, step, str(self.newest_checkpoint() or ""))
        running = self._start(call)
        if running is not None:
            self._wait_for(call, running, patience=PATIENCE_SECONDS)

    def newest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint in the output folder, including those of earlier processes."""
        if self.newest is not None and self.newest.is_dir():
            return self.newest
        found = folders(Path(self.launcher.options.run.output_dir))
        return next((folder for folder in found if (folder / MANIFEST).is_file()), None)

    # ---- between two steps ----
    def look(self) -> None:
        """Report hooks that have ended, and start queued calls while fewer than ``AT_ONCE`` run."""
        for group in (self._running, self._background):
            for entry in list(group):
                outcome = entry[1].poll()
                if outcome is not None:
                    group.remove(entry)
                    self._report(entry[0], outcome)
        while self._waiting and len(self._running) < AT_ONCE:
            call = self._waiting.popleft()
            running = self._start(call)
            if running is not None:
                self._running.append((call, running))

    # ---- at the end ----
    @property
    def unfinished(self) -> list[str]:
        """Titles of the calls that ``wait`` waits for. Validations in the background are not among them."""
        return [call.title for call in (*(entry[0] for entry in self._running), *self._waiting)]

    def wait(self, advance: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Wait until every hook has ended or reached its time limit.

        A stop request ends them at once; if the run was already stopping, they get ``PATIENCE_SECONDS``.
        """
        patience_ends = time.monotonic() + PATIENCE_SECONDS if self.requests.stop_asked() else 0.0
        self._wait(advance, lambda: self.requests.stop_asked() and time.monotonic() >= patience_ends)

    def wait_a_little(self, advance: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Wait at most ``PATIENCE_SECONDS``, for a run that ends with an error. A stop request ends the wait at once."""
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
        """End every hook, except validations in the background, which keep their time limit."""
        for _, running in (*self._running, *self._background):
            running.abandon()
        self._waiting.clear()
        self._running.clear()
        self._background.clear()

    def _cut_off(self) -> None:
        if self._waiting:
            names = ", ".join(call.title for call in self._waiting)
            message = f"The run ends before these hooks could start: {names}."
            self.sink.emit(Notification(code="scripts_left_out", title="Hooks skipped", message=message, severity=Severity.WARNING))
        self._waiting.clear()
        for _, running in self._running:
            running.let_go()

    # ---- one call ----
    def _enqueue(self, call: HookCall) -> None:
        if self.launcher.template(call.option) is not None:
            self._waiting.append(call)
            self.look()

    def _start(self, call: HookCall, *, outlives: bool = False) -> RunningHook | None:
        try:
            return self.launcher.start(call, outlives=outlives)
        except NotStarted as refused:
            self._warn(call, refused.reason, f"{call.title} was not run: {refused.message}.", refused.hint)
            return None

    def _start_in_background(self, call: HookCall) -> None:
        if len(self._background) >= MOST_IN_BACKGROUND:
            message = f"{call.title} was skipped: {len(self._background)} earlier ones still run."
            self._warn(call, "too_many_scripts", message, "validate less often, or lower script_timeout")
            return
        running = self._start(call, outlives=True)
        if running is not None:
            self._background.append((call, running))

    def _wait_for(self, call: HookCall, running: RunningHook, *, patience: float = 0.0) -> None:
        """Wait for one hook. ``patience``: seconds that it may still run after a stop request."""
        stopped_at = math.inf
        while (outcome := running.poll()) is None:
            if self.requests.stop_asked():
                stopped_at = min(stopped_at, time.monotonic())
            if time.monotonic() - stopped_at >= patience:
                running.let_go()
            self.look()
            time.sleep(LOOK_SECONDS)
        self._report(call, outcome)

    def _report(self, call: HookCall, outcome: HookOutcome) -> None:
        details = {"hook": call.option, "step": call.step, "exit_code": outcome.code, "seconds": outcome.seconds}
        if outcome.succeeded:
            message = f"{call.title} completed after {outcome.seconds:.1f} s."
            self.sink.emit(Notification(code="script_completed", title="Hook completed", message=message, details=details))
        elif outcome.ended == "cut_off":
            message = f"{call.title} was ended after {outcome.seconds:.1f} s, because the run ends."
            self.sink.emit(
                Notification(code="script_cut_off", title="Hook ended", message=message, severity=Severity.WARNING, details=details)
            )
        elif outcome.ended == "timed_out":
            message = f"{call.title} was ended: it took longer than script_timeout={self.launcher.options.hooks.script_timeout} s."
            hint = "raise script_timeout, or let it do less; the run's log has its output"
            self._warn(call, "script_timed_out", message, hint, details)
        elif outcome.ended == "not_started":
            message = f"{call.title} was not run: {outcome.error}."
            self._warn(call, "script_not_started", message, "give it an interpreter line (#!) that exists here", details)
        else:
            code = outcome.code or 0
            how = f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
            message = f"{call.title} {how} after {outcome.seconds:.1f} s."
            self._warn(call, "script_failed", message, "the run's log has its output, each line with the option's name", details)

    def _warn(self, call: HookCall, code: str, message: str, hint: str, details: Mapping[str, object] | None = None) -> None:
        found = dict(details or {"hook": call.option, "step": call.step})
        message = f"{message} {'The free space is checked again' if call.option == DISK_LOW else 'Training continues'}."
        self.sink.emit(ErrorEvent(code=code, title="Hook failed", message=message, hint=hint, severity=Severity.WARNING, details=found))


@dataclass(frozen=True)
class HookContext:
    """What a job says about hooks, before its options are known."""

    rule: HookRule = NOTHING
    job_id: str = ""

    def open(self, options: TrainingOptions, sink: EventSink, requests: ControlRequests) -> HookRunner:
        """The run's hooks. Close them when the run ends, however it ends."""
        spec = find_spec(options.model.model_family)
        base = options.model.pretrained_model_name_or_path or (spec.repository(options.model.model_flavour) if spec else "")
        variables = {"SIMPLETUNER_JOB_ID": self.job_id, "SIMPLETUNER_BASE_MODEL": base}
        environment = {**hook_environment(self.rule.variables), **variables}
        return HookRunner(HookLauncher(options, self.rule, environment), sink, requests)
