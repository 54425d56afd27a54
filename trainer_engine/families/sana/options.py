"""Options of the Sana family, and the rules between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.contract.errors import Problem

LONGEST_INSTRUCTION = 4000
"""Letters. With the prompt it must fit into the 8,192 tokens that Gemma 2 reads."""


class SanaOptions(OptionGroup):
    """Options of Sana alone."""

    sana_complex_human_instruction: str | None = option(
        None,
        "What Gemma 2 reads before each prompt; the prompt follows without a space. Empty: the instruction that the weights were trained "
        "with. Negative prompts, and the empty prompt of caption_dropout_probability, are read without it.",
    )


def the_instruction_is_short(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Refuses an instruction that leaves no room for prompts."""
    given = values["sana_complex_human_instruction"] or ""
    if len(given) > LONGEST_INSTRUCTION:
        message = f"sana_complex_human_instruction has {len(given):,} letters."
        yield Problem.error(
            "sana_complex_human_instruction", "too_long", message, got=len(given), expected=f"at most {LONGEST_INSTRUCTION:,} letters"
        )


def the_autoencoder_does_not_overflow(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Warns of an autoencoder in float16."""
    if values["vae_dtype"] == "fp16":
        message = "The autoencoder of Sana was trained in bfloat16, and overflows in float16."
        yield Problem.warning("vae_dtype", "poor_precision", message, got="fp16", expected="fp32 or bf16")


GROUP = SanaOptions
RULES = (the_instruction_is_short, the_autoencoder_does_not_overflow)
