"""Checks on files of users run in a process that may take only so much time and memory, and the server names what it ran out of."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from environments.limited_process import LIMITS, WITHOUT_COLLECTOR, ProcessFailed, answer_of
from environments.paths import Home
from environments.resolve.run import ResolvedRun, resolve_run
from tests.helpers.clips import needs_pyav
from tests.helpers.pictures import generate_images
from tests.helpers.video_files import write_video
from tests.training.conftest import write_model
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.media import containers
from training.preflight import apart
from training.preflight.apart import examine_run_apart, needs_a_process

Resolve = Callable[..., tuple[ResolvedRun, Home]]
SLOW_SERVER_SECONDS = 1.5
PROMPT = {"caption_strategy": "instanceprompt", "instance_prompt": "a"}


@pytest.fixture(scope="module")
def resolve(tmp_path_factory: pytest.TempPathFactory) -> Resolve:
    """Returns a function that resolves a run with one dataset of the given fields."""
    place = tmp_path_factory.mktemp("home")
    generate_images(place / "images", count=3)
    model = write_model(place / "model")

    def resolve(family: str = "pixart_sigma", **fields: Any) -> tuple[ResolvedRun, Home]:
        entry = {"id": "set", "instance_data_dir": str(place / "images"), "resolution": 64, "resolution_type": "pixel", **fields}
        entry = {name: value for name, value in entry.items() if value is not None}
        (place / "sets.json").write_text(json.dumps([entry]))
        form = {
            "model_family": family,
            "model_type": "lora",
            "output_dir": str(place / "out"),
            "pretrained_model_name_or_path": str(model),
            "num_train_epochs": 0,
            "max_train_steps": 9,
            "data_backend_config": str(place / "sets.json"),
            "validation_disable": True,
        }
        return resolve_run(Home(place), {}, form), Home(place)

    return resolve


@pytest.fixture
def silent_server() -> Iterator[int]:
    """A port of this machine that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def json_table(path: Path, objects: int) -> dict[str, Any]:
    """A table that is small on the disk and large in memory: each object of nine bytes takes some hundreds."""
    path.write_text("[" + '{"a":0},' * objects + '{"a":1}]')
    return {"path": str(path), "filename_column": "a", "caption_column": "a"}


def of_table(resolve: Resolve, path: Path, objects: int) -> tuple[ResolvedRun, Home]:
    return resolve(caption_strategy="parquet", parquet=json_table(path, objects))


def only(problems: list[Problem]) -> Problem:
    [found] = [problem for problem in problems if problem.code == "not_examined"]
    assert found.option == "dataloader" and found.hint
    return found


def examining() -> list[psutil.Process]:
    """The processes of this one that examine datasets."""
    return [child for child in psutil.Process().children(recursive=True) if apart.MODULE in child.cmdline()]


def test_a_table_that_fills_the_memory_is_read_in_a_process_that_may_not_have_it(resolve: Resolve, tmp_path: Path) -> None:
    resolved, home = of_table(resolve, tmp_path / "bomb.json", 2_000_000)
    assert (tmp_path / "bomb.json").stat().st_size < 20 << 20
    report = examine_run_apart(resolved, home, limits=replace(LIMITS, memory_bytes=320 << 20))
    assert "needed more than 0.3 GiB of memory" in only(report.errors).message


def test_the_server_is_no_larger_after_a_table_than_before(resolve: Resolve, tmp_path: Path) -> None:
    resolved, home = of_table(resolve, tmp_path / "table.json", 300_000)
    before = psutil.Process().memory_info().rss
    problems = examine_run_apart(resolved, home).errors
    assert problems and not any(problem.code == "not_examined" for problem in problems), "no image has a row"
    assert psutil.Process().memory_info().rss - before < 8 << 20


def test_a_table_may_take_only_so_much_processor_time(resolve: Resolve, tmp_path: Path) -> None:
    resolved, home = of_table(resolve, tmp_path / "slow.json", 3_000_000)
    report = examine_run_apart(resolved, home, limits=replace(LIMITS, cpu_seconds=1))
    assert "more than 1 s of processor time" in only(report.errors).message


