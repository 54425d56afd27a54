"""Mistakes that can be made in a family on purpose, and the proofs of the families that notice them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Krea2Pipeline, QwenImagePipeline
from torch import Tensor
from torch.nn.functional import pixel_unshuffle
from torch.nn.utils.rnn import pad_sequence

from tests.helpers.family_folders import stated
from tests.helpers.models import fixed, options_with, tiny_model
from tests.trainer_engine.config import test_clip_rules, test_precisions
from tests.trainer_engine.families.flux2 import test_flux2 as flux2
from tests.trainer_engine.families.flux3 import test_numerics as flux3
from tests.trainer_engine.families.krea2 import test_krea2 as krea2
from tests.trainer_engine.families.krea2 import test_prompts as krea2_prompts
from tests.trainer_engine.families.qwen_image import test_qwen_image as qwen
from tests.trainer_engine.families.sdxl import test_refiner as refiner
from tests.trainer_engine.families.wan import test_wan as wan
from tests.trainer_engine.families.z_image import test_z_image as z_image
from trainer_engine.config.families import specs
from trainer_engine.config.family_parts import ClipSpec
from trainer_engine.config.rules.noise_schedule import DISTILLED
from trainer_engine.families.base import Family
from trainer_engine.families.common.chat_prompts import padded
from trainer_engine.families.flux2.family import Flux2
from trainer_engine.families.flux3.windows import in_windows
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.krea2.components import Krea2Components
from trainer_engine.families.krea2.prompts import StackedEncoder
from trainer_engine.families.qwen_image.family import QwenImage
from trainer_engine.families.qwen_image_21.components import QwenImage21Components
from trainer_engine.families.qwen_image_21.family import QwenImage21
from trainer_engine.families.sdxl.family import StableDiffusionXL
from training.preflight.model_files import weights_problems

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mistake:
    """A mistake, and the proof that notices it."""

    title: str
    """It begins with the name of the family."""
    make: Callable[[Patch], None]
    proof: Callable[[], None]
    trap: str = ""
    """A beginning of the trap in ``TRAPS``; empty for a mistake that is not known of other trainers."""


def mistakes_of_families() -> list[Mistake]:
    """Those of every family whose tests have a module ``mistakes`` with a list ``MISTAKES``."""
    return [mistake for mistakes in stated("mistakes", "MISTAKES").values() for mistake in mistakes]


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
    right = family.predict
    return replaced(family, "predict", lambda self, network, inputs: -right(self, network, inputs))


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


def other_squares(hidden_states: Tensor, **others: Any) -> Arguments:
    """The cells of a token are in the order of their columns."""
    return (), {**others, "hidden_states": hidden_states.unflatten(-1, (-1, 2, 2)).transpose(-1, -2).flatten(-3)}


def masked_for_nothing(self: QwenImage, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
    batch = padded(prompts)
    return {"mask": torch.ones(batch["embeds"].shape[:2], dtype=torch.bool), **batch}


def padded_beside_others(self: QwenImage21, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
    """Padding comes before the image, and moves its place."""
    embeds = padded(prompts)["embeds"]
    batch = {f"embeds.{number}": one for number, one in enumerate(embeds)}
    return {**batch, **{f"slots.{number}": torch.zeros(len(one), dtype=torch.bool) for number, one in enumerate(embeds)}}


def normalised_states(patch: Patch) -> None:
    patch.setattr(QwenImage21Components, "load_language_model", lambda self, dtype: self.load_whole_text_encoder(dtype).model)


def prompt_at_the_time_of_the_image(params: Tensor, target_token_mask: Tensor | None) -> Tensor:
    """Every token is modulated as those of the sample's image."""
    return params.unsqueeze(1) if target_token_mask is None else params[:-1].unsqueeze(1)


def last_layers(self: Krea2Components) -> tuple[int, ...]:
    """As many states as the network takes, but those of the last layers."""
    return 2, 3, 4


def padding_is_stored(patch: Patch) -> None:
    right = StackedEncoder.encode

    def encode(self: StackedEncoder, prompts: Sequence[str]) -> list[Tensor]:
        states = right(self, prompts)
        return list(pad_sequence(states, batch_first=True))

    patch.setattr(StackedEncoder, "encode", encode)


def eights(frames: int, clips: ClipSpec) -> tuple[int, ...]:
    """The longest clip of one frame and a multiple of eight."""
    return ((frames - 1) // 8 * 8 + 1,)


def distilled_weights_are_reported(family: str, flavour: str) -> Callable[[], None]:
    def proof() -> None:
        given = {"model_family": family, "model_flavour": flavour, "pretrained_model_name_or_path": None, "assistant_lora_path": None}
        found = weights_problems(options_with(**given), specs()[family], Path("nowhere"))
        assert DISTILLED in [problem.code for problem in found]

    return proof


def poor_precision_is_reported() -> None:
    test_precisions.test_a_precision_in_which_a_family_learns_nothing_is_a_warning("z_image", "fp16", warned=True)


def clip_of_77_frames_is_valid() -> None:
    test_clip_rules.test_a_length_that_wan_generates_is_valid(77)


@cache
def pipeline_of_qwen() -> Any:
    return QwenImagePipeline.from_pretrained(tiny_model("qwen_image"))


@cache
def pipeline_of_krea2() -> Any:
    return krea2.pipeline_of("raw")


def loss_of_qwen() -> None:
    qwen.test_loss_and_every_gradient_equal_those_of_diffusers(pipeline_of_qwen(), qwen.PROMPTS, gradient_checkpointing=False)


def mask_of_qwen() -> None:
    qwen.test_a_batch_has_a_mask_only_if_something_is_padded(pipeline_of_qwen())


def latents_of_qwen() -> None:
    qwen.test_latents_are_those_of_a_clip_of_one_frame_normalised_by_channel(pipeline_of_qwen())


def loss_of_krea2() -> None:
    krea2.test_loss_and_every_gradient_equal_those_of_diffusers(pipeline_of_krea2(), gradient_checkpointing=False)


def prompts_of_krea2() -> None:
    pipeline = Krea2Pipeline.from_pretrained(tiny_model("krea2"))
    with torch.no_grad():
        embeds, mask = pipeline.encode_prompt(krea2.PROMPTS)
    wanted = {prompt: one[real] for prompt, one, real in zip(krea2.PROMPTS, embeds, mask, strict=True)}
    krea2_prompts.test_prompts_equal_those_of_the_pipeline_and_are_stored_without_padding(krea2.tiny_krea2(), wanted)


def loss_of_flux2() -> None:
    flux2.test_loss_and_every_gradient_equal_those_of_diffusers("klein-9b", 0)


def loss_with_references() -> None:
    flux2.test_loss_and_every_gradient_equal_those_of_diffusers("klein-9b", 2)


def loss_of_flux3() -> None:
    flux3.test_loss_and_every_gradient_equal_those_of_samples_that_diffusers_computes_alone(flux3.MIXED, 2, recomputes=False)


def loss_of_z_image() -> None:
    z_image.test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing=False)


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
