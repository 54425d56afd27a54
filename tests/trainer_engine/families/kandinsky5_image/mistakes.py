"""Mistakes that can be made in Kandinsky 5 on purpose, and the proofs that notice them."""

from __future__ import annotations

from typing import Any

import torch

from tests.trainer_engine.families.kandinsky5_image import test_edits as edits
from tests.trainer_engine.families.kandinsky5_image import test_kandinsky5_image as kandinsky
from tests.trainer_engine.families.mistakes import Arguments, Mistake, given, replaced, turned_around
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.kandinsky5_image import family as kandinsky_family
from trainer_engine.families.kandinsky5_image.family import Kandinsky5Image, UnshiftedAutoencoder


def loss_of_kandinsky() -> None:
    kandinsky.test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing=False)


def loss_of_an_edit() -> None:
    edits.test_loss_and_every_gradient_equal_those_of_diffusers_with_a_reference(gradient_checkpointing=False)


def not_said(clips: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return torch.cat([clips, reference, torch.zeros_like(reference[..., :1])], dim=-1)


def reference_first(clips: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return torch.cat([reference, clips, torch.ones_like(reference[..., :1])], dim=-1)


def rows_and_columns(**given: Any) -> Arguments:
    frame, rows, columns = given["visual_rope_pos"]
    return (), {**given, "visual_rope_pos": [frame, rows, columns.flip(0)]}


def one_place(**given: Any) -> Arguments:
    return (), {**given, "text_rope_pos": torch.zeros_like(given["text_rope_pos"])}


def padded_with_zeros(self: Kandinsky5Image, prompts: Any) -> dict[str, torch.Tensor]:
    longest = max(len(prompt["embeds"]) for prompt in prompts)
    batch = {f"pooled.{row}": prompt["pooled"] for row, prompt in enumerate(prompts)}
    states = [prompt["embeds"] for prompt in prompts]
    return {
        **batch,
        **{f"embeds.{row}": torch.cat([one, one.new_zeros(longest - len(one), one.shape[1])]) for row, one in enumerate(states)},
    }


MISTAKES = [
    Mistake(
        "kandinsky5_image: time counts to 1",
        given(Kandinsky5Image, lambda **o: ((), {**o, "timestep": o["timestep"] / 1000})),
        loss_of_kandinsky,
    ),
    Mistake(
        "kandinsky5_image: time runs from image to noise",
        given(Kandinsky5Image, lambda **o: ((), {**o, "timestep": 1000 - o["timestep"]})),
        loss_of_kandinsky,
    ),
    Mistake("kandinsky5_image: the output is negated", turned_around(Kandinsky5Image), loss_of_kandinsky),
    Mistake("kandinsky5_image: columns are counted from the right", given(Kandinsky5Image, rows_and_columns), loss_of_kandinsky),
    Mistake("kandinsky5_image: the tokens of a prompt have one place", given(Kandinsky5Image, one_place), loss_of_kandinsky),
    Mistake(
        "kandinsky5_image: the network sees padding", replaced(Kandinsky5Image, "collate_prompts", padded_with_zeros), loss_of_kandinsky
    ),
    Mistake(
        "kandinsky5_image: no channel says that there is a reference", replaced(kandinsky_family, "_beside", not_said), loss_of_an_edit
    ),
    Mistake(
        "kandinsky5_image: the reference comes before the image", replaced(kandinsky_family, "_beside", reference_first), loss_of_an_edit
    ),
    Mistake(
        "kandinsky5_image: latents are shifted as those of Flux.1",
        replaced(UnshiftedAutoencoder, "_scaled", Autoencoder._scaled),
        kandinsky.test_latents_are_scaled_without_the_shift_of_the_autoencoder_as_the_pipeline_takes_them,
    ),
]
