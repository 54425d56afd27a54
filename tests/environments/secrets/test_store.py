"""The secret store: nothing in it is lost to a broken file, a mode or a disk, and nothing leaves it unasked."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from environments.paths import Home
from environments.secrets import store
from trainer_engine.config.secrets import HIDDEN

TOKEN = '[{"webhook_type": "raw", "callback_url": "http://127.0.0.1:9/", "auth_token": "%s"}]'
OWNER = store.of_environment("demo")


@pytest.fixture
def place(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b'"text"', b"\xff\xfe", b"[" * 5000])
def test_a_broken_file_counts_as_empty_and_is_replaced_by_the_next_write(place: Home, content: bytes) -> None:
    path = OWNER.file(place)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert store.read(place, OWNER) == {}
    store.write(place, OWNER, {"hub_token": "word"})
    assert store.read(place, OWNER) == {"hub_token": "word"}


def test_folders_and_files_are_for_this_account_whatever_the_umask_and_older_modes(place: Home) -> None:
    (place.state / "secrets/environments").mkdir(parents=True)
    (place.state / "secrets").chmod(0o755)
    before = os.umask(0)
    try:
        store.write(place, OWNER, {"a": "b"})
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (OWNER.file(place), *OWNER.file(place).parents[:2])]
    assert [oct(mode) for mode in modes] == ["0o600", "0o700", "0o700"]


def test_owners_of_one_name_do_not_share(place: Home) -> None:
    for owner in (store.of_environment("x"), store.of_webhook("x"), store.of_job("x")):
        store.write(place, owner, {"a": owner.kind})
    assert store.read(place, store.of_webhook("x")) == {"a": "webhooks"}
    store.forget(place, store.of_webhook("x"))
    assert store.read(place, store.of_webhook("x")) == {} and store.read(place, store.of_job("x")) == {"a": "jobs"}


def test_writing_nothing_deletes_and_copying_nothing_deletes(place: Home) -> None:
    store.write(place, OWNER, {"a": "b"})
    store.copy(place, store.of_environment("empty"), OWNER)
    assert not OWNER.file(place).exists()
    store.forget(place, OWNER)
    store.forget(place, OWNER)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(word=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda text: text.strip() and text != HIDDEN))
def test_any_secret_is_hidden_kept_and_put_back(place: Home, word: str) -> None:
    values = {"webhook_config": json.dumps(json.loads(TOKEN % "x")).replace('"x"', json.dumps(word)), "seed": 3}
    hidden = store.keep_secrets(place, "demo", values)
    assert json.loads(hidden["webhook_config"])[0]["auth_token"] == HIDDEN and hidden["seed"] == 3
    full = store.with_secrets(place, "demo", hidden)
    assert json.loads(full["webhook_config"]) == json.loads(values["webhook_config"])
    assert store.keep_secrets(place, "demo", hidden) == hidden, "storing what is shown changes nothing"
    assert store.holds_the_same(place, "demo", hidden, values)


def test_another_secret_and_none_are_not_the_same(place: Home) -> None:
    values = {"webhook_config": TOKEN % "one"}
    hidden = store.keep_secrets(place, "demo", values)
    assert not store.holds_the_same(place, "demo", hidden, {"webhook_config": TOKEN % "two"})
    assert not store.holds_the_same(place, "demo", hidden, {})
    assert store.holds_the_same(place, "demo", hidden, {"webhook_config": json.dumps(json.loads(TOKEN % "one"), indent=4)})


def test_a_store_that_cannot_be_written_raises_and_keeps_the_old_secrets(place: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(place, OWNER, {"a": "old"})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        store.keep_secrets(place, "demo", {"webhook_config": TOKEN % "new"})
    assert store.read(place, OWNER) == {"a": "old"}
