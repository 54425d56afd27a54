"""Mistakes that can be made in ERNIE-Image on purpose, and the proofs that notice them."""

from __future__ import annotations

from typing import Any

import torch

from tests.trainer_engine.families.ernie import test_ernie as ernie
from tests.trainer_engine.families.mistakes import Arguments, Mistake, distilled_weights_are_reported, given, replaced, turned_around
from trainer_engine.config.distillation import DistillationSpec
from trainer_engine.families.ernie import family as ernie_family
from trainer_engine.families.ernie.family import Ernie, ErnieAutoencoder

LATENTS = "latents are shuffled"


def loss_of_ernie() -> None:
    ernie.test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing=False)


def all_tokens_count(**given: Any) -> Arguments:
    return (), {**given, "text_lens": torch.full_like(given["text_lens"], given["text_bth"].shape[1])}


MISTAKES = [
    Mistake("ernie: time counts to 1", given(Ernie, lambda **o: ((), {**o, "timestep": o["timestep"] / 1000})), loss_of_ernie),
    Mistake("ernie: time runs from image to noise", given(Ernie, lambda **o: ((), {**o, "timestep": 1000 - o["timestep"]})), loss_of_ernie),
    Mistake("ernie: the output is negated", turned_around(Ernie), loss_of_ernie),
    Mistake("ernie: the padding of a prompt counts", given(Ernie, all_tokens_count), loss_of_ernie),
    Mistake(
        "ernie: the last states of the prompt",
        replaced(ernie_family, "STATES", -1),
        ernie.test_prompts_equal_those_of_the_pipeline_and_are_stored_without_padding,
    ),
    Mistake(
        "ernie: the variances of latents have what the autoencoder states added",
        replaced(ErnieAutoencoder, "epsilon", None),
        ernie.test_latents_are_shuffled_and_normalised_as_the_pipeline_takes_them,
        LATENTS,
    ),
    Mistake(
        "ernie: latents keep the statistics of the autoencoder",
        replaced(ErnieAutoencoder, "_statistics", staticmethod(lambda vae: (torch.zeros(1), torch.ones(1)))),
        ernie.test_latents_are_shuffled_and_normalised_as_the_pipeline_takes_them,
        LATENTS,
    ),
    Mistake(
        "ernie: a token stands for four latent cells",
        replaced(Ernie, "token_count", lambda self, shape: shape[1] * shape[2] // 4),
        ernie.test_a_token_of_the_network_is_a_cell_of_the_latents,
        "the shift follows",
    ),
    Mistake(
        "ernie: turbo is taken for weights that are not distilled",
        replaced(DistillationSpec, "reason", lambda self, **_: ""),
        distilled_weights_are_reported("ernie", "turbo"),
        "distilled weights",
    ),
]
