"""Environments as files: written whole, read with suspicion."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from environments.files.config_files import (
    dashed,
    keep_copy,
    names_on_disk,
    read_config,
    read_text,
    remove_files,
    without_marks,
    write_config,
    write_text,
)
from environments.paths import Home
from trainer_engine.contract.files import LARGEST_BYTES


@pytest.fixture
def place(tmp_path: Path) -> Home:
    for name in ("home/config", "home/state", "outside"):
        (tmp_path / name).mkdir(parents=True)
    return Home(tmp_path / "home", roots=())


def test_options_are_written_with_two_dashes_and_read_back(place: Home) -> None:
    sha256 = write_config(place, "demo", {"seed": 1, "validation_prompt": "ein <token> für München"})
    read = read_config(place, "demo")
    assert read.values == {"--seed": 1, "--validation_prompt": "ein <token> für München"}
    assert read.file.sha256 == sha256
    assert "München" in (place.config / "demo" / "config.json").read_text(encoding="utf-8")


def test_writing_leaves_nothing_beside(place: Home) -> None:
    write_config(place, "demo", {"seed": 1})
    write_config(place, "demo", {"seed": 2})
    assert [path.name for path in (place.config / "demo").iterdir()] == ["config.json"]


def test_a_failed_write_leaves_the_old_file(place: Home) -> None:
    write_config(place, "demo", {"seed": 1})
    with pytest.raises(UnicodeEncodeError):
        write_text(place, place.config / "demo" / "config.json", "\ud800")
    assert read_config(place, "demo").values == {"--seed": 1}


@pytest.mark.parametrize("content", [b"{", b"[]", b"7", b"\xff\xfe", b"", b'{"a": NaN}', b"[" * 50_000])
def test_a_broken_configuration_is_a_problem_that_names_its_file(place: Home, content: bytes) -> None:
    (place.config / "demo").mkdir()
    (place.config / "demo" / "config.json").write_bytes(content)
    read = read_config(place, "demo")
    assert read.values is None and read.problem is not None
    assert "config/demo/config.json" in read.problem.message and read.problem.hint


def test_a_missing_file_is_no_problem(place: Home) -> None:
    read = read_config(place, "demo")
    assert (read.values, read.problem, read.file.sha256) == (None, None, "")


def test_a_huge_file_is_not_read(place: Home) -> None:
    path = place.config / "huge.json"
    with path.open("wb") as stream:
        stream.truncate(LARGEST_BYTES + 1)
    assert "larger" in read_text(place, path).trouble


def test_a_folder_or_a_pipe_in_place_of_a_file_is_reported(place: Home) -> None:
    (place.config / "demo" / "config.json").mkdir(parents=True)
    problem = read_config(place, "demo").problem
    assert problem is not None and "not a file" in problem.message


def test_a_link_out_of_the_home_that_somebody_else_made_is_neither_read_nor_written(place: Home, links_of_a_stranger: None) -> None:
    outside = place.root.parent / "outside"
    (outside / "config.json").write_text('{"--seed": 1}')
    (place.config / "demo").symlink_to(outside)
    assert read_config(place, "demo").values is None
    with pytest.raises(PermissionError):
        write_config(place, "demo", {"seed": 2})
    assert json.loads((outside / "config.json").read_text()) == {"--seed": 1}


@pytest.mark.parametrize("target", ["state", "hooks"])
def test_a_link_to_a_closed_place_is_not_written_through(place: Home, target: str) -> None:
    folder = {"state": place.state, "hooks": place.state / "hooks"}[target]
    folder.mkdir(exist_ok=True)
    (place.config / "demo").symlink_to(folder)
    with pytest.raises(PermissionError, match="the server's own state"):
        write_config(place, "demo", {"seed": 2})
    assert not (folder / "config.json").exists()


def test_a_link_to_a_file_that_may_be_written_stays_a_link(place: Home) -> None:
    (place.root / "elsewhere.json").write_text("{}")
    (place.config / "demo").mkdir()
    (place.config / "demo" / "config.json").symlink_to(place.root / "elsewhere.json")
    write_config(place, "demo", {"seed": 2})
    assert (place.config / "demo" / "config.json").is_symlink()
    assert json.loads((place.root / "elsewhere.json").read_text()) == {"--seed": 2}


def test_a_replaced_file_keeps_its_mode_and_a_new_one_has_that_of_the_umask(place: Home) -> None:
    before = os.umask(0o027)
    try:
        write_config(place, "demo", {"seed": 1})
        path = place.config / "demo" / "config.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        write_config(place, "demo", {"seed": 2})
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_a_file_set_aside_keeps_its_content_under_the_next_free_number(place: Home) -> None:
    path = place.config / "multidatabackend.json"
    assert keep_copy(path) is None
    for number in (1, 2):
        path.write_text(f"[{number}]")
        kept = keep_copy(path)
        assert kept == place.config / f"multidatabackend.{number}.json" and kept.read_text() == f"[{number}]"
        path.unlink()


def test_removing_keeps_a_folder_in_which_something_else_lies(place: Home) -> None:
    write_config(place, "demo", {})
    write_config(place, "other", {})
    (place.config / "other" / "notes.txt").write_text("mine")
    for name in ("demo", "other", "never-was"):
        remove_files(place, name, "config.json")
    assert [path.name for path in place.config.iterdir()] == ["other"]


def test_only_folders_with_a_configuration_and_a_name_are_environments(place: Home) -> None:
    for name in ("b", "a", ".hidden", "active", "b c"):
        write_config(place, name, {})
    (place.config / "empty").mkdir()
    (place.config / "file.json").write_text("{}")
    assert names_on_disk(place) == ["a", "b"]
    assert names_on_disk(Home(place.root / "nowhere", roots=())) == []


def test_marks_of_a_form_are_dropped_and_options_are_not() -> None:
    sent = {"__active_tab__": "model", "--__x__": 1, "--seed": 2, "lr": 3, "__": 4}
    assert without_marks(sent) == {"--seed": 2, "lr": 3, "__": 4}


def test_every_key_gets_the_one_spelling() -> None:
    assert dashed({"seed": 1}) == {"--seed": 1}
