"""Checks of runs with large datasets: another process finds what this one would, and the server remembers sizes and captions."""

from __future__ import annotations

import gc
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from environments.paths import Home
from environments.resolve.run import ResolvedRun, resolve_run
from tests.helpers.pictures import generate_images
from tests.training.conftest import write_model
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets import scanning
from training.preflight import apart, run
from training.preflight.apart import answer, examine_run_apart, home_of, is_large
from training.preflight.run import examine_run


@pytest.fixture
def resolved(tmp_path: Path) -> tuple[ResolvedRun, Home]:
    """A run with a broken file, a disabled entry before the others, and an evaluation set."""
    generate_images(tmp_path / "images", count=9, captions="textfile")
    generate_images(tmp_path / "held", count=2)
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    sets: list[dict[str, Any]] = [
        {"id": "off", "disabled": True},
        {"id": "images", "instance_data_dir": str(tmp_path / "images"), "caption_strategy": "textfile", "resolution": 64},
        {"id": "held", "dataset_type": "eval", "instance_data_dir": str(tmp_path / "held"), "resolution": 64},
    ]
    (tmp_path / "config").mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "config/sets.json").write_text(json.dumps(sets))
    form = {
        "model_family": "pixart_sigma",
        "model_type": "full",
        "output_dir": str(tmp_path / "out"),
        "train_batch_size": 2,
        "pretrained_model_name_or_path": str(write_model(tmp_path / "model")),
        "num_train_epochs": 0,
        "max_train_steps": 9,
        "data_backend_config": str(tmp_path / "config/sets.json"),
        "resolution_type": "pixel",
        "validation_disable": True,
    }
    home = Home(tmp_path)
    return resolve_run(home, {}, form), home


def by_text(problems: list[Problem]) -> list[tuple[str, str]]:
    return sorted((str(problem), problem.level.value) for problem in problems)


def test_another_process_finds_what_this_one_finds(resolved: tuple[ResolvedRun, Home], monkeypatch: pytest.MonkeyPatch) -> None:
    here = examine_run(*resolved)
    assert any(problem.option == "dataloader[1].instance_data_dir" for problem in here.problems)
    monkeypatch.setattr(apart, "LARGE", 5)
    there = examine_run_apart(*resolved)
    assert by_text(there.problems) == by_text(here.problems)
    for name in ("datasets", "eval_datasets", "steps", "epochs", "batches", "evaluation", "model"):
        assert json.loads(json.dumps(there.understood[name])) == json.loads(json.dumps(here.understood[name])), name
    assert there.resolved is resolved[0]


def test_a_small_run_needs_no_other_process(resolved: tuple[ResolvedRun, Home], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "MODULE", "no.such.module")
    assert examine_run_apart(*resolved).understood["datasets"][0]["usable"] == 9


def test_a_process_that_ends_without_an_answer_is_an_error(resolved: tuple[ResolvedRun, Home], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "LARGE", 5)
    monkeypatch.setattr(apart, "MODULE", "no.such.module")
    [problem] = examine_run_apart(*resolved).errors
    assert (problem.option, problem.code) == ("dataloader", "not_examined")


def test_a_request_describes_the_home_completely(tmp_path: Path) -> None:
    home = Home(
        tmp_path,
        (tmp_path / "r",),
        (tmp_path / "h",),
        any_script=True,
        no_script=True,
        script_variables=("A",),
        more_roots=(tmp_path / "m",),
        any_place=True,
    )
    plain = {name: apart._plain(value) for name, value in vars(home).items() if name != "place_rule"}
    assert home_of(json.loads(json.dumps(plain))) == home


def test_a_folder_is_counted_no_further_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "LARGE", 4)
    for number in range(3):
        (tmp_path / f"{number}").touch()
    assert not is_large(str(tmp_path)) and not is_large("") and not is_large(str(tmp_path / "nowhere"))
    (tmp_path / "below").mkdir()
    assert is_large(str(tmp_path))


def test_large_datasets_are_remembered_beside_the_runs(resolved: tuple[ResolvedRun, Home], monkeypatch: pytest.MonkeyPatch) -> None:
    home = resolved[1]
    examine_run(*resolved)
    assert not (home.state / "index").exists()
    monkeypatch.setattr(run, "LEAST_INDEXED", 5)
    first = examine_run(*resolved)
    kinds = sorted(path.name.split("-")[0] for path in (home.state / "index").iterdir())
    assert kinds == ["images", "texts"]
    assert {path.stat().st_mode & 0o077 for path in (home.state / "index", *(home.state / "index").iterdir())} == {0}
    assert by_text(examine_run(*resolved).problems) == by_text(first.problems)


def test_the_process_of_a_request_prints_nothing_but_its_answer(resolved: tuple[ResolvedRun, Home]) -> None:
    one, home = resolved
    assert one.dataloader is not None
    request = {
        "home": {name: apart._plain(value) for name, value in vars(home).items() if name != "place_rule"},
        "values": one.values,
        "given": one.given,
        "datasets": one.dataloader.as_document(),
        "waits_for": [],
        "rules": {"sources": {"private": False, "largest_set_bytes": 0}, "machines": {"allowed": [], "is_open": False}},
        "positions": [entry.position for entry in apart._entries(one.dataloader)],
    }
    found = json.loads(json.dumps(answer(json.loads(json.dumps(request)))))
    assert set(found) == {"problems", "understood"} and found["understood"]["steps"] == 9


def test_the_collector_pauses_until_the_last_scan_has_ended() -> None:
    objects, inside, leave = scanning.ManyObjects(), threading.Event(), threading.Event()

    def scan() -> None:
        with objects.being_made():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=scan)
    thread.start()
    inside.wait(10)
    with objects.being_made():
        assert not gc.isenabled()
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with scanning.ManyObjects().being_made():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_checking_a_large_run_leaves_this_process_as_small_as_it_was(
    resolved: tuple[ResolvedRun, Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "LARGE", 5)
    examine_run_apart(*resolved)
    before = psutil.Process().memory_info().rss
    for _ in range(3):
        examine_run_apart(*resolved)
    assert psutil.Process().memory_info().rss - before < 4 << 20


def test_no_report_shows_a_text_that_a_link_leads_to_in_a_closed_place(resolved: tuple[ResolvedRun, Home]) -> None:
    run, home = resolved
    (home.state / "secret.txt").write_text("topsecret")
    images = home.root / "images"
    linked = sorted(images.glob("*.txt"))[0]
    linked.unlink()
    linked.symlink_to(home.state / "secret.txt")
    report = examine_run(run, home)
    assert "topsecret" not in json.dumps(report.understood, default=str)
    assert any("server's own state" in str(problem) or "left out" in str(problem) for problem in report.problems)
    free = examine_run(run, replace(home, any_place=True))
    assert "topsecret" in json.dumps(free.understood, default=str), "a command in the user's own shell reads what the user may read"
