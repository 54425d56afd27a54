"""Whatever JSON a user writes into an option, its parser answers with problems and never with an exception."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_engine.config import publishing
from trainer_engine.config.adapters.validation_adapter import parse_validation_adapter
from trainer_engine.config.lycoris.config_file import parse_lycoris
from trainer_engine.config.prompt_library import parse_prompt_library
from trainer_engine.config.publishing import parse_publishing
from trainer_engine.config.webhooks import parse_webhook_text
from trainer_engine.contract.errors import Problem

ODD = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        1.5,
        10**400,
        -(10**30),
        "",
        "x",
        "***",
        "\ud800",
        "\0",
        "a\nb",
        "{x",
        "x" * 3000,
        [],
        {},
        [1],
        {"a": 1},
        [[]],
    ]
    + ["http://u:p@h", "http://[", "https://h:99999", "http://h/?x#y", "1e999", "none", "s3", "raw", "discord", "lokr", "tlora"]
)
PUBLISHING = ("provider", "name", "base_path", *sorted({name for names in publishing.FIELDS.values() for name in names}), "other")
WEBHOOKS = ("webhook_type", "callback_url", "webhook_url", "log_level", "message_prefix", "body", "headers", "ssl_no_verify", "other")
LYCORIS = ("algo", "multiplier", "linear_dim", "linear_alpha", "factor", "full_matrix", "tlora_alpha", "conv_dim", "apply_preset", "other")
ADAPTERS = ("runs", "mode", "path", "name", "strength", "label", "adapters", "other")
LIBRARY = ("a cat", "", "x/y", "\ud800", "prompt", "adapter_strength", "other")


def documents(names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Objects with the fields of a document, some of them objects and lists themselves, and what is no object at all."""
    fields = st.sampled_from(names)
    inner = st.dictionaries(fields, ODD, max_size=5)
    whole = st.dictionaries(fields, ODD | inner | st.lists(inner, max_size=2), max_size=6)
    return whole | st.lists(whole, max_size=3) | ODD


def check(problems: list[Problem]) -> None:
    assert all(problem.option and problem.code and problem.message for problem in problems)


def publishing_targets(document: Any) -> None:
    targets, problems = parse_publishing(document)
    check(problems)
    assert all(target.key and target.label and target.as_dict() for target in targets)


PARSERS: dict[str, tuple[tuple[str, ...], Callable[[Any], None]]] = {
    "publishing_config": (PUBLISHING, publishing_targets),
    "webhook_config": (WEBHOOKS, lambda document: check(parse_webhook_text(json.dumps(document))[1])),
    "lycoris_config": (LYCORIS, lambda document: check(parse_lycoris(document, None, None)[1])),
    "validation_adapter_config": (ADAPTERS, lambda document: check(parse_validation_adapter(json.dumps(document))[1])),
    "user_prompt_library": (LIBRARY, lambda document: check(parse_prompt_library(json.dumps(document))[1])),
}


@pytest.mark.parametrize("option", PARSERS)
def test_no_document_breaks_the_parser_of_an_option(option: str) -> None:
    names, parse = PARSERS[option]

    @settings(deadline=None)
    @given(documents(names))
    def try_it(document: Any) -> None:
        parse(document)

    try_it()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "9" * 10_000, "\ufeff[]", "[1,]", "{'a': 1}", "NaN", '"\\ud800"', "\0"])
def test_no_text_breaks_the_parser_of_an_option(text: str) -> None:
    for parse in (parse_webhook_text, publishing.parse_publishing_text, parse_validation_adapter, parse_prompt_library):
        check(list(parse(text)[1]))


def test_a_strength_beyond_every_float_is_out_of_range() -> None:
    _, problems = parse_prompt_library('{"a": {"prompt": "a cat", "adapter_strength": ' + "9" * 400 + "}}")
    assert [problem.option for problem in problems] == ["user_prompt_library.a"]
