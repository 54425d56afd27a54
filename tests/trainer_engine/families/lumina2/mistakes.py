"""Mistakes that can be made in Lumina-Image 2.0 on purpose, and the proofs that notice them."""

from __future__ import annotations

from typing import Any

import torch

from tests.trainer_engine.families.lumina2 import test_lumina2 as lumina2
from tests.trainer_engine.families.mistakes import Arguments, Mistake, given, replaced, turned_around
from trainer_engine.families.lumina2 import family as lumina2_family
from trainer_engine.families.lumina2 import prompts as lumina2_prompts
from trainer_engine.families.lumina2.family import Lumina2

DIRECTION = "time runs backwards"


def loss_of_lumina2() -> None:
    lumina2.test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing=False)


def all_tokens_count(**given: Any) -> Arguments:
    return (), {**given, "encoder_attention_mask": torch.ones_like(given["encoder_attention_mask"])}


MISTAKES = [
    Mistake(
        "lumina2: time runs from image to noise",
        given(Lumina2, lambda **o: ((), {**o, "timestep": 1 - o["timestep"]})),
        loss_of_lumina2,
        DIRECTION,
    ),
    Mistake("lumina2: time counts to 1000", given(Lumina2, lambda **o: ((), {**o, "timestep": 1000 * o["timestep"]})), loss_of_lumina2),
    Mistake("lumina2: the output is not negated", turned_around(Lumina2), loss_of_lumina2, DIRECTION),
    Mistake("lumina2: the padding of a prompt counts", given(Lumina2, all_tokens_count), loss_of_lumina2),
    Mistake(
        "lumina2: the last states of the prompt",
        replaced(lumina2_family, "STATES", -1),
        lumina2.test_prompts_equal_those_of_the_pipeline_and_are_stored_without_padding,
    ),
    Mistake(
        "lumina2: prompts without the instruction",
        replaced(lumina2_prompts, "BEFORE_PROMPT", ""),
        lumina2.test_prompts_equal_those_of_the_pipeline_and_are_stored_without_padding,
    ),
    Mistake(
        "lumina2: the negative prompt with the instruction",
        replaced(Lumina2, "negative_text", lambda self, text: text),
        lumina2.test_a_negative_prompt_has_no_instruction_as_in_the_pipeline,
    ),
]
