"""YAML of untrusted origin: plain values, and one kind of refusal for everything else."""

from __future__ import annotations

import pytest

from trainer_engine.config.plain_yaml import UnreadableYaml, parse_yaml


def test_plain_values_are_read() -> None:
    assert parse_yaml("a: 1\nb: [x, {c: true}]\n") == {"a": 1, "b": ["x", {"c": True}]}


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: *x\n",
        "a: &x 1\n",
        "a: !!python/object/apply:os.system ['true']\n",
        "a: 1\na: 2\n",
        "a: [1\n",
        "a: b: c\n",
        "a: \x07\n",
        "!!timestamp x\n",
        "? [1]\n: 2\n",
    ],
)
def test_everything_else_is_refused_without_a_quote(text: str) -> None:
    with pytest.raises(UnreadableYaml) as caught:
        parse_yaml(f"secret_word: 1\n{text}" if not text.startswith(("!", "?")) else text)
    assert str(caught.value).startswith("not a plain YAML file") and "secret_word" not in str(caught.value)


def test_a_bomb_of_aliases_is_refused_before_it_expands() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(UnreadableYaml, match="line 1"):
        parse_yaml("\n".join(lines))
