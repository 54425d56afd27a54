"""The memory of a step is a sum of named parts, and options that free memory change these parts alone."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from tests.helpers.models import options_with
from trainer_engine.config.families import specs
from trainer_engine.datasets.buckets import Effective
from trainer_engine.datasets.report import DatasetReport
from training.preflight.estimates import estimate_memory
from training.preflight.on_device import EstimatedRun, OnDevice, paged_state_leaves_the_device, relieved
from training.preflight.step import step_memory

SPEC = specs()["pixart_sigma"]
TENSORS = {"weight": (1000, 1000)}
NUMBERS = 1_000_000
NOTHING = DatasetReport([], Effective(1, 1, 1))
HELD = OnDevice(weights=1, gradients=2, state=4, average=8, frozen=16, activations=32)


def run(**values: Any) -> EstimatedRun:
    return EstimatedRun(options=options_with(**{"ema_device": "accelerator", **values}), spec=SPEC, parameters=NUMBERS, tensors=TENSORS)


def test_the_parts_of_a_full_run_are_weights_gradients_state_and_average() -> None:
    held = step_memory(run(optimizer="torch-adamw", use_ema=True), NOTHING)
    assert (held.weights, held.gradients, held.state, held.average, held.frozen) == (4 * NUMBERS, 4 * NUMBERS, 8 * NUMBERS, 4 * NUMBERS, 0)


def test_an_adapter_has_frozen_weights_of_its_own_type() -> None:
    held = step_memory(run(model_type="lora", optimizer="torch-adamw", base_model_precision="int8-quanto"), NOTHING)
    assert held.frozen == pytest.approx(1.01 * NUMBERS)
    assert 0 < held.weights < NUMBERS


def test_the_estimate_is_the_sum_of_the_parts_on_the_device() -> None:
    chosen = run(optimizer="torch-adamw")
    memory, held = estimate_memory(chosen.options, NUMBERS, NOTHING, SPEC, TENSORS), step_memory(chosen, NOTHING)
    assert (memory.counted, memory.modelled) == (held.counted, held.activations)
    assert HELD.counted == 31 and HELD.total == 63
    assert replace(HELD, host=1000).total == 63


def test_paged_state_moves_to_the_host_and_nothing_else_does() -> None:
    plain = run(optimizer="torch-adamw")
    optimizer = plain.options.optimizer.model_copy(update={"optimizer": "bnb-adamw-paged"})
    paged = replace(plain, options=plain.options.model_copy(update={"optimizer": optimizer}))
    assert paged_state_leaves_the_device(HELD, plain) == HELD
    assert relieved(HELD, paged) == replace(HELD, state=0, host=HELD.state)


def test_every_part_is_counted_once() -> None:
    parts = [field.name for field in fields(OnDevice) if field.name not in ("freed", "host")]
    assert OnDevice(**dict.fromkeys(parts, 1)).total == len(parts)


def test_activations_that_make_room_for_gradients_count_once() -> None:
    assert replace(HELD, freed=2).total == HELD.total - 2
    released = relieved(replace(HELD, freed=30), run(optimizer="torch-adamw"))
    assert released.freed == HELD.gradients, "no more than there are gradients"


def test_gradients_that_last_over_micro_batches_share_no_room_with_activations() -> None:
    once, twice = (step_memory(run(optimizer="torch-adamw", gradient_accumulation_steps=steps), NOTHING) for steps in (1, 2))
    assert twice.freed == 0 and once.counted == twice.counted


@pytest.mark.parametrize("frees", [True, False])
def test_sharded_weights_count_by_the_part_of_a_process_and_what_it_gathers(frees: bool) -> None:
    four = replace(NOTHING, effective=Effective(1, 1, 4))
    values = {"optimizer": "torch-adamw", "use_ema": True, "fsdp_enable": True, "fsdp_reshard_after_forward": frees}
    complete, sharded = step_memory(run(optimizer="torch-adamw", use_ema=True), four), step_memory(run(**values), four)
    for part in ("gradients", "state", "average"):
        assert getattr(sharded, part) == getattr(complete, part) // 4, part
    gathered = sharded.weights - complete.weights // 4
    assert gathered == complete.weights if not frees else 0 < gathered <= complete.weights
    assert sharded.activations == complete.activations


def test_an_adapter_stays_complete_and_the_weights_below_it_are_spread() -> None:
    four = replace(NOTHING, effective=Effective(1, 1, 4))
    values = {"model_type": "lora", "optimizer": "torch-adamw", "use_ema": True}
    complete, sharded = step_memory(run(**values), four), step_memory(run(**values, fsdp_enable=True), four)
    for part in ("weights", "gradients", "state", "average"):
        assert getattr(sharded, part) == getattr(complete, part), part
    assert complete.frozen // 4 < sharded.frozen < complete.frozen * 1.3 and sharded.host == 0
    whole = step_memory(run(**values, fsdp_enable=True, fsdp_auto_wrap_policy="NO_WRAP"), four)
    assert whole.frozen == complete.frozen // 4 + complete.frozen, "the network is gathered at once"


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_offloaded_parts_are_counted_on_the_host(model_type: str) -> None:
    four = replace(NOTHING, effective=Effective(1, 1, 4))
    values = {"model_type": model_type, "optimizer": "torch-adamw", "use_ema": True, "fsdp_enable": True}
    usual, offloaded = step_memory(run(**values), four), step_memory(run(**values, fsdp_cpu_offload=True), four)
    assert offloaded.counted + offloaded.host == usual.counted, "they only lie elsewhere"
    assert 0 < offloaded.host < usual.counted
    moved = {"weights", "gradients", "state", "average"} if model_type == "full" else {"frozen"}
    assert {field.name for field in fields(OnDevice) if getattr(offloaded, field.name) < getattr(usual, field.name)} == moved
    assert step_memory(run(**{**values, "fsdp_enable": False}, fsdp_cpu_offload=True), four).host == 0
