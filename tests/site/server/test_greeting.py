"""What the terminal says when a server starts and ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from simpletuner_site.security.token import BadToken, read_token
from simpletuner_site.server import greeting
from simpletuner_site.server.greeting import ChosenToken, local_url, print_address, report_runs_that_go_on, shown_host
from training.models import Job, Status

TOKEN = "correct-horse-battery-staple"


def test_a_token_comes_from_the_flag_else_from_the_variable_else_from_the_disk(tmp_path: Path) -> None:
    assert ChosenToken.of(None, "", generate=False) is None
    assert ChosenToken.of(TOKEN, "", generate=False) == ChosenToken(TOKEN)
    assert ChosenToken.of(TOKEN, "another-token-0123456789", generate=False) == ChosenToken(TOKEN)
    assert ChosenToken.of(None, TOKEN, generate=False) == ChosenToken(TOKEN)
    assert ChosenToken.of("", TOKEN, generate=False) == ChosenToken(TOKEN)
    assert ChosenToken.of("", "", generate=False) == ChosenToken()
    made = ChosenToken.of(TOKEN, TOKEN, generate=True)
    assert made is not None and made.is_new and made.text not in ("", TOKEN)
    with pytest.raises(BadToken):
        ChosenToken.of("short", "", generate=False)


def test_a_token_is_stored_and_a_missing_one_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BadToken, match="--generate-token"):
        ChosenToken().keep(tmp_path)
    ChosenToken(TOKEN).keep(tmp_path)
    ChosenToken().keep(tmp_path)
    assert read_token(tmp_path).matches(TOKEN)


@pytest.mark.parametrize(
    ("address", "shown"), [("127.0.0.1", "localhost"), ("127.0.0.2", "127.0.0.2"), ("::1", "[::1]"), ("10.0.0.7", "10.0.0.7")]
)
def test_a_link_names_the_host_that_was_bound(address: str, shown: str) -> None:
    assert shown_host(address) == shown and local_url(address, 8001) == f"http://{shown}:8001"


def test_a_link_to_every_address_names_the_one_that_others_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "_outward_address", lambda: "10.0.0.7")
    assert shown_host("0.0.0.0") == "10.0.0.7"
    assert local_url("0.0.0.0", 8001) == "http://localhost:8001" and local_url("::", 8001) == "http://[::1]:8001"
    monkeypatch.setattr(greeting, "_outward_address", lambda: "")
    assert shown_host("::") == "localhost", "a machine without a network"


def test_a_plain_start_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_address("127.0.0.1", 8001, None)
    [line] = capsys.readouterr().err.splitlines()
    assert "http://localhost:8001" in line and "/docs" in line


def test_only_a_new_token_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_address("10.0.0.7", 8001, ChosenToken(TOKEN, is_new=True))
    printed = capsys.readouterr().err
    assert f"http://10.0.0.7:8001/login#token={TOKEN}" in printed and "not encrypted" in printed
    for token in (ChosenToken(TOKEN), ChosenToken()):
        print_address("127.0.0.1", 8001, token)
        printed = capsys.readouterr().err
        assert TOKEN not in printed and "need the token" in printed and "not encrypted" not in printed


@pytest.mark.django_db
def test_the_end_of_a_server_names_the_runs_that_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    report_runs_that_go_on()
    assert capsys.readouterr().err == ""
    for number, status in enumerate((Status.RUNNING, Status.COMPLETED, Status.QUEUED, Status.STARTING), start=1):
        Job.objects.create(number=number, status=status)
    report_runs_that_go_on()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" goes on")[0] for line in lines] == ["Run 1", "Run 4"] and "simpletuner stop 4" in lines[1]
