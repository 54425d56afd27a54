"""Adapters that were trained on a quantised base leave as other adapters do, and diffusers computes with them what the engine did."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers.models import fixed, tiny_family, tiny_pixart
from tests.helpers.tiny_run import train_here
from tests.trainer_engine.adapters.test_numerics import STILL
from tests.trainer_engine.adapters.test_runs import LOKR, lycoris
from trainer_engine.adapters.build import make_trainable
from trainer_engine.export.__main__ import ADAPTER, main
from trainer_engine.families.inputs import StepInputs
from trainer_engine.weights.quantised.layer import QuantisedLinear

STATIC = ["int8-quanto", "int8-torchao", "fp8wo-torchao", "nf4-bnb", "fp8-native", "uint4-sdnq"]
"""One type of each library and storage that leaves the inputs of layers as they are."""
OFTEN = [pytest.param(name, marks=pytest.mark.slow) if name not in ("int8-torchao", "nf4-bnb") else name for name in STATIC]
TRAINED = {"max_train_steps": 2, "learning_rate": 0.05, "lr_warmup_steps": 0, "optimizer": "torch-adamw"}


def diffusers_network() -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel.from_pretrained(tiny_pixart(), subfolder="transformer").eval()


@torch.no_grad()
def answer(network: PixArtTransformer2DModel) -> Tensor:
    """Of the bare network of diffusers, (1, 4, 8, 8)."""
    conditions = {"resolution": None, "aspect_ratio": None}
    mask = torch.ones(1, 5)
    latents, embeds = fixed(1, 4, 8, 8, seed=1), fixed(1, 5, 32, seed=3)
    output = network(latents, embeds, torch.tensor([400]), added_cond_kwargs=conditions, encoder_attention_mask=mask)
    return output.sample.chunk(2, dim=1)[0]


@torch.no_grad()
def engine_answer(network: nn.Module) -> Tensor:
    family = tiny_family()
    prompts = family.collate_prompts([{"embeds": fixed(1, 5, 32, seed=3)[0]}])
    return family.predict(network, StepInputs(noisy_latents=fixed(1, 4, 8, 8, seed=1), timesteps=torch.tensor([400]), prompts=prompts))


def trained_on(preset: str, place: Path, values: dict[str, Any]) -> Path:
    """The folder of an adapter that a run trained on a quantised base."""
    return train_here(place, **values, **TRAINED, base_model_precision=preset).output_dir


def exported(adapter: Path, form: str, output: Path, *more: str) -> Path:
    assert main([str(adapter), "--to", form, "--output", str(output), *more]) == 0
    return output


@pytest.mark.parametrize("preset", OFTEN)
def test_diffusers_computes_with_an_exported_lora_what_the_engine_computed(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained_on(preset, tmp_path, STILL)
    exported(folder, "diffusers", tmp_path / "exported.safetensors")
    code = capsys.readouterr().out.partition("as follows\n")[2]
    merged = PixArtTransformer2DModel.from_pretrained(exported(folder, "merged", tmp_path / "merged"), subfolder="transformer").eval()
    theirs = diffusers_network()
    plain = answer(theirs)
    exec(code, {"pipeline": SimpleNamespace(transformer=theirs)})  # what the command prints
    assert (answer(theirs) - plain).abs().max() > 1e-2
    torch.testing.assert_close(answer(theirs), answer(merged), rtol=1e-5, atol=2e-5)
    restored = {**STILL, "base_model_precision": preset, "init_lora": str(folder / ADAPTER)}
    ours = make_trainable(tiny_family(**restored, gradient_checkpointing=False), None).network.eval()
    with torch.no_grad():
        for name, layer in rounded_layers(ours).items():
            module = theirs.get_submodule(name)
            getattr(module, "base_layer", module).weight.copy_(layer)
    torch.testing.assert_close(engine_answer(ours), answer(theirs), rtol=1e-5, atol=2e-5)


def rounded_layers(network: nn.Module) -> dict[str, Tensor]:
    """The weights that the quantised layers of a network compute with, by the names of the network without an adapter."""
    found = {}
    for name, layer in network.named_modules():
        if isinstance(layer, QuantisedLinear):
            found[name.replace(".base_layer", "")] = layer.weight
        elif type(layer).__module__.startswith("optimum.quanto"):
            found[name.replace(".base_layer", "")] = layer.weight.dequantize()
    assert len(found) > 20
    return found


@pytest.mark.parametrize("preset", OFTEN)
def test_a_lokr_of_a_quantised_base_is_merged_into_exact_weights(preset: str, tmp_path: Path) -> None:
    values = lycoris(tmp_path, **LOKR)
    folder = trained_on(preset, tmp_path, values)
    merged = PixArtTransformer2DModel.from_pretrained(exported(folder, "merged", tmp_path / "merged"), subfolder="transformer").eval()
    weights = dict(merged.named_parameters())
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    exact = make_trainable(tiny_family(**values, init_lora=str(folder / ADAPTER)), None)
    assert (answer(merged) - answer(diffusers_network())).abs().max() > 1e-2
    torch.testing.assert_close(engine_answer(exact.network.eval()), answer(merged), rtol=1e-5, atol=2e-5)


def test_half_precision_of_merged_weights_is_that_of_the_command(tmp_path: Path) -> None:
    folder = trained_on("int8-torchao", tmp_path, STILL)
    exact = exported(folder, "merged", tmp_path / "exact")
    short = exported(folder, "merged", tmp_path / "short", "--dtype", "bfloat16")
    one, other = (load_file(next((place / "transformer").glob("*.safetensors"))) for place in (exact, short))
    assert {weight.dtype for weight in other.values()} == {torch.bfloat16}
    assert all(torch.allclose(weight, other[name].float(), atol=1e-2, rtol=1e-2) for name, weight in one.items())
