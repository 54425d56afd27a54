"""A run that was stopped and goes on writes the bytes of one that was never stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.tiny_run import HereRun, train_here
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.events import Notification


def assert_same_checkpoints(one: HereRun, other: HereRun) -> None:
    """The newest checkpoints of two runs are equal, file by file."""
    assert_same_files(one.files(), other.files())


def assert_same_files(ours: dict[str, bytes], theirs: dict[str, bytes]) -> None:
    """The same names, and the same bytes; neither is empty."""
    assert ours and sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def assert_resumes_exactly(place: Path, run: Callable[..., HereRun] = train_here, *, after: int = 2, **options: Any) -> HereRun:
    """Train in one go, and once more with a stop after some steps, on the same files and caches; the run that was never stopped.

    ``run`` takes what ``train_here`` takes. The newest checkpoints are equal in every file, and so are the weights of the results.
    """
    straight = run(place, output_dir=str(place / "straight"), **options)
    again = {"output_dir": str(place / "resumed"), **options}
    first = run(place, stop_after=after, **again)
    assert (first.code, first.step) == (ExitCode.STOPPED, after)
    resumed = run(place, **again)
    assert straight.code is resumed.code is ExitCode.COMPLETED and resumed.step == straight.step > after
    assert_same_checkpoints(straight, resumed)
    assert_same_files(_results(straight), _results(resumed))
    assert "data_changed" not in [event.code for event in resumed.heard.of(Notification)]
    return straight


def _results(run: HereRun) -> dict[str, bytes]:
    """Files of weights that a run left beside its checkpoints and caches."""
    paths = {path.relative_to(run.output_dir): path for path in run.output_dir.rglob("*.safetensors")}
    return {str(name): path.read_bytes() for name, path in paths.items() if not name.parts[0].startswith(("checkpoint-", "cache"))}
