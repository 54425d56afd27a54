"""FSDP: what cannot be combined with sharded weights is refused before a run starts, by the option that asks for it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.models import options_with
from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.options.refused import Reason, refusal_of
from trainer_engine.config.parse import check_options
from trainer_engine.config.rules.sharding import (
    BLOCKS,
    CHECKPOINTING,
    ELEMENTWISE,
    SHARD,
    VERSION,
    block_problems,
    sharing_problems,
)
from trainer_engine.contract.errors import Level, Problem

GIVEN = {
    "model_family": "flux",
    "model_type": "full",
    "output_dir": "o",
    "data_backend_config": "d",
    "max_train_steps": 100,
    "num_train_epochs": 0,
    "optimizer": "torch-adamw",
    "mixed_precision": "bf16",
}
ROUTE = '{"routes": [{"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}]}'


def problems_of(**values: Any) -> list[Problem]:
    return check_options({**GIVEN, SHARD: True, **values})[1]


def errors_of(**values: Any) -> list[tuple[str, str]]:
    return [(one.option, one.code) for one in problems_of(**values) if one.level is Level.ERROR]


@pytest.mark.parametrize("optimizer", ELEMENTWISE)
def test_full_fine_tunes_can_be_sharded(optimizer: str) -> None:
    assert errors_of(optimizer=optimizer, use_ema=True, gradient_checkpointing=True, fsdp_state_dict_type="FULL_STATE_DICT") == []


@pytest.mark.parametrize(
    ("values", "option", "code"),
    [
        ({"model_type": "lora", "base_model_precision": "int8-quanto"}, "base_model_precision", "not_sharded"),
        ({"model_type": "lora", "musubi_blocks_to_swap": 4}, "musubi_blocks_to_swap", "not_sharded"),
        ({"model_type": "lora", "dynamo_backend": "inductor"}, "dynamo_backend", "not_sharded"),
        ({VERSION: 1}, VERSION, "not_available"),
        ({VERSION: 3}, VERSION, "out_of_range"),
        ({"fsdp_auto_wrap_policy": "SIZE_BASED_WRAP"}, "fsdp_auto_wrap_policy", "not_available"),
        ({"fsdp_cpu_offload": "perhaps"}, "fsdp_cpu_offload", "not_a_boolean"),
        ({"fsdp_state_dict_type": "LOCAL"}, "fsdp_state_dict_type", "not_a_choice"),
        ({"deepspeed_config": "ds.json"}, "deepspeed_config", "not_available"),
        ({"musubi_blocks_to_swap": 4}, "musubi_blocks_to_swap", "not_sharded"),
        ({"enable_group_offload": True}, "enable_group_offload", "not_sharded"),
        ({"ramtorch": True}, "ramtorch", "not_sharded"),
        ({"tread_config": ROUTE}, "tread_config", "not_sharded"),
        ({"fuse_qkv_projections": True}, "fuse_qkv_projections", "not_sharded"),
        ({"controlnet": True}, "controlnet", "not_sharded"),
        ({"optimizer_cpu_offload_method": "torchao"}, "optimizer_cpu_offload_method", "not_sharded"),
        ({"dynamo_backend": "inductor"}, "dynamo_backend", "not_sharded"),
        ({"mixed_precision": "fp16"}, "mixed_precision", "not_sharded"),
        ({"context_parallel_size": 2}, "context_parallel_size", "not_sharded"),
        ({"base_model_precision": "int8-quanto"}, "base_model_precision", "cannot_be_trained"),
    ],
)
def test_what_cannot_be_sharded_is_refused_by_its_option(values: dict[str, Any], option: str, code: str) -> None:
    assert (option, code) in errors_of(**values)
    assert all(one.expected and one.hint for one in problems_of(**values) if one.code == "not_sharded")


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS.keys() - set(ELEMENTWISE)))
def test_optimizers_that_look_at_complete_weights_are_refused(optimizer: str) -> None:
    assert ("optimizer", "not_sharded") in errors_of(optimizer=optimizer)


@pytest.mark.parametrize("optimizer", ["adamw_bf16", "prodigy", "optimi-lion", "adamw_schedulefree"])
def test_adapters_on_a_sharded_base_take_every_optimizer(optimizer: str) -> None:
    given = {"model_type": "lora", "lora_rank": 8, "optimizer": optimizer, "fsdp_cpu_offload": True, "use_ema": True}
    assert errors_of(**given) == []


def test_an_adapter_is_updated_on_the_host_as_without_sharding() -> None:
    given = {"model_type": "lora", "optimizer": "torch-adamw", "optimizer_cpu_offload_method": "torchao"}
    assert "optimizer_cpu_offload_method" not in dict(errors_of(**given))


def test_a_refusal_names_the_value_what_is_expected_and_a_way_out() -> None:
    [problem] = [one for one in problems_of(model_type="lora", base_model_precision="int8-quanto") if one.code == "not_sharded"]
    assert problem.got == "int8-quanto" and "no_change" in (problem.expected or "") and SHARD in (problem.hint or "")


def test_details_have_no_effect_without_sharding() -> None:
    values = {SHARD: False, **dict.fromkeys(("fsdp_cpu_offload", CHECKPOINTING), True), BLOCKS: "FluxTransformerBlock"}
    values["fsdp_reshard_after_forward"] = False
    found = {one.option: (one.code, one.level) for one in problems_of(**values) if one.option.startswith("fsdp")}
    assert found == dict.fromkeys(values.keys() - {SHARD}, ("no_effect", Level.NOTE))


@pytest.mark.parametrize("given", [{}, {"gradient_checkpointing": False}, {"gradient_checkpointing": True}])
def test_activation_checkpointing_turns_gradient_checkpointing_on(given: dict[str, Any]) -> None:
    options, problems = check_options({**GIVEN, SHARD: True, CHECKPOINTING: True, **given})
    assert options is not None and options.model.gradient_checkpointing
    [note] = [one for one in problems if one.option == CHECKPOINTING]
    assert (note.code, note.level) == ("same_as", Level.NOTE) and "gradient_checkpointing" in note.message


@pytest.mark.parametrize("given", [{CHECKPOINTING: False}, {SHARD: False, CHECKPOINTING: True}])
def test_activation_checkpointing_changes_nothing_unless_weights_are_sharded_with_it(given: dict[str, Any]) -> None:
    options, _ = check_options({**GIVEN, SHARD: True, "gradient_checkpointing": False, **given})
    assert options is not None and not options.model.gradient_checkpointing


def test_hints_of_sharding_are_accepted_with_a_reason() -> None:
    found = {one.option: one for one in problems_of(fsdp_state_dict_type="SHARDED_STATE_DICT", fsdp_limit_all_gathers=False)}
    assert found["fsdp_limit_all_gathers"].code == "not_needed" and found["fsdp_limit_all_gathers"].level is Level.NOTE
    assert "complete weights" in problems_of(fsdp_state_dict_type="FULL_STATE_DICT")[0].message


def test_deepspeed_is_refused_with_the_way_that_there_is() -> None:
    refusal = refusal_of("deepspeed_config")
    assert refusal.reason is Reason.LATER and "fsdp_enable" in refusal.about


@pytest.mark.parametrize(("processes", "is_fine"), [(1, False), (2, True), (3, True)])
def test_weights_are_spread_over_several_processes(processes: int, is_fine: bool) -> None:
    found = list(sharing_problems(options_with(fsdp_enable=True, optimizer="torch-adamw"), processes))
    assert (found == []) is is_fine
    assert is_fine or (found[0].option, found[0].code) == (SHARD, "needs_processes")
    assert list(sharing_problems(options_with(), 1)) == []


def test_blocks_are_those_of_the_family_unless_the_options_name_others() -> None:
    usual = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    spread = options_with(fsdp_enable=True, optimizer="torch-adamw").distributed
    assert spread.wrapped_blocks(usual) == usual
    named = spread.model_copy(update={BLOCKS: "FluxTransformerBlock, Other"})
    assert named.wrapped_blocks(usual) == ("FluxTransformerBlock", "Other")
    assert spread.model_copy(update={"fsdp_auto_wrap_policy": "NO_WRAP"}).wrapped_blocks(usual) == ()


def test_blocks_that_the_network_does_not_have_are_named() -> None:
    classes = {"FluxTransformerBlock", "Linear"}
    assert list(block_problems(("FluxTransformerBlock",), classes)) == []
    [problem] = block_problems(("Other", "FluxTransformerBlock"), classes)
    assert (problem.option, problem.code, problem.got) == (BLOCKS, "no_such_block", "Other")
    assert "FluxTransformerBlock" in (problem.expected or "")
