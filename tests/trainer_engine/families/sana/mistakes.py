"""Mistakes that can be made in Sana on purpose, and the proofs that notice them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.trainer_engine.families.mistakes import Mistake, Patch, given, replaced
from tests.trainer_engine.families.sana import test_sana as sana
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding
from trainer_engine.families.sana import prompts
from trainer_engine.families.sana.components import DeepAutoencoder, SanaParts
from trainer_engine.families.sana.family import Sana


def loss() -> None:
    sana.test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing=False)


def attends_to_padding(latents: Tensor, **inputs: Any) -> Any:
    return (latents,), {**inputs, "encoder_attention_mask": torch.ones_like(inputs["encoder_attention_mask"])}


def without_first_token(patch: Patch) -> None:
    right = Sana.collate_prompts

    def collated(self: Sana, embeddings: list[PromptEmbedding]) -> PromptBatch:
        return right(self, [{"embeds": one["embeds"][1:]} for one in embeddings])

    patch.setattr(Sana, "collate_prompts", collated)


def as_it_is_written(patch: Patch) -> None:
    class Cased(str):
        def lower(self) -> str:
            return str(self)

        def removeprefix(self, prefix: str) -> Cased:
            return Cased(super().removeprefix(prefix))

    right = prompts.InstructedText.encode
    patch.setattr(prompts.InstructedText, "encode", lambda self, texts: right(self, [Cased(text) for text in texts]))


def unshifted(patch: Patch) -> None:
    right = SanaParts.scheduler_config
    patch.setattr(SanaParts, "scheduler_config", lambda self: {key: one for key, one in right(self).items() if key != "flow_shift"})


MISTAKES = [
    Mistake("sana: time counts to 1", given(Sana, lambda x, **o: ((x,), {**o, "timestep": o["timestep"] / 1000})), loss),
    Mistake("sana: time has no scale", given(Sana, lambda x, **o: ((x,), {**o, "timestep": 2 * o["timestep"]})), loss),
    Mistake("sana: the network attends to padding", given(Sana, attends_to_padding), loss),
    Mistake("sana: the first token of the instruction is left out", without_first_token, loss),
    Mistake(
        "sana: the instruction is counted whole",
        replaced(prompts, "SHARED_TOKENS", 0),
        sana.test_prompts_equal_those_of_the_pipeline_behind_the_instruction,
    ),
    Mistake("sana: prompts keep their case", as_it_is_written, sana.test_prompts_equal_those_of_the_pipeline_behind_the_instruction),
    Mistake(
        "sana: negative prompts follow the instruction",
        replaced(Sana, "negative_text", lambda self, text: text),
        sana.test_negative_prompts_and_the_empty_one_are_read_without_the_instruction,
    ),
    Mistake(
        "sana: latents keep their scale",
        replaced(DeepAutoencoder, "_scaled", lambda self, vae, latents: latents),
        sana.test_latents_are_scaled,
    ),
    Mistake("sana: samplers lose the shift", unshifted, sana.test_every_sampler_has_the_shift_of_the_base_model),
]
