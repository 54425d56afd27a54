"""Paths that users give: what they mean, and that they never lead out of the allowed roots."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from environments.paths import Home, Kind, Origin, ResolvedPath, resolve
from trainer_engine.contract.errors import Problem


@pytest.fixture
def place(tmp_path: Path) -> Home:
    """A home with nothing allowed beside it but ``data/``, and an ``outside/`` to be kept away from."""
    for name in ("home/config/env", "home/state", "data", "outside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "outside" / "secret.json").write_text("[]")
    return Home(tmp_path / "home", roots=(tmp_path / "data",))


def found(home: Home, text: object, *, must_exist: bool = False, kind: Kind = Kind.ANY) -> ResolvedPath:
    result = resolve(text, "output_dir", home=home, must_exist=must_exist, kind=kind)
    assert isinstance(result, ResolvedPath), result
    return result


def refused(home: Home, text: object, *, must_exist: bool = False, kind: Kind = Kind.ANY) -> str:
    result = resolve(text, "output_dir", home=home, must_exist=must_exist, kind=kind)
    assert isinstance(result, Problem), result
    assert result.option == "output_dir" and result.message
    return result.code


def test_a_relative_path_is_tried_from_the_home_first(place: Home) -> None:
    (place.root / "a.json").write_text("[]")
    assert found(place, "a.json") == ResolvedPath(place.root / "a.json", "a.json", Origin.HOME, exists=True)


def test_a_relative_path_is_tried_under_config_second(place: Home) -> None:
    (place.config / "env" / "a.json").write_text("[]")
    taken = found(place, "env/a.json", must_exist=True)
    assert (taken.path, taken.origin) == (place.config / "env" / "a.json", Origin.CONFIG)


def test_config_may_be_named_or_left_out(place: Home) -> None:
    (place.config / "once.json").write_text("[]")
    assert found(place, "config/once.json").path == found(place, "once.json").path


def test_two_files_that_fit_are_a_problem_and_not_a_guess(place: Home) -> None:
    (place.root / "a.json").write_text("[]")
    (place.config / "a.json").write_text("[]")
    assert refused(place, "a.json") == "ambiguous_path"


def test_two_names_of_one_file_are_one_file(place: Home) -> None:
    (place.root / "a.json").write_text("[]")
    (place.config / "a.json").symlink_to(place.root / "a.json")
    assert found(place, "a.json").path == place.root / "a.json"


def test_a_path_that_does_not_exist_yet_lies_in_the_home(place: Home) -> None:
    taken = found(place, "output/run")
    assert (taken.path, taken.exists) == (place.root / "output" / "run", False)


def test_a_missing_file_is_reported_with_both_places(place: Home) -> None:
    result = resolve("nothing.json", "data_backend_config", home=place, must_exist=True)
    assert isinstance(result, Problem) and result.code == "not_found"
    assert str(place.root / "nothing.json") in result.message and str(place.config / "nothing.json") in result.message


def test_a_folder_is_no_file_and_a_file_no_folder(place: Home) -> None:
    (place.root / "a.json").write_text("[]")
    assert refused(place, "config", kind=Kind.FILE) == "not_a_file"
    assert refused(place, "a.json", kind=Kind.FOLDER) == "not_a_folder"


def test_a_pipe_is_neither_a_file_nor_a_folder(place: Home) -> None:
    os.mkfifo(place.root / "pipe")
    assert refused(place, "pipe") == "not_a_file_or_folder"


def test_allowed_roots_are_allowed(place: Home) -> None:
    assert found(place, str(place.roots[0] / "cache")).origin is Origin.ABSOLUTE


def test_the_tilde_is_the_users_home(place: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place.roots[0]))
    assert found(place, "~/x").path == place.roots[0] / "x"


@pytest.mark.parametrize(
    "text", ["/etc/passwd", "/etc", "/proc/self/environ", "/sys/kernel", "/dev/null0", "/", "/root-of-nobody", "/etc/../etc/x"]
)
def test_the_system_is_closed(place: Home, text: str) -> None:
    assert refused(place, text) == "outside_roots"


@pytest.mark.parametrize(
    "text", ["../outside/secret.json", "config/../../outside", "x/../../../outside", "env/../../../outside/secret.json"]
)
def test_dots_do_not_lead_out(place: Home, text: str) -> None:
    (place.root / "x").mkdir()
    assert refused(place, text) == "outside_roots"


def test_links_of_somebody_else_do_not_lead_out(place: Home, links_of_a_stranger: None) -> None:
    (place.root / "link").symlink_to(place.root.parent / "outside")
    (place.root / "chain").symlink_to(place.root / "link")
    for text in ("link/secret.json", "chain/new.json"):
        result = resolve(text, "output_dir", home=place)
        assert isinstance(result, Problem) and result.code == "outside_roots"
        assert f"through the link {place.root / 'link'}, which is not of that folder's owner" in result.message


def test_links_of_the_owner_lead_out(place: Home) -> None:
    outside = place.root.parent / "outside"
    (place.root / "link").symlink_to(outside)
    (place.root / "chain").symlink_to(place.root / "link")
    assert found(place, "link/secret.json").exists
    taken = found(place, "chain/new/folder", kind=Kind.FOLDER)
    assert taken.path == place.root / "chain/new/folder" and not taken.exists
    assert found(place, str(taken.path)) == ResolvedPath(taken.path, str(taken.path), Origin.ABSOLUTE, exists=False)


def test_the_place_that_a_link_leads_to_stays_closed_by_its_own_name(place: Home) -> None:
    (place.root / "link").symlink_to(place.root.parent / "outside")
    assert refused(place, str(place.root.parent / "outside" / "secret.json")) == "outside_roots"


@pytest.mark.parametrize("target", ["state", "state/hooks", "/etc", "/proc/self"])
def test_links_of_the_owner_do_not_open_closed_places(place: Home, target: str) -> None:
    (place.state / "hooks").mkdir()
    (place.root / "link").symlink_to(place.root / target)
    for text in ("link", "link/x", "config/../link/x"):
        assert refused(place, text) == "outside_roots"


def test_a_link_in_a_dot_folder_of_a_home_leads_nowhere(place: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place.roots[0]))
    (place.roots[0] / ".wine").mkdir()
    (place.roots[0] / ".wine" / "z").symlink_to(place.root.parent)
    assert refused(place, "~/.wine/z/outside/secret.json") == "outside_roots"


def test_links_in_a_circle_are_reported(place: Home) -> None:
    (place.root / "a").symlink_to(place.root / "b")
    (place.root / "b").symlink_to(place.root / "a")
    assert refused(place, "a") == "unreadable"


@pytest.mark.parametrize("text", ["state/simpletuner.sqlite3", "state", "state/runs/x", "config/../state/secret_key"])
def test_the_servers_own_state_is_closed(place: Home, text: str) -> None:
    assert refused(place, text) == "outside_roots"


def test_keys_in_the_users_home_are_closed(place: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place.roots[0]))
    assert refused(place, "~/.ssh/id_ed25519") == "outside_roots"
    assert refused(place, "~/.cache/huggingface/token") == "outside_roots"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "not_text"),
        (7, "not_text"),
        (["a"], "not_text"),
        ({"a": 1}, "not_text"),
        ("", "missing"),
        ("   ", "missing"),
        ("a\0b", "not_a_path"),
        ("http://me:word@host.invalid/x", "not_a_path"),
        ("\ud800", "not_a_path"),
        ("x" * 256, "too_long"),
        ("ü" * 128, "too_long"),
        ("x/" * 3000, "too_long"),
    ],
)
def test_values_that_are_no_path_are_refused(place: Home, text: object, code: str) -> None:
    assert refused(place, text) == code


def test_a_folder_that_may_not_be_entered_is_reported_or_absent(place: Home) -> None:
    closed = place.root / "closed"
    closed.mkdir(mode=0)
    result = resolve("closed/file", "output_dir", home=place)
    closed.chmod(0o700)
    assert isinstance(result, ResolvedPath) or result.code == "unreadable"


def test_the_default_roots_hold_what_the_tutorial_names(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for text in ("/workspace/output/pixart900m", "/data/datasets/pseudo-camera-10k", "/data/cache/vae/pixart", "/mnt/disk", "~/images"):
        assert isinstance(resolve(text, "output_dir", home=home), ResolvedPath), text


PARTS = [
    "..",
    ".",
    "",
    "~",
    "link",
    "up",
    "config",
    "state",
    "env",
    "a",
    "secret.json",
    "data",
    "outside",
    "home",
    "etc",
    "proc",
    "self",
    "root",
    "x" * 300,
    "\0",
    "ü",
]
path_like = st.lists(st.sampled_from(PARTS), max_size=8).map("/".join) | st.text(max_size=30)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path_like, st.booleans(), st.sampled_from(list(Kind)), st.booleans())
def test_nothing_ever_leaves_the_roots(
    place: Home, links_of_a_stranger: None, text: str, must_exist: bool, kind: Kind, writing: bool
) -> None:
    links = {"link": place.root.parent / "outside", "up": place.root / "..", "config/up": Path("/")}
    for name, target in links.items():
        if not (place.root / name).is_symlink():
            (place.root / name).symlink_to(target)
    result = resolve(text, "output_dir", home=place, must_exist=must_exist, kind=kind, writing=writing)
    if isinstance(result, ResolvedPath):
        real = Path(os.path.realpath(result.path))
        assert real == result.path
        assert real.is_relative_to(place.root) or real.is_relative_to(place.roots[0])
        assert not real.is_relative_to(place.state)
        assert not must_exist or real.exists()
