"""Mistakes that can be made in AuraFlow on purpose, and the proofs that notice them."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn.utils.rnn import pad_sequence

from tests.trainer_engine.families.auraflow import test_auraflow as auraflow
from tests.trainer_engine.families.mistakes import Mistake, given, replaced
from trainer_engine.families.auraflow.components import AuraFlowComponents
from trainer_engine.families.auraflow.family import AuraFlow
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding

PADDING = "zeros behind a prompt count"


def loss() -> None:
    auraflow.test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing=False)


def as_short_as_possible(self: AuraFlow, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
    return {"embeds": pad_sequence([one["embeds"] for one in prompts], batch_first=True)}


def with_states_of_padding(self: AuraFlow, prompts: Sequence[str], references: object = ()) -> list[PromptEmbedding]:
    return [{"embeds": states.clone()} for states in self.text.encode(prompts)[0]]


def unshifted(self: AuraFlowComponents) -> dict[str, object]:
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}


MISTAKES = [
    Mistake("auraflow: time counts to 1000", given(AuraFlow, lambda x, **o: ((x,), {**o, "timestep": 1000 * o["timestep"]})), loss),
    Mistake("auraflow: time runs from noise to image", given(AuraFlow, lambda x, **o: ((x,), {**o, "timestep": 1 - o["timestep"]})), loss),
    Mistake(
        "auraflow: prompts are as short as the batch allows", replaced(AuraFlow, "collate_prompts", as_short_as_possible), loss, PADDING
    ),
    Mistake(
        "auraflow: the padding of a prompt keeps its states", replaced(AuraFlow, "encode_prompts", with_states_of_padding), loss, PADDING
    ),
    Mistake(
        "auraflow: the sampler is not shifted",
        replaced(AuraFlowComponents, "scheduler_config", unshifted),
        auraflow.test_the_sampler_has_the_shift_of_the_base_model,
    ),
]
