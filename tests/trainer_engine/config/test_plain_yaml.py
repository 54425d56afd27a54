"""YAML of untrusted origin: plain values, and one kind of refusal for everything else."""

from __future__ import annotations

import time

import pytest

from trainer_engine.config.plain_yaml import DEEPEST, MOST_NODES, UnreadableYaml, parse_yaml


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


def test_values_are_counted_with_their_keys() -> None:
    assert parse_yaml("[1, 2, 3]", most_nodes=4) == [1, 2, 3]
    assert parse_yaml("{a: [1]}", most_nodes=4) == {"a": [1]}
    for text in ("[1, 2, 3]", "{a: 1}"):
        with pytest.raises(UnreadableYaml, match="too many values"):
            parse_yaml(text, most_nodes=2)


def test_levels_are_counted_in_blocks_as_in_brackets() -> None:
    deepest = "[" * (DEEPEST - 1) + "1" + "]" * (DEEPEST - 1)
    assert str(parse_yaml(deepest)) == deepest
    blocks = "".join(f"{'  ' * level}a:\n" for level in range(DEEPEST)) + "  " * DEEPEST + "b: 1\n"
    for text in (f"[[{deepest}]]", blocks):
        with pytest.raises(UnreadableYaml, match=f"nested deeper than {DEEPEST} levels"):
            parse_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 60 + "[]," * 43_000 + "]" * 60,
        "[" + "{a}," * 32_000 + "]",
        "[" * (DEEPEST - 2) + "{a}," * (MOST_NODES // 3 - DEEPEST) + "]" * (DEEPEST - 2),
        "[" * (DEEPEST - 2) + ("x\n" * 17 + ",") * 3_700 + "]" * (DEEPEST - 2),
        "a: 1" + ":59" * 40_000,
        "a: |\n" + "  x\n" * 30_000,
        "a:\n" + " b: \n" * 20_000,
    ],
    ids=["brackets", "objects", "as deep and many as are read", "long words", "a number", "a text", "keys"],
)
def test_the_worst_text_of_128_kib_takes_less_than_a_second(text: str) -> None:
    """A text of that size took 11 s: PyYAML looks at every open bracket for each word."""
    started = time.process_time()
    try:
        parse_yaml(text)
    except UnreadableYaml:
        pass
    assert time.process_time() - started < 1