def test_a_bucket_that_never_answers_holds_no_request_for_longer_than_the_limit(resolve: Resolve, silent_server: int) -> None:
    fields = {"type": "aws", "instance_data_dir": None, "aws_bucket_name": "b", "aws_endpoint_url": f"http://127.0.0.1:{silent_server}"}
    started = time.monotonic()
    report = examine_run_apart(*resolve(**fields), limits=replace(LIMITS, wall_seconds=SLOW_SERVER_SECONDS))
    assert time.monotonic() - started < 10 * SLOW_SERVER_SECONDS
    assert "took longer than 2 s" in only(report.errors).message
    assert examining() == []


def test_only_so_many_processes_run_at_once() -> None:
    slots = threading.Semaphore(1)
    with slots, pytest.raises(ProcessFailed, match="had no turn"):
        answer_of(apart.MODULE, b"{}", replace(LIMITS, waiting_seconds=0.05), slots)
    with pytest.raises(ProcessFailed, match="status 1"):
        answer_of(apart.MODULE, b"{}", slots=slots)
    with pytest.raises(ProcessFailed, match="status 1"):
        answer_of(apart.MODULE, b"{}", slots=slots)


def test_private_networks_are_as_closed_there_as_here(resolve: Resolve, settings: Any) -> None:
    """The process has none of the server's settings, and would otherwise count as a user's own shell, for which all is open."""
    fields = {"type": "aws", "instance_data_dir": None, "aws_bucket_name": "b", "aws_endpoint_url": "http://10.255.255.1:9"}
    settings.WEBHOOKS_TO_PRIVATE = False
    started = time.monotonic()
    [problem] = [one for one in examine_run_apart(*resolve(**fields)).errors if one.option.startswith("dataloader")]
    assert "private network" in problem.message
    assert time.monotonic() - started < 20, "nothing tried to connect"


@needs_pyav
def test_videos_are_opened_in_a_process_of_their_own(resolve: Resolve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "clips" / "a.mp4", 9)
    resolved, home = resolve("wan", dataset_type="video", instance_data_dir=str(tmp_path / "clips"), video={"num_frames": 5})
    monkeypatch.setattr(containers, "measure_video", lambda file: pytest.fail("FFmpeg read a file in the server"))
    assert examine_run_apart(resolved, home).understood["datasets"][0]["usable"] == 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"caption_strategy": "textfile"}, False),
        ({"type": "csv", "instance_data_dir": None, "csv_file": "HERE/a.csv", "csv_cache_dir": "HERE/c"}, True),
        (
            {"type": "huggingface", "instance_data_dir": None, "dataset_name": "a/b", **PROMPT},
            True,
        ),
        ({"type": "aws", "instance_data_dir": None, "aws_bucket_name": "b"}, True),
        (
            {
                "metadata_backend": "parquet",
                "parquet": {"path": "HERE/t.jsonl", "filename_column": "a", "width_column": "w", "height_column": "h"},
            },
            True,
        ),
        ({"dataset_type": "video", "video": {"num_frames": 5}}, True),
    ],
)
def test_whatever_parses_more_than_images_gets_a_process(resolve: Resolve, tmp_path: Path, fields: dict[str, Any], expected: bool) -> None:
    (tmp_path / "a.csv").write_text("url\nhttp://127.0.0.1/a.png\n")
    (tmp_path / "t.jsonl").write_text("{}\n")
    placed = json.loads(json.dumps(fields).replace("HERE", str(tmp_path)))
    resolved, _ = resolve("wan", **placed)
    assert resolved.dataloader is not None, [str(problem) for problem in resolved.problems]
    assert [needs_a_process(one) for one in resolved.dataloader.sets_of_images] == [expected]


def test_a_process_outlives_its_server_only_until_its_alarm() -> None:
    """The server may be killed while it waits. The alarm then ends the process, whatever it waits for."""
    limited = "from environments.limited_process import apply_limits; apply_limits(['9', '999999999', '1'])"
    ended = subprocess.run([sys.executable, "-c", f"{limited}; import time; time.sleep(60)"], check=False, timeout=50)
    assert ended.returncode == -signal.SIGALRM


def test_the_process_collects_no_garbage(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "import gc, sys\nprint(__name__, gc.isenabled(), sys.argv[1:], sys.argv[0].endswith('module.py'))\n"
    )
    command = [sys.executable, "-c", WITHOUT_COLLECTOR, "module", "1", "2"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout == "__main__ False ['1', '2'] True\n"
