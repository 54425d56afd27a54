"""Mistakes that can be made in Ideogram 4 on purpose, and the proofs that notice them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import Ideogram4Pipeline
from torch import Tensor

from tests.helpers.models import tiny_model
from tests.trainer_engine.families.ideogram import test_ideogram as ideogram
from tests.trainer_engine.families.mistakes import Mistake, given, replaced
from trainer_engine.families.common.autoencoder import ShuffledAutoencoder
from trainer_engine.families.ideogram import family as ideogram_family
from trainer_engine.families.ideogram import prompts as ideogram_prompts
from trainer_engine.families.ideogram import sequence as ideogram_sequence
from trainer_engine.families.ideogram.components import IdeogramComponents
from trainer_engine.families.ideogram.family import Ideogram4
from trainer_engine.families.ideogram.sequence import Ideogram4Autoencoder

STACKED = "states of several"


def loss_of_ideogram() -> None:
    ideogram.test_loss_and_every_gradient_equal_those_of_diffusers(ideogram_pipeline(), gradient_checkpointing=False)


def prompts_of_ideogram() -> None:
    ideogram.test_prompts_equal_those_of_the_pipeline_rounded_to_bfloat16(ideogram_pipeline(), ideogram.tiny_ideogram())


def latents_of_ideogram() -> None:
    ideogram.test_latents_are_squares_of_cells_in_the_order_of_the_pipeline(None, ideogram.tiny_ideogram())


@cache
def ideogram_pipeline() -> Any:
    return Ideogram4Pipeline.from_pretrained(tiny_model("ideogram"))


def normalised_at_the_end(self: IdeogramComponents, dtype: torch.dtype) -> Any:
    """The text encoder as its library has it, with the norm behind its last layer."""
    return self.load_whole_text_encoder(dtype).language_model


def towards_noise(network: Any, tokens: Tensor, embeds: Tensor, time: Tensor, places: Any) -> Tensor:
    return -ideogram_sequence.velocity(network, tokens, embeds, time, places)


def layers_one_after_the_other(states: Sequence[Tensor], dim: int) -> Tensor:
    """(B, T, D, layers) of which the last two are in the other order."""
    stacked = torch.stack(list(states), dim=dim)
    return stacked.transpose(-1, -2).reshape(stacked.shape)


MISTAKES = [
    Mistake(
        "ideogram: time runs from image to noise",
        given(Ideogram4, lambda **o: ((), {**o, "timestep": 1 - o["timestep"]})),
        loss_of_ideogram,
    ),
    Mistake("ideogram: the output points to noise", replaced(ideogram_family, "velocity", towards_noise), loss_of_ideogram),
    Mistake(
        "ideogram: the places of an image are those of a text", replaced(ideogram_sequence, "IMAGE_POSITION_OFFSET", 0), loss_of_ideogram
    ),
    Mistake("ideogram: tokens attend to padding", replaced(ideogram_sequence, "SEQUENCE_PADDING_INDICATOR", 1), loss_of_ideogram),
    Mistake(
        "ideogram: the layers of the text encoder stand one after the other",
        replaced(ideogram_prompts, "torch", SimpleNamespace(**{**vars(torch), "stack": layers_one_after_the_other})),
        prompts_of_ideogram,
        STACKED,
    ),
    Mistake(
        "ideogram: the last states are normalised",
        replaced(IdeogramComponents, "load_language_model", normalised_at_the_end),
        prompts_of_ideogram,
    ),
    Mistake("ideogram: captions are read as texts", replaced(ideogram_prompts, "as_caption", lambda text: text), prompts_of_ideogram),
    Mistake(
        "ideogram: latents are those of Flux.2",
        replaced(Ideogram4Autoencoder, "_scaled", ShuffledAutoencoder._scaled),
        latents_of_ideogram,
    ),
    Mistake(
        "ideogram: timesteps do not grow with the image",
        replaced(Ideogram4, "scheduler_config", lambda self: {"shift": 1.0, "base_shift": 0.0, "max_shift": 0.0}),
        ideogram.test_timesteps_have_the_distribution_that_the_sampler_of_the_pipeline_is_spaced_by,
    ),
]
