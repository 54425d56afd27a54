"""Context parallelism: what cannot be split over several processes is refused before a run starts, by the option that asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import options_with, tiny_model
from tests.helpers.tiny_run import tiny_datasets
from trainer_engine.config.attention import MECHANISMS
from trainer_engine.config.compatibility import check_compatibility
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import specs
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import check_options, parse_options
from trainer_engine.config.rules.device import device_problems
from trainer_engine.config.rules.distributed import group_problems, network_problems, size_problems, validation_sizes
from trainer_engine.config.token_splitting import SIZE, STRATEGY, SizeInUse, SplittingSpec
from trainer_engine.contract.errors import Level
from trainer_engine.datasets.buckets import Effective
from trainer_engine.datasets.examine import examine

GIVEN = {"model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 100, "num_train_epochs": 0}
MASKED = "flux_attention_masked_training"
ROUTE = '{"routes": [{"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}]}'


def errors_of(family: str = "wan", **values: Any) -> list[tuple[str, str]]:
    found = check_options({**GIVEN, "model_family": family, SIZE: 2, **values})[1]
    return [(one.option, one.code) for one in found if one.level is Level.ERROR]


def options_of(family: str, **values: Any) -> TrainingOptions:
    return options_with(model_family=family, **{SIZE: 2, **values})


@pytest.mark.parametrize("family", sorted(specs()))
def test_a_family_is_split_where_its_spec_says_how(family: str) -> None:
    assert errors_of(family) == ([] if specs()[family].splitting else [(SIZE, "not_with_family")])


@pytest.mark.parametrize(
    ("family", "values", "option", "code"),
    [
        ("flux", {"controlnet": True, "model_type": "full"}, "controlnet", "not_split"),
        (
            "flux",
            {"tread_config": ROUTE},
            "tread_config",
            "not_split",
        ),
        ("flux", {MASKED: True}, MASKED, "not_split"),
        ("flux", {"tokenizer_max_length": 77}, "tokenizer_max_length", "uneven_tokens"),
        ("flux", {SIZE: 3}, SIZE, "uneven_tokens"),
        ("wan", {"enable_group_offload": True}, "enable_group_offload", "not_split"),
        ("wan", {"dynamo_backend": "eager"}, "dynamo_backend", "not_split"),
        ("wan", {"validation_randomize": True}, "validation_randomize", "not_split"),
        ("wan", {STRATEGY: "allgather"}, STRATEGY, "not_with_attention"),
        ("wan", {"attention_mechanism": "native-math"}, "attention_mechanism", "not_split"),
        ("qwen_image", {STRATEGY: "allgather", "attention_mechanism": "cudnn"}, STRATEGY, "not_with_masks"),
        ("qwen_image", {SIZE: 3}, SIZE, "uneven_tokens"),
        ("wan", {STRATEGY: "ring"}, STRATEGY, "not_a_choice"),
        ("wan", {SIZE: 65}, SIZE, "out_of_range"),
    ],
)
def test_what_cannot_be_split_is_refused_by_its_option(family: str, values: dict[str, Any], option: str, code: str) -> None:
    assert (option, code) in errors_of(family, **values)


@pytest.mark.parametrize("size", [0, 1])
def test_a_group_of_one_is_none(size: int) -> None:
    assert errors_of("sd1x", **{SIZE: size}) == []
    assert options_of("sd1x", **{SIZE: size}).distributed.group_size == 1


def test_options_of_exchange_have_no_effect_without_groups() -> None:
    found = check_options({**GIVEN, "model_family": "sd1x", SIZE: 1, STRATEGY: "allgather"})[1]
    assert [(one.option, one.code, one.level) for one in found if one.option == STRATEGY] == [(STRATEGY, "no_effect", Level.NOTE)]


@pytest.mark.parametrize("mechanism", ["cudnn", "native-flash", "flash-attn-varlen-hub"])
@pytest.mark.parametrize("strategy", ["alltoall", "allgather"])
def test_kernels_that_return_how_scores_add_up_serve_both_strategies_on_a_gpu(mechanism: str, strategy: str) -> None:
    values = {"attention_mechanism": mechanism, STRATEGY: strategy}
    assert errors_of("wan", **values) == []
    refused = [(one.option, one.code) for one in device_problems(options_of("wan", **values), "cpu")]
    lacking = "needs_gpu" if "cpu" in MECHANISMS[mechanism].devices else "lacked_by_device"
    assert ("attention_mechanism", lacking) in refused


def test_every_strategy_has_a_mechanism_and_those_of_diffusers_are_known() -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    for row in MECHANISMS.values():
        able = _AttentionBackendRegistry._is_context_parallel_available(AttentionBackendName(row.backend or "native"))
        assert not row.splits or (able and row.trains), row.name
    assert {strategy for row in MECHANISMS.values() for strategy in row.splits} == {"alltoall", "allgather"}


@pytest.mark.parametrize(("processes", "is_whole"), [(1, False), (2, True), (3, False), (4, True), (6, True)])
def test_processes_make_whole_groups(processes: int, is_whole: bool) -> None:
    found = list(group_problems(options_of("wan"), processes))
    assert (found == []) is is_whole
    if found:
        assert (found[0].option, found[0].code) == (SIZE, "needs_processes")
        assert f"num_processes={2 * -(-processes // 2)}" in found[0].hint


def test_a_report_of_compatibility_accepts_what_this_machine_has_no_devices_for() -> None:
    config = {"model_family": "wan", "model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}
    report = check_compatibility({**config, "num_train_epochs": 0, SIZE: 2, STRATEGY: "alltoall"})
    assert report.starts, report.obstacles


HEADS = [(2, 12, "alltoall", True), (8, 12, "alltoall", False), (8, 12, "allgather", True)]


@pytest.mark.parametrize(("group", "heads", "strategy", "is_fine"), HEADS)
def test_heads_are_exchanged_where_a_group_can_share_them(group: int, heads: int, strategy: str, is_fine: bool) -> None:
    options = options_of("wan", **{SIZE: group, STRATEGY: strategy, "attention_mechanism": "cudnn"})
    found = list(network_problems(options, specs()["wan"], {"num_attention_heads": heads}))
    assert (found == []) is is_fine
    assert is_fine or "2, 3, 4, 6, 12" in (found[0].expected or "")
    assert list(network_problems(options, specs()["wan"], {})) == []


def test_a_group_counts_as_one_process_in_batches() -> None:
    four = Effective(2, 3, processes=4, group=2)
    assert (four.batch, four.samples) == (4, 12)
    assert four.batch_text == "train_batch_size 2 x num_processes 4 / context_parallel_size 2 = 4"
    assert Effective(2, 3, processes=1, group=2).batch == 2, "validate reports on runs that lack processes, too"
    assert options_of("wan").distributed.groups_of(4) == 2 and options_of("wan").distributed.groups_of(1) == 1


def test_tokens_of_images_and_clips_are_counted() -> None:
    assert SplittingSpec().tokens((1024, 768), 1, 8) == 64 * 48
    assert SplittingSpec(cells=1).tokens((64, 32), 3, 32) == 6


def test_sizes_with_uneven_tokens_are_named_by_the_option_that_chose_them() -> None:
    options, spec = options_of("wan", **{SIZE: 4, "validation_resolution": "96x96,128x128", "validation_prompt": "one"}), specs()["wan"]
    sizes = [SizeInUse("datasets.clips.resolution", "5 frames", (96, 96), 5), SizeInUse("datasets.clips.resolution", "4 even", (64, 64))]
    assert list(size_problems(options, spec, [*sizes, *validation_sizes(options)])) == []
    wide = [SizeInUse("datasets.clips.resolution", "odd", (80, 80)), *validation_sizes(options)]
    [problem] = size_problems(options, spec, wide)
    assert (problem.option, problem.code) == ("datasets.clips.resolution", "uneven_tokens")
    assert "odd: 25 tokens" in problem.message and "64 pixels" in problem.hint
    assert list(size_problems(options_of("wan", **{SIZE: 1}), spec, wide)) == []
    assert validation_sizes(options_of("wan", validation_disable=True)) == []


def test_validate_names_buckets_that_a_group_cannot_share(tmp_path: Path) -> None:
    values = {"model_family": "wan", "pretrained_model_name_or_path": str(tiny_model("wan")), "output_dir": str(tmp_path / "output")}
    chosen = {**GIVEN, **values, "train_batch_size": 1, "resolution": 96, "validation_disable": True}
    dataloader, problems = parse_dataloader(tiny_datasets(tmp_path), parse_options(chosen))
    assert [one for one in problems if one.level is Level.ERROR] == []
    for group, is_even in ((2, True), (32, False)):
        options = parse_options({**chosen, SIZE: group})
        found = [one for one in examine(dataloader, options, specs()["wan"], processes=group).problems if one.code == "uneven_tokens"]
        assert (found == []) is is_even, found
