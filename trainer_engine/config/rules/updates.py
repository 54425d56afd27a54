"""Rules of the options that decide where and when weights are updated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.options.registry import Rule, Values
from trainer_engine.config.precisions import trained_precision
from trainer_engine.contract.errors import Problem

RELEASE, OFFLOAD, OFFLOAD_GRADIENTS = "optimizer_release_gradients", "optimizer_cpu_offload_method", "optimizer_offload_gradients"
SUMS = "gradient_precision"


def fused_update_exists(values: Values) -> Iterator[Problem]:
    chosen = OPTIMIZERS.get(values["optimizer"])
    if chosen is None or not values["fuse_optimizer"]:
        return
    config: Mapping[str, Any] = values["optimizer_config"]
    if "fused" not in chosen.arguments:
        message = f"{chosen.name} has no fused update for all weights, so fuse_optimizer has no effect."
        yield Problem.note("fuse_optimizer", "no_effect", message, got=True)
    elif config.get("fused") is False or config.get("foreach") is True:
        message = "fuse_optimizer asks for the fused update, and optimizer_config for another one."
        yield Problem.error("fuse_optimizer", "contradiction", message, got=True, expected="one of the two")


def gradients_can_be_released(values: Values) -> Iterator[Problem]:
    if not values[RELEASE]:
        return
    chosen = OPTIMIZERS.get(values["optimizer"])
    if chosen is not None and not chosen.can_release:
        able = ", ".join(row.name for row in OPTIMIZERS.values() if row.can_release)
        message = f"{chosen.name} updates all weights together, and cannot update one during the backward pass."
        yield Problem.error(RELEASE, "not_with_optimizer", message, got=True, expected=f"one of {able}")
    reasons = {
        "gradient_accumulation_steps": (values["gradient_accumulation_steps"] > 1, "1", "a gradient is used before the next micro-batch"),
        "grad_clip_method": (
            values["grad_clip_method"] == "norm" and values["max_grad_norm"] > 0,
            "value, or max_grad_norm=0",
            "the norm of all gradients is only known when they have been used",
        ),
        "mixed_precision": (values["mixed_precision"] == "fp16", "bf16 or no", "a step that overflows cannot be taken back"),
        OFFLOAD: (values[OFFLOAD] != "none", "none", "weights are then updated after the backward pass"),
        "optimizer_config": (values["optimizer_config"].get("foreach") is True, "foreach=false", "foreach updates many weights together"),
    }
    for name, (is_broken, expected, reason) in reasons.items():
        if is_broken:
            yield Problem.error(name, "not_with_released_gradients", f"{RELEASE}: {reason}.", got=values[name], expected=expected)


def update_can_run_on_the_host(values: Values) -> Iterator[Problem]:
    if values[OFFLOAD] == "none":
        if values[OFFLOAD_GRADIENTS]:
            message = f"{OFFLOAD_GRADIENTS} has no effect without {OFFLOAD}."
            yield Problem.note(OFFLOAD_GRADIENTS, "no_effect", message, got=True)
        return
    chosen = OPTIMIZERS.get(values["optimizer"])
    if chosen is not None and (chosen.needs_gpu or chosen.is_schedule_free):
        reason = "has its kernels on a GPU alone" if chosen.needs_gpu else "keeps two sets of weights, of which one is on the device"
        message = f"{chosen.name} {reason}, so that it cannot update weights on the host."
        yield Problem.error(OFFLOAD, "not_with_optimizer", message, got=values[OFFLOAD], expected="none, or another optimizer")
    if values[OFFLOAD_GRADIENTS] and values["mixed_precision"] == "fp16":
        message = f"{OFFLOAD_GRADIENTS} moves gradients away before the loss scale of float16 is divided out."
        yield Problem.error(OFFLOAD_GRADIENTS, "not_with_fp16", message, got=True, expected="mixed_precision=bf16 or no")


def gradients_can_be_added_in_float32(values: Values) -> Iterator[Problem]:
    """Notes ``gradient_precision=fp32`` where it changes nothing, and refuses it where gradients leave before they are added."""
    if values[SUMS] != "fp32":
        return
    if not adds_in_float32(values):
        reasons = "the trained weights and their gradients are float32", "gradient_accumulation_steps is 1, so that nothing is added"
        reason = reasons[values["gradient_accumulation_steps"] == 1]
        yield Problem.note(SUMS, "no_effect", f"{reason}: {SUMS} has no effect.", got="fp32")
    elif values[OFFLOAD_GRADIENTS]:
        message = f"{OFFLOAD_GRADIENTS} adds gradients on the host, in the type of the weights."
        yield Problem.error(SUMS, "not_with_offloaded_gradients", message, got="fp32", expected=f"{OFFLOAD_GRADIENTS}=false")


def adds_in_float32(values: Values) -> bool:
    """Whether gradients in a shorter type are added in float32."""
    is_shorter = trained_precision(values["optimizer"], values["mixed_precision"]).name != "fp32"
    return values[SUMS] == "fp32" and is_shorter and values["gradient_accumulation_steps"] > 1


def gradients_stay_with_several_processes(values: Values) -> Iterator[Problem]:
    yield from process_problems(values, values["num_processes"])


def process_problems(values: Values, processes: int) -> Iterator[Problem]:
    """Yields an error for each option that uses a gradient before several processes have exchanged it."""
    wanted = {name: values[name] for name in (RELEASE, OFFLOAD_GRADIENTS)} | {SUMS: adds_in_float32(values)}
    for name in (name for name, is_wanted in wanted.items() if processes > 1 and is_wanted):
        message = f"{name} uses gradients before {processes} processes have exchanged them."
        yield Problem.error(name, "needs_one_process", message, got=values[name], expected="one process")


RULES: tuple[Rule, ...] = (
    fused_update_exists,
    gradients_can_be_released,
    update_can_run_on_the_host,
    gradients_can_be_added_in_float32,
    gradients_stay_with_several_processes,
)
