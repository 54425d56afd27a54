"""What a message repeats of a value is short and holds no password."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_engine.contract.errors import LONGEST_TEXTS, MOST_PROBLEMS, CheckpointUnusable, InvalidOptions, ModelUnavailable, Problem
from trainer_engine.contract.messages import MOST_ASKED, Suggestions, without_passwords
from trainer_engine.publishing.base import ProviderError

PASSWORD = "hunter2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://u:hunter2@h/x", "http://***@h/x"),
        ("HTTPS://hunter2@h:81", "HTTPS://***@h:81"),
        ("s3://u:hunter2@bucket/a", "s3://***@bucket/a"),
        ("http://u:hun@hunter2@h/x", "http://***@h/x"),
        ("http://u:/hunter2@h/x", "http://***@h/x"),
        ("http://u:hunter2/more@h/x", "http://***@h/x"),
        ("/home/me/http:/u:hunter2@h/x", "/home/me/http:/***@h/x"),
        ("//u:hunter2@h/x", "//***@h/x"),
        ("There is no checkpoint u:hunter2@h in /out.", "There is no checkpoint ***@h in /out."),
        ("http:\\\\u:hunter2@h", "http:\\\\***@h"),
        ("'http://u:hunter2@h' and http://hunter2@h", "'http://***@h' and http://***@h"),
        ("https://h/x?token=hunter2&v=1", "https://h/x?token=***&v=1"),
        ("https://h/x?X-Amz-Signature=hunter2", "https://h/x?X-Amz-Signature=***"),
        ("https://h/x#access_token=hunter2", "https://h/x#access_token=***"),
    ],
)
def test_credentials_in_an_address_are_hidden(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "/data/me@work/x",
        "me@host",
        "https://h:8000/a@b",
        "owner/name@main",
        "owner/name:file.safetensors",
        "10:30",
        "https://h/x?v=1",
        "C:/a/b@c",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert without_passwords(text) == text


def test_a_problem_repeats_neither_passwords_nor_long_texts() -> None:
    address = f"http://u:{PASSWORD}@h/x"
    problem = Problem.error(address, "wrong", f"{address} is wrong: {'x' * 10_000}", got=address, expected=address, hint=address)
    assert PASSWORD not in str(problem.as_dict()) and PASSWORD not in str(problem)
    assert all(len(getattr(problem, name)) < longest + 40 for name, longest in LONGEST_TEXTS.items())
    long = Problem.error("x", "wrong", "wrong", got=f"http://u:{PASSWORD * 40}@h/x")
    assert PASSWORD not in long.got, "a password that is cut off before its host shows is no address any more"


def test_an_error_of_the_engine_repeats_no_password() -> None:
    assert PASSWORD not in str(ModelUnavailable(f"http://u:{PASSWORD}@h is no folder", hint=f"look at http://u:{PASSWORD}@h"))
    many = InvalidOptions([Problem.error(f"option_{n}", "wrong", "It is wrong.") for n in range(1000)])
    assert len(many.message) < 2000 and "81 more" in many.message and len(many.problems) == MOST_PROBLEMS + 1


def test_an_error_of_the_engine_quotes_little_of_a_foreign_file() -> None:
    for error in (CheckpointUnusable("x" * 10_000_000, hint="y" * 10_000_000), ProviderError("x" * 10_000_000)):
        assert len(str(error)) < 5000 and len(error.message) < 5000 and len(error.hint) < 5000


@pytest.mark.parametrize("before", ["", "see ", "x,", "path=", '"'])
def test_the_cut_end_of_a_long_text_shows_no_part_of_a_password(before: str) -> None:
    """Hidden passwords make the text shorter, so its cut end comes into view."""
    address = f"{before}http://u:{PASSWORD * 25}@h "
    for text in (address * 40, f"{before}http://u:{PASSWORD * 1000}@h"):
        error = Problem.error("x", "wrong", text, got=text, expected=text, hint=text)
        assert PASSWORD not in str(error.as_dict())
    assert Problem.error("x", "wrong", "m", got="/data/" + "a/" * 4000).got.startswith("/data/a/a/a/")


@given(
    st.sampled_from(["http", "HTTPS", "s3", "socks5h"]),
    st.text("abcXYZ0189-._~%", max_size=12),
    st.text("abcXYZ0189-._~%!$&*+;=:", min_size=1, max_size=40),
    st.sampled_from(["", "see ", "(", "'", "url="]),
    st.sampled_from(["/", ":8080/a", "", "/a?b=c", " and more"]),
)
def test_no_password_of_an_address_is_shown(scheme: str, user: str, password: str, before: str, after: str) -> None:
    secret = f"Sec{password}ret"
    shown = without_passwords(f"{before}{scheme}://{user}:{secret}@example.com{after}")
    assert secret not in shown and "example.com" in shown
    assert without_passwords(shown) == shown, "a second pass changes nothing"


def test_only_the_first_unknown_names_get_suggestions() -> None:
    suggestions = Suggestions()
    found = [suggestions.nearest("sed", ["seed"], otherwise="see the docs", form="--{}") for _ in range(MOST_ASKED + 1)]
    assert found == ["did you mean --seed?"] * MOST_ASKED + ["see the docs"]
    assert Suggestions().nearest("s" * 1000, ["s" * 1000], otherwise="none") == "none"


def test_a_hostile_text_is_searched_in_linear_time() -> None:
    """Each of these is quadratic or worse for a pattern that looks ahead without a limit."""
    for piece in ("://a:b", "//", "a:/", "?key", "&token=", "://", "a" * 6):
        assert len(Problem.error("x", "wrong", "m", got=piece * 500_000).got) < 300
