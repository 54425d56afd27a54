"""Mistakes that can be made in Kolors on purpose, and the proofs that notice them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.trainer_engine.families.kolors import test_kolors as kolors
from tests.trainer_engine.families.mistakes import Mistake, Patch, given, replaced
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding
from trainer_engine.families.kolors import prompts
from trainer_engine.families.kolors.components import KolorsComponents
from trainer_engine.families.kolors.family import Kolors


def loss() -> None:
    kolors.test_loss_and_every_gradient_equal_those_of_diffusers("epsilon", gradient_checkpointing=False)


def schedule_of_stable_diffusion_xl(patch: Patch) -> None:
    right, others = KolorsComponents.scheduler_config, {"num_train_timesteps": 1100, "beta_end": 0.012}
    patch.setattr(KolorsComponents, "scheduler_config", lambda self: {**right(self), **others})


def without_padding(self: Kolors, embeddings: list[PromptEmbedding]) -> PromptBatch:
    """What stands on the left is padding."""
    embeds = torch.stack([one["embeds"][-64:] for one in embeddings])
    return {"embeds": embeds, "pooled": torch.stack([one["pooled"] for one in embeddings])}


def padded_on_the_right(patch: Patch) -> None:
    right = Kolors.encode_prompts

    def encode(self: Kolors, texts: list[str], references: Any = ()) -> list[PromptEmbedding]:
        return [{**one, "embeds": one["embeds"].flip(0)} for one in right(self, texts)]

    patch.setattr(Kolors, "encode_prompts", encode)


def widths_first(sample: Tensor | None = None, **inputs: Any) -> Any:
    added = inputs["added_cond_kwargs"]
    return (), {**inputs, "sample": sample, "added_cond_kwargs": {**added, "time_ids": added["time_ids"][:, [1, 0, 3, 2, 5, 4]]}}


MISTAKES = [
    Mistake("kolors: the last states of the prompt", replaced(prompts, "STATES", -1), loss),
    Mistake("kolors: the pooled prompt is that before the last layer", replaced(prompts, "POOLED", -2), loss),
    Mistake("kolors: the padding of prompts is left out", replaced(Kolors, "collate_prompts", without_padding), loss),
    Mistake("kolors: padding stands on the right", padded_on_the_right, kolors.test_prompts_equal_those_of_the_pipeline_with_their_padding),
    Mistake("kolors: the noise of another schedule", schedule_of_stable_diffusion_xl, loss),
    Mistake("kolors: widths come before heights", given(Kolors, widths_first), loss),
]
