"""Text files beside images whose captions come from elsewhere are not overlooked without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import options_with
from tests.helpers.pictures import captioned
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.contract.errors import Level, Problem
from trainer_engine.datasets.examine import examine


def found(place: Path, captions: list[str], **fields: Any) -> list[Problem]:
    """What is said of text files beside the images of a set."""
    options, spec = options_with(output_dir=str(place / "out")), find_spec("pixart_sigma")
    assert spec is not None
    images, *others = captioned(place, captions)
    dataloader, problems = parse_dataloader([images | fields, *others], options)
    report = examine(dataloader, options, spec)
    return [problem for problem in (*problems, *report.problems) if problem.code == "texts_overlooked"]


def test_captions_in_text_files_that_names_take_the_place_of_are_a_warning(tmp_path: Path) -> None:
    [warning] = found(tmp_path, ["a cat", "a dog"], caption_strategy="filename")
    assert warning.level is Level.WARNING and warning.hint == "set caption_strategy=textfile to take the captions from them"
    assert "caption_strategy=filename does not read the text files beside the images" in warning.message


def test_an_instance_prompt_in_their_place_is_chosen_and_a_note(tmp_path: Path) -> None:
    [note] = found(tmp_path, ["a cat"], caption_strategy="instanceprompt", instance_prompt="sks cat")
    assert note.level is Level.NOTE


@pytest.mark.parametrize("fields", [{"caption_strategy": "textfile"}, {}])
def test_text_files_that_are_read_are_not_mentioned(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert found(tmp_path, ["a cat", "a dog"], **fields) == []


def test_a_few_texts_among_many_images_are_notes_of_any_kind(tmp_path: Path) -> None:
    fields = {"caption_strategy": "filename"}
    assert found(tmp_path, ["a cat", "a dog", "a bird"], **fields)
    for name in ("0.txt", "1.txt"):
        (tmp_path / "pictures" / name).write_text("")
    assert found(tmp_path, [], **fields) == []
