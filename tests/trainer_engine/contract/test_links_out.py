"""Links that lead out of the folders of a server: only those of the folder's owner are followed, and never into a closed place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer_engine.contract import path_rule
from trainer_engine.contract.path_rule import ClosedPlace, PlaceRule, Reason

STRANGER = 4242


@pytest.fixture
def rule(tmp_path: Path) -> PlaceRule:
    for name in ("root/pictures", "outside/data", "outside/state", "me/.ssh"):
        (tmp_path / name).mkdir(parents=True)
    closed = (ClosedPlace(path=str(tmp_path / "outside/state"), reason=Reason.STATE, reading=True),)
    return PlaceRule(roots=(str(tmp_path / "root"),), closed=closed, homes=(str(tmp_path / "me"),))


@pytest.fixture
def of_a_stranger(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """The links in this set count as made by another account."""
    links: set[Path] = set()
    plain = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        found = plain(path)
        return os.stat_result((*found[:4], STRANGER if path in links else found.st_uid, *found[5:]))

    monkeypatch.setattr(Path, "lstat", lstat)
    monkeypatch.setattr(path_rule, "SYSTEM_UID", -1)
    return links


def link(path: Path, target: Path | str) -> Path:
    path.symlink_to(target)
    return path


def message(rule: PlaceRule, path: Path) -> str:
    refusal = rule.refusal(path, writing=False)
    return refusal.message if refusal else ""


def test_a_link_of_the_owner_leads_out_and_one_of_a_stranger_does_not(rule: PlaceRule, tmp_path: Path, of_a_stranger: set[Path]) -> None:
    found = link(tmp_path / "root/link", tmp_path / "outside/data")
    assert message(rule, found / "new") == ""
    of_a_stranger.add(found)
    assert f"through the link {found}, which is not of that folder's owner" in message(rule, found / "new")


def test_a_stranger_cannot_lengthen_a_link_of_the_owner(rule: PlaceRule, tmp_path: Path, of_a_stranger: set[Path]) -> None:
    """The owner links to a folder in the root; a stranger replaces that folder by a link of its own."""
    first = link(tmp_path / "root/link", "pictures/shared")
    second = link(tmp_path / "root/pictures/shared", tmp_path / "outside/data")
    assert message(rule, first) == ""
    of_a_stranger.add(second)
    assert str(second) in message(rule, first)


def test_a_link_outside_is_judged_by_the_root_that_it_was_entered_from(rule: PlaceRule, tmp_path: Path, of_a_stranger: set[Path]) -> None:
    first = link(tmp_path / "root/link", tmp_path / "outside/door")
    second = link(tmp_path / "outside/door", tmp_path / "outside/data")
    of_a_stranger.add(second)
    assert str(second) in message(rule, first)


@pytest.mark.parametrize("target", ["../outside/data", "../root/../outside/data", "pictures/../../outside/data"])
def test_relative_links_are_followed_from_their_own_folder(rule: PlaceRule, tmp_path: Path, of_a_stranger: set[Path], target: str) -> None:
    found = link(tmp_path / "root/link", target)
    assert message(rule, found) == ""
    of_a_stranger.add(found)
    assert "not of that folder's owner" in message(rule, found)


def test_a_link_of_the_owner_opens_no_closed_place_and_no_dot_folder(rule: PlaceRule, tmp_path: Path) -> None:
    assert "the server's own state" in message(rule, link(tmp_path / "root/state", tmp_path / "outside/state"))
    assert "a dot folder of a home" in message(rule, link(tmp_path / "root/ssh", tmp_path / "me/.ssh"))


def test_a_path_that_enters_no_root_is_outside_whatever_its_links(rule: PlaceRule, tmp_path: Path) -> None:
    assert "lies outside the folders" in message(rule, link(tmp_path / "outside/link", tmp_path / "outside/data"))
    assert "(none)" in message(PlaceRule(), tmp_path)


def test_a_circle_of_links_ends(rule: PlaceRule, tmp_path: Path) -> None:
    link(tmp_path / "outside/b", tmp_path / "outside/a")
    link(tmp_path / "outside/a", tmp_path / "outside/b")
    assert "lies outside the folders" in message(rule, link(tmp_path / "root/circle", tmp_path / "outside/a"))
