"""Rules of runs whose processes share more than gradients: samples that are split over a group of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainer_engine.config.attention import MECHANISMS
from trainer_engine.config.families import find_spec
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.config.rules.memory import GROUPS
from trainer_engine.config.token_splitting import ALL_GATHER, ALL_TO_ALL, SIZE, STRATEGY, SizeInUse, uneven_sizes
from trainer_engine.contract.errors import Problem

MOST_NAMED = 5
NOT_SPLIT = {
    "controlnet": "A ControlNet and the network that it steers are not split together",
    "tread_config": "Token routing chooses among all tokens of a sample",
    GROUPS: "Group offload and the exchange of tokens are not in step with each other",
    "validation_randomize": "The processes of a group would each choose another seed for the same image",
}
"""Option that asks for something which cannot be split -> why."""


def tokens_can_be_split(values: Values) -> Iterator[Problem]:
    """Checks whether the family's network and everything that is computed in it can be split over the tokens of a sample."""
    group = values[SIZE]
    if group <= 1:
        if values[STRATEGY] != REGISTRY[STRATEGY].default:
            yield Problem.note(STRATEGY, "no_effect", f"{SIZE} is 1: {STRATEGY} has no effect.", got=values[STRATEGY])
        return
    spec = find_spec(str(values.get("model_family", "")))
    if spec is None:
        return
    if spec.splitting is None:
        message = f"The network of {spec.title} cannot be split over the tokens of a sample: diffusers has no plan for it."
        yield Problem.error(SIZE, "not_with_family", message, got=group, expected="1")
        return
    yield from _attention_problems(values)
    yield from _prompt_problems(values, spec)
    for name, reason in NOT_SPLIT.items():
        if values[name]:
            yield Problem.error(name, "not_split", f"{SIZE}={group}: {reason}.", got=values[name], expected=f"{SIZE}=1, or no {name}")
    if values["dynamo_backend"] != "no":
        message = f"{SIZE}={group}: a compiled network does not exchange tokens between its graphs."
        yield Problem.error("dynamo_backend", "not_split", message, got=values["dynamo_backend"], expected="no")


def _attention_problems(values: Values) -> Iterator[Problem]:
    mechanism, strategy = MECHANISMS.get(values["attention_mechanism"]), values[STRATEGY]
    if mechanism is None or strategy in mechanism.splits:
        return
    able = ", ".join(row.name for row in MECHANISMS.values() if strategy in row.splits)
    if mechanism.splits:
        message = f"{strategy} joins the attention to each part of the tokens, and {mechanism.name} does not return how its scores add up."
        expected = f"{' or '.join(sorted(mechanism.splits))}, or attention_mechanism one of {able}"
        yield Problem.error(STRATEGY, "not_with_attention", message, got=strategy, expected=expected)
    else:
        message = f"attention_mechanism={mechanism.name} cannot attend to tokens of other processes."
        yield Problem.error("attention_mechanism", "not_split", message, got=mechanism.name, expected=f"one of {able}")


def _prompt_problems(values: Values, spec: FamilySpec) -> Iterator[Problem]:
    group, prompts, splitting = values[SIZE], spec.prompts, spec.splitting
    assert splitting is not None, "the caller has checked it"
    if prompts.is_masked(values) and not splitting.splits_masks:
        option = prompts.mask_option or SIZE
        message = f"{SIZE}={group}: the mask that hides the padding of prompts is not split with the tokens."
        yield Problem.error(option, "not_split", message, got=values[option], expected=f"{SIZE}=1, or no masks")
    elif prompts.is_masked(values) and values[STRATEGY] == ALL_GATHER:
        message = f"{ALL_GATHER} joins the attention to each part of the tokens, and the mask that hides padding stays with its part."
        yield Problem.error(STRATEGY, "not_with_masks", message, got=values[STRATEGY], expected=ALL_TO_ALL)
    limit = spec.tokens_of(values.get("model_flavour"), values["tokenizer_max_length"])
    if splitting.splits_prompt and limit % group:
        message = f"{SIZE}={group} splits the {limit} tokens of each prompt as well, which is no multiple of {group}."
        option = "tokenizer_max_length" if values["tokenizer_max_length"] else SIZE
        yield Problem.error(option, "uneven_tokens", message, got=values[option], expected=f"a multiple of {group} tokens")


def size_problems(options: TrainingOptions, spec: FamilySpec, sizes: Iterable[SizeInUse]) -> Iterator[Problem]:
    """Yields an error for each option with sizes whose tokens cannot be spread evenly over a group."""
    group, splitting = options.distributed.group_size, spec.splitting
    if group <= 1 or splitting is None:
        return
    for option, titles in uneven_sizes(splitting, sizes, group, spec.latents.scale_factor_px, spec.latent_frames).items():
        named = "; ".join(f"{title}: {tokens} tokens" for title, tokens in list(titles.items())[:MOST_NAMED])
        more = f"; and {len(titles) - MOST_NAMED} more" if len(titles) > MOST_NAMED else ""
        message = f"{SIZE}={group} spreads the tokens of each sample evenly, and not every size has a multiple of {group}: {named}{more}."
        edge = spec.latents.scale_factor_px * splitting.cells * group
        hint = f"edges that are multiples of {edge} pixels always fit (aspect_bucket_alignment, resolution, validation_resolution)"
        yield Problem.error(option, "uneven_tokens", message, got=len(titles), expected=f"multiples of {group} tokens", hint=hint)


def validation_sizes(options: TrainingOptions) -> list[SizeInUse]:
    """The sizes of the images or clips that the run generates."""
    validation = options.validation
    if validation.validation_disable:
        return []
    option, frames = "validation_resolution", validation.frames
    return [SizeInUse(option, f"{width}x{height}", (width, height), frames) for width, height in validation.resolutions]


def network_problems(options: TrainingOptions, spec: FamilySpec, config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields an error if the attention heads cannot be exchanged. ``config``: the network's; empty if it is not known."""
    group, heads = options.distributed.group_size, config.get("num_attention_heads")
    exchanges = options.distributed.context_parallel_comm_strategy == ALL_TO_ALL
    if group <= 1 or not exchanges or not isinstance(heads, int) or heads % group == 0:
        return
    fitting = ", ".join(str(number) for number in range(2, heads + 1) if heads % number == 0)
    message = f"{STRATEGY}={ALL_TO_ALL} gives each process of a group some of the {heads} attention heads, and {group} cannot share them."
    expected = f"one of {fitting}, or {STRATEGY}={ALL_GATHER}"
    yield Problem.error(SIZE, "uneven_heads", message, got=group, expected=expected)


def group_problems(options: TrainingOptions, processes: int) -> Iterator[Problem]:
    """Yields an error if so many processes do not make whole groups."""
    group = options.distributed.group_size
    if group <= 1 or (processes >= group and processes % group == 0):
        return
    wanted = math.ceil(max(processes, 1) / group) * group
    message = f"{SIZE}={group} makes groups of {group} processes, and this run has {processes}."
    expected, hint = f"a multiple of {group} processes", f"use num_processes={wanted}, or {SIZE}=1"
    yield Problem.error(SIZE, "needs_processes", message, got=group, expected=expected, hint=hint)


RULES: tuple[Rule, ...] = (tokens_can_be_split,)
