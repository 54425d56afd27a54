"""Mistakes that trainers have made with these families. Each is made on purpose here, and the proof of the family notices it.

A proof that still holds with a mistake in the family would not hold it back. ``TRAPS`` lists what is known to go wrong in which family;
every family that is here and has such a trap also has a mistake of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from diffusers.models.transformers import transformer_qwenimage21

from tests.trainer_engine.families.flux2 import test_flux2 as flux2
from tests.trainer_engine.families.mistakes import (
    Mistake,
    clip_of_77_frames_is_valid,
    columns_first,
    distilled_weights_are_reported,
    eights,
    given,
    hidden_padding,
    last_layers,
    latents_of_qwen,
    loss_of_flux2,
    loss_of_flux3,
    loss_of_krea2,
    loss_of_qwen,
    loss_of_refiner,
    loss_of_wan,
    loss_of_z_image,
    loss_with_references,
    mask_of_qwen,
    masked_for_nothing,
    mistakes_of_families,
    normalised_states,
    one_window,
    other_squares,
    padded_beside_others,
    padded_with_zeros,
    padding_is_stored,
    poor_precision_is_reported,
    prompt_at_the_time_of_the_image,
    prompts_of_krea2,
    replaced,
    sizes_alone,
    token_count_of_flux2,
    turned_around,
    zero_padding,
)
from tests.trainer_engine.families.qwen_image_21 import test_qwen_image_21 as qwen21
from tests.trainer_engine.families.wan import test_wan as wan
from tests.trainer_engine.families.z_image import test_z_image as z_image
from trainer_engine.config.distillation import DistillationSpec
from trainer_engine.config.families import specs
from trainer_engine.config.rules import clips as clip_rules
from trainer_engine.config.rules import precision as precision_rules
from trainer_engine.families.common import autoencoder
from trainer_engine.families.common.autoencoder import ClipAutoencoder, FrameAutoencoder, ShuffledAutoencoder
from trainer_engine.families.flux2 import family as flux2_family
from trainer_engine.families.flux2.family import Flux2
from trainer_engine.families.flux3 import family as flux3_family
from trainer_engine.families.flux3.family import Flux3
from trainer_engine.families.krea2.components import Krea2Components
from trainer_engine.families.krea2.family import Krea2
from trainer_engine.families.qwen_image.family import QwenImage
from trainer_engine.families.qwen_image_21.family import QwenImage21
from trainer_engine.families.sdxl.family import StableDiffusionXL
from trainer_engine.families.wan.family import Wan
from trainer_engine.families.z_image import family as z_image_family
from trainer_engine.families.z_image.family import ZImage

Patch = pytest.MonkeyPatch


TRAPS: Mapping[str, tuple[str, ...]] = {
    "prompts and images are lists, time runs backwards, the output is negated": ("z_image",),
    "time runs backwards, or the output is negated": ("lumina2", "hidream"),
    "adapters learn nothing in fp16": ("z_image",),
    "distilled weights are trained as if they were not": ("z_image", "krea2", "flux2", "ernie"),
    "latents are shuffled and normalised with statistics of the autoencoder": ("flux2", "ernie"),
    "the padding of a prompt is attended to": ("flux2",),
    "the shift follows the number of tokens": ("flux2", "ernie"),
    "the mask, the squares of cells, time from 0 to 1, statistics of each channel": ("qwen_image",),
    "states before the last norm, prompts at time 0, attention to what came before": ("qwen_image_21",),
    "clips have one frame and a multiple of four": ("wan",),
    "audio has a place although there is none": ("ltxvideo2",),
    "states of several layers are stacked, and large": ("krea2", "flux2", "flux3", "ideogram"),
    "five time ids, the last of which is the score": ("sdxl",),
    "zeros behind a prompt count, and how many there are": ("auraflow",),
}
"""What goes wrong -> the families in which it does. The two networks of Wan 2.2 are a trap as well, of flavours that are not here."""


MISTAKES = [
    Mistake(
        "z_image: time runs from image to noise",
        given(ZImage, lambda x, t, p, **o: ((x, 1 - t, p), o)),
        loss_of_z_image,
        "prompts and images",
    ),
    Mistake(
        "z_image: time counts to 1000", given(ZImage, lambda x, t, p, **o: ((x, 1000 * t, p), o)), loss_of_z_image, "prompts and images"
    ),
    Mistake("z_image: the output is not negated", turned_around(ZImage), loss_of_z_image, "prompts and images"),
    Mistake("z_image: prompts are padded", given(ZImage, padded_with_zeros), loss_of_z_image, "prompts and images"),
    Mistake(
        "z_image: the last states of the prompt",
        replaced(z_image_family, "STATES", -1),
        z_image.test_prompts_equal_those_of_the_pipeline_and_are_stored_without_padding,
    ),
    Mistake(
        "flux2: latents keep the statistics of the autoencoder",
        replaced(ShuffledAutoencoder, "_statistics", staticmethod(lambda vae: (torch.zeros(1), torch.ones(1)))),
        flux2.test_latents_are_shuffled_and_normalised_as_in_the_pipeline,
        "latents are shuffled",
    ),
    Mistake(
        "flux2: cells are shuffled in another order",
        replaced(autoencoder, "pixel_unshuffle", columns_first),
        flux2.test_latents_are_shuffled_and_normalised_as_in_the_pipeline,
        "latents are shuffled",
    ),
    Mistake(
        "flux2: the padding of a prompt is hidden", replaced(Flux2, "collate_prompts", hidden_padding), loss_of_flux2, "the padding of"
    ),
    Mistake("flux2: time counts to 1000", given(Flux2, lambda **o: ((), {**o, "timestep": 1000 * o["timestep"]})), loss_of_flux2),
    Mistake("flux2: references are at the time of the image", replaced(flux2_family, "REFERENCE_DISTANCE", 0), loss_with_references),
    Mistake(
        "flux2: a token stands for four latent cells",
        replaced(Flux2, "token_count", lambda self, shape: shape[1] * shape[2] // 4),
        token_count_of_flux2,
        "the shift follows",
    ),
    Mistake("flux3: time counts to 1000", given(Flux3, lambda **o: ((), {**o, "timestep": 1000 * o["timestep"]})), loss_of_flux3),
    Mistake("flux3: the padding of a prompt is zero", replaced(flux3_family, "in_windows", zero_padding), loss_of_flux3),
    Mistake("flux3: a prompt attends to the windows of longer ones", replaced(flux3_family, "in_windows", one_window), loss_of_flux3),
    Mistake(
        "flux3: the text encoder ends a layer early",
        replaced(flux3_family, "TEXT_LAYERS", (4, 8, 12, 16, 20, 24, 28, 31)),
        loss_of_flux3,
        "states of several",
    ),
    Mistake(
        "z_image: an adapter is trained in fp16",
        replaced(precision_rules, "find_spec", lambda name: replace(specs()[name], poor_precisions={})),
        poor_precision_is_reported,
        "adapters learn nothing",
    ),
    *(
        Mistake(
            f"{family}: {flavour} is taken for weights that are not distilled",
            replaced(DistillationSpec, "reason", lambda self, **_: ""),
            distilled_weights_are_reported(family, flavour),
            "distilled weights",
        )
        for family, flavour in (("z_image", "turbo"), ("krea2", "turbo"), ("flux2", "klein-9b-distilled"))
    ),
    Mistake(
        "qwen_image: a mask although nothing is padded",
        replaced(QwenImage, "collate_prompts", masked_for_nothing),
        mask_of_qwen,
        "the mask",
    ),
    Mistake(
        "qwen_image: padding is attended to",
        given(QwenImage, lambda **o: ((), {**o, "encoder_hidden_states_mask": None})),
        loss_of_qwen,
        "the mask",
    ),
    Mistake(
        "qwen_image: time counts to 1000",
        given(QwenImage, lambda **o: ((), {**o, "timestep": 1000 * o["timestep"]})),
        loss_of_qwen,
        "the mask",
    ),
    Mistake("qwen_image: cells are packed by columns", given(QwenImage, other_squares), loss_of_qwen, "the mask"),
    Mistake(
        "qwen_image: latents keep the statistics of the autoencoder",
        replaced(FrameAutoencoder, "_statistics", staticmethod(lambda vae, like: (torch.zeros(1), torch.ones(1)))),
        latents_of_qwen,
        "the mask",
    ),
    Mistake(
        "qwen_image_21: states behind the last norm",
        normalised_states,
        qwen21.test_the_states_are_those_before_the_last_norm,
        "states before",
    ),
    Mistake(
        "qwen_image_21: the prompt knows the noise level",
        replaced(transformer_qwenimage21, "_select_modulation_rows", prompt_at_the_time_of_the_image),
        qwen21.test_text_is_modulated_at_time_zero_and_does_not_see_what_is_behind_it,
        "states before",
    ),
    Mistake(
        "qwen_image_21: padding moves the image",
        replaced(QwenImage21, "collate_prompts", padded_beside_others),
        qwen21.test_a_prompt_predicts_the_same_beside_a_longer_one,
        "states before",
    ),
    Mistake(
        "krea2: layers are stacked in another order",
        given(Krea2, lambda **o: ((), {**o, "encoder_hidden_states": o["encoder_hidden_states"].flip(2)})),
        loss_of_krea2,
        "states of several",
    ),
    Mistake(
        "krea2: the last layers are stacked", replaced(Krea2Components, "text_layers", last_layers), prompts_of_krea2, "states of several"
    ),
    Mistake("krea2: the padding of prompts is stored", padding_is_stored, prompts_of_krea2, "states of several"),
    Mistake("krea2: padding is attended to", given(Krea2, lambda **o: ((), {**o, "encoder_attention_mask": None})), loss_of_krea2),
    Mistake(
        "flux2: other layers are put side by side",
        replaced(flux2_family, "KLEIN_LAYERS", (9, 18, 26)),
        lambda: flux2.test_prompts_equal_those_of_the_pipeline_with_their_padding("klein-9b"),
        "states of several",
    ),
    Mistake(
        "wan: clips have a multiple of eight frames", replaced(clip_rules, "_nearest", eights), clip_of_77_frames_is_valid, "clips have"
    ),
    Mistake("wan: time counts to 1", given(Wan, lambda **o: ((), {**o, "timestep": o["timestep"] / 1000})), loss_of_wan),
    Mistake(
        "wan: latents keep the statistics of the autoencoder",
        replaced(ClipAutoencoder, "_statistics", staticmethod(lambda vae, like: (torch.zeros(1), torch.ones(1)))),
        wan.test_an_image_is_a_clip_of_one_frame_with_normalized_latents,
    ),
    Mistake(
        "sdxl refiner: the size takes the place of the score",
        replaced(StableDiffusionXL, "conditions", sizes_alone),
        loss_of_refiner,
        "five time ids",
    ),
    *mistakes_of_families(),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.title)
def test_the_proof_of_a_family_notices_the_mistake(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake.make(monkeypatch)
    with pytest.raises(AssertionError):
        mistake.proof()


@pytest.mark.parametrize("trap", TRAPS)
def test_every_family_of_a_trap_has_a_mistake_of_it(trap: str) -> None:
    made = {mistake.title.split(":")[0].split()[0] for mistake in MISTAKES if mistake.trap and trap.startswith(mistake.trap)}
    assert made == set(TRAPS[trap]) & set(specs())


def test_every_mistake_of_a_trap_names_one_that_is_listed() -> None:
    assert all(any(trap.startswith(mistake.trap) for trap in TRAPS) for mistake in MISTAKES)
