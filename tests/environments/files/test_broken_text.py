"""Files that cannot be read, in the history: nothing of a secret may be left in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from environments.files.broken_text import FIELD, without_secrets_in_text

SECRET = "canary"
STORE = {
    "provider": "s3",
    "bucket": "trained",
    "access_key": f"{SECRET}-[",
    "request_headers": {"X-One": f"{SECRET}}}]", "X-Two": f'"{SECRET}\\'},
    "endpoint_url": "https://s3.example/",
}
TARGET = {"webhook_type": "raw", "auth_token": f'{SECRET}"', "n": 1, "callback_url": f"https://example.com/{SECRET}?x=1"}


def documents() -> Iterator[str]:
    plain: Any = {"--seed": 7, "--publishing_config": [STORE], "--webhook_config": [TARGET], "--output_dir": "out"}
    yield json.dumps(plain)
    yield json.dumps(plain, indent=2)
    within = {**plain, "--publishing_config": json.dumps([STORE]), "--webhook_config": json.dumps([TARGET])}
    yield json.dumps(within)
    yield json.dumps({"--seed": 7, "config": json.dumps(within)})


@pytest.mark.parametrize("text", list(documents()), ids=["lists", "indented", "in strings", "in strings of a string"])
def test_whatever_is_broken_no_secret_is_left(text: str) -> None:
    """Cut off at each place, and with each character left out or doubled, but for those of the fields' names."""
    names = {place for found in FIELD.finditer(text) for place in range(*found.span()) if text[place].isalpha() or text[place] == "_"}
    for place in range(len(text)):
        broken = [text[:place]]
        broken += [text[:place] + text[place] + text[place:], text[:place] + text[place + 1 :]] if place not in names else []
        for one in broken:
            assert SECRET not in (without_secrets_in_text(one) or ""), (place, one)


@pytest.mark.parametrize("text", list(documents()), ids=["lists", "indented", "in strings", "in strings of a string"])
def test_cleaning_keeps_everything_but_secrets(text: str) -> None:
    text = re.sub(r"(?:, *|,\s*)\\*.request_headers.*?}\]?[^}]*?}", "", text, flags=re.DOTALL)
    cleaned = without_secrets_in_text(text) or ""
    for word in ("--seed", "trained", "https://s3.example/", "raw"):
        assert word in cleaned
    assert cleaned.count("***") == 3
    json.loads(cleaned)


@pytest.mark.parametrize(
    "line",
    [
        "auth_token: canary of two words, and more",
        "'secret': 'canary'",
        '"Auth-Token" : "canary"',
        '"token": canary-without-quotes',
        '"secret": ["canary", {"x": ["canary"]}, "canary"]',
        "secret = canary",
        "callback_url: https://user:canary@example.com/?canary",
    ],
)
def test_secrets_are_cleaned_in_any_notation(line: str) -> None:
    cleaned = without_secrets_in_text(f"seed: 7\n{line}\n")
    assert cleaned and SECRET not in cleaned and "seed: 7" in cleaned


def test_plain_values_end_where_they_do() -> None:
    text = '{"token": null, "secret": 12, "seed": 7}'
    assert without_secrets_in_text(text) == '{"token": "***", "secret": "***", "seed": 7}'
    assert without_secrets_in_text(None) is None


RUNS = {
    "spaces after a name": "token" + " " * 2_000_000,
    "backslashes after a name": "token" + "\\" * 2_000_000,
    "backslashes in a value": "token='" + "\\" * 2_000_000,
    "letters": "a" * 4_000_000,
    "digits": "token=-" + "1e" * 2_000_000,
    "quotes": "token='" + "\\'" * 1_000_000,
    "names": "token" * 800_000,
    "addresses": "http://" * 500_000,
}


@pytest.mark.parametrize("text", RUNS.values(), ids=RUNS)
def test_megabytes_of_one_character_are_read_in_linear_time(text: str) -> None:
    """A pattern that goes back over a run would take hours here, and hold the whole process."""
    assert without_secrets_in_text(text) is not None
