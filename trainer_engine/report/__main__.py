"""``python -m trainer_engine.report RUN_FOLDER``: writes ``grid.png`` and ``curves.svg`` of a running or finished run."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.run import JobSpec, RunFolder
from trainer_engine.report.journal import JournalContents, read_contents

LEAST_PRIORITY = 19
LONGEST_SECONDS = 600
FAILED = 1


class TookTooLong(Exception):
    """The report took longer than ``LONGEST_SECONDS``, because the disk does not answer or there are very many images."""


def main(arguments: list[str] | None = None) -> int:
    """Write the files and print their paths. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer_engine.report", description="Draw the grid of images and the curves of a run.")
    parser.add_argument("run_folder", type=Path, help="the folder that holds the run's journal.jsonl")
    parser.add_argument("--nice", type=int, default=LEAST_PRIORITY, help="niceness of the process, 0 to 19 (default: %(default)s)")
    asked = parser.parse_args(arguments)
    folder = RunFolder(asked.run_folder.resolve())
    os.nice(asked.nice)  # before numpy starts threads, which inherit it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LONGEST_SECONDS)
    try:
        with _alone(folder.path):
            for path in draw(folder):
                print(path)
    except (OSError, TookTooLong) as error:
        print(f"The report of the run could not be drawn: {error}", file=sys.stderr)
        return FAILED
    finally:
        signal.alarm(0)
    return 0


def draw(folder: RunFolder) -> list[Path]:
    """Write the curves if the run has steps, and the grid if it has images. Raises OSError."""
    contents = read_contents(folder.journal)
    (name, model), written = describe(folder), []
    if contents.steps:
        from trainer_engine.report.curves import draw_curves

        write_atomically(folder.curves, draw_curves(contents, name, model))
        written.append(folder.curves)
    if contents.images:
        from trainer_engine.report.grid import draw_grid
        from trainer_engine.report.layout import tabulate

        table = tabulate(contents.images)
        subtitle = " · ".join(part for part in (model, _progress_in_words(contents), table.left_out) if part)
        write_atomically(folder.grid, draw_grid(table, title=name, subtitle=subtitle))
        written.append(folder.grid)
    return written


def describe(folder: RunFolder) -> tuple[str, str]:
    """(name, model) of a run: its environment, and a short description of what it trains."""
    unnamed = f"Run {folder.path.name}"
    try:
        job = JobSpec.read(folder)
    except (OSError, ValidationError):
        return unnamed, ""
    names = ["model_family", "model_flavour", "model_type"] + (["lora_type"] if job.options.get("model_type") == "lora" else [])
    return job.environment or unnamed, " · ".join(str(job.options[name]) for name in names if job.options.get(name))


def _progress_in_words(contents: JournalContents) -> str:
    if not contents.steps:
        return "before the first step"
    return f"step {contents.steps[-1]:,} of {contents.total_steps:,}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait while another process draws the same run. Continues without a lock on file systems that have none."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # some network file systems have no locks; both processes then write a complete file
        yield
    finally:
        os.close(descriptor)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TookTooLong(f"it took more than {LONGEST_SECONDS} seconds")


if __name__ == "__main__":
    sys.exit(main())
