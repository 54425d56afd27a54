"""Secrets of JSON options: hidden, and found again where they belong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainer_engine.config.option import OptionGroup, OptionSpec, option, spec_of
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.options.secrets import for_engine, hidden_problems, hide_options, reveal_options, secrets_of
from trainer_engine.config.secrets import HIDDEN, hidden_address, hide, reveal, still_hidden

SPEC = REGISTRY["webhook_config"]
TOKEN, KEY = "hunter2", "swordfish"


class Publishing(OptionGroup):
    """Another option with secrets, as a part that uploads would declare it."""

    publishing: str = option("", "Where to.", json=True, secret=("secret_key", "token"), addresses=("endpoint_url",))


BUCKETS: OptionSpec = spec_of("publishing", "publishing", Publishing.model_fields["publishing"])


def raw(path: str = "one", **more: Any) -> dict[str, Any]:
    return {"webhook_type": "raw", "callback_url": f"https://example.com/{path}", "auth_token": TOKEN, **more}


def shown(document: Any, spec: OptionSpec = SPEC) -> Any:
    return json.loads(hide(spec, document))


def found(sent: Any, stored: Any, spec: OptionSpec = SPEC) -> Any:
    return json.loads(reveal(spec, sent, json.dumps(stored)))


def test_text_without_secrets_is_unchanged() -> None:
    text = '[ {"webhook_type":"raw",  "callback_url":"https://example.com/", "auth_token": ""} ]'
    assert hide(SPEC, text) == text
    assert secrets_of({"webhook_config": text, "seed": 7}) == {}


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("https://example.com/simpletuner", "https://example.com/simpletuner"),
        ("https://example.com:8443/a?token=x#y", "https://example.com:8443/a?***"),
        ("https://user:pass@example.com/a", "https://***@example.com/a"),
        ("https://discord.com/api/webhooks/1/x", "https://discord.com/***"),
        ("https://hooks.slack.com/services/T/B/x", "https://hooks.slack.com/***"),
        ("http://[::1]:9/a?b", "http://[::1]:9/a?***"),
        ("https://example.com", "https://example.com"),
        ("hunter2", "***"),
        ("https://[hunter2", "***"),
    ],
)
def test_of_an_address_the_passwords_are_hidden(url: str, seen: str) -> None:
    assert hidden_address(url) == seen


@pytest.mark.parametrize("text", [f'[{{"auth_token": "{TOKEN}"', f"https://discord.com/api/webhooks/1/{TOKEN}", f'{{"a": "{TOKEN}", }}'])
def test_unreadable_text_is_hidden_completely(text: str) -> None:
    assert hide(SPEC, text) == HIDDEN
    assert hide(SPEC, "config/webhooks.json") == "config/webhooks.json"


def test_odd_documents_are_no_trouble() -> None:
    deep = '{"a":' * 900 + f'{{"secret": "{TOKEN}"}}' + "}" * 900
    assert TOKEN not in hide(SPEC, deep)
    assert TOKEN not in hide(SPEC, "[" * 100_000 + TOKEN)
    halves = hide(SPEC, json.dumps([raw(template="\ud800")]))
    assert TOKEN not in halves
    halves.encode()
    assert hide(SPEC, "null") == "null" and reveal(SPEC, "[***]", "[]") == "[***]" and still_hidden(SPEC, "[***") == []


def test_a_hidden_document_is_revealed_as_it_was() -> None:
    for document in (raw(secret=KEY), [raw(), raw("two", auth_token=KEY)], [raw("three?key=" + KEY, nested={"secret": [KEY]})]):
        seen = shown(document)
        assert TOKEN not in json.dumps(seen) and KEY not in json.dumps(seen)
        assert found(seen, document) == document
        assert shown(found(seen, document)) == seen


def test_entries_find_their_own_secrets_wherever_they_stand() -> None:
    stored = [raw("one", auth_token="1"), raw("two", auth_token="2", log_level="debug"), raw("two", auth_token="3", log_level="error")]
    first, second, third = shown(stored)
    tokens = [entry["auth_token"] for entry in found([third, first], stored)]
    assert tokens == ["3", "1"]
    changed = found([{**second, "message_prefix": "lab"}], stored)
    assert changed[0]["auth_token"] == "2"
    new = raw("new", auth_token="4")
    assert [entry["auth_token"] for entry in found([new, *shown(stored)], stored)] == ["4", "1", "2", "3"]


def test_only_the_host_of_a_webhook_is_shown() -> None:
    stored = [raw(f"{KEY}?token={TOKEN}", webhook_type=kind, auth_token="") for kind in ("raw", "template")]
    seen = shown(stored)
    assert [entry["callback_url"] for entry in seen] == ["https://example.com/***"] * 2
    assert found(seen, stored) == stored and found(seen[1:], stored) == stored[1:]
    assert found([{**seen[0], "log_level": "error"}, seen[1]], stored)[0]["callback_url"] == stored[0]["callback_url"]
    assert still_hidden(SPEC, json.dumps([{**seen[0], "callback_url": "https://example.org/***"}])) == ["[0].callback_url"]


def test_entries_that_look_alike_keep_their_order_and_are_never_exchanged() -> None:
    stored = [raw("one", auth_token="1"), raw("two", auth_token="2"), raw("three", auth_token="3", log_level="error")]
    first, second, third = shown(stored)
    assert first == second
    assert found([first, second, third], stored) == stored
    assert found([third, first, second], stored) == [stored[2], stored[0], stored[1]]
    new = raw("new", auth_token="4")
    assert found([new, first, second, third], stored) == [new, *stored]
    assert found([second], stored) == [second], "which of the two is meant cannot be known"
    assert still_hidden(SPEC, json.dumps(found([second], stored)))
    assert found([first], [stored[0], stored[0]]) == stored[:1]


def test_a_secret_does_not_follow_to_another_machine() -> None:
    stored = [raw(), raw("hook?key=" + KEY)]
    moved = [{**shown(stored)[0], "callback_url": "https://evil.example/one"}]
    assert found(moved, stored) == moved
    assert still_hidden(SPEC, json.dumps(moved)) == ["[0].auth_token"]
    other_path = [{**shown(stored)[0], "callback_url": "https://example.com/elsewhere"}]
    assert found(other_path, stored)[0]["auth_token"] == TOKEN
    disguised = [{**shown(stored)[1], "callback_url": "https://evil.example/hook?***"}]
    assert found(disguised, stored) == disguised


@pytest.mark.parametrize(
    ("stored", "changes"),
    [
        ({"provider": "s3", "region": "eu", "access_key": KEY, "secret_key": KEY}, {"provider": "b2", "region": "evil"}),
        ({"provider": "s3", "access_key": KEY, "secret_key": KEY}, {"region": "evil"}),
        ({"type": "s3", "region_name": "eu", "session_token": KEY}, {"region_name": "evil"}),
        ({"provider": "s3", "request_headers": {"X-Key": KEY}}, {"use_ssl": False}),
        ({"provider": "s3", "request_headers": {"X-Key": KEY}}, {"profile": "evil"}),
        ({"provider": "azure", "account_name": "mine", "account_key": KEY}, {"account_name": "evil"}),
        ({"provider": "azure", "account_url": "https://mine.example", "account_key": KEY}, {"account_url": None, "account_name": "evil"}),
        ({"provider": "dropbox", "token": KEY}, {"provider": "azure"}),
    ],
)
def test_a_secret_does_not_follow_to_another_store(stored: dict[str, Any], changes: dict[str, Any]) -> None:
    stores = REGISTRY["publishing_config"]
    seen = shown([stored], stores)
    assert found(seen, [stored], stores) == [stored]
    assert found([{**seen[0], "base_path": "elsewhere", "name": "x"}], [stored], stores)[0].items() >= stored.items()
    moved = [{**seen[0], **changes}]
    assert found(moved, [stored], stores) == moved
    assert still_hidden(stores, json.dumps(moved))


def test_a_webhook_of_another_type_gets_no_secret() -> None:
    stored = [{"webhook_type": "discord", "webhook_url": f"https://discord.com/api/{TOKEN}"}]
    other = [{**shown(stored)[0], "webhook_type": "slack"}]
    assert found(other, stored) == other


def test_stars_without_a_stored_secret_are_a_problem() -> None:
    text = json.dumps([raw(), raw(auth_token=HIDDEN, callback_url="https://a.example/?***")])
    assert [(problem.option, problem.code) for problem in hidden_problems({"webhook_config": text})] == [
        ("webhook_config[1].callback_url", "hidden_value"),
        ("webhook_config[1].auth_token", "hidden_value"),
    ]
    assert reveal(SPEC, text, "") == text
    assert reveal(SPEC, text, "[broken") == text


def test_any_json_option_may_declare_secrets() -> None:
    stored = [
        {"provider": "s3", "bucket": "a", "access_key": "seen", "Secret-Key": KEY, "endpoint_url": "https://s3.example"},
        {"provider": "dropbox", "token": TOKEN},
    ]
    seen = shown(stored, BUCKETS)
    assert seen[0] == {**stored[0], "Secret-Key": HIDDEN}
    assert found(seen, stored, BUCKETS) == stored
    moved = [{**seen[0], "endpoint_url": "https://evil.example"}]
    assert found(moved, stored, BUCKETS) == moved


def test_options_are_known_by_any_spelling_and_others_left_alone() -> None:
    values = {"--webhook_config": [raw()], "--seed": 7, "publishing_config": "none"}
    hidden = hide_options(values)
    assert TOKEN not in json.dumps(hidden)
    assert {name: hidden[name] for name in ("--seed", "publishing_config")} == {"--seed": 7, "publishing_config": "none"}
    stored = secrets_of({"webhook_config": json.dumps([raw()])})
    assert json.loads(reveal_options(hidden, stored)["--webhook_config"]) == [raw()]


def test_an_engine_never_gets_webhooks() -> None:
    assert for_engine({"webhook_config": json.dumps([raw()]), "webhook targets": "[]"}) == {}


def test_an_address_as_older_versions_showed_it_is_still_understood() -> None:
    stored = [raw(f"hook?key={KEY}", auth_token="")]
    older = [{**stored[0], "callback_url": "https://example.com/hook?***"}]
    assert found(older, stored) == stored
    assert shown(older) == shown(stored) == [{**stored[0], "callback_url": "https://example.com/***"}]


@pytest.mark.parametrize("url", ["https://e.com/hunter2?***", "https://e.com/***?hunter2", "https://hunter2:***@e.com/***", "***hunter2"])
def test_stars_in_a_url_reveal_nothing_else_of_it(url: str) -> None:
    assert TOKEN not in hide(SPEC, [{"webhook_type": "raw", "callback_url": url}])
