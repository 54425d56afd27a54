"""Prints the table of ``docs/lora.md``: how a first LoRA of each model fits on cards of usual sizes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.families import specs
from trainer_engine.config.options import REGISTRY
from training.pages.card import ModelChoice, model_choices, options_for
from training.preflight.memory_table import usual_edge

COMMAND = "python -m training.pages.lora_table"
CARDS = (8, 12, 16, 24, 32, 48, 80)
"""In GiB."""
WORDS = {"no_change": "16", "int8-quanto": "8", "nf4-bnb": "4"}
BEGIN, END = "<!-- cards -->", "<!-- /cards -->"


def table() -> Iterator[str]:
    """Yields the lines of the table, one model a family and size."""
    yield f"| model | flavour | pixels | validation: guidance, steps | {' | '.join(f'{card} GB' for card in CARDS)} |"
    yield "|---" * (4 + len(CARDS)) + "|"
    seen: set[tuple[str, int]] = set()
    for choice in model_choices():
        size = choice.family, round(choice.billions)
        if size not in seen:
            seen.add(size)
            yield _row(choice)


def _row(choice: ModelChoice) -> str:
    spec = specs()[choice.family]
    defaults = {name: one.default for name, one in REGISTRY.items()} | dict(spec.defaults_of(choice.flavour))
    fits = [options_for(choice, card) for card in CARDS]
    cells = ["-" if one is None else _bits(one) for one in fits]
    sampler = f"{defaults['validation_guidance']:g}, {defaults['validation_num_inference_steps']}"
    edge = usual_edge(spec, choice.flavour)
    return f"| {choice.title} | `{choice.flavour}` | {edge} | {sampler} | {' | '.join(cells)} |"


def _bits(options: Mapping[str, Any]) -> str:
    encoders = {str(value) for name, value in options.items() if name.startswith("text_encoder_")}
    return WORDS[str(options["base_model_precision"])] + "".join(f" ({WORDS[value]})" for value in sorted(encoders))


if __name__ == "__main__":
    sys.stdout.write("\n".join(table()) + "\n")
