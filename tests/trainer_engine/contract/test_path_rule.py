"""Where server and engine may read and write."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from environments.paths import Home, Kind, ResolvedPath, resolve
from environments.places import INSTALLED, SHIPPED_SCRIPTS
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.path_rule import EVERYWHERE, PlaceRule


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A server's home beside the home of its user, who is ``me``."""
    for name in ("me/.config", "me/.cache/huggingface/hub/models--a--b", "me/project/.git", "served/state/hooks", "opt/hooks", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "me/.cache/huggingface/token").write_text("hf_secret")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    return Home(tmp_path / "served", roots=(tmp_path / "me", tmp_path / "opt", INSTALLED), hooks=(tmp_path / "opt/hooks",))


def said(home: Home, path: Path | str, *, writing: bool = True) -> str:
    """Why a path may not be used; empty where it may."""
    refusal = home.place_rule.refusal(Path(path), writing=writing)
    return refusal.message if refusal else ""


def test_a_path_in_a_root_may_be_read_and_written(place: Home, tmp_path: Path) -> None:
    for path in (tmp_path / "me", tmp_path / "me/runs/new", place.root / "output", tmp_path / "opt/models"):
        assert not said(place, path) and not said(place, path, writing=False)


@pytest.mark.parametrize("path", ["served/state", "served/state/x.json", "served/state/hooks/checkpoint-5/run.py"])
def test_the_state_is_closed_to_everything(place: Home, tmp_path: Path, path: str) -> None:
    for writing in (True, False):
        assert "the server's own state" in said(place, tmp_path / path, writing=writing)


def test_hooks_folders_are_closed_to_writing(place: Home, tmp_path: Path) -> None:
    for folder in (tmp_path / "opt/hooks", tmp_path / "opt/hooks/deeper", SHIPPED_SCRIPTS, SHIPPED_SCRIPTS / "checkpoint-5"):
        assert "a hooks folder" in said(place, folder) or "the installation" in said(place, folder)
    assert not said(place, tmp_path / "opt")


@pytest.mark.parametrize(
    "path",
    [INSTALLED, INSTALLED / "environments/x", INSTALLED / "new", INSTALLED / ".git/hooks", sys.prefix, os.path.dirname(os.__file__)],
)
def test_the_installation_is_closed_to_writing(place: Home, path: Path | str) -> None:
    assert "the installation" in said(Home(place.root, roots=(*place.roots, Path(sys.base_prefix))), path)


def test_a_home_that_is_the_checkout_may_be_written_to_beside_the_code() -> None:
    home = Home(INSTALLED, roots=())
    for name in ("output/run", "config/demo/config.json", "cache", "datasets"):
        assert not said(home, INSTALLED / name), name
    for name in ("environments/examples", "training", "trainer_engine/x", "simpletuner_site", "tests", "docs", "manage.py", ".git/hooks"):
        assert said(home, INSTALLED / name), name


def test_a_home_in_the_checkout_may_be_written_to() -> None:
    assert not said(Home(INSTALLED / "demo-output", roots=()), INSTALLED / "demo-output/output")


@pytest.mark.parametrize(
    "path", [".bashrc", ".config", ".config/autostart/x.json", ".ssh/authorized_keys", ".new/folder", "project/.git/hooks"]
)
def test_dot_folders_of_a_home_are_closed_to_writing(place: Home, tmp_path: Path, path: str) -> None:
    assert "a dot folder of a home" in said(place, tmp_path / "me" / path)


@pytest.mark.parametrize("path", [".bash_history", ".config/gh/hosts.yml", ".kaggle/kaggle.json", ".cache/other"])
def test_dot_folders_of_a_home_are_closed_to_reading(place: Home, tmp_path: Path, path: str) -> None:
    assert "a dot folder of a home" in said(place, tmp_path / "me" / path, writing=False)


@pytest.mark.parametrize("path", ["me/.bashrc", "me/dotfiles/bashrc", "me/.keys/id", "opt/keys/id"])
def test_the_target_of_a_dot_file_link_is_closed_too(place: Home, tmp_path: Path, path: str) -> None:
    (tmp_path / "me/dotfiles").mkdir()
    (tmp_path / "opt/keys").mkdir()
    (tmp_path / "me/.bashrc").symlink_to("dotfiles/bashrc")
    (tmp_path / "me/.keys").symlink_to(tmp_path / "opt/keys")
    for writing in (True, False):
        assert "what a dot file or folder of a home links to" in said(place, tmp_path / path, writing=writing)
    assert not said(place, tmp_path / "me/dotfiles/other") and not said(place, tmp_path / "opt/other")


def test_models_in_a_cache_that_is_a_link_may_be_read(place: Home, tmp_path: Path) -> None:
    (tmp_path / "me/.cache").rename(tmp_path / "opt/cache")
    (tmp_path / "me/.cache").symlink_to(tmp_path / "opt/cache")
    hub = tmp_path / "me/.cache/huggingface"
    assert not said(place, hub / "hub/models--a--b", writing=False) and said(place, hub / "hub/models--a--b")
    assert "a file of keys" in said(place, tmp_path / "opt/cache/huggingface/token", writing=False)


