"""Gradient checkpointing: which blocks are computed twice, what waits on the host, and that no gradient changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from tests.helpers.models import options_with, tiny_model
from tests.helpers.network_steps import FAMILIES, family_of, loss_of, usual_step
from tests.helpers.params import first_fast, often
from trainer_engine.config.options.memory import MemoryOptions
from trainer_engine.memory import recompute
from trainer_engine.memory.recompute import enable_checkpointing, is_feed_forward, repeated_blocks
from trainer_engine.memory.transfers import Transfers, Wait

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("interval", "stride", "recomputed"),
    [
        (None, None, "111111111"),
        (0, None, "111111111"),
        (1, None, "111111111"),
        (2, None, "101010101"),
        (3, None, "100100100"),
        (1, 3, "100100100"),
        (2, 4, "110011001"),
        (2, 2, "111111111"),
    ],
)
def test_interval_and_stride_choose_the_blocks(interval: int | None, stride: int | None, recomputed: str) -> None:
    options = MemoryOptions(gradient_checkpointing_interval=interval, gradient_checkpointing_segment_stride=stride)
    assert "".join(str(int(options.recomputes(index))) for index in range(9)) == recomputed
    assert options.leaves_blocks_out is ("0" in recomputed)


def deep_pixart(blocks: int = 6) -> nn.Module:
    torch.manual_seed(0)
    small = PixArtTransformer2DModel.from_pretrained(tiny_model("pixart_sigma"), subfolder="transformer")
    made: nn.Module = PixArtTransformer2DModel.from_config({**small.config, "num_layers": blocks, "dropout": 0.2})
    return made.train()


def one_step(network: nn.Module) -> list[Tensor]:
    """Gradients of all weights for one constant batch; dropout is seeded."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        parameter.grad = None
    inputs = {"encoder_hidden_states": torch.randn(2, 4, 32), "timestep": torch.tensor([100, 700])}
    sizes = {"resolution": None, "aspect_ratio": None}
    output = network(torch.randn(2, 4, 8, 12), **inputs, added_cond_kwargs=sizes, return_dict=False)[0]
    output.square().mean().backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


@contextmanager
def counted(modules: list[nn.Module]) -> Iterator[list[int]]:
    """How often each module computes inside the block."""
    counts = [0] * len(modules)

    def count(index: int) -> None:
        counts[index] += 1

    hooks = [module.register_forward_pre_hook(lambda *_, index=index: count(index)) for index, module in enumerate(modules)]
    yield counts
    for hook in hooks:
        hook.remove()


def enabled(network: nn.Module, *, checkpointing: bool = True, **memory: Any) -> nn.Module:
    options = options_with(gradient_checkpointing=checkpointing, **memory)
    enable_checkpointing(network, options, CPU, is_network=True)
    return network


@pytest.mark.parametrize(
    ("memory", "blocks", "feed_forward"),
    [
        ({}, [2] * 6, [2] * 6),
        ({"gradient_checkpointing_interval": 2}, [2, 1] * 3, [2, 1] * 3),
        ({"gradient_checkpointing_interval": 2, "gradient_checkpointing_segment_stride": 3}, [2, 2, 1] * 2, [2, 2, 1] * 2),
        ({"gradient_checkpointing_backend": "unsloth"}, [2] * 6, [2] * 6),
        ({"gradient_checkpointing_backend": "torch-ffn"}, [1] * 6, [2] * 6),
        ({"gradient_checkpointing_backend": "unsloth-ffn", "gradient_checkpointing_interval": 2}, [1] * 6, [2, 1] * 3),
    ],
)
def test_the_chosen_parts_are_computed_twice_and_no_gradient_changes(
    memory: dict[str, Any], blocks: list[int], feed_forward: list[int]
) -> None:
    wanted = one_step(deep_pixart())
    network = enabled(deep_pixart(), **memory)
    # A feed-forward part is called by its own forward: its first layer is what shows that it computes again.
    parts = [part.net[0].proj for part in network.modules() if is_feed_forward(part)]
    with counted(repeated_blocks(network)) as calls, counted(parts) as inner:
        found = one_step(network)
    assert calls == blocks and inner == feed_forward
    assert len(found) == len(wanted) and all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_nothing_is_recomputed_without_gradient_checkpointing() -> None:
    network = enabled(deep_pixart(), checkpointing=False, gradient_checkpointing_interval=2, gradient_checkpointing_backend="unsloth")
    with counted(repeated_blocks(network)) as calls:
        one_step(network)
    assert calls == [1] * 6


