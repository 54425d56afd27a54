"""What the engine itself does on the host in a pass: nothing that grows with the network, and no copies of what it knows already."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.models import tiny_family, tiny_pixart
from tests.trainer_engine.families.flux.models import tiny_flux
from trainer_engine.families.base import Family
from trainer_engine.families.inputs import StepInputs


class Operators(TorchDispatchMode):
    """Names of the operators that reached the dispatcher inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def python_calls(work: Callable[[], object]) -> int:
    """Python functions that were called below ``work``."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


def deeper(network: nn.Module, blocks: int) -> nn.Module:
    """A network of the same configuration with so many blocks, random weights."""
    assert isinstance(network, FluxTransformer2DModel | PixArtTransformer2DModel)
    depth = {"num_layers": blocks} | ({"num_single_layers": blocks} if isinstance(network, FluxTransformer2DModel) else {})
    made: nn.Module = type(network).from_config({**network.config, **depth})
    return made


def step_inputs(family: Family, batch: int = 1, references: tuple[Tensor, ...] = ()) -> StepInputs:
    """Constant inputs of a step for (B, C, 8, 12) latents."""
    channels = 16 if family.spec.name == "flux" else 4
    prompt = {"embeds": torch.ones(4, 32), "pooled": torch.ones(32), "mask": torch.ones(4, dtype=torch.int64)}
    return StepInputs(
        noisy_latents=torch.ones(batch, channels, 8, 12),
        timesteps=torch.ones(batch),
        prompts=family.collate_prompts([prompt] * batch),
        references=references,
    )


@pytest.mark.parametrize("make", [tiny_flux, tiny_family], ids=["flux", "pixart_sigma"])
def test_the_work_of_predict_around_the_network_does_not_grow_with_its_depth(make: Callable[[], Family]) -> None:
    family = make()
    inputs = step_inputs(family)
    context = []
    for blocks in (1, 6):
        network = deeper(family.load_network(), blocks)
        answers: list[Any] = []
        hook = network.register_forward_hook(lambda _module, _args, output: answers.append(output))  # noqa: B023
        family.predict(network, inputs)
        hook.remove()
        network.forward = lambda *_args, **_kwargs: answers[0]  # type: ignore[method-assign]  # noqa: B023
        context.append(python_calls(lambda: family.predict(network, inputs)))  # noqa: B023
    assert context[0] == context[1]


@pytest.mark.parametrize("make", [tiny_flux, tiny_family], ids=["flux", "pixart_sigma"])
def test_token_count_is_the_length_of_the_networks_sequence(make: Callable[[], Family]) -> None:
    family = make()
    network, inputs, lengths = family.load_network(), step_inputs(family), set()
    for block in network.transformer_blocks:
        looked_at = lambda _module, args, kwargs: lengths.add((args or tuple(kwargs.values()))[0].shape[1])  # noqa: E731
        block.register_forward_pre_hook(looked_at, with_kwargs=True)
    with torch.no_grad():
        family.predict(network, inputs)
    assert lengths == {family.token_count(inputs.noisy_latents.shape[1:])}


def test_positions_of_sizes_that_were_seen_before_are_not_made_again() -> None:
    family = tiny_flux("kontext")
    network = family.load_network()
    made = []
    for size in ((8, 12), (8, 12), (12, 8), (8, 12)):
        with torch.no_grad(), Operators() as seen:
            family.predict(network, step_inputs(family, references=(torch.ones(1, 16, *size),)))
        made.append(seen.names.count("aten.arange.default"))
    # The network counts by itself too: the sines of timestep and guidance.
    assert made[0] == made[2] > made[1] == made[3]


def test_positions_are_kept_for_a_bounded_number_of_sizes() -> None:
    family = tiny_flux()
    for edge in range(2, 800, 2):
        family._positions(((edge, 2),), torch.device("cpu"), torch.float32)
    kept = family._positions.cache_info()
    assert kept.maxsize is not None and kept.currsize == kept.maxsize < 400


def test_size_conditions_are_filled_on_the_device() -> None:
    family = tiny_family(pretrained_model_name_or_path=str(tiny_pixart(size_conditions=True)))
    network = family.load_network()
    sizes: dict[str, Any] = {}
    network.register_forward_pre_hook(lambda _module, _args, kwargs: sizes.update(kwargs["added_cond_kwargs"]), with_kwargs=True)
    inputs = step_inputs(family, batch=2)
    with torch.no_grad(), Operators() as seen:
        family.predict(network, inputs)
    assert sizes["resolution"].tolist() == [[64.0, 96.0]] * 2
    assert sizes["aspect_ratio"].tolist() == [[pytest.approx(64 / 96)]] * 2
    assert "aten.lift_fresh.default" not in seen.names, "a list of numbers was copied from the host"