def test_downloaded_models_may_be_read_and_not_written_and_tokens_neither(place: Home, tmp_path: Path) -> None:
    hub = tmp_path / "me/.cache/huggingface"
    assert not said(place, hub / "hub/models--a--b/snapshots/main", writing=False)
    assert "the cache of the Hugging Face hub" in said(place, hub / "hub/models--a--b")
    for name in ("token", "stored_tokens"):
        assert "a file of keys" in said(place, hub / name, writing=False)
    os.link(hub / "token", tmp_path / "me/harmless.json")
    assert "a file of keys" in said(place, tmp_path / "me/harmless.json", writing=False)


@pytest.mark.parametrize("path", ["/home/somebody/.ssh/id", "/home/somebody/.bashrc", "/Users/somebody/.config/x"])
def test_dot_folders_of_other_homes_are_closed_where_a_root_holds_them(place: Home, path: str) -> None:
    home = Home(place.root, roots=(Path("/home"), Path("/Users")))
    for writing in (True, False):
        assert "a dot folder of a home" in said(home, path, writing=writing)
    assert not said(home, Path(path).parents[1] / "data", writing=False)


def test_a_root_opens_the_dot_folder_or_system_folder_that_it_is_or_lies_in(place: Home, tmp_path: Path) -> None:
    opened = Home(place.root, roots=place.roots, more_roots=(tmp_path / "me/.cache/mine", Path("/run/media/me/disk")))
    for path in (tmp_path / "me/.cache/mine/out", Path("/run/media/me/disk/out")):
        assert said(place, path) and not said(opened, path), path
    assert said(opened, tmp_path / "me/.cache/other") and said(opened, "/run/other")


def test_a_root_does_not_open_state_or_hooks(place: Home, tmp_path: Path) -> None:
    opened = Home(place.root, roots=(place.state / "runs", place.state / "hooks", tmp_path / "opt/hooks/x"), hooks=place.hooks)
    for path in (place.state / "runs/x", place.state / "hooks/x", tmp_path / "opt/hooks/x"):
        assert said(opened, path), path


@pytest.mark.parametrize(
    "path", ["served/../served/state/x", "me/../served/./state", "me/link", "me/link/x", "me/chain/x", "served/config/../state/new/x"]
)
def test_no_spelling_of_a_closed_place_opens_it(place: Home, tmp_path: Path, path: str) -> None:
    (tmp_path / "served/config").mkdir()
    (tmp_path / "me/link").symlink_to(tmp_path / "served/state")
    (tmp_path / "me/chain").symlink_to("link")
    assert "the server's own state" in said(place, tmp_path / path)


def test_the_working_directory_of_the_process_is_judged_by_its_real_place(place: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.state)
    assert "the server's own state" in said(place, "/proc/self/cwd/x")
    assert "the server's own state" in said(place, "x")


def test_other_names_of_a_closed_folder_are_known_by_its_number(place: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk where case means nothing, or through a bind mount: the path differs, the folder is the same."""
    (tmp_path / "me" / "STATE").mkdir()
    real_stat = Path.stat

    def stat(path: Path, **rest: bool) -> os.stat_result:
        return real_stat(place.state if path == tmp_path / "me" / "STATE" else path, **rest)

    monkeypatch.setattr(Path, "stat", stat)
    assert "the server's own state" in said(place, tmp_path / "me/STATE/secret_key")


@pytest.mark.parametrize("path", ["elsewhere", "elsewhere/new", "/srv/pictures", "/", "/opt"])
def test_a_refusal_from_outside_names_the_roots_and_the_setting(place: Home, tmp_path: Path, path: str) -> None:
    refusal = place.place_rule.refusal(tmp_path / path, writing=False)
    assert refusal is not None
    assert "outside the folders that this server uses" in refusal.message and str(tmp_path / "me") in refusal.message
    assert "--root DIR" in refusal.hint and "SIMPLETUNER_ROOTS" in refusal.hint


def test_more_roots_open_what_lies_outside(place: Home, tmp_path: Path) -> None:
    opened = Home(place.root, roots=place.roots, more_roots=(tmp_path / "elsewhere",))
    assert not said(opened, tmp_path / "elsewhere/new")
    assert isinstance(
        resolve(str(tmp_path / "elsewhere"), "instance_data_dir", home=opened, must_exist=True, kind=Kind.FOLDER), ResolvedPath
    )


def test_without_a_fence_every_path_is_used(place: Home) -> None:
    home = Home(place.root, roots=(), any_place=True)
    for path in ("/etc/x", "/srv/x", str(place.state)):
        assert isinstance(resolve(path, "output_dir", home=home, writing=True), ResolvedPath)
    assert EVERYWHERE.may_write(Path("/etc"))


def test_a_rule_survives_the_way_through_a_file(place: Home) -> None:
    rule = place.place_rule
    assert PlaceRule.model_validate_json(rule.model_dump_json()) == rule


def test_a_refusal_does_not_reveal_whether_a_closed_path_exists(place: Home, tmp_path: Path) -> None:
    (tmp_path / "elsewhere/there").write_text("")
    answers = [
        resolve(str(tmp_path / "elsewhere" / name), "init_lora", home=place, must_exist=True, kind=Kind.FOLDER) for name in ("there", "no")
    ]
    assert [answer.code for answer in answers if isinstance(answer, Problem)] == ["outside_roots", "outside_roots"]
