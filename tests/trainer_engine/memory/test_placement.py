"""Which weights of a network wait on the host, that they never reach the device as a whole, and that gradients stay the same."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.network_steps import FAMILIES, family_of, loss_of, usual_step
from tests.helpers.params import compiled_slow, first_fast, often
from trainer_engine.config.options.memory import MemoryOptions
from trainer_engine.contract.errors import DiskFull, InvalidOptions
from trainer_engine.memory.disk_weights import DiskBytes
from trainer_engine.memory.placement import encoder_groups, evenly, held_back, stream_weights, streamed_groups
from trainer_engine.memory.recompute import repeated_blocks

CPU = torch.device("cpu")


def names_of(module: nn.Module, **options: Any) -> list[list[str]]:
    names = {part: name for name, part in module.named_modules()}
    return [[names[part] for part in group] for group in streamed_groups(module, MemoryOptions(**options))]


@pytest.mark.parametrize(
    ("count", "chosen"), [(0, []), (1, [3]), (2, [1, 4]), (3, [1, 3, 5]), (6, [0, 1, 2, 3, 4, 5]), (9, [0, 1, 2, 3, 4, 5])]
)
def test_swapped_blocks_lie_at_equal_distances(count: int, chosen: list[int]) -> None:
    blocks = [nn.Identity() for _ in range(6)]
    assert [blocks.index(block) for block in evenly(blocks, count)] == chosen


def test_options_name_the_groups() -> None:
    network = family_of("flux", model_type="lora").load_network()
    blocks = ["transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.0", "single_transformer_blocks.1"]
    assert names_of(network) == []
    assert names_of(network, musubi_blocks_to_swap=4) == [[name] for name in blocks]
    assert names_of(network, musubi_blocks_to_swap=2) == [[blocks[1]], [blocks[3]]]
    assert names_of(network, enable_group_offload=True, group_offload_blocks_per_group=3) == [blocks[:3], blocks[3:]]
    leaves = names_of(network, enable_group_offload=True, group_offload_type="leaf_level")
    linear = names_of(network, ramtorch=True)
    assert len(leaves) > len(linear) > 20 and ["proj_out"] in linear
    first = next(name for name, _ in network.named_parameters())
    assert [first.removesuffix(".weight")] not in leaves


def test_patterns_and_shares_choose_among_linear_layers() -> None:
    network = family_of("flux", model_type="lora").load_network()
    every = names_of(network, ramtorch=True)
    assert names_of(network, ramtorch=True, ramtorch_transformer_percent=50) == every[: len(every) // 2]
    assert names_of(network, ramtorch=True, ramtorch_transformer_percent=0) == []
    inside = [[name] for (name,) in every if name.startswith("transformer_blocks.1.")]
    assert names_of(network, ramtorch=True, ramtorch_target_modules="transformer_blocks.1") == inside
    assert names_of(network, ramtorch=True, ramtorch_target_modules="transformer_blocks.1.*, no_such.*") == inside
    assert names_of(network, ramtorch=True, ramtorch_target_modules="Linear") == every


def test_a_text_encoder_is_streamed_layer_by_layer() -> None:
    encoder = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)).requires_grad_(False)
    assert encoder_groups(encoder, MemoryOptions()) == []
    assert encoder_groups(encoder, MemoryOptions(group_offload_text_encoder=True)) == [[encoder[1]], [encoder[2]], [encoder[3]]]
    half = MemoryOptions(ramtorch_text_encoder=True, ramtorch_text_encoder_percent=50)
    assert encoder_groups(encoder, half) == [[encoder[1]]]


def test_blocks_that_are_held_back_do_not_follow_the_module() -> None:
    network = family_of("pixart_sigma", model_type="lora").load_network()
    swapped, other = repeated_blocks(network)[1], repeated_blocks(network)[0]
    with held_back(network, [[swapped]]):
        network.to(torch.bfloat16)
    assert {weight.dtype for weight in swapped.parameters()} == {torch.float32}
    assert {weight.dtype for weight in other.parameters()} == {torch.bfloat16}
    network.to(torch.bfloat16)
    assert {weight.dtype for weight in swapped.parameters()} == {torch.bfloat16}


def test_data_parallelism_leaves_streamed_weights_alone() -> None:
    network = family_of("pixart_sigma", model_type="lora").load_network()
    groups = streamed_groups(network, MemoryOptions(musubi_blocks_to_swap=1))
    stream_weights(network, groups, MemoryOptions(), CPU, prefetch=True)
    ignored: Any = network._ddp_params_and_buffers_to_ignore
    assert ignored and all(name.startswith("transformer_blocks.1.") for name in ignored)


def test_weights_of_an_unknown_kind_are_refused() -> None:
    class Packed(nn.Parameter):
        pass

    layer = nn.Linear(2, 2)
    layer.weight = Packed(torch.zeros(2, 2), requires_grad=False)
    with pytest.raises(InvalidOptions) as caught:
        stream_weights(layer, [[layer]], MemoryOptions(), CPU, prefetch=True)
    assert [(problem.option, problem.code) for problem in caught.value.problems] == [("base_model_precision", "cannot_be_streamed")]


WAYS: list[dict[str, Any]] = [
    {"musubi_blocks_to_swap": 99, "gradient_checkpointing": True},
    {"enable_group_offload": True, "group_offload_type": "leaf_level", "gradient_checkpointing": True},
    {
        "ramtorch": True,
        "ramtorch_disable_extensions": False,
        "gradient_checkpointing": True,
        "gradient_checkpointing_backend": "unsloth-ffn",
    },
    {"musubi_blocks_to_swap": 1},
    {"enable_group_offload": True, "group_offload_blocks_per_group": 2, "group_offload_use_stream": True},
    {"ramtorch": True, "gradient_checkpointing": True, "gradient_checkpointing_interval": 2},
]


@pytest.mark.parametrize("name", often(FAMILIES))
@pytest.mark.parametrize("memory", first_fast(WAYS, 1), ids=lambda memory: ",".join(f"{key[:12]}={value}" for key, value in memory.items()))
def test_every_family_gets_the_gradients_of_weights_that_stay(name: str, memory: dict[str, Any]) -> None:
    usual = {"model_type": "lora", "lora_rank": 2, "gradient_checkpointing": False}
    plain = usual_step(name, **usual)
    other = loss_of(family_of(name, **(usual | memory)), steps=2)
    assert plain.loss == other.loss and plain.gradients.keys() == other.gradients.keys()
    assert [key for key in plain.gradients if not torch.equal(plain.gradients[key], other.gradients[key])] == []


QUANTISED: list[dict[str, Any]] = [
    {"musubi_blocks_to_swap": 2},
    {"ramtorch": True, "gradient_checkpointing": True},
]


@pytest.mark.parametrize("precision", compiled_slow(["int8-quanto", "int4-quanto", "int8-torchao", "nf4-bnb", "int8-sdnq", "uint4-sdnq"]))
@pytest.mark.parametrize("memory", first_fast(QUANTISED), ids=["blocks", "layers"])
def test_quantised_weights_are_streamed_too(precision: str, memory: dict[str, Any]) -> None:
    usual = {"model_type": "lora", "lora_rank": 2, "gradient_checkpointing": False, "base_model_precision": precision}
    plain = usual_step("pixart_sigma", **usual)
    other = loss_of(family_of("pixart_sigma", **(usual | memory)), steps=2)
    assert plain.loss == other.loss
    assert [key for key in plain.gradients if not torch.equal(plain.gradients[key], other.gradients[key])] == []


def test_weights_on_the_disk_leave_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    memory = DiskBytes(folder)(4096)
    memory.fill_(7)
    assert int(memory.sum()) == 7 * 4096
    assert list(folder.iterdir()) == []


def test_a_full_disk_and_a_closed_folder_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFull, match="do not fit"):
        DiskBytes(tmp_path)(16)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidOptions) as caught:
        DiskBytes(tmp_path / "file")(16)
    assert caught.value.problems[0].option == "group_offload_to_disk_path"


def test_weights_on_the_disk_give_the_same_gradients(tmp_path: Path) -> None:
    usual = {"model_type": "lora", "lora_rank": 2, "gradient_checkpointing": False}
    on_disk = {"enable_group_offload": True, "group_offload_to_disk_path": str(tmp_path)}
    plain, other = loss_of(family_of("pixart_sigma", **usual)), loss_of(family_of("pixart_sigma", **usual, **on_disk), steps=2)
    assert [key for key in plain.gradients if not torch.equal(plain.gradients[key], other.gradients[key])] == []


def prompts_of(**memory: Any) -> list[Tensor]:
    family = family_of("flux", model_type="lora", **memory)
    return [prompt[name] for prompt in family.encode_prompts(["a picture", "another"]) for name in sorted(prompt)]


@pytest.mark.parametrize("memory", [{"group_offload_text_encoder": True}, {"ramtorch_text_encoder": True}])
def test_streamed_text_encoders_give_the_same_embeddings(memory: dict[str, Any]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(prompts_of(**memory), prompts_of(), strict=True))
