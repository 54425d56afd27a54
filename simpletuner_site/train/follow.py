"""Stay with an engine: read its journal, show what it says, pass on Ctrl-C as "stop and save"."""

from __future__ import annotations

import signal
import time
from dataclasses import asdict
from types import FrameType

from simpletuner_site.train.run_screen import RunScreen
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.events import JournalEntry
from trainer_engine.contract.run import ExitReport, RunFolder
from training.engine import process
from training.engine.journal import BrokenLine, read_entries
from training.engine.process import EngineIdentity

LOOK_SECONDS = 0.1
ASKS_TO_END = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Counts how often the user asked to end: once saves, twice does not wait for it."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def note_interrupts() -> Interrupts:
    """From here to its end, SIGINT and SIGTERM are counted instead of ending this process.

    NOTE: never put back. A second Ctrl-C that comes when the run has just ended would take the run's exit code away.
    """
    interrupts = Interrupts()
    for number in ASKS_TO_END:
        signal.signal(number, interrupts.note)
    return interrupts


def ignore_interrupts() -> None:
    """For when the run has ended, and its exit code is all that is left to say.

    NOTE: Python gives signals their default action back while it shuts down, but not those that are ignored.
    """
    for number in ASKS_TO_END:
        signal.signal(number, signal.SIG_IGN)


def follow(identity: EngineIdentity, folder: RunFolder, screen: RunScreen, interrupts: Interrupts) -> int:
    """Until the engine has ended and its journal is read; the exit code."""
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
            time.sleep(LOOK_SECONDS)


def show_entry(screen: RunScreen, entry: JournalEntry | BrokenLine) -> None:
    """A journal entry, in the shape in which the API gives events."""
    if isinstance(entry, BrokenLine):
        screen.say(f"[yellow]![/] the journal is broken at byte {entry.offset}: {entry.reason}")
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
    """As the engine reported it; where it could not, its process's exit code, or what the shell would say of a signal."""
    report = ExitReport.read(folder)
    if report is not None:
        return report.exit_code
    status = process.exit_status(identity)
    return ExitCode.FAILURE if status is None else status if status >= 0 else 128 - status
