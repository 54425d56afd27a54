"""Reads the fields of an entry that hold lists: prompts, conditioning sets, aspect ratios and caption filters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePath

from trainer_engine.config.datasets.entry import EntryDraft, fill, located
from trainer_engine.config.datasets.object_fields import AspectChoice
from trainer_engine.config.json_fields import WrongValue
from trainer_engine.config.options.values import parse_float, parse_text

WEIGHT_TOLERANCE = 0.001
FILTERS = "caption_filter_list"
FILTER_FILES = (".json", ".txt")
INSTANCE_PROMPT = ("instanceprompt", "instance_prompt")
"""Spellings of the caption strategy of ``instance_prompt``."""
MOST_FILTERS, LONGEST_FILTER = 1_000, 1_000


def read_prompts(draft: EntryDraft, inherited: str | None) -> None:
    """Reads ``instance_prompt``: a text, or a list of texts."""
    given = draft.raw.get("instance_prompt")
    listed = given if isinstance(given, list) else [given if given not in (None, "") else inherited]
    prompts = []
    for item in listed:
        try:
            text = parse_text(item).strip() if item is not None else None
        except WrongValue as wrong:
            draft.error("instance_prompt", wrong.code, f"instance_prompt {wrong}.", got=item, expected="text, or a list of texts")
            continue
        if text:
            filled = fill(draft, "instance_prompt", text)
            prompts += [filled] if filled else []
        elif isinstance(given, list) or text is not None:
            draft.error(
                "instance_prompt", "missing", "instance_prompt contains a blank text.", got=given, expected="text, or a list of texts"
            )
    draft.values["instance_prompt"] = tuple(prompts)


def read_reference_captions(draft: EntryDraft) -> None:
    """Reads ``instance_prompt`` of a conditioning set, which counts with ``caption_strategy`` instanceprompt."""
    read_prompts(draft, None)
    if draft.raw.get("caption_strategy") in INSTANCE_PROMPT:
        if not draft.values["instance_prompt"]:
            what = "caption_strategy=instanceprompt needs instance_prompt."
            draft.error("instance_prompt", "missing", what, expected="text, or a list of texts")
    elif draft.values["instance_prompt"]:
        what = "instance_prompt has no effect without caption_strategy=instanceprompt: a sample has the captions of its image."
        draft.note("instance_prompt", "no_effect", what)
        draft.values["instance_prompt"] = ()


def read_references(draft: EntryDraft) -> None:
    """Reads ``conditioning_data``: an id, or a list of ids."""
    given = draft.raw.get("conditioning_data")
    draft.values["conditioning_data"] = ()
    if given in (None, "", []):
        return
    listed = given if isinstance(given, list) else [given]
    if not all(isinstance(item, str) and item.strip() for item in listed):
        expected = 'the id of a conditioning set, or a list of ids: ["references"]'
        draft.error("conditioning_data", "not_a_list", "conditioning_data is not a list of ids.", got=given, expected=expected)
        return
    draft.values["conditioning_data"] = tuple(dict.fromkeys(item.strip() for item in listed))


def read_aspects(draft: EntryDraft) -> None:
    """Reads ``crop_aspect_buckets``: a list of numbers, or of objects with aspect and weight."""
    given = draft.raw.get("crop_aspect_buckets")
    draft.values["crop_aspect_buckets"] = ()
    if given in (None, "", []):
        return
    expected = 'a list of aspects: [0.75, 1.0] or [{"aspect": 0.75, "weight": 0.4}, ...]'
    if not isinstance(given, list):
        draft.error("crop_aspect_buckets", "not_a_list", "crop_aspect_buckets is not a list.", got=given, expected=expected)
        return
    try:
        choices = tuple(_aspect(item, len(given)) for item in given)
    except WrongValue as wrong:
        draft.error("crop_aspect_buckets", wrong.code, f"an item of crop_aspect_buckets {wrong}.", got=given, expected=expected)
        return
    total = math.fsum(choice.weight for choice in choices)
    if abs(total - 1) > WEIGHT_TOLERANCE:
        what = f"the weights of crop_aspect_buckets add up to {total:g}."
        draft.error("crop_aspect_buckets", "wrong_sum", what, got=given, expected="weights that add up to 1")
        return
    draft.values["crop_aspect_buckets"] = choices


def _aspect(item: object, count: int) -> AspectChoice:
    """Raises WrongValue."""
    weight: object = 1 / count
    if isinstance(item, Mapping):
        if not set(item) <= {"aspect", "weight"} or "aspect" not in item:
            raise WrongValue("is not an object of aspect and weight", code="not_an_aspect")
        weight, item = item.get("weight", weight), item["aspect"]
    aspect, share = parse_float(item), parse_float(weight)
    if not 0.01 <= aspect <= 100 or not 0 <= share <= 1:
        raise WrongValue("is out of range", code="out_of_range")
    return AspectChoice(aspect=aspect, weight=share)


def read_filters(draft: EntryDraft) -> None:
    """Reads ``caption_filter_list``: a list of texts, or the path of a file of them, which is read when captions are."""
    given = draft.raw.get(FILTERS)
    draft.values[FILTERS] = ()
    expected = 'a list of texts: ["a photo of ", "s/dog/cat/"], or the path of a .json or .txt file of them'
    if given in (None, "", []):
        return
    if not isinstance(given, str):
        try:
            draft.values[FILTERS] = filters_in(given)
        except WrongValue as wrong:
            draft.error(FILTERS, wrong.code, f"{FILTERS} {wrong}.", got=type(given).__name__, expected=expected)
        return
    path = fill(draft, FILTERS, given.strip())
    if path is not None and PurePath(path).suffix.lower() not in FILTER_FILES:
        draft.error(FILTERS, "not_a_list", f"{FILTERS} names no .json or .txt file.", got=given, expected=expected)
    elif path is not None:
        draft.values[FILTERS] = located(draft, FILTERS, path, FILTERS) or ()


def filters_in(document: object) -> tuple[str, ...]:
    """Returns the entries of a list of caption filters. Raises WrongValue, whose message repeats none of them."""
    if not isinstance(document, list):
        raise WrongValue("is not a list", code="not_a_list")
    if len(document) > MOST_FILTERS:
        raise WrongValue(f"has {len(document)} entries; at most {MOST_FILTERS} are applied", code="too_many")
    for number, item in enumerate(document, 1):
        if not isinstance(item, str) or not 0 < len(item) <= LONGEST_FILTER:
            raise WrongValue(f"has an entry that is no text of 1 to {LONGEST_FILTER} characters: number {number}", code="not_text")
    return tuple(map(parse_text, document))
