"""Options of where and when weights are updated: combinations that would be wrong are refused."""

from __future__ import annotations

from typing import Any

import pytest

from trainer_engine.config.parse import check_options
from trainer_engine.config.rules.updates import SUMS, process_problems
from trainer_engine.contract.errors import Level

GIVEN = {"model_family": "flux", "model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 100}
NAMES = ("fuse_optimizer", "optimizer_release_gradients", "optimizer_cpu_offload_method", "optimizer_offload_gradients", "ema_device", SUMS)
RELEASE: dict[str, Any] = {"optimizer_release_gradients": True, "optimizer": "optimi-lion", "max_grad_norm": 0}
HOST: dict[str, Any] = {"optimizer_cpu_offload_method": "torchao", "optimizer": "torch-adamw"}
SHORT: dict[str, Any] = {"optimizer": "adamw_bf16", "mixed_precision": "bf16", "gradient_accumulation_steps": 2, SUMS: "fp32"}


def problems_of(**values: Any) -> list[tuple[str, str, Level]]:
    found = check_options({**GIVEN, "num_train_epochs": 0, **values})[1]
    codes = ("not_with_released_gradients", "longer_than_run")
    return [(one.option, one.code, one.level) for one in found if one.option in NAMES or one.code in codes]


@pytest.mark.parametrize(
    ("values", "option", "code"),
    [
        ({"optimizer": "torch-adamw"}, "optimizer_release_gradients", "not_with_optimizer"),
        ({"optimizer": "prodigy"}, "optimizer_release_gradients", "not_with_optimizer"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps", "not_with_released_gradients"),
        ({"grad_clip_method": "norm", "max_grad_norm": 1.0}, "grad_clip_method", "not_with_released_gradients"),
        ({"mixed_precision": "fp16"}, "mixed_precision", "not_with_released_gradients"),
        ({"optimizer_config": "foreach=true"}, "optimizer_config", "not_with_released_gradients"),
        ({"optimizer_cpu_offload_method": "torchao"}, "optimizer_cpu_offload_method", "not_with_released_gradients"),
        ({"num_processes": 2}, "optimizer_release_gradients", "needs_one_process"),
    ],
)
def test_released_gradients_are_refused_where_they_would_be_wrong(values: dict[str, Any], option: str, code: str) -> None:
    assert problems_of(**(RELEASE | values)) == [(option, code, Level.ERROR)]


@pytest.mark.parametrize("values", [{}, {"grad_clip_method": "value", "max_grad_norm": 1.0}, {"optimizer": "adamw_bf16"}])
def test_released_gradients_are_accepted_where_they_are_right(values: dict[str, Any]) -> None:
    assert problems_of(**(RELEASE | values)) == []


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({}, []),
        ({"optimizer_offload_gradients": True, "gradient_accumulation_steps": 4, "grad_clip_method": "norm"}, []),
        ({"num_processes": 2}, []),
        ({"optimizer": "adamw_schedulefree"}, [("optimizer_cpu_offload_method", "not_with_optimizer", Level.ERROR)]),
        ({"optimizer": "bnb-adamw8bit"}, [("optimizer_cpu_offload_method", "not_with_optimizer", Level.ERROR)]),
        (
            {"optimizer_offload_gradients": True, "num_processes": 2},
            [("optimizer_offload_gradients", "needs_one_process", Level.ERROR)],
        ),
        (
            {"optimizer_offload_gradients": True, "mixed_precision": "fp16"},
            [("optimizer_offload_gradients", "not_with_fp16", Level.ERROR)],
        ),
        (
            {"optimizer_offload_gradients": True, "optimizer_cpu_offload_method": ""},
            [("optimizer_offload_gradients", "no_effect", Level.NOTE)],
        ),
    ],
)
def test_updates_on_the_host(values: dict[str, Any], problems: list[tuple[str, str, Level]]) -> None:
    assert problems_of(**(HOST | values)) == problems


@pytest.mark.parametrize(
    ("optimizer", "config", "problems"),
    [
        ("torch-adamw", "", []),
        ("torch-sgd", "", []),
        ("torch-adamw", "fused=false", [("fuse_optimizer", "contradiction", Level.ERROR)]),
        ("torch-adamw", "foreach=true", [("fuse_optimizer", "contradiction", Level.ERROR)]),
        ("optimi-lion", "", [("fuse_optimizer", "no_effect", Level.NOTE)]),
    ],
)
def test_the_fused_update_is_asked_for_where_there_is_one(optimizer: str, config: str, problems: list[tuple[str, str, Level]]) -> None:
    assert problems_of(fuse_optimizer=True, optimizer=optimizer, optimizer_config=config) == problems


def test_the_engine_refuses_what_several_processes_would_break() -> None:
    values = {"optimizer_release_gradients": True, "optimizer_offload_gradients": False, **SHORT, SUMS: "unmodified"}
    assert list(process_problems(values, 1)) == []
    assert [problem.code for problem in process_problems(values, 2)] == ["needs_one_process"]


def test_an_average_that_nothing_moves_is_noted() -> None:
    assert problems_of(ema_cpu_only=True, ema_device="accelerator") == [("ema_device", "no_effect", Level.NOTE)]
    assert problems_of(use_ema=True, ema_warmup_steps=100) == [("ema_warmup_steps", "longer_than_run", Level.NOTE)]
    assert problems_of(use_ema=True, ema_warmup_steps=99) == []


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        (SHORT, []),
        ({**SHORT, SUMS: "unmodified", "num_processes": 2}, []),
        ({**SHORT, "gradient_accumulation_steps": 1}, [(SUMS, "no_effect", Level.NOTE)]),
        ({**SHORT, "optimizer": "torch-adamw"}, [(SUMS, "no_effect", Level.NOTE)]),
        ({**SHORT, "mixed_precision": "no", "num_processes": 2}, [(SUMS, "no_effect", Level.NOTE)]),
        ({**SHORT, "num_processes": 2}, [(SUMS, "needs_one_process", Level.ERROR)]),
        (
            {**SHORT, "optimizer_cpu_offload_method": "torchao", "optimizer_offload_gradients": True},
            [(SUMS, "not_with_offloaded_gradients", Level.ERROR)],
        ),
        ({**SHORT, SUMS: "bf16"}, [(SUMS, "not_a_choice", Level.ERROR)]),
    ],
)
def test_gradients_in_float32(values: dict[str, Any], problems: list[tuple[str, str, Level]]) -> None:
    assert problems_of(**values) == problems
