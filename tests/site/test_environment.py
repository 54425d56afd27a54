"""What the process environment may say, and what is made of it."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from simpletuner_site.environment import BadEnvironment, read_command_environment, read_environment
from simpletuner_site.security.secret_key import load_secret_key
from tests.helpers.live_server import REPOSITORY


def test_an_empty_environment_serves_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = read_environment({})
    assert found.home == tmp_path
    assert (found.slots, found.allowed_hosts, found.database_url, found.redis_url, found.log_level) == (1, (), "", "", "INFO")


def test_every_variable_is_read(tmp_path: Path) -> None:
    found = read_environment(
        {
            "SIMPLETUNER_HOME": str(tmp_path),
            "SIMPLETUNER_SLOTS": "3",
            "SIMPLETUNER_ALLOWED_HOSTS": "GPU-box, other:8001 ,",
            "SIMPLETUNER_SECRET_KEY": "k" * 60,
            "SIMPLETUNER_LOG_LEVEL": "debug",
            "DATABASE_URL": "postgres://db/simpletuner",
            "REDIS_URL": "redis://cache",
            "SIMPLETUNER_ROOTS": "/srv/data:/scratch/me",
            "HF_HOME": "/models/hf",
            "HF_HUB_CACHE": "/models/hub",
            "SIMPLETUNER_HOOKS": "/opt/hooks: /srv/more hooks:",
            "SIMPLETUNER_HOOKS_ENV": "REPLICATE_API_TOKEN, WAVESPEED_API_KEY",
            "SIMPLETUNER_ALLOW_SCRIPTS": "1",
            "SIMPLETUNER_NEEDS_TOKEN": "1",
        }
    )
    assert found.home == tmp_path
    assert found.slots == 3
    assert found.allowed_hosts == ("gpu-box", "other:8001")
    assert found.secret_key == "k" * 60
    assert found.log_level == "DEBUG"
    assert found.database_url == "postgres://db/simpletuner"
    assert found.redis_url == "redis://cache"
    assert found.roots == (Path("/srv/data"), Path("/scratch/me"))
    assert found.hub_folders == (Path("/models/hf"), Path("/models/hub"))
    assert found.hooks == (Path("/opt/hooks"), Path("/srv/more hooks"))
    assert found.hooks_env == ("REPLICATE_API_TOKEN", "WAVESPEED_API_KEY")
    assert found.allow_scripts is True
    assert found.needs_token is True


def test_the_commands_read_server_token_and_editor(tmp_path: Path) -> None:
    home = {"SIMPLETUNER_HOME": str(tmp_path)}
    plain = read_command_environment(home)
    assert (plain.home, plain.url, plain.token, plain.editor) == (tmp_path, "", "", "vi")
    given = {"SIMPLETUNER_URL": "http://box:8001", "SIMPLETUNER_TOKEN": "t", "EDITOR": "nano", "VISUAL": "code -w", "HF_HUB_OFFLINE": "1"}
    found = read_command_environment({**home, **given, "SIMPLETUNER_SLOTS": "many", "DATABASE_URL": "postgres://db"})
    assert (found.url, found.token, found.editor) == ("http://box:8001", "t", "code -w")
    assert found.hub_is_offline and found.has_database_url


@pytest.mark.parametrize("text", ["0", "-1", "65", "two", "1.5", "²"])
def test_slots_that_cannot_be_meant_are_refused_by_name(text: str) -> None:
    with pytest.raises(BadEnvironment, match="SIMPLETUNER_SLOTS"):
        read_environment({"SIMPLETUNER_SLOTS": text})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SIMPLETUNER_ROOTS", "data"),
        ("SIMPLETUNER_ROOTS", "/"),
        ("SIMPLETUNER_ROOTS", "/proc/self/root"),
        ("SIMPLETUNER_HOOKS", "hooks"),
        ("SIMPLETUNER_HOOKS", "/"),
        ("SIMPLETUNER_ROOTS", "~nobody-of-that-name/data"),
        ("SIMPLETUNER_HOME", "~nobody-of-that-name"),
        ("HF_HOME", "~nobody-of-that-name"),
        ("SIMPLETUNER_SLOTS", "9" * 5000),
        ("SIMPLETUNER_SLOTS", "٣"),
        ("SIMPLETUNER_HOOKS_ENV", "A=1"),
        ("SIMPLETUNER_ALLOW_SCRIPTS", "yes"),
        ("SIMPLETUNER_NEEDS_TOKEN", "maybe"),
    ],
)
def test_a_rule_about_scripts_or_folders_that_cannot_be_meant_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(BadEnvironment, match=name):
        read_environment({name: text})


def test_an_unknown_log_level_is_refused_by_name() -> None:
    with pytest.raises(BadEnvironment, match="SIMPLETUNER_LOG_LEVEL"):
        read_environment({"SIMPLETUNER_LOG_LEVEL": "loud"})


def test_a_relative_home_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_environment({"SIMPLETUNER_HOME": "here"}).home == tmp_path / "here"


def test_the_secret_key_is_made_once_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    first = load_secret_key(tmp_path / "state")
    assert len(first) >= 48
    assert load_secret_key(tmp_path / "state") == first
    assert stat.S_IMODE((tmp_path / "state/secret_key").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["secret_key"]


def test_two_homes_have_two_keys(tmp_path: Path) -> None:
    assert load_secret_key(tmp_path / "a") != load_secret_key(tmp_path / "b")


def test_processes_that_start_at_once_end_with_one_key(tmp_path: Path) -> None:
    imported = "from pathlib import Path; from simpletuner_site.security.secret_key import load_secret_key"
    program = f"{imported}; print(load_secret_key(Path({str(tmp_path)!r})))"
    started = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=REPOSITORY) for _ in range(6)]
    keys = {process.communicate()[0] for process in started}
    assert len(keys) == 1
    assert keys != {b""}


def test_a_key_that_was_cut_short_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "secret_key").write_text("short")
    with pytest.raises(ValueError, match="delete it"):
        load_secret_key(tmp_path)


def test_the_database_is_set_up_for_several_writers() -> None:
    options = settings.SQLITE["OPTIONS"]
    assert options["transaction_mode"] == "IMMEDIATE"
    assert "journal_mode=WAL" in options["init_command"]
    assert "synchronous=NORMAL" in options["init_command"]
    assert options["timeout"] >= 20


def test_mistakes_are_never_shown_as_tracebacks() -> None:
    assert settings.DEBUG is False
    assert "*" not in settings.ALLOWED_HOSTS


def test_limits_of_runs_are_read_and_refused_by_name() -> None:
    found = read_environment({"SIMPLETUNER_DOWNLOAD_GB": "1.5", "SIMPLETUNER_MACHINES": "10.0.0.0/24, trainer-1"})
    assert (found.download_bytes, found.machines) == (1_500_000_000, ("10.0.0.0/24", "trainer-1"))
    assert (read_environment({}).download_bytes, read_environment({}).machines) == (500_000_000_000, ())
    for name, text in {"SIMPLETUNER_DOWNLOAD_GB": "-1", "SIMPLETUNER_MACHINES": "10.0.0.0/99"}.items():
        with pytest.raises(BadEnvironment, match=name):
            read_environment({name: text})
