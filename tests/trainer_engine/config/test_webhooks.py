"""What ``webhook_config`` may hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainer_engine.config.options.secrets import hide_options
from trainer_engine.config.parse import check_options
from trainer_engine.config.secrets import HIDDEN
from trainer_engine.config.webhooks import WebhookTarget, is_json_template, parse_webhook_text, parse_webhooks

RAW = {"webhook_type": "raw", "callback_url": "https://example.com/simpletuner", "log_level": "info", "ssl_no_verify": False}
SECRETS = {"auth_token": "hunter2", "secret": "swordfish"}


def test_the_users_own_configuration_is_right() -> None:
    targets, problems = parse_webhook_text(json.dumps([RAW]))
    assert problems == []
    assert targets == [WebhookTarget(kind="raw", url="https://example.com/simpletuner")]


def test_a_single_webhook_is_a_list_of_one() -> None:
    discord = {"webhook_type": "Discord", "webhook_url": "https://discord.com/api/webhooks/1/x", "message_prefix": "lab"}
    (target,), problems = parse_webhooks(discord)
    assert problems == []
    assert (target.kind, target.message_prefix) == ("discord", "lab")


@pytest.mark.parametrize(
    ("change", "option", "code"),
    [
        ({"webhook_type": "carrier pigeon"}, "webhook_type", "not_a_choice"),
        ({"webhook_type": None}, "webhook_type", "not_a_choice"),
        ({"callback_url": ""}, "callback_url", "missing"),
        ({"callback_url": "ftp://example.com"}, "callback_url", "not_an_address"),
        ({"callback_url": "https://"}, "callback_url", "not_an_address"),
        ({"callback_url": "https://exa mple.com"}, "callback_url", "not_an_address"),
        ({"callback_url": "https://example.com:99999"}, "callback_url", "not_an_address"),
        ({"callback_url": ["https://example.com"]}, "callback_url", "not_an_address"),
        ({"log_level": "loud"}, "log_level", "not_a_choice"),
        ({"ssl_no_verify": "perhaps"}, "ssl_no_verify", "not_a_boolean"),
        ({"auth_token": "two\nlines"}, "auth_token", "not_text"),
        ({"auth_token": "spaced "}, "auth_token", "not_text"),
        ({"secret": 7}, "secret", "not_text"),
        ({"calback_url": "x"}, "calback_url", "unknown_field"),
        ({"webhook_type": "template", "template": "{title} {nope}"}, "template", "unknown_placeholder"),
        ({"webhook_type": "template", "template": "{title"}, "template", "not_a_template"),
        ({"webhook_type": "template"}, "template", "missing"),
        ({"webhook_type": "template", "template": "{title:>9999999999}"}, "template", "unknown_placeholder"),
        ({"webhook_type": "template", "template": "{title!r} {title.__class__}"}, "template", "unknown_placeholder"),
        ({"webhook_type": "template", "template": "\ud800"}, "template", "missing"),
        ({"auth_token": "naïve"}, "auth_token", "not_text"),
    ],
)
def test_a_problem_of_a_webhook_names_its_field(change: dict[str, Any], option: str, code: str) -> None:
    targets, problems = parse_webhooks([{**RAW, **change}])
    assert not targets
    assert (f"webhook_config[0].{option}", code) in [(problem.option, problem.code) for problem in problems]


def test_the_parser_reports_all_problems_of_webhooks_at_once() -> None:
    _, problems = parse_webhooks([{**RAW, "log_level": "loud", "callback_url": "nowhere"}, {"webhook_type": "discord"}])
    assert [problem.option for problem in problems] == [
        "webhook_config[0].callback_url",
        "webhook_config[0].log_level",
        "webhook_config[1].webhook_url",
    ]


@pytest.mark.parametrize("text", ["[", "[1]", '"x"', "[" * 100_000])
def test_text_that_holds_no_targets_is_refused(text: str) -> None:
    targets, problems = parse_webhook_text(text)
    assert not targets
    assert problems[0].option == "webhook_config"


@pytest.mark.parametrize(
    ("level", "posted"),
    [
        ("debug", {"debug", "info", "warning", "error"}),
        ("info", {"info", "warning", "error"}),
        ("warning", {"warning", "error"}),
        ("critical", {"error"}),
    ],
)
def test_a_webhook_gets_events_of_its_level_and_above(level: str, posted: set[str]) -> None:
    (target,), _ = parse_webhooks({**RAW, "log_level": level})
    assert {severity for severity in ("debug", "info", "warning", "error") if target.wants(severity)} == posted


def test_secrets_of_webhooks_are_never_shown() -> None:
    discord = {"webhook_type": "discord", "webhook_url": "https://discord.com/api/webhooks/1/hunter2"}
    targets, _ = parse_webhooks([{**RAW, **SECRETS}, discord])
    shown = json.dumps([target.shown() for target in targets])
    assert "hunter2" not in shown
    assert "swordfish" not in shown
    hidden = json.dumps(hide_options({"--webhook_config": json.dumps([{**RAW, **SECRETS}, discord]), "--seed": 7}))
    assert "hunter2" not in hidden
    assert "swordfish" not in hidden
    assert HIDDEN in hidden


def test_json_is_taken_as_text_and_as_json() -> None:
    given = {"model_family": "pixart_sigma", "model_type": "full", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}
    for value in ([RAW], json.dumps([RAW])):
        options, problems = check_options({**given, "webhook_config": value})
        assert options is not None, problems
        assert json.loads(options.hooks.webhook_config) == [RAW]


@pytest.mark.parametrize(
    ("template", "is_json"),
    [
        ('{{"text": "{title}", "n": {index}}}', True),
        ('[{{"text": "{title}"}}]', True),
        ("[{severity}] {title}", False),
        ("{title}", False),
        ("{index}", False),
        ('{{"text": {title}}}', False),
    ],
)
def test_a_template_is_json_where_what_it_becomes_is(template: str, is_json: bool) -> None:
    assert is_json_template(template) is is_json
    target = {"webhook_type": "template", "callback_url": "https://example.com", "template": template}
    reported = [problem.code for problem in parse_webhooks(target)[1]]
    assert reported == ([] if is_json or not template.startswith("{{") else ["not_json"])


def test_an_address_alone_is_explained_and_not_repeated() -> None:
    given = {"model_family": "pixart_sigma", "model_type": "full", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}
    _, problems = check_options({**given, "webhook_config": "https://discord.com/api/webhooks/1/hunter2"})
    assert [problem.option for problem in problems if problem.code == "not_json"] == ["webhook_config"]
    assert "hunter2" not in str([problem.as_dict() for problem in problems])
