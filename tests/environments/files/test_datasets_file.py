"""Where a configuration's datasets file lies, where a new one goes, and what it holds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from environments.files.datasets_file import destination, locate, new_file, read_document, unwrapped_datasets
from environments.paths import Home, ResolvedPath, resolve
from trainer_engine.contract.errors import Problem


@pytest.fixture
def place(tmp_path: Path) -> Home:
    (tmp_path / "home" / "config" / "demo").mkdir(parents=True)
    (tmp_path / "home" / "state").mkdir()
    return Home(tmp_path / "home", roots=(tmp_path / "data",))


def test_a_configuration_without_one_has_none(place: Home) -> None:
    for config in ({}, {"data_backend_config": ""}, {"data_backend_config": None}, {"data_backend_config": 7}):
        found = locate(config, place)
        assert (found.path, found.exists) == (None, False)
        assert found.as_answer() == {"path": None, "absolute_path": None}


def test_a_datasets_file_to_be_written_gets_its_future_path(place: Home) -> None:
    found = locate({"data_backend_config": "demo/multidatabackend.json"}, place)
    assert found.path == place.config / "demo" / "multidatabackend.json" and not found.exists


def test_a_datasets_file_in_the_home_is_found_there(place: Home) -> None:
    (place.root / "sets.json").write_text("[]")
    assert locate({"data_backend_config": "sets.json"}, place).path == place.root / "sets.json"


def test_a_datasets_path_that_leads_nowhere_is_shown_as_written(place: Home) -> None:
    found = locate({"data_backend_config": "/etc/passwd"}, place)
    assert found.as_answer() == {"path": "/etc/passwd", "absolute_path": None} and not found.exists


@pytest.mark.parametrize(
    ("given", "below_home"),
    [
        ("x.json", "config/x.json"),
        ("demo/x.json", "config/demo/x.json"),
        ("config/x.json", "config/x.json"),
        ("config/demo/x.json", "config/demo/x.json"),
        ("config.json", "config/config.json"),
    ],
)
def test_new_files_lie_under_config_whether_or_not_the_path_says_so(place: Home, given: str, below_home: str) -> None:
    assert new_file(given, place) == place.root / below_home
    assert destination(given, "path", place) == place.root / below_home


def test_locate_finds_a_written_file_by_the_path_it_was_given(place: Home) -> None:
    for given in ("a.json", "demo/b.json", "config/c.json", str(place.root / "d.json")):
        target = destination(given, "path", place)
        assert isinstance(target, Path)
        target.write_text("[]")
        found = locate({"data_backend_config": given}, place)
        assert (found.path, found.exists) == (target, True)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("x.txt", "not_json"),
        ("demo", "not_a_file"),
        ("/etc/x.json", "outside_roots"),
        ("../../x.json", "outside_roots"),
        ("state/x.json", "outside_roots"),
        ("", "missing"),
        (None, "not_text"),
        ("x\0.json", "not_a_path"),
        ("x" * 300 + ".json", "too_long"),
    ],
)
def test_nothing_is_written_where_no_datasets_file_belongs(place: Home, given: object, code: str) -> None:
    refused = destination(given, "path", place)
    assert isinstance(refused, Problem) and (refused.option, refused.code) == ("path", code)


def test_a_link_below_config_does_not_lead_out(place: Home, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (place.config / "link").symlink_to(tmp_path / "outside")
    refused = destination("link/x.json", "path", place)
    assert isinstance(refused, Problem) and refused.code == "outside_roots"


def read(place: Home, content: bytes) -> tuple[object, list[str]]:
    (place.config / "x.json").write_bytes(content)
    found = resolve("x.json", "data_backend_config", home=place)
    assert isinstance(found, ResolvedPath)
    document, problems = read_document(found, place)
    return document, [problem.code for problem in problems]


def test_a_document_is_read_as_it_is(place: Home) -> None:
    assert read(place, b'\xef\xbb\xbf[{"id": "a"}]') == ([{"id": "a"}], [])


@pytest.mark.parametrize(
    ("content", "code"), [(b"{", "invalid_json"), (b"", "invalid_json"), (b"[1,]", "invalid_json"), (b"\xff", "unreadable_file")]
)
def test_a_broken_datasets_file_is_reported(place: Home, content: bytes, code: str) -> None:
    assert read(place, content) == (None, [code])


def test_a_file_that_went_meanwhile_is_reported(place: Home) -> None:
    (place.config / "x.json").write_text("[]")
    found = resolve("x.json", "data_backend_config", home=place)
    assert isinstance(found, ResolvedPath)
    os.unlink(found.path)
    assert [problem.code for problem in read_document(found, place)[1]] == ["unreadable_file"]


def test_the_options_of_an_environment_are_no_place_for_datasets(place: Home) -> None:
    for given in ("demo/config.json", "config/demo/config.json", str(place.config / "other" / "config.json"), "demo/../other/config.json"):
        found = destination(given, "path", place)
        assert isinstance(found, Problem) and found.code == "config_file", given


@pytest.mark.parametrize("document", [[{"id": "a"}], {"datasets": [{"id": "a"}]}, {"_metadata": {"name": "x"}, "datasets": [{"id": "a"}]}])
def test_the_entries_of_an_exported_file_are_its_datasets(place: Home, document: object) -> None:
    (place.config / "sets.json").write_text(json.dumps(document))
    found = resolve("config/sets.json", "data_backend_config", home=place)
    assert isinstance(found, ResolvedPath)
    assert read_document(found, place) == ([{"id": "a"}], [])


@pytest.mark.parametrize("document", [{"datasets": {"id": "a"}}, {"datasets": [], "id": "a"}, {"id": "a"}, {}, None, "datasets", 7])
def test_another_document_stays_as_it_is(document: object) -> None:
    assert unwrapped_datasets(document) == document
