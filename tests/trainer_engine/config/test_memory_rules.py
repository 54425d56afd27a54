"""Options that trade time for memory: what contradicts itself is refused, and what has no effect is said."""

from __future__ import annotations

from typing import Any

import pytest

from trainer_engine.config.options import REGISTRY
from trainer_engine.config.options.memory import MemoryOptions
from trainer_engine.config.parse import check_options, normalise
from trainer_engine.contract.errors import Level

GIVEN = {"model_family": "flux", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 100, "num_train_epochs": 0}


def problems_of(model_type: str = "lora", **values: Any) -> list[tuple[str, str, Level]]:
    found = check_options({**GIVEN, "model_type": model_type, **values})[1]
    return [(problem.option, problem.code, problem.level) for problem in found if problem.option in MemoryOptions.model_fields]


STREAMS = {"musubi_blocks_to_swap": 4, "enable_group_offload": True, "ramtorch": True}


@pytest.mark.parametrize("name", STREAMS)
def test_weights_that_are_trained_are_not_streamed(name: str) -> None:
    chosen = {name: STREAMS[name]}
    assert problems_of("full", **chosen) == [(name, "needs_frozen_weights", Level.ERROR)]
    assert problems_of("lora", **chosen) == []


@pytest.mark.parametrize("name", STREAMS)
def test_a_network_with_streamed_weights_is_not_compiled_and_says_so(name: str) -> None:
    options, problems = check_options({**GIVEN, "model_type": "lora", name: STREAMS[name], "dynamo_backend": "inductor"})
    assert options is not None and not options.is_compiled
    assert [(problem.code, problem.level) for problem in problems if problem.option == "dynamo_backend"] == [
        ("not_compiled", Level.WARNING)
    ]
    alone, _ = check_options({**GIVEN, "model_type": "lora", "dynamo_backend": "inductor"})
    assert alone is not None and alone.is_compiled


def test_every_second_way_to_stream_weights_is_named() -> None:
    assert problems_of(**STREAMS) == [("enable_group_offload", "two_ways", Level.ERROR), ("ramtorch", "two_ways", Level.ERROR)]
    both = {"group_offload_text_encoder": True, "ramtorch_text_encoder": True}
    assert problems_of(**both) == [("ramtorch_text_encoder", "two_ways", Level.ERROR)]


@pytest.mark.parametrize(("interval", "stride", "is_refused"), [(2, 1, True), (2, 2, False), (None, 1, False), (3, 2, True), (0, 5, False)])
def test_segments_do_not_overlap(interval: int | None, stride: int, is_refused: bool) -> None:
    found = problems_of(gradient_checkpointing_interval=interval, gradient_checkpointing_segment_stride=stride)
    assert found == ([("gradient_checkpointing_segment_stride", "overlapping", Level.ERROR)] if is_refused else [])


@pytest.mark.parametrize(
    ("values", "without_effect"),
    [
        ({"gradient_checkpointing": False, "gradient_checkpointing_interval": 2}, ["gradient_checkpointing_interval"]),
        ({"gradient_checkpointing": False, "gradient_checkpointing_interval": 1}, []),
        ({"gradient_checkpointing": False, "gradient_checkpointing_backend": "unsloth"}, ["gradient_checkpointing_backend"]),
        ({"gradient_checkpointing": False, "gradient_checkpointing_offload_attention": True}, []),
        ({"gradient_checkpointing_offload_attention": True}, ["gradient_checkpointing_offload_attention"]),
        ({"gradient_checkpointing_offload_attention": True, "gradient_checkpointing_interval": 2}, []),
        ({"gradient_checkpointing_offload_attention": True, "gradient_checkpointing_backend": "torch-ffn"}, []),
        ({"gradient_checkpointing_offload_prefetch": True}, ["gradient_checkpointing_offload_prefetch"]),
        ({"gradient_checkpointing_offload_prefetch": True, "gradient_checkpointing_backend": "unsloth"}, []),
        ({"group_offload_blocks_per_group": 2}, ["group_offload_blocks_per_group"]),
        ({"group_offload_blocks_per_group": 2, "enable_group_offload": True}, []),
        (
            {"ramtorch_target_modules": "blocks.*", "ramtorch_text_encoder_percent": 50},
            ["ramtorch_target_modules", "ramtorch_text_encoder_percent"],
        ),
    ],
)
def test_an_option_without_effect_is_noted(values: dict[str, Any], without_effect: list[str]) -> None:
    assert problems_of(**values) == [(name, "no_effect", Level.NOTE) for name in without_effect]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gradient_checkpointing_interval", -1),
        ("gradient_checkpointing_segment_stride", 0),
        ("gradient_checkpointing_backend", "deepspeed"),
        ("gradient_checkpointing_offload_pin_memory_max_buckets", -1),
        ("musubi_blocks_to_swap", -1),
        ("musubi_block_swap_device", "cuda"),
        ("group_offload_type", "model_level"),
        ("group_offload_blocks_per_group", 0),
        ("ramtorch_transformer_percent", 101),
        ("ramtorch_text_encoder_percent", -1),
    ],
)
def test_values_outside_their_bounds_are_refused(name: str, value: Any) -> None:
    assert [(problem.option, problem.level) for problem in normalise({name: value})[1]] == [(name, Level.ERROR)]


def test_defaults_leave_everything_on_the_device() -> None:
    options = MemoryOptions()
    assert not (options.streams_network or options.streams_encoders or options.offloads_inputs or options.leaves_blocks_out)
    assert problems_of() == [] and all(name in REGISTRY for name in MemoryOptions.model_fields)
