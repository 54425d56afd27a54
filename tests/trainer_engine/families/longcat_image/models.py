"""The micro models of LongCat-Image, and what diffusers alone computes with their networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import LongCatImagePipeline, LongCatImageTransformer2DModel
from diffusers.pipelines.longcat_image.pipeline_longcat_image import prepare_pos_ids
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.models import tiny_model, tiny_of
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.longcat_image.family import LongCatImage
from trainer_engine.families.longcat_image.spec import EDIT, FINAL
from trainer_engine.objectives.build import make_objective

PROMPTS = ["a red circle", "", 'a sign with "two stars" and ‘three moons’ that isn\'t lit']
SIGMAS = torch.tensor([0.1, 0.5, 0.9])


def folder_of(flavour: str) -> Path:
    return tiny_model("longcat_image", flavour=EDIT) if flavour == EDIT else tiny_model("longcat_image")


def tiny_longcat(flavour: str = FINAL, **values: Any) -> LongCatImage:
    """The micro model of a flavour on the CPU."""
    return tiny_of(LongCatImage, folder_of(flavour), **{"model_flavour": flavour, **values})


def bare_network(flavour: str = FINAL) -> LongCatImageTransformer2DModel:
    return LongCatImageTransformer2DModel.from_pretrained(folder_of(flavour), subfolder="transformer")


def their_loss(network: Any, latents: Tensor, noise: Tensor, embeds: Tensor, references: Sequence[Tensor] = ()) -> Tensor:
    """By diffusers alone, as the pipelines call the network. ``embeds`` (B, T, D), ``references`` (B, C, h, w)."""
    sigma, words = SIGMAS.view(-1, 1, 1, 1), embeds.shape[1]
    images = [(1 - sigma) * latents + sigma * noise, *references]
    tokens = [LongCatImagePipeline._pack_latents(one, *one.shape) for one in images]
    places = [
        prepare_pos_ids(modality_id=number, type="image", start=(words, words), height=one.shape[2] // 2, width=one.shape[3] // 2)
        for number, one in enumerate(images, start=1)
    ]
    output = network(
        hidden_states=torch.cat(tokens, dim=1),
        timestep=SIGMAS * 1000 / 1000,
        encoder_hidden_states=embeds,
        txt_ids=prepare_pos_ids(modality_id=0, type="text", start=(0, 0), num_token=words),
        img_ids=torch.cat(places),
        return_dict=False,
    )[0][:, : tokens[0].shape[1]]
    height, width = latents.shape[-2:]
    return mse_loss(LongCatImagePipeline._unpack_latents(output, 8 * height, 8 * width, 8), noise - latents)


def our_loss(
    family: LongCatImage, network: Any, latents: Tensor, noise: Tensor, embeds: Tensor, references: Sequence[Tensor] = ()
) -> Tensor:
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    noisy = objective.add_noise(latents, noise, SIGMAS)
    given = StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts={"embeds": embeds}, references=tuple(references))
    return objective.loss(family.predict(network, given), objective.target(latents, noise, SIGMAS), SIGMAS).mean()
