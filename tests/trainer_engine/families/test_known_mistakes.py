"""Mistakes that trainers have made with these families. Each is made on purpose here, and the proof of the family notices it.

A proof that still holds with a mistake in the family would not hold it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from tests.helpers.models import fixed
from tests.trainer_engine.families.flux2 import test_flux2 as flux2
from tests.trainer_engine.families.flux3 import test_numerics as flux3
from tests.trainer_engine.families.lumina2 import test_lumina2 as lumina2
from tests.trainer_engine.families.sdxl import test_refiner as refiner
from tests.trainer_engine.families.wan import test_wan as wan
from tests.trainer_engine.families.z_image import test_z_image as z_image
from trainer_engine.families.base import Family
from trainer_engine.families.common import autoencoder
from trainer_engine.families.common.autoencoder import ShuffledAutoencoder
from trainer_engine.families.flux2 import family as flux2_family
from trainer_engine.families.flux2.family import Flux2
from trainer_engine.families.flux3 import family as flux3_family
from trainer_engine.families.flux3.family import Flux3
from trainer_engine.families.flux3.windows import in_windows
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.lumina2 import family as lumina2_family
from trainer_engine.families.lumina2 import prompts as lumina2_prompts
from trainer_engine.families.lumina2.family import Lumina2
from trainer_engine.families.sdxl.family import StableDiffusionXL
from trainer_engine.families.wan.autoencoder import ClipAutoencoder
from trainer_engine.families.wan.family import Wan
from trainer_engine.families.z_image import family as z_image_family
from trainer_engine.families.z_image.family import ZImage

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mistake:
    """A mistake, and the proof that notices it."""

    title: str
    make: Callable[[Patch], None]
    proof: Callable[[], None]


def given(family: type[Family], change: Callable[..., Arguments]) -> Callable[[Patch], None]:
    """The network gets other arguments from ``predict``."""

    def make(patch: Patch) -> None:
        right = family.predict

        def predict(self: Any, network: Any, inputs: Any) -> Tensor:
            hook = network.register_forward_pre_hook(lambda _, args, kwargs: change(*args, **kwargs), with_kwargs=True)
            try:
                return right(self, network, inputs)
            finally:
                hook.remove()

        patch.setattr(family, "predict", predict)

    return make


def replaced(owner: Any, name: str, value: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(owner, name, value)


def turned_around(family: type[Family]) -> Callable[[Patch], None]:
    """What the network predicts is taken as it is."""

    def make(patch: Patch) -> None:
        right = family.predict
        patch.setattr(family, "predict", lambda self, network, inputs: -right(self, network, inputs))

    return make


def all_tokens_count(**given: Any) -> Arguments:
    return (), {**given, "encoder_attention_mask": torch.ones_like(given["encoder_attention_mask"])}


def padded_with_zeros(images: Any, time: Tensor, prompts: list[Tensor], **others: Any) -> Arguments:
    longest = max(len(one) for one in prompts)
    padded = [torch.cat([one, one.new_zeros(longest - len(one), one.shape[1])]) for one in prompts]
    return (images, time, padded), others


def hidden_padding(self: Flux2, prompts: list[PromptEmbedding]) -> PromptBatch:
    """Takes the second half of each prompt, which is padding, out of it."""
    embeds = torch.stack([prompt["embeds"] for prompt in prompts])
    return {"embeds": torch.cat([embeds[:, :256], torch.zeros_like(embeds[:, 256:])], dim=1)}


def sizes_alone(self: StableDiffusionXL, samples: Any) -> dict[str, Tensor]:
    """Five numbers, and the last is a width."""
    return {"time_ids": torch.tensor([[*ids[:4], 1024.0] for ids in refiner.TIME_IDS])}


def zero_padding(states: Sequence[Tensor], limit: int) -> PromptBatch:
    return in_windows([torch.cat([one[:-1], torch.zeros_like(one[-1:])]) for one in states], limit)


def one_window(states: Sequence[Tensor], limit: int) -> PromptBatch:
    return {"embeds": in_windows(states, limit)["embeds"]}


def columns_first(latents: Tensor, factor: int) -> Tensor:
    return pixel_unshuffle(latents.transpose(2, 3), factor).transpose(2, 3)


def loss_of_flux2() -> None:
    flux2.test_loss_and_every_gradient_equal_those_of_diffusers("klein-9b", 0)


def loss_with_references() -> None:
    flux2.test_loss_and_every_gradient_equal_those_of_diffusers("klein-9b", 2)


def loss_of_flux3() -> None:
    flux3.test_loss_and_every_gradient_equal_those_of_samples_that_diffusers_computes_alone(flux3.MIXED, 2, recomputes=False)


def loss_of_z_image() -> None:
    z_image.test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing=False)


def loss_of_lumina2() -> None:
    lumina2.test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing=False)


def loss_of_wan() -> None:
    wan.test_loss_and_every_gradient_equal_those_of_diffusers(1, gradient_checkpointing=False)


def loss_of_refiner() -> None:
    refiner.test_loss_and_every_gradient_equal_those_of_diffusers("epsilon")


def token_count_of_flux2() -> None:
    """The schedule is shifted by the number of tokens, which is that of the sequence."""
    family, lengths = flux2.tiny_flux2("klein-9b"), set[int]()
    network: Any = family.load_network()
    network.register_forward_pre_hook(lambda _, args, given: lengths.add(given["hidden_states"].shape[1]), with_kwargs=True)
    noisy = fixed(1, 128, 4, 6, seed=1)
    prompts = family.collate_prompts(family.encode_prompts(["a cat"]))
    with torch.no_grad():
        family.predict(network, StepInputs(noisy_latents=noisy, timesteps=torch.ones(1), prompts=prompts))
    assert lengths == {family.token_count(noisy.shape[1:])}


MISTAKES = [
    Mistake("z_image: time runs from image to noise", given(ZImage, lambda x, t, p, **o: ((x, 1 - t, p), o)), loss_of_z_image),
    Mistake("z_image: time counts to 1000", given(ZImage, lambda x, t, p, **o: ((x, 1000 * t, p), o)), loss_of_z_image),
    Mistake("z_image: the output is not negated", turned_around(ZImage), loss_of_z_image),
    Mistake("z_image: prompts are padded", given(ZImage, padded_with_zeros), loss_of_z_image),
    Mistake(
        "z_image: the last states of the prompt",
        replaced(z_image_family, "STATES", -1),
        z_image.test_prompts_equal_those_of_the_pipeline_and_are_stored_without_padding,
    ),
    Mistake(
        "flux2: latents keep the statistics of the autoencoder",
        replaced(ShuffledAutoencoder, "_statistics", staticmethod(lambda vae: (torch.zeros(1), torch.ones(1)))),
        flux2.test_latents_are_shuffled_and_normalised_as_in_the_pipeline,
    ),
    Mistake(
        "flux2: cells are shuffled in another order",
        replaced(autoencoder, "pixel_unshuffle", columns_first),
        flux2.test_latents_are_shuffled_and_normalised_as_in_the_pipeline,
    ),
    Mistake("flux2: the padding of a prompt is hidden", replaced(Flux2, "collate_prompts", hidden_padding), loss_of_flux2),
    Mistake("flux2: time counts to 1000", given(Flux2, lambda **o: ((), {**o, "timestep": 1000 * o["timestep"]})), loss_of_flux2),
    Mistake("flux2: references are at the time of the image", replaced(flux2_family, "REFERENCE_DISTANCE", 0), loss_with_references),
    Mistake(
        "flux2: a token stands for four latent cells",
        replaced(Flux2, "token_count", lambda self, shape: shape[1] * shape[2] // 4),
        token_count_of_flux2,
    ),
    Mistake("flux3: time counts to 1000", given(Flux3, lambda **o: ((), {**o, "timestep": 1000 * o["timestep"]})), loss_of_flux3),
    Mistake("flux3: the padding of a prompt is zero", replaced(flux3_family, "in_windows", zero_padding), loss_of_flux3),
    Mistake("flux3: a prompt attends to the windows of longer ones", replaced(flux3_family, "in_windows", one_window), loss_of_flux3),
    Mistake(
        "flux3: the text encoder ends a layer early", replaced(flux3_family, "TEXT_LAYERS", (4, 8, 12, 16, 20, 24, 28, 31)), loss_of_flux3
    ),
    Mistake(
        "lumina2: time runs from image to noise",
        given(Lumina2, lambda **o: ((), {**o, "timestep": 1 - o["timestep"]})),
        loss_of_lumina2,
    ),
    Mistake("lumina2: time counts to 1000", given(Lumina2, lambda **o: ((), {**o, "timestep": 1000 * o["timestep"]})), loss_of_lumina2),
    Mistake("lumina2: the output is not negated", turned_around(Lumina2), loss_of_lumina2),
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
        replaced(Lumina2, "as_negative", lambda self, text: text),
        lumina2.test_a_negative_prompt_has_no_instruction_as_in_the_pipeline,
    ),
    Mistake("wan: time counts to 1", given(Wan, lambda **o: ((), {**o, "timestep": o["timestep"] / 1000})), loss_of_wan),
    Mistake(
        "wan: latents keep the statistics of the autoencoder",
        replaced(ClipAutoencoder, "_statistics", staticmethod(lambda vae, like: (torch.zeros(1), torch.ones(1)))),
        wan.test_an_image_is_a_clip_of_one_frame_with_normalized_latents,
    ),
    Mistake("sdxl refiner: the size takes the place of the score", replaced(StableDiffusionXL, "conditions", sizes_alone), loss_of_refiner),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.title)
def test_the_proof_of_a_family_notices_the_mistake(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake.make(monkeypatch)
    with pytest.raises(AssertionError):
        mistake.proof()
