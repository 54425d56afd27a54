"""Mistakes that can be made in LongCat-Image on purpose, and the proofs that notice them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.trainer_engine.families.longcat_image import test_edits as edits
from tests.trainer_engine.families.longcat_image import test_longcat_image as longcat
from tests.trainer_engine.families.mistakes import Mistake, given, other_squares, replaced, turned_around
from trainer_engine.families.inputs import PromptBatch
from trainer_engine.families.longcat_image import family as longcat_family
from trainer_engine.families.longcat_image import prompts
from trainer_engine.families.longcat_image.family import LongCatImage
from trainer_engine.families.longcat_image.pipeline import image_positions


def loss_of_longcat() -> None:
    longcat.test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing=False)


def loss_with_a_reference() -> None:
    edits.test_loss_and_every_gradient_equal_those_of_diffusers_with_a_reference(gradient_checkpointing=False)


def padding_of_zeros(self: LongCatImage, embeddings: list[dict[str, Tensor]]) -> PromptBatch:
    embeds = torch.stack([one["embeds"] for one in embeddings])
    return {"embeds": torch.cat([embeds[:, :60], torch.zeros_like(embeds[:, 60:])], dim=1)}


def at_the_first_word(sizes: Any, prompt: int, device: torch.device, first: int = 1) -> Tensor:
    return image_positions(sizes, 0, device, first)


def all_of_one_number(sizes: Any, prompt: int, device: torch.device, first: int = 1) -> Tensor:
    return image_positions(sizes, prompt, device, first).index_fill(1, torch.tensor([0]), 1)


MISTAKES = [
    Mistake(
        "longcat_image: time counts to 1000",
        given(LongCatImage, lambda **o: ((), {**o, "timestep": 1000 * o["timestep"]})),
        loss_of_longcat,
    ),
    Mistake(
        "longcat_image: time runs from image to noise",
        given(LongCatImage, lambda **o: ((), {**o, "timestep": 1 - o["timestep"]})),
        loss_of_longcat,
    ),
    Mistake("longcat_image: the output is negated", turned_around(LongCatImage), loss_of_longcat),
    Mistake("longcat_image: cells are in another order", given(LongCatImage, other_squares), loss_of_longcat),
    Mistake("longcat_image: padding is zero", replaced(LongCatImage, "collate_prompts", padding_of_zeros), loss_of_longcat),
    Mistake(
        "longcat_image: the image begins at the first word", replaced(longcat_family, "image_positions", at_the_first_word), loss_of_longcat
    ),
    Mistake(
        "longcat_image: a reference has the number of the image",
        replaced(longcat_family, "image_positions", all_of_one_number),
        loss_with_a_reference,
    ),
    Mistake(
        "longcat_image: quoted text is read in words",
        replaced(prompts, "split_quotation", lambda text: [(text, False)] if text else []),
        longcat.test_what_stands_in_quotation_marks_has_a_token_for_each_letter_and_nothing_else_has,
    ),
    Mistake(
        "longcat_image: prompts are read in the words of the flavour that edits",
        replaced(longcat_family, "DESCRIBE", prompts.EDIT),
        longcat.test_prompts_equal_those_of_the_pipeline_with_their_padding,
    ),
]
