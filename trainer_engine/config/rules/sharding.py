"""Rules of runs whose weights are spread over all processes (FSDP)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.config.precisions import LOADED, QUANTISED
from trainer_engine.config.rules.memory import STREAMS
from trainer_engine.contract.errors import Problem

SHARD, VERSION, BLOCKS = "fsdp_enable", "fsdp_version", "fsdp_transformer_layer_cls_to_wrap"
BASE = "base_model_precision"
CHECKPOINTING, RECOMPUTES = "fsdp_activation_checkpointing", "gradient_checkpointing"
DETAILS = (
    *("fsdp_reshard_after_forward", "fsdp_cpu_offload", "fsdp_cpu_ram_efficient_loading", CHECKPOINTING, "fsdp_auto_wrap_policy", BLOCKS),
)
FULL = "full"
WITHOUT = f"leave it out, or use {SHARD}=false"
ELEMENTWISE = ("torch-adam", "torch-adamw", "torch-sgd")
"""Optimizers whose update of a number looks at nothing but its own gradient and state: those of a part are a part of those of all."""
_STREAMED = "The weights of a block are gathered from other processes and not copied from the memory of the host"
_ONE_NETWORK = "FSDP spreads the one network of the family"
NOT_SHARDED = {
    **dict.fromkeys(STREAMS, _STREAMED),
    "controlnet": _ONE_NETWORK,
    "train_text_encoder": _ONE_NETWORK,
    "tread_config": "Token routing changes how blocks are called, and FSDP gathers their weights at these calls",
    "fuse_qkv_projections": "Joined projections keep the weights of a block beyond its call",
}
"""Option -> why it cannot be combined with FSDP."""
OTHER_VALUES = {"dynamo_backend": ("no", "A compiled network does not gather weights between its graphs")}
"""Option -> (its only value with FSDP, why)."""
OF_TRAINED = {"optimizer_cpu_offload_method": ("none", "The update on the host copies complete weights")}
"""The same for runs whose trained weights are spread, which are all of a full fine-tune and none of an adapter."""


def implied_by_sharding(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that follow from those of FSDP, by name."""
    return {RECOMPUTES: True} if values.get(SHARD) and values.get(CHECKPOINTING) else {}


def weights_can_be_sharded(values: Values) -> Iterator[Problem]:
    """Checks what FSDP is combined with."""
    if not values[SHARD]:
        for name in DETAILS:
            if values[name] != REGISTRY[name].default:
                yield Problem.note(name, "no_effect", f"{name} has no effect without {SHARD}.", got=values[name])
        return
    if values[CHECKPOINTING]:
        message = f"{CHECKPOINTING} does what {RECOMPUTES} does, which is on."
        yield Problem.note(CHECKPOINTING, "same_as", message, got=True, hint=f"{RECOMPUTES} says it with FSDP and without it")
    if values[VERSION] != 2:
        message = "Version 1 of FSDP, which PyTorch has deprecated, is not available."
        yield Problem.error(VERSION, "not_available", message, got=values[VERSION], expected="2", hint="leave it out")
    is_full = values.get("model_type") == FULL
    if is_full and values["optimizer"] not in ELEMENTWISE:
        message = f"optimizer={values['optimizer']} looks at complete weights, and {SHARD} gives each process some of their rows."
        expected, hint = f"one of {', '.join(ELEMENTWISE)}", "adapters on a sharded base take every optimizer"
        yield Problem.error("optimizer", "not_sharded", message, got=values["optimizer"], expected=expected, hint=hint)
    if not is_full and values[BASE] in QUANTISED:
        message = f"{SHARD} spreads weights of ordinary types. Quantised ones are complete on every process."
        hint = f"use {BASE}=no_change, or {SHARD}=false"
        yield Problem.error(BASE, "not_sharded", message, got=values[BASE], expected=f"no_change, {', '.join(LOADED)}", hint=hint)
    for name, reason in NOT_SHARDED.items():
        if values[name]:
            yield Problem.error(name, "not_sharded", f"{SHARD}: {reason}.", got=values[name], expected=f"no {name}", hint=WITHOUT)
    for name, (only, reason) in {**OTHER_VALUES, **(OF_TRAINED if is_full else {})}.items():
        if values[name] != only:
            yield Problem.error(name, "not_sharded", f"{SHARD}: {reason}.", got=values[name], expected=only, hint=WITHOUT)
    if values["mixed_precision"] == "fp16":
        message = f"{SHARD}: the loss scale of float16 is not kept in step between processes."
        yield Problem.error("mixed_precision", "not_sharded", message, got="fp16", expected="bf16 or no", hint=WITHOUT)
    if values["context_parallel_size"] > 1:
        message = f"{SHARD} and context_parallel_size spread over the same processes."
        size = values["context_parallel_size"]
        yield Problem.error("context_parallel_size", "not_sharded", message, got=size, expected="1", hint=WITHOUT)


def sharing_problems(options: TrainingOptions, processes: int) -> Iterator[Problem]:
    """Yields an error if there is only one process to spread the weights over."""
    if options.distributed.fsdp_enable and processes < 2:
        message = f"{SHARD} spreads the weights over the processes of a run, and this run has {processes}."
        hint = "use num_processes=2 or more, or fsdp_enable=false"
        yield Problem.error(SHARD, "needs_processes", message, got=True, expected="at least 2 processes", hint=hint)


def block_problems(blocks: Iterable[str], classes: Collection[str]) -> Iterator[Problem]:
    """Yields an error for names of blocks that the network does not have. ``classes``: class names of its modules."""
    unknown = [name for name in blocks if name not in classes]
    if unknown:
        message = f"The network has no module of the class {', '.join(unknown)}."
        known = ", ".join(sorted(name for name in classes if name.endswith("Block"))[:8])
        yield Problem.error(BLOCKS, "no_such_block", message, got=", ".join(unknown), expected=f"such as {known}")


RULES: tuple[Rule, ...] = (weights_can_be_sharded,)
