"""Shows a run on a terminal: one line per stage, and a bar with step, loss, speed and time left. Without a terminal, lines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from trainer_engine.contract.events import EventType

PLAIN_LINE_SECONDS = 10.0
MARKS = {"completed": ("✓", "green"), "failed": ("✗", "red")}


def short_time(seconds: float | None) -> str:
    """``1:02:03``, ``2:03``; a dash if unknown."""
    if seconds is None or seconds < 0:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def numbers_of(data: Mapping[str, Any]) -> str:
    """The text after the bar while training: loss, speed, time left."""
    loss = data.get("loss")
    shown = f"{loss:.4f}" if isinstance(loss, (int, float)) else "not finite"
    seconds = float(data.get("seconds_per_step") or 0)
    speed = "-" if seconds <= 0 else (f"{1 / seconds:.1f} steps/s" if seconds < 1 else f"{seconds:.1f} s/step")
    return f"loss {shown}  {speed}  {short_time(data.get('eta_seconds'))} left"


class _Numbers(ProgressColumn):
    """A column with the numbers of the last event."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("numbers", "")), style="cyan")


class RunScreen:
    """Shows events as they arrive; a context manager that restores the terminal at its end."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            _Numbers(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("Starting", total=1, visible=False)
        self._last_line = 0.0
        self._stage_began: dict[str, float] = {}

    def __enter__(self) -> RunScreen:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar; it may contain rich markup."""
        self.console.print(line, highlight=False, emoji=False)

    def show(self, event: Mapping[str, Any]) -> None:
        """Show an event in the shape of the API."""
        kind = event["type"]
        if kind == EventType.PROGRESS.value:
            self._show_step(event["data"])
        elif kind == EventType.STAGE.value:
            self._show_stage(event["stage"])
        elif kind == EventType.CHECKPOINT.value:
            checkpoint = event["checkpoint"]
            size = f"{checkpoint['size_bytes'] / 1e6:.1f} MB"
            self._mark("✓", "green", f"{checkpoint['label']} saved at step {checkpoint['step']} ({size})")
        elif kind == EventType.ERROR.value or (kind == EventType.NOTIFICATION.value and event["severity"] in ("warning", "error")):
            self._mark("!", "red" if event["severity"] == "error" else "yellow", event["message"] or event["title"])

    def _mark(self, sign: str, colour: str, text: str, dim: str = "") -> None:
        """Print a line whose text is shown as it is, whatever looks like markup in it."""
        self.console.print(Text.assemble((sign, colour), f" {text}", (dim, "dim")), highlight=False)

    def _show_step(self, data: Mapping[str, Any]) -> None:
        step, total = int(data["step"]), int(data["total_steps"])
        numbers = numbers_of(data)
        self._progress.update(self._task, description="Training", total=total, completed=step, numbers=numbers, visible=True)
        now = time.monotonic()
        if not self.console.is_terminal and (step in (1, total) or now - self._last_line >= PLAIN_LINE_SECONDS):
            self._last_line = now
            self.say(f"step {step}/{total}  {numbers}")

    def _show_stage(self, stage: Mapping[str, Any]) -> None:
        key, label, progress = stage["key"], stage["label"], stage["progress"]
        began = self._stage_began.setdefault(key, time.monotonic())
        if stage["status"] == "running":
            total = progress["total"] or 1
            self._progress.update(self._task, description=label, total=total, completed=progress["current"], numbers="", visible=True)
            return
        self._stage_began.pop(key)
        counted = f" ({progress['total']})" if progress["total"] > 1 else ""
        sign, colour = MARKS.get(stage["status"], ("·", ""))
        self._mark(sign, colour, f"{label}{counted}", f"  {time.monotonic() - began:.1f} s")
