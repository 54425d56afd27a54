"""Any value at any place of a document ends in an environment or in a named problem, never in another exception."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from environments.imports.documents import Document, ImportRefused, parse_document
from environments.imports.formats import translate
from environments.imports.vocabulary import _value
from environments.paths import Home
from tests.environments.imports.test_ai_toolkit import FLUX_LORA, KONTEXT_PAIRS
from tests.environments.imports.test_kohya import DATASETS, FLUX, LOKR
from tests.environments.imports.test_musubi import CLIPS, KONTEXT, PAIRS, WAN
from tests.environments.imports.test_onetrainer import FULL
from tests.environments.imports.test_onetrainer import LOKR as LOKR_OF_ONETRAINER

HOSTILE: tuple[Any, ...] = (
    *(None, True, 0, -1, 10**30, 1e308, float("nan"), float("inf"), "", " ", "x" * 5000, "\x1b[31m", "../../../etc/passwd", "1e999"),
    *([], {}, [[]], [{}], {"a": {"b": [1]}}, [None], ["x", 3], {1: 2}, "{model_family}", "a=b,c=d"),
)
DOCUMENTS: dict[str, list[Any]] = {
    "ai-toolkit": [parse_document(FLUX_LORA, "t.yaml").value],
    "ai-toolkit pairs": [parse_document(KONTEXT_PAIRS, "t.yaml").value],
    "kohya": [parse_document(text, "t.toml").value for text in (LOKR, DATASETS)],
    "kohya folders": [parse_document(FLUX, "t.toml").value],
    "musubi": [parse_document(text, "t.toml").value for text in (WAN, CLIPS)],
    "musubi pairs": [parse_document(text, "t.toml").value for text in (KONTEXT, PAIRS)],
    "onetrainer": [FULL],
    "onetrainer lokr": [LOKR_OF_ONETRAINER],
}
TRIES = 60


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in a document."""
    for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(part, (dict, list)):
            yield from places(part)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_hostile_value_is_taken_or_named(name: str, tmp_path: Path) -> None:
    chosen, count = random.Random(name), len(list(places(DOCUMENTS[name])))
    for _ in range(TRIES):
        values = copy.deepcopy(DOCUMENTS[name])
        container, key = list(places(values))[chosen.randrange(count)]
        container[key] = copy.deepcopy(chosen.choice(HOSTILE))
        try:
            documents = [Document(f"text{number}", value) for number, value in enumerate(values)]
            found = translate(documents, name="mine", home=Home(tmp_path), format_name=name.split()[0])
        except ImportRefused as refusal:
            assert refusal.problems
        else:
            assert all(text.isprintable() and len(text) < 400 for one in found.left_out for text in (one.name, one.value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["1" * 100_000 + "x", "," * 100_000 + "(", " " * 100_000, "(" + "1," * 50_000 + "1)", "a " * 50_000])
def test_a_long_text_is_read_in_time_that_grows_with_its_length(tmp_path: Path, text: str) -> None:
    """The matching of an expression keeps every other request waiting."""
    kohya, toolkit = copy.deepcopy(DOCUMENTS["kohya"]), copy.deepcopy(DOCUMENTS["ai-toolkit"])
    kohya[0] |= {"optimizer_args": [f"weight_decay={text}"], "network_args": [f"algo={text}"]}
    toolkit[0]["config"]["process"][0]["sample"] = {"prompts": [f"a{text}b"], "neg": text}
    begun = time.process_time()
    for name, values in (("kohya", kohya), ("ai-toolkit", toolkit)):
        documents = [Document(f"text{number}", value) for number, value in enumerate(values)]
        with suppress(ImportRefused):
            translate(documents, name="mine", home=Home(tmp_path), format_name=name)
    assert time.process_time() - begun < 10


def test_numbers_that_json_does_not_have_stay_text() -> None:
    assert _value("1e999") == "1e999" and _value("9" * 400) == "9" * 400
    assert [_value(text) for text in ("1.", ".5", "1e-4", "(1, 2)", "[0.9,0.99]", "0.9,0.99", "a", "(1)", "1,(2)")] == [
        *(1.0, 0.5, 1e-4, [1, 2], [0.9, 0.99], [0.9, 0.99], "a", "(1)", "1,(2)")
    ]
