"""Captions and validation prompts beyond the token limit, counted with the tokenizer of the base model where it is on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from environments.limited_process import Limits
from tests.helpers.checked_runs import checked
from tests.helpers.models import tiny_model, tokenizer_in
from tests.helpers.pictures import captioned
from tests.training.preflight.test_model_parts import FAMILIES, every_family, model
from trainer_engine.config.families import specs
from trainer_engine.contract.errors import Problem
from training.preflight.count_tokens import MERGES, TOKENIZER, VOCABULARY, count_tokens, tokens_in

TEXTS = ["", "a red circle", "It's 12 o'clock;  naïve FAÇADE\n猫 на стуле ... !!! \t x", "unpronounceable " * 9, "🙂 ok"]
LETTERS = " ".join("abcdefghijklmnopqrstuvwxyz") + " "


def folder_of(family: str) -> Path:
    return tiny_model(family) / specs()[family].prompts.counting_folder


@every_family
def test_tokens_are_those_that_the_engine_makes(name: str) -> None:
    theirs, plain = tokenizer_in(folder_of(name)), [" ".join(text.split()) for text in TEXTS]
    ours = tokens_in(folder_of(name), TEXTS)
    assert ours == tokens_in(folder_of(name), plain) == [len(ids) for ids in theirs(plain).input_ids]
    assert all(count <= len(ids) for count, ids in zip(ours, theirs(TEXTS).input_ids, strict=True)), "never more than are cut off"


def clip_in_two_files(place: Path) -> Path:
    """The tokenizer of CLIP as older repositories have it."""
    document = json.loads((folder_of("sdxl") / TOKENIZER).read_text())["model"]
    place.mkdir()
    (place / VOCABULARY).write_text(json.dumps(document["vocab"]))
    pairs = (merge if isinstance(merge, str) else " ".join(merge) for merge in document["merges"])
    (place / MERGES).write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in pairs))
    return place


def test_the_two_files_of_clip_give_the_tokens_of_its_tokenizer(tmp_path: Path) -> None:
    place = clip_in_two_files(tmp_path / "tokenizer")
    assert tokens_in(place, TEXTS) == tokens_in(folder_of("sdxl"), TEXTS)
    vocabulary = json.loads((place / VOCABULARY).read_text())
    (place / VOCABULARY).write_text(json.dumps({word: number for word, number in vocabulary.items() if "</w>" not in word}))
    assert tokens_in(place, TEXTS) is None, "another tokenizer in two files"


READ_LAST_BY_T5 = [name for name in FAMILIES if specs()[name].prompts.t5_folder in specs()[name].prompts.text_encoder_folders[-1:]]


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": {"type": "None"}}']
)
def test_a_file_that_is_no_tokenizer_counts_nothing_and_is_named_in_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str
) -> None:
    folder = tmp_path / "of a\nstranger\x1b[31m"
    folder.mkdir()
    (folder / TOKENIZER).write_text(content)
    assert count_tokens(folder, ["a"]) is None
    said = capfd.readouterr().err
    assert said.startswith(f"The tokenizer in {str(folder)!r} cannot be read: ") and said.count("\n") == 1 and "\x1b" not in said
    assert count_tokens(tmp_path / "nowhere", ["a"]) is None


def test_a_process_that_takes_too_long_counts_nothing() -> None:
    assert count_tokens(folder_of("sdxl"), ["a b"]) == [4]
    assert count_tokens(folder_of("sdxl"), ["a b"], Limits(wall_seconds=0.01)) is None


def notes(place: Path, captions: list[str], **options: Any) -> list[Problem]:
    found = checked(place, datasets=captioned(place, captions), **options).problems
    return [problem for problem in found if problem.code in ("captions_cut", "prompts_cut")]


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "krea2", "kolors"])
def test_a_caption_of_few_words_and_many_tokens_is_cut(tmp_path: Path, name: str) -> None:
    limit = specs()[name].tokens_of(None)
    words = "unpronounceable " * (limit // 2)
    [length] = tokens_in(folder_of(name), [words]) or []
    assert length > limit > len(words.split()), "counted by words it would pass"
    given = {"model_family": name, "model": str(tiny_model(name))}
    [note] = notes(tmp_path, ["a cat", words], **given)
    assert (note.code, note.got, note.level.value) == ("captions_cut", "1", "note") and "at least 1 of 2 captions" in note.message


def test_a_prompt_that_just_fits_is_not_cut_and_is_what_the_text_encoder_reads(tmp_path: Path) -> None:
    own = model(tmp_path, "sdxl")
    tokenizer = tokenizer_in(own.folder / "tokenizer")
    fits = " ".join(["a"] * 75)
    assert [len(tokenizer(text).input_ids) for text in (fits, fits + " a")] == [77, 78]
    usual = {"model_family": "sdxl", "model": str(own.folder)}
    assert notes(tmp_path, [fits], **usual) == []
    assert [note.got for note in notes(tmp_path, [fits + " a", fits], **usual)] == ["1"]


def test_prompts_of_validations_are_counted_too(tmp_path: Path) -> None:
    long, library = LETTERS * 4, {"short": "a cat", "long": LETTERS * 5, "longer": LETTERS * 6}
    given: dict[str, Any] = {"model_family": "sdxl", "model": str(tiny_model("sdxl")), "validation_disable": False}
    given |= {"validation_prompt": long, "user_prompt_library": json.dumps(library), "validation_resolution": "64x64"}
    found = {note.option: note for note in notes(tmp_path, ["a cat"], **given)}
    assert found.keys() == {"validation_prompt", "user_prompt_library"}
    assert found["validation_prompt"].message.startswith("It is longer than the 77 tokens that Stable Diffusion XL reads")
    assert found["user_prompt_library"].message.startswith("2 of 3 prompts are longer than") and found["user_prompt_library"].got == "2"
    assert notes(tmp_path, ["a cat"], **{**given, "validation_disable": True}) == []


def test_without_a_tokenizer_words_are_counted(tmp_path: Path) -> None:
    own = model(tmp_path, "sdxl")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(own.folder / name)
        (own.folder / name).mkdir()
    usual: dict[str, Any] = {"model_family": "sdxl", "model": str(own.folder), "validation_disable": False}
    usual |= {"validation_prompt": "cat " * 90, "validation_resolution": "64x64"}
    found = notes(tmp_path, ["unpronounceable " * 60, "dog " * 80], **usual)
    assert [(note.code, note.got) for note in found] == [("captions_cut", "1"), ("prompts_cut", "1")]


@pytest.mark.parametrize(
    "name", [name for name in FAMILIES if specs()[name].prompts.t5_folder in specs()[name].prompts.text_encoder_folders[-1:]]
)
def test_the_tokenizer_of_t5_counts_where_its_limit_is_the_one_that_cuts(name: str) -> None:
    prompts = specs()[name].prompts
    assert prompts.tokenizer_folders[-1] == prompts.t5_folder.replace("text_encoder", "tokenizer")
