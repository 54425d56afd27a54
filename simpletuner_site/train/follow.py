"""Follows an engine: reads its journal, shows its events, and turns Ctrl-C into "stop and save"."""

from __future__ import annotations

import signal
import time
from dataclasses import asdict
from types import FrameType

from rich.markup import escape

from simpletuner_site.train.report import report_of
from simpletuner_site.train.run_screen import RunScreen
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.events import JournalEntry
from trainer_engine.contract.run import RunFolder
from training.engine import process
from training.engine.journal import BrokenLine, read_entries
from training.engine.process import EngineIdentity

POLL_SECONDS = 0.1
END_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Counts interrupts of the user: the first one saves, the second one ends the run at once."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def note_interrupts() -> Interrupts:
    """Count SIGINT and SIGTERM from now on instead of ending this process.

    NOTE: the handlers are never restored, because a second Ctrl-C just after the end of the run would replace the run's exit code.
    """
    interrupts = Interrupts()
    for number in END_SIGNALS:
        signal.signal(number, interrupts.note)
    return interrupts


def ignore_interrupts() -> None:
    """Ignore SIGINT and SIGTERM once the run has ended, so that its exit code is returned.

    NOTE: while Python shuts down it restores the default action of signals, except of ignored ones.
    """
    for number in END_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def follow(identity: EngineIdentity, folder: RunFolder, screen: RunScreen, interrupts: Interrupts) -> int:
    """Follow until the engine has ended and its journal is read. Returns the exit code."""
    offset, answered = 0, 0
    while True:
        is_alive = process.is_alive(identity)
        reading = read_entries(folder.journal, offset)
        for entry in reading.entries:
            show_entry(screen, entry)
        if interrupts.count > answered:
            answered = interrupts.count
            _answer_interrupt(answered, identity, folder, screen)
        if not is_alive and reading.offset == offset:
            return exit_code(identity, folder)
        offset = reading.offset
        if is_alive:
            time.sleep(POLL_SECONDS)


def show_entry(screen: RunScreen, entry: JournalEntry | BrokenLine) -> None:
    """Show a journal entry in the shape of the API's events."""
    if isinstance(entry, BrokenLine):
        screen.say(f"[yellow]![/] the journal is broken at byte {entry.offset}: {escape(entry.reason)}")
        return
    fields = asdict(entry)
    screen.show({**fields.pop("extra"), **fields})


def _answer_interrupt(count: int, identity: EngineIdentity, folder: RunFolder, screen: RunScreen) -> None:
    if count == 1:
        screen.say("[yellow]Stopping:[/] the run finishes its step and saves. Ctrl-C again ends it at once, without saving.")
        process.ask_to_end(identity, folder)
    else:
        screen.say("[red]Ending the run without saving.[/]")
        process.kill(identity, folder)


def exit_code(identity: EngineIdentity, folder: RunFolder) -> int:
    """The exit code from the engine's report, else of its process; 128 + n for signal n."""
    report = report_of(folder)
    if report is not None:
        return report.exit_code
    status = process.exit_status(identity)
    return ExitCode.FAILURE if status is None else status if status >= 0 else 128 - status
