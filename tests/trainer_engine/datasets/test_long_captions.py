"""Captions beyond the token limit of a model are counted in a note."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import options_with, tiny_model
from tests.helpers.pictures import captioned
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import specs
from trainer_engine.contract.errors import Level, Problem
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.long_captions import has_more_words

FAMILIES = sorted(specs())


def notes(place: Path, captions: list[str], **options: Any) -> list[Problem]:
    """What is said of the captions of images with these."""
    chosen = options_with(output_dir=str(place / "out"), **options)
    dataloader, problems = parse_dataloader(captioned(place, captions), chosen)
    report = examine(dataloader, chosen, specs()[chosen.model.model_family])
    return [problem for problem in (*problems, *report.problems) if problem.code == "captions_cut"]


@pytest.mark.parametrize("name", FAMILIES)
def test_captions_beyond_the_limit_of_a_family_are_counted(tmp_path: Path, name: str) -> None:
    limit = specs()[name].tokens_of(None)
    short, exact, long = "a cat", " ".join(["cat"] * limit), " ".join(["dog"] * (limit + 1))
    [note] = notes(tmp_path, [short, exact, long, f"{long} and more"], model_family=name)
    assert note.level is Level.NOTE and note.got == "2" and note.expected == f"{limit} tokens"
    assert f"at least 2 of 4 captions are longer than the {limit} tokens that {specs()[name].title} reads" in note.message
    assert "'dog dog" in note.hint
    (tmp_path / "pictures/2.txt").write_text(short)
    (tmp_path / "pictures/3.txt").write_text(exact)
    assert notes(tmp_path, [short, exact], model_family=name) == []


def test_the_limit_of_a_flavour_and_of_the_option_count(tmp_path: Path) -> None:
    long = " ".join(["cat"] * 300)
    assert notes(tmp_path, [long], model_family="flux", model_flavour="dev") == []
    assert notes(tmp_path, [long], model_family="flux", model_flavour="schnell")[0].expected == "256 tokens"
    assert notes(tmp_path, [long], model_family="flux", tokenizer_max_length=128)[0].expected == "128 tokens"
    assert notes(tmp_path, [long], model_family="sdxl", model_flavour=None)[0].expected == "77 tokens"


@pytest.mark.parametrize(("text", "most", "more"), [("a b c", 2, True), ("a b c", 3, False), ("abcdefgh", 1, False), ("", 0, False)])
def test_words_are_counted_between_spaces(text: str, most: int, more: bool) -> None:
    assert has_more_words(text, most) is more


@pytest.mark.parametrize("name", ["flux3", "krea2", "pixart_sigma", "sdxl", "sd3"])
def test_a_tokenizer_makes_no_fewer_tokens_than_words(name: str) -> None:
    """The note counts words, which is a bound from below only if this holds."""
    from transformers import AutoTokenizer

    text = "A cat, sitting on the mat: 3 dogs &c. - naïve façade 猫 на стуле ... !!! \t x"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(name) / "tokenizer")
    assert len(tokenizer(text, add_special_tokens=False).input_ids) >= len(text.split())
