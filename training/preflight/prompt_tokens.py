"""Captions and validation prompts that are longer than the longest prompt of a model, counted with its tokenizer if that is here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trainer_engine.config.components import component_source, find_component
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.option import holds_json
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.prompt_library import OPTION as LIBRARY
from trainer_engine.config.prompt_library import parse_prompt_library
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.long_captions import CODE, captions_of, cut_note, has_more_words
from trainer_engine.datasets.report import DatasetReport
from training.preflight.count_tokens import count_tokens

MOST_COUNTED = 200_000
"""Texts of a run that are counted with the tokenizer; of more, words are counted."""
ENDS = 2
"""Most tokens that a tokenizer puts around a prompt."""


def with_cut_prompts(report: DatasetReport, options: TrainingOptions, spec: FamilySpec, cache: Path) -> list[Problem]:
    """The problems of a report, with the notes on cut captions by tokens where these are known, and notes on cut validation prompts.

    Tokens of a chat template are not counted, so that a few more texts may be cut. ``cache`` is the hub's cache.
    """
    limit = spec.tokens_of(options.model.model_flavour, options.model.tokenizer_max_length)
    sets = [(found.entry, captions_of(found.samples)) for found in (*report.sets, *report.eval_sets)]
    prompts = dict(_validation_prompts(options))
    texts = {text for _, captions in sets for text in captions} | {text for one in prompts.values() for text in one}
    lengths = _lengths(sorted(text for text in texts if len(text.encode()) + ENDS > limit), options, spec, cache)
    if lengths is None:
        kept, cut = report.problems, {text for text in texts if has_more_words(text, limit)}
    else:
        cut = {text for text, length in lengths.items() if length > limit}
        kept = [problem for problem in report.problems if problem.code != CODE]
        notes = (cut_note(entry, sorted(cut & captions), len(captions), limit, spec) for entry, captions in sets)
        kept += [note for note in notes if note]
    return [*kept, *_prompt_notes(prompts, cut, limit, spec)]


def _lengths(texts: Sequence[str], options: TrainingOptions, spec: FamilySpec, cache: Path) -> Mapping[str, int] | None:
    """Text -> tokens. None if the tokenizer is not on this machine or cannot be read."""
    if not texts:
        return {}
    found = find_component(component_source(options.model, spec, spec.prompts.counting_folder), cache)
    counts = count_tokens(found.folder, texts) if found and len(texts) <= MOST_COUNTED else None
    return None if counts is None else dict(zip(texts, counts, strict=True))


def _validation_prompts(options: TrainingOptions) -> Iterator[tuple[str, list[str]]]:
    """Option -> the prompts of validation images that it names."""
    validation = options.validation
    if validation.validation_disable:
        return
    for name in ("validation_prompt", "validation_negative_prompt"):
        text = getattr(validation, name)
        if text:
            yield name, [text]
    library = validation.user_prompt_library
    if library and holds_json(library):
        yield LIBRARY, [prompt.text for prompt in parse_prompt_library(library)[0]]


def _prompt_notes(prompts: Mapping[str, Sequence[str]], cut: set[str], limit: int, spec: FamilySpec) -> Iterator[Problem]:
    for option, texts in prompts.items():
        long = [text for text in texts if text in cut]
        if long:
            one = "It is" if len(texts) == 1 else f"{len(long)} of {len(texts)} prompts are"
            message = f"{one} longer than the {limit} tokens that {spec.title} reads; the end is cut off."
            hint = f"put what matters first: it begins with {long[0][:60]!r}"
            yield Problem.note(option, "prompts_cut", message, got=len(long), expected=f"{limit} tokens", hint=hint)
