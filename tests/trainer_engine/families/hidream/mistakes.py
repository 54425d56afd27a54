"""Mistakes that can be made in HiDream-I1 on purpose, and the proofs that notice them."""

from __future__ import annotations

from typing import Any

from tests.trainer_engine.families.hidream import test_hidream as hidream
from tests.trainer_engine.families.mistakes import Arguments, Mistake, given, replaced, turned_around
from trainer_engine.families.hidream import family as hidream_family
from trainer_engine.families.hidream.family import HiDream

DIRECTION = "time runs backwards"


def loss_of_hidream() -> None:
    hidream.check_loss_and_gradients(hidream.their_pipeline(), (8, 12), gradient_checkpointing=False)


def time_runs_backwards(**given: Any) -> Arguments:
    return (), {**given, "timesteps": 1000 - given["timesteps"]}


def one_layer_of_llama(**given: Any) -> Arguments:
    states = given["encoder_hidden_states_llama3"]
    return (), {**given, "encoder_hidden_states_llama3": states[-1:].expand_as(states)}


MISTAKES = [
    Mistake("hidream: the output is not negated", turned_around(HiDream), loss_of_hidream, DIRECTION),
    Mistake("hidream: time runs from image to noise", given(HiDream, time_runs_backwards), loss_of_hidream, DIRECTION),
    Mistake("hidream: one layer of Llama stands for all", given(HiDream, one_layer_of_llama), loss_of_hidream),
    Mistake(
        "hidream: the experts are computed as for generation",
        replaced(hidream_family, "make_trainable", lambda network: None),
        hidream.check_gradients_of_experts,
    ),
]
