"""Text files beside images whose captions come from elsewhere are not overlooked without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import options_with
from tests.helpers.pictures import captioned
from tests.helpers.samples import sample_of
from tests.trainer_engine.datasets.sources.test_local import within_home
from trainer_engine.config.datasets import ImageSet, parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.contract.errors import Level, Problem
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.overlooked_texts import overlooked_texts
from trainer_engine.datasets.sources.local import LocalSource


def found(place: Path, captions: list[str], **fields: Any) -> list[Problem]:
    """What is said of text files beside the images of a set; the default strategy unless one is given."""
    options, spec = options_with(output_dir=str(place / "out")), find_spec("pixart_sigma")
    assert spec is not None
    images, *others = captioned(place, captions)
    del images["caption_strategy"]
    dataloader, problems = parse_dataloader([images | fields, *others], options)
    report = examine(dataloader, options, spec)
    return [problem for problem in (*problems, *report.problems) if problem.code == "texts_overlooked"]


@pytest.mark.parametrize("fields", [{}, {"caption_strategy": "filename"}, {"instance_prompt": "sks", "prepend_instance_prompt": True}])
def test_captions_in_text_files_that_names_take_the_place_of_are_a_warning(tmp_path: Path, fields: dict[str, Any]) -> None:
    [warning] = found(tmp_path, ["a cat", "a dog"], **fields)
    assert warning.level is Level.WARNING and warning.hint == "set caption_strategy=textfile to take the captions from them"
    assert "caption_strategy=filename does not read the text files beside its files" in warning.message


def test_a_prompt_in_their_place_is_chosen_and_a_note(tmp_path: Path) -> None:
    [note] = found(tmp_path, ["a cat"], caption_strategy="instanceprompt", instance_prompt="sks cat")
    assert note.level is Level.NOTE
    [note] = found(tmp_path, ["a cat"], caption_strategy="textfile", only_instance_prompt=True, instance_prompt="sks cat")
    assert note.level is Level.NOTE and note.option.endswith("only_instance_prompt") and "remove only_instance_prompt" in note.hint


def test_text_files_that_are_read_are_not_mentioned(tmp_path: Path) -> None:
    assert found(tmp_path, ["a cat", "a dog"], caption_strategy="textfile") == []


def test_a_few_texts_among_many_images_are_notes_of_any_kind(tmp_path: Path) -> None:
    captions = [f"cat {number}" for number in range(47)]
    [warning] = found(tmp_path, captions)
    assert "left out" not in warning.hint
    texts = sorted((tmp_path / "pictures").glob("*.txt"), key=lambda path: path.with_suffix(".png").name)
    for path in texts[:20]:
        path.write_text(" \n")
    [warning] = found(tmp_path, [])
    assert "files without one are left out then" in warning.hint
    for path in texts[20:40]:
        path.unlink()
        path.mkdir()
    assert found(tmp_path, []) == []


def test_a_link_is_followed_only_where_captions_may_be_read(tmp_path: Path) -> None:
    images, *_ = captioned(tmp_path, ["a cat"])
    place, state = Path(images["instance_data_dir"]), tmp_path / "state"
    state.mkdir()
    (place / "0.txt").rename(state / "secret")
    (place / "0.txt").symlink_to(state / "secret")
    entry = ImageSet.model_validate({"position": 0, "id": "set", "instance_data_dir": str(place)})
    source, samples = LocalSource(str(place)), [sample_of(place / "0.png")]
    assert overlooked_texts(entry, source, samples) is not None, "without a rule every place is open"
    assert overlooked_texts(entry, source.within(within_home(tmp_path)), samples) is None


def test_a_source_that_is_slow_is_asked_for_nothing(tmp_path: Path) -> None:
    class Slow(LocalSource):
        is_quick = False

        def read_small(self, name: str, largest: int) -> bytes:
            raise AssertionError(name)

    images, *_ = captioned(tmp_path, ["a cat"])
    place = images["instance_data_dir"]
    entry = ImageSet.model_validate({"position": 0, "id": "set", "instance_data_dir": place})
    assert overlooked_texts(entry, Slow(place), [sample_of(Path(place) / "0.png")]) is None
