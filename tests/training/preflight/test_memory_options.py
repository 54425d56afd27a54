"""The estimate of memory knows what waits on the host, and what is computed again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from tests.helpers.models import options_with, tiny_model
from tests.helpers.network_steps import family_of, step_inputs
from trainer_engine.adapters.build import make_trainable
from trainer_engine.config.families import specs
from trainer_engine.config.options.memory import MemoryOptions
from trainer_engine.datasets.buckets import Effective
from trainer_engine.datasets.report import DatasetReport
from trainer_engine.memory.placement import streamed_groups
from training.preflight.estimates import estimate_memory
from training.preflight.on_device import EstimatedRun, OnDevice, relieved
from training.preflight.recomputed import BlockNumbers, kept_of_blocks
from training.preflight.streamed import streamed_share

HELD = OnDevice(weights=100, gradients=100, state=200, average=100, frozen=10_000, activations=32)
BLOCKS = [BlockNumbers(input=1, whole=10, feed_forward=4, attention=3)] * 4


def relief(tensors: dict[str, tuple[int, ...]] | None = None, **values: Any) -> OnDevice:
    run = EstimatedRun(options=options_with(**values), spec=specs()["pixart_sigma"], parameters=1000, tensors=tensors)
    return relieved(HELD, run)


def test_state_gradients_and_average_leave_the_device() -> None:
    on_device = {"ema_device": "accelerator", "optimizer": "torch-adamw"}
    assert relief(**on_device) == HELD
    assert (relief(optimizer="torch-adamw").average, relief(optimizer="torch-adamw").host) == (0, 100)
    moved = relief(**on_device, optimizer_cpu_offload_method="torchao")
    assert (moved.state, moved.gradients, moved.host) == (0, 100, 400)
    weights = {"a": (3, 4), "b": (2, 2)}
    alone = relief(weights, **on_device, optimizer_cpu_offload_method="torchao", optimizer_offload_gradients=True)
    assert (alone.state, alone.gradients) == (0, 4 * 12)
    released = relief(weights, **(on_device | {"optimizer": "optimi-lion"}), optimizer_release_gradients=True, max_grad_norm=0)
    assert (released.state, released.gradients) == (200, 4 * 12)


def test_on_a_cpu_nothing_leaves_the_memory() -> None:
    chosen = {"optimizer": "torch-adamw", "use_ema": True, "optimizer_cpu_offload_method": "torchao"}
    report = DatasetReport([], Effective(1, 1, 1))
    on_gpu, on_cpu = (estimate_memory(options_with(**chosen), 1000, report, specs()["pixart_sigma"], on_cpu=cpu) for cpu in (False, True))
    assert on_cpu.counted - on_gpu.counted == 1000 * 4 * (1 + 1 + 2 + 1)


def test_sums_of_gradients_take_four_bytes_a_number() -> None:
    chosen = {"optimizer": "adamw_bf16", "mixed_precision": "bf16", "gradient_accumulation_steps": 2}
    report = DatasetReport([], Effective(1, 1, 1))
    usual, sums = (
        estimate_memory(options_with(**chosen, gradient_precision=precision), 1000, report, specs()["pixart_sigma"], on_cpu=False)
        for precision in ("unmodified", "fp32")
    )
    assert sums.counted - usual.counted == 1000 * 2


TENSORS = {
    "embed.weight": (10, 10),
    **{f"transformer_blocks.{index}.{layer}.weight": (10, 10) for index in range(4) for layer in ("a", "b")},
    "proj_out.weight": (10, 10),
}
"""1,000 numbers, of which 800 are in four blocks."""


@pytest.mark.parametrize(
    ("memory", "frozen"),
    [
        ({}, 10_000),
        ({"musubi_blocks_to_swap": 2}, 10_000 - 4_000 + 4_000),
        ({"musubi_blocks_to_swap": 4}, 10_000 - 8_000 + 4_000),
        ({"musubi_blocks_to_swap": 99}, 10_000 - 8_000 + 4_000),
        ({"enable_group_offload": True}, 10_000 - 8_000 + 2_000),
        ({"enable_group_offload": True, "group_offload_use_stream": True}, 10_000 - 8_000 + 4_000),
        ({"enable_group_offload": True, "group_offload_blocks_per_group": 2}, 10_000 - 8_000 + 4_000),
        ({"enable_group_offload": True, "group_offload_type": "leaf_level"}, 1_000),
        ({"ramtorch": True}, 2_000),
        ({"ramtorch": True, "ramtorch_transformer_percent": 50}, 5_000 + 2_000),
    ],
)
def test_frozen_weights_leave_the_device_but_for_what_is_copied(memory: dict[str, Any], frozen: int) -> None:
    held = relief(TENSORS, model_type="lora", ema_device="accelerator", optimizer="torch-adamw", **memory)
    assert held.frozen == frozen


@pytest.mark.parametrize("name", ["flux", "pixart_sigma", "sdxl", "wan"])
def test_blocks_are_counted_as_the_engine_chooses_them(name: str) -> None:
    network = family_of(name, model_type="lora").load_network()
    tensors = {key: tuple(one.shape) for key, one in network.state_dict().items()}
    numbers = sum(one.numel() for one in network.parameters())
    memory = MemoryOptions(enable_group_offload=True)
    streamed = sum(one.numel() for group in streamed_groups(network, memory) for block in group for one in block.parameters())
    # Convolutions that halve or double an image are units of their own, and are left out of the estimate.
    assert streamed_share(memory, numbers, tensors).share == pytest.approx(streamed / numbers, rel=0.15)


@pytest.mark.parametrize(
    ("checkpointing", "memory", "kept"),
    [
        (False, {}, 40),
        (True, {}, 4 + 10),
        (True, {"gradient_checkpointing_interval": 2}, 2 + 10 + 20),
        (True, {"gradient_checkpointing_interval": 1, "gradient_checkpointing_segment_stride": 4}, 1 + 10 + 30),
        (True, {"gradient_checkpointing_backend": "unsloth"}, 1 + 10),
        (True, {"gradient_checkpointing_backend": "torch-ffn"}, 4 * 6 + 4 + 4),
        (True, {"gradient_checkpointing_backend": "unsloth-ffn"}, 4 * 6 + 1 + 4),
        (True, {"gradient_checkpointing_backend": "torch-ffn", "gradient_checkpointing_offload_attention": True}, 4 * 3 + 4 + 4),
        (False, {"gradient_checkpointing_offload_attention": True}, 4 * 7),
        (True, {"gradient_checkpointing_offload_attention": True}, 4 + 10),
    ],
)
def test_activations_follow_what_is_recomputed_and_what_waits(checkpointing: bool, memory: dict[str, Any], kept: int) -> None:
    assert kept_of_blocks(BLOCKS, options_with(gradient_checkpointing=checkpointing, **memory)) == kept


class Saved:
    """Adds up what autograd saves inside the block, each memory once."""

    def __init__(self, network: nn.Module) -> None:
        self.weights = {one.untyped_storage().data_ptr() for one in network.parameters()}
        self.sizes: dict[int, int] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in self.weights:
            self.sizes[address] = tensor.untyped_storage().nbytes()
        return tensor


def saved_bytes(**values: Any) -> int:
    """Bytes that the forward pass of a deep and narrow Flux saves on its device."""
    network = FluxTransformer2DModel.from_pretrained(tiny_model("flux"), subfolder="transformer")
    family = family_of("flux", model_type="full", **values)
    made: nn.Module = FluxTransformer2DModel.from_config({**network.config, "num_layers": 4, "num_single_layers": 4})
    family.load_component = lambda *_args, **_more: made  # type: ignore[method-assign]
    trainable = make_trainable(family, None)
    inputs, saved = step_inputs(family), Saved(trainable.network)
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        output = family.predict(trainable.network, inputs)
    assert output.requires_grad
    return sum(saved.sizes.values())


def test_the_order_of_the_options_by_memory_is_that_of_the_estimate() -> None:
    everything, second, every = (
        saved_bytes(gradient_checkpointing=on, gradient_checkpointing_interval=interval)
        for on, interval in ((False, None), (True, 2), (True, None))
    )
    assert every < 0.35 * everything and every < second < 0.75 * everything