class CountedTransfers(Transfers):
    """Adds up the bytes of copies to and from the host."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.copies: list[int] = []

    def copy(self, source: Tensor, target: Tensor) -> Wait:
        self.copies.append(source.nbytes)
        return super().copy(source, target)


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> CountedTransfers:
    made = CountedTransfers(CPU)
    monkeypatch.setattr(recompute, "transfers_of", lambda _: made)
    return made


def test_the_input_of_each_block_waits_on_the_host(transfers: CountedTransfers) -> None:
    network = enabled(deep_pixart(), gradient_checkpointing_backend="unsloth")
    wanted = one_step(deep_pixart())
    found = one_step(network)
    hidden = 2 * (4 * 6) * network.config.num_attention_heads * network.config.attention_head_dim * 4
    # The prompt and the time embedding are inputs of every block: they leave with the first alone.
    assert transfers.copies.count(hidden) == 2 * 6
    assert len(transfers.copies) <= 2 * 6 + 4
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("backend", [None, "torch-ffn", "unsloth-ffn"])
def test_what_attention_saves_waits_on_the_host(transfers: CountedTransfers, backend: str | None) -> None:
    chosen = {"gradient_checkpointing_backend": backend} if backend else {}
    network = enabled(deep_pixart(), checkpointing=backend is not None, gradient_checkpointing_offload_attention=True, **chosen)
    found, wanted = one_step(network), one_step(deep_pixart())
    assert len(transfers.copies) > 2 * 6 * 2
    weights = {weight.nbytes for part in network.modules() for weight in part.parameters(recurse=False) if weight.ndim == 2}
    hidden = 2 * (4 * 6) * network.config.num_attention_heads * network.config.attention_head_dim * 4
    assert hidden in transfers.copies and hidden not in weights
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_attention_in_a_block_that_is_recomputed_as_a_whole_offloads_nothing(transfers: CountedTransfers) -> None:
    one_step(enabled(deep_pixart(), gradient_checkpointing_offload_attention=True))
    assert transfers.copies == []
    one_step(enabled(deep_pixart(), gradient_checkpointing_offload_attention=True, gradient_checkpointing_interval=2))
    assert transfers.copies != []


def test_nothing_is_copied_while_images_are_generated(transfers: CountedTransfers) -> None:
    network = enabled(deep_pixart(), gradient_checkpointing_backend="unsloth-ffn", gradient_checkpointing_offload_attention=True)
    with torch.no_grad():
        network(torch.randn(1, 4, 8, 8), torch.randn(1, 4, 32), torch.tensor([1]), {"resolution": None, "aspect_ratio": None})
    assert transfers.copies == []


WAYS: list[dict[str, Any]] = [
    {"gradient_checkpointing_interval": 2},
    {"gradient_checkpointing_backend": "unsloth", "gradient_checkpointing_offload_prefetch": True},
    {"gradient_checkpointing_backend": "torch-ffn", "gradient_checkpointing_offload_attention": True},
    {"gradient_checkpointing_backend": "unsloth-ffn"},
]


@pytest.mark.parametrize("name", often(FAMILIES))
@pytest.mark.parametrize("memory", first_fast(WAYS, 2), ids=lambda memory: ",".join(map(str, memory.values())))
def test_every_family_gets_the_gradients_of_a_plain_step(name: str, memory: dict[str, Any]) -> None:
    plain = usual_step(name, model_type="full", gradient_checkpointing=False)
    other = loss_of(family_of(name, model_type="full", gradient_checkpointing=True, **memory))
    assert plain.loss == other.loss and plain.gradients.keys() == other.gradients.keys()
    assert [key for key in plain.gradients if not torch.equal(plain.gradients[key], other.gradients[key])] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_blocks_with_feed_forward_parts(name: str) -> None:
    network = family_of(name).load_network()
    blocks = repeated_blocks(network)
    assert len(blocks) >= 2
    assert any(is_feed_forward(part) for block in blocks for part in block.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_no_feed_forward_part_is_inside_of_another_or_of_attention(name: str) -> None:
    network = family_of(name).load_network()
    found = [name for name, part in network.named_modules() if is_feed_forward(part)]
    assert not any(name.startswith(f"{other}.") for name in found for other in found)
    assert not any("attn" in name for name in found)


@pytest.mark.parametrize("precision", ["no_change", "int8-quanto"])
def test_the_feed_forward_parts_of_gated_networks_are_those_with_weights(precision: str) -> None:
    for name, wanted in (("flux2", {"ff", "ff_context"}), ("flux3", {"ff"}), ("krea2", {"ff"})):
        family = family_of(name, model_type="lora", base_model_precision=precision)
        found = {name.rpartition(".")[2] for name, part in family.load_network().named_modules() if is_feed_forward(part)}
        assert found == wanted


def test_blocks_in_lists_that_a_network_holds_by_name_are_blocks_as_well() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gradient_checkpointing = False
            self.sides = nn.ModuleDict({"image": nn.ModuleList([nn.Linear(1, 1)]), "other": nn.ModuleList([nn.Linear(1, 1)])})
            self.parts = nn.ModuleDict({"image": nn.Linear(1, 1)})
            self.blocks = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])

    network = Network()
    names = {module: name for name, module in network.named_modules()}
    assert [names[block] for block in repeated_blocks(network)] == ["sides.image.0", "sides.other.0", "blocks.0", "blocks.1"]
