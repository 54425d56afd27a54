"""An adapter that only draws acts as its own library has it act, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers.models import options_with, tiny_family
from tests.helpers.params import first_fast
from tests.trainer_engine.adapters.test_numerics import TIMESTEPS, batch
from tests.trainer_engine.adapters.test_runs import LOKR, STANDARD, lycoris
from trainer_engine.adapters.base import ADAPTER_FILE, Trainable
from trainer_engine.adapters.build import make_trainable
from trainer_engine.adapters.validation_adapter import ValidationAdapter, load_validation_adapters
from trainer_engine.config.adapters.validation_adapter import ValidationAdapterRun, ValidationAdapterSource
from trainer_engine.contract.errors import InvalidOptions, ModelUnavailable
from trainer_engine.families.base import Family
from trainer_engine.families.inputs import StepInputs
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache
from trainer_engine.validation.generate import render

CPU, STRENGTH = torch.device("cpu"), 0.7
STILL = {**STANDARD, "lora_dropout": 0.0}


def answer(family: Family, network: nn.Module) -> Tensor:
    latents, _, embeds = batch()
    prompts = family.collate_prompts([{"embeds": one} for one in embeds])
    with torch.no_grad():
        return family.predict(network, StepInputs(noisy_latents=latents, timesteps=TIMESTEPS, prompts=prompts))


KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "standard": lambda place: {**STILL, "lora_alpha": 2.0},
    "locon": lambda place: lycoris(place, **{**LOKR, "algo": "lora", "multiplier": 1.5, "linear_alpha": 3}),
    "lokr": lambda place: lycoris(place, **{**LOKR, "full_matrix": True}),
    "lokr of products": lambda place: lycoris(
        place, **{**LOKR, "linear_dim": 1, "linear_alpha": 3, "multiplier": 1.5, "decompose_both": True}
    ),
    "loha": lambda place: lycoris(place, **{**LOKR, "algo": "loha", "linear_alpha": 1}),
    "full": lambda place: lycoris(place, **{**LOKR, "algo": "full"}),
}


def written(place: Path, options: dict[str, Any]) -> tuple[Path, Trainable, Family]:
    """(the file of an adapter of random weights, the adapter, its family)"""
    family = tiny_family(**options)
    trainable = make_trainable(family, None)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in trainable.parameters:
            parameter += 0.1 * torch.randn_like(parameter)
    trainable.network.eval()
    trainable.save(place / "visitor")
    return place / "visitor" / ADAPTER_FILE, trainable, family


def standard_file(place: Path) -> Path:
    return written(place, KINDS["standard"](place))[0]


def validation_adapter_of(network: nn.Module, path: Path | str, strength: float = STRENGTH) -> ValidationAdapter:
    runs = [ValidationAdapterRun("style", (ValidationAdapterSource(str(path), strength, "validation_adapter_path"),))]
    (validation_adapter,) = load_validation_adapters(network, runs, CPU, torch.float32)
    return validation_adapter


@pytest.mark.parametrize("kind", KINDS)
def test_a_validation_adapter_acts_as_the_library_that_trained_it(kind: str, tmp_path: Path) -> None:
    path, trainable, theirs = written(tmp_path, KINDS[kind](tmp_path))
    with trainable.at_strength(STRENGTH):
        wanted = answer(theirs, trainable.network)
    family = tiny_family()
    network = family.load_network().eval()
    plain = answer(family, network)
    with validation_adapter_of(network, path).attached():
        found = answer(family, network)
    assert (wanted - plain).abs().max() > 1e-2
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(answer(family, network), plain)


HOSTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "full": lambda place: {},
    "standard": lambda place: STILL,
    "dora": lambda place: {**STILL, "use_dora": True},
    "lokr": lambda place: lycoris(place, **LOKR),
    "full differences": lambda place: lycoris(place, **{**LOKR, "algo": "full"}),
    "standard on a quantised base": lambda place: {**STILL, "base_model_precision": "int8-quanto"},
    "lokr on a quantised base": lambda place: {**lycoris(place, **LOKR), "base_model_precision": "int8-quanto"},
}


def everything(network: nn.Module) -> list[Any]:
    """Names, what learns, bytes, modules and hooks."""
    state = {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in network.state_dict().items()}
    learning = [(name, id(parameter), parameter.requires_grad) for name, parameter in network.named_parameters()]
    modules = [(name, id(module), sorted(vars(module)), len(module._forward_hooks)) for name, module in network.named_modules()]
    return [sorted(state), learning, modules, state]


def saved(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("fails", first_fast([True, False]))
def test_removing_a_validation_adapter_leaves_nothing_on_any_network(host: str, fails: bool, tmp_path: Path) -> None:
    path = standard_file(tmp_path)
    family = tiny_family(**HOSTS[host](tmp_path))
    trainable = make_trainable(family, None)
    network = trainable.network.eval()
    before, plain, random = everything(network), answer(family, network), torch.get_rng_state()
    trainable.save(tmp_path / "before")
    validation_adapter = validation_adapter_of(network, path)
    try:
        with validation_adapter.attached():
            with_it = answer(family, network)
            if fails:
                raise RuntimeError("shapes do not match")
    except RuntimeError:
        assert fails
    assert (with_it - plain).abs().max() > 1e-3
    after = everything(network)
    assert after[:3] == before[:3]
    assert all(torch.equal(after[3][name], tensor) for name, tensor in before[3].items() if isinstance(tensor, Tensor))
    assert torch.equal(answer(family, network), plain)
    assert torch.equal(torch.get_rng_state(), random)
    trainable.save(tmp_path / "after")
    assert saved(tmp_path / "after") == saved(tmp_path / "before")


@pytest.mark.parametrize("strength", [0.5, -1.0])
def test_images_equal_those_of_weights_merged_by_hand(strength: float, tmp_path: Path) -> None:
    path = standard_file(tmp_path)
    family = tiny_family()
    network, merged = family.load_network(), family.load_network()
    tensors = load_file(path)
    for key in (key for key in tensors if key.endswith("lora_A.weight")):
        up = tensors[key.replace("lora_A", "lora_B")]
        layer = merged.get_submodule(key.removeprefix("transformer.").removesuffix(".lora_A.weight"))
        layer.weight.data += strength * 2.0 / len(tensors[key]) * (up @ tensors[key])  # lora_alpha is 2

    def drawn(name: str, which: nn.Module) -> np.ndarray[Any, Any]:
        options = options_with(
            output_dir=str(tmp_path / name),
            validation_prompt="a cat",
            validation_resolution="64x64",
            validation_num_inference_steps=3,
            validation_disable_unconditional=True,
        )
        torch.manual_seed(5)
        embeds = {
            text: {"embeds": torch.randn(3, 32, generator=torch.Generator().manual_seed(len(text)))}
            for text in ("a cat", "blurry, cropped, ugly")
        }
        (image,) = render(family, which, embeds.__getitem__, options, 1)
        return np.asarray(Image.open(image.path)).astype(int)

    plain, wanted = drawn("plain", network), drawn("merged", merged)
    with validation_adapter_of(network, path, strength).attached():
        found = drawn("visited", network)
    assert np.abs(found - wanted).max() <= 1
    assert np.abs(plain - wanted).max() > 8
    assert np.array_equal(drawn("again", network), plain)


def test_a_folder_stands_for_the_file_in_it(tmp_path: Path) -> None:
    path, network = standard_file(tmp_path), tiny_family().load_network()
    assert len(validation_adapter_of(network, path.parent).changes) == len(validation_adapter_of(network, path).changes) > 0


def changed(path: Path, how: Any) -> Path:
    """The adapter with other tensors."""
    save_file(how(load_file(path)), path)
    return path


BROKEN: dict[str, tuple[Any, str]] = {
    "another network's layers": (
        lambda found: {key.replace("transformer_blocks", "blocks"): one for key, one in found.items()},
        "no module",
    ),
    "another size": (
        lambda found: {key: torch.cat([one, one], dim=1) if "lora_A" in key else one for key, one in found.items()},
        "here it is",
    ),
    "two ranks": (lambda found: {key: one[:1].clone() if "lora_A" in key else one for key, one in found.items()}, "not of one rank"),
    "half of it": (lambda found: {key: one for key, one in found.items() if "lora_A" in key}, "only one"),
    "dora": (
        lambda found: (
            found
            | {key.replace("lora_B.weight", "lora_magnitude_vector"): one[:, 0].clone() for key, one in found.items() if "lora_B" in key}
        ),
        "DoRA",
    ),
    "another algorithm": (
        lambda found: found | {key.replace("lora_A.weight", "oft_blocks"): one.clone() for key, one in found.items() if "lora_A" in key},
        "oft_blocks",
    ),
    "a convolution": (lambda found: {"transformer.pos_embed.proj.diff": torch.zeros(8, 4, 2, 2)}, "not linear"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    how, message = BROKEN[case]
    path, network = changed(standard_file(tmp_path), how), tiny_family().load_network()
    with pytest.raises(InvalidOptions, match=message) as refused:
        validation_adapter_of(network, path)
    (problem,) = refused.value.problems
    assert (problem.option, problem.code, problem.got) == ("validation_adapter_path", "does_not_fit", str(path))


def test_a_tlora_is_refused(tmp_path: Path) -> None:
    path, _, _ = written(tmp_path, lycoris(tmp_path, **{**LOKR, "algo": "tlora"}))
    with pytest.raises(InvalidOptions, match="timestep"):
        validation_adapter_of(tiny_family().load_network(), path)


def test_a_missing_file_and_a_file_of_no_adapter_are_refused(tmp_path: Path) -> None:
    network = tiny_family().load_network()
    (tmp_path / "text.safetensors").write_text("not an adapter")
    for path, told in (
        (tmp_path / "nowhere.safetensors", "no file"),
        (tmp_path, "holds no"),
        (tmp_path / "text.safetensors", "no adapter"),
    ):
        with pytest.raises(InvalidOptions, match=told):
            validation_adapter_of(network, path)


def test_a_repository_of_the_hub_stands_for_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = standard_file(tmp_path)
    place_in_hub_cache(path.parent, "some-org/style", tmp_path / "home")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    network = tiny_family().load_network()
    there = [len(validation_adapter_of(network, name).changes) for name in ("some-org/style", f"some-org/style:{ADAPTER_FILE}")]
    assert there == [len(validation_adapter_of(network, path).changes)] * 2
    with pytest.raises(ModelUnavailable, match="some-org/other"):
        validation_adapter_of(network, "some-org/other")


def test_a_rank_stabilised_file_acts_by_the_root_of_its_rank(tmp_path: Path) -> None:
    path = standard_file(tmp_path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    stated = json.loads(metadata["lora_adapter_metadata"])
    other = tmp_path / "stabilised.safetensors"
    save_file(load_file(path), other, {**metadata, "lora_adapter_metadata": json.dumps({**stated, "transformer.use_rslora": True})})
    family = tiny_family()
    network = family.load_network().eval()
    with validation_adapter_of(network, other, 0.5).attached():
        found = answer(family, network)
    with validation_adapter_of(network, path, 0.5 * 4**0.5).attached():  # alpha / sqrt(4) instead of alpha / 4
        wanted = answer(family, network)
    torch.testing.assert_close(found, wanted)
    with validation_adapter_of(network, path, 0.5).attached():
        assert not torch.allclose(answer(family, network), found, atol=1e-3)
