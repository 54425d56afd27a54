"""Weights that are published in 8 and 4 bits: what they are dequantised to, and the type that a run keeps them in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.models import fixed, options_with, tiny_model, tiny_of
from trainer_engine.config.families import find_spec
from trainer_engine.config.hub import HubSettings
from trainer_engine.config.lycoris.algorithms import unfit
from trainer_engine.config.parse import check_options
from trainer_engine.config.precisions import PRECISIONS
from trainer_engine.config.published_quantised import exact_base
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.families.ideogram.family import Ideogram4
from trainer_engine.families.ideogram.spec import FLAVOURS
from trainer_engine.weights.published_quantised import from_codes, in_thirds
from trainer_engine.weights.quantised.bnb import Bitsandbytes
from trainer_engine.weights.quantised.layer import Float8Linear
from training.preflight.model_files import model_problems
from training.preflight.network import network_tensors

Quantise = Callable[[str, Tensor], dict[str, Tensor]]
LARGEST = 448.0


def in_8_bits(name: str, weight: Tensor) -> dict[str, Tensor]:
    """A weight as the 8-bit repository of Ideogram 4 holds it: each row over a scale of its own."""
    scale = weight.abs().amax(dim=1) / LARGEST
    return {name: (weight / scale[:, None]).to(torch.float8_e4m3fn), f"{name}_scale": scale}


def in_4_bits(name: str, weight: Tensor, *, nested: bool = True) -> dict[str, Tensor]:
    """A weight as bitsandbytes writes it."""
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=nested)
    return {name: packed, **{f"{name}.{part}": tensor.contiguous() for part, tensor in state.as_dict(packed=True).items()}}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(48, 64), (7, 24), (300, 128)])
def test_codes_of_4_bits_are_dequantised_as_bitsandbytes_does(shape: tuple[int, int], nested: bool) -> None:
    weight = fixed(*shape, seed=1)
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=nested)
    ours = from_codes(packed, in_4_bits("a.weight", weight, nested=nested), "a.weight")
    assert ours.shape == shape
    torch.testing.assert_close(ours, bnb.dequantize_4bit(packed, state), rtol=1e-6, atol=1e-6)


def quantised_copy(place: Path, quantise: Quantise, *, joined: bool = False) -> tuple[Path, dict[str, Tensor]]:
    """The micro model with its networks and its text encoder quantised, and the weights that its network stands for.

    ``joined``: queries, keys and values are one layer, as in the published code.
    """
    folder = place / "model"
    shutil.copytree(tiny_model("ideogram"), folder)
    meant: dict[str, Tensor] = {}
    for part in ("transformer", "unconditional_transformer", "text_encoder"):
        (file,) = (folder / part).glob("*.safetensors")
        tensors = load_file(file)
        linear = [name for name, one in tensors.items() if one.dim() == 2 and "embed" not in name and name.endswith(".weight")]
        stored = {name: one for name, one in tensors.items() if name not in linear}
        weights = {name: tensors[name] for name in linear}
        if joined and part != "text_encoder":
            weights = joined_layers(weights)
        for name, weight in weights.items():
            stored |= quantise(name, weight)
        save_file(stored, file)
        if part == "transformer":
            meant = tensors
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}}))
    return folder, meant


def joined_layers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, weight in weights.items():
        if ".to_q." in name:
            parts = (weights[name.replace(".to_q.", f".to_{part}.")] for part in "qkv")
            found[name.replace(".to_q.", ".qkv.")] = torch.cat(list(parts))
        elif ".to_out.0." in name:
            found[name.replace(".to_out.0.", ".o.")] = weight
        elif ".to_k." not in name and ".to_v." not in name:
            found[name] = weight
    return found


@pytest.mark.parametrize(("quantise", "most"), [(in_8_bits, 2**-4), (in_4_bits, 0.2)], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize("joined", [False, True], ids=["split", "joined"])
def test_quantised_weights_are_dequantised_when_they_are_loaded(tmp_path: Path, quantise: Quantise, most: float, joined: bool) -> None:
    folder, meant = quantised_copy(tmp_path, quantise, joined=joined)
    family = tiny_of(Ideogram4, folder)
    network = family.load_network()
    assert {one.dtype for one in network.parameters()} == {torch.float32}
    for name, tensor in network.state_dict().items():
        error = (tensor - meant[name]).abs().max() / meant[name].abs().max()
        assert error <= most, name
    assert family.parts.load_unconditional(torch.float32).input_proj.weight.dtype == torch.float32
    found, exact = (
        one.encode_prompts(["a red circle"])[0]["embeds"].float() for one in (family, tiny_of(Ideogram4, tiny_model("ideogram")))
    )
    likeness = torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0)
    assert found.shape == exact.shape and 0.9 < likeness < 1


def test_weights_without_their_scales_are_noticed(tmp_path: Path) -> None:
    """diffusers would load the numbers as they are, many times too large."""
    folder, meant = quantised_copy(tmp_path, in_8_bits)
    network = tiny_of(Ideogram4, folder).load_network()
    (file,) = (folder / "transformer").glob("*.safetensors")
    name = "layers.0.attention.to_q.weight"
    raw = load_file(file)[name].float()
    assert raw.abs().max() == LARGEST
    assert not torch.allclose(raw, meant[name], rtol=0.5)
    assert torch.allclose(network.state_dict()[name], meant[name], rtol=2**-4, atol=1e-3)


def test_quantised_weights_with_gaps_are_refused(tmp_path: Path) -> None:
    folder, _ = quantised_copy(tmp_path, in_8_bits)
    (file,) = (folder / "transformer").glob("*.safetensors")
    save_file({name: one for name, one in load_file(file).items() if "final_layer" not in name}, file)
    with pytest.raises(ModelUnavailable, match="lacks 4 weights, among them final_layer"):
        tiny_of(Ideogram4, folder).load_network()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_8_bit_weights_come_back_as_they_were_published(dtype: torch.dtype) -> None:
    """A run keeps them in the type of the same 8 bits: none of them changes, and the scale by what the type that it is loaded in rounds."""
    stored = in_8_bits("a.weight", fixed(32, 96, seed=2))
    layer = torch.nn.Linear(96, 32, bias=False, dtype=dtype)
    dequantised = stored["a.weight"].float() * stored["a.weight_scale"][:, None]
    layer.weight.data.copy_(dequantised)
    again = Float8Linear(layer, torch.float8_e4m3fn)
    assert torch.equal(again.packed.float(), stored["a.weight"].float())
    assert torch.allclose(again.scale[:, 0], stored["a.weight_scale"], rtol=1e-6 if dtype == torch.float32 else 2**-8)


def test_4_bit_weights_come_back_as_they_were_published() -> None:
    stored = in_4_bits("a.weight", fixed(32, 128, seed=3), nested=False)
    layer = torch.nn.Linear(128, 32, bias=False)
    layer.weight.data.copy_(from_codes(stored["a.weight"], stored, "a.weight"))
    spec = find_spec("ideogram")
    assert spec is not None
    again: Any = Bitsandbytes().quantised("a", layer, PRECISIONS[spec.published_precisions["nf4"]])
    assert torch.allclose(again.dequantised(torch.float32), layer.weight, rtol=1e-6, atol=1e-7)


def test_a_layer_of_three_is_split_by_rows() -> None:
    found = in_thirds(
        "b.qkv.weight", torch.arange(6.0)[:, None], whole=r"(b)\.qkv\.(weight)", parts=tuple(rf"\1.{one}.\2" for one in "qkv")
    )
    assert {name: one.flatten().tolist() for name, one in found.items()} == {
        "b.q.weight": [0, 1],
        "b.k.weight": [2, 3],
        "b.v.weight": [4, 5],
    }


PUBLISHED: dict[str, Any] = {"model_family": "ideogram", "model_type": "lora", "pretrained_model_name_or_path": None}


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({}, "fp8-native"),
        ({"base_model_precision": "no_change"}, "fp8-native"),
        ({"pretrained_model_name_or_path": FLAVOURS["fp8"]}, "fp8-native"),
        ({"model_flavour": "nf4"}, "nf4-bnb"),
        ({"ideogram_fp8_base_upcast": True}, "no_change"),
        ({"base_model_precision": "int8-quanto"}, "int8-quanto"),
        ({"base_model_precision": "bf16"}, "bf16"),
        ({"pretrained_model_name_or_path": "someone/ideogram-in-bf16"}, "no_change"),
        ({"pretrained_transformer_model_name_or_path": "someone/ideogram-in-bf16"}, "no_change"),
        ({"model_type": "full"}, "no_change"),
        ({"model_family": "krea2"}, "no_change"),
    ],
)
def test_published_weights_are_kept_in_the_type_that_they_are_published_in(values: dict[str, Any], kept: str) -> None:
    assert options_with(**{**PUBLISHED, **values}).precision.base_model_precision == kept


@pytest.mark.parametrize(
    ("values", "setting"),
    [
        ({}, "ideogram_fp8_base_upcast=true with base_model_precision=no_change"),
        ({"base_model_precision": "fp8-native"}, "ideogram_fp8_base_upcast=true with base_model_precision=no_change"),
        ({"base_model_precision": "int8-quanto", "pretrained_model_name_or_path": "/models/ideogram"}, "base_model_precision=no_change"),
        ({"base_model_precision": "int8-quanto", "model_family": "krea2"}, "base_model_precision=no_change"),
    ],
)
def test_the_hint_of_an_adapter_that_needs_exact_weights_is_what_gives_them(values: dict[str, Any], setting: str) -> None:
    given = {**PUBLISHED, "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1, **values}
    _, problems = check_options({**given, "use_dora": True})
    assert [problem.hint for problem in problems if problem.code == "needs_exact_weights"] == [f"or set {setting}"]
    (problem,) = unfit({"algo": "full"}, quantised=True, comfyui=False, exact=exact_base(given))
    assert problem.hint == f"set {setting}, or use another algorithm"
    changed = dict(one.split("=") for one in setting.split(" with "))
    assert "needs_exact_weights" not in {one.code for one in check_options({**given, "use_dora": True, **changed})[1]}


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        ({"model_type": "full"}, ["quantised_weights"]),
        ({"model_type": "full", "model_flavour": "nf4"}, ["quantised_weights"]),
        ({"model_type": "full", "pretrained_model_name_or_path": "someone/ideogram-in-bf16"}, []),
        ({"model_type": "lora"}, []),
        ({"model_type": "lora", "flow_sigmoid_scale": 2.0}, ["no_effect"]),
        ({"model_type": "lora", "flow_schedule_shift": 3.0, "ideogram_schedule_mu": 0.5}, ["no_effect"]),
        ({"model_type": "lora", "flow_schedule_auto_shift": False, "ideogram_schedule_mu": 0.5}, ["no_effect"]),
        ({"model_type": "lora", "flow_use_uniform_schedule": True, "ideogram_schedule_std": 0.5}, ["no_effect"]),
        ({"model_type": "lora", "flow_use_uniform_schedule": True}, []),
        ({"model_type": "lora", "ideogram_load_unconditional_transformer": True, "validation_disable": True}, ["no_effect"]),
        ({"model_type": "lora", "ideogram_load_unconditional_transformer": True}, []),
        ({"model_type": "lora", "ideogram_fp8_base_upcast": True}, []),
        ({"model_type": "lora", "ideogram_fp8_base_upcast": True, "base_model_precision": "int8-quanto"}, ["no_effect"]),
        ({"model_type": "full", "ideogram_fp8_base_upcast": True}, ["no_effect", "quantised_weights"]),
    ],
)
def test_validate_states_what_training_on_quantised_weights_means(values: dict[str, Any], codes: list[str]) -> None:
    usual = {**PUBLISHED, "data_backend_config": "sets.json", "output_dir": "out", "max_train_steps": 10, "num_train_epochs": 0}
    _, problems = check_options({**usual, **values})
    assert [problem.code for problem in problems] == codes


def test_estimates_take_the_shapes_of_8_bit_files_and_not_those_of_packed_ones(tmp_path: Path) -> None:
    spec = find_spec("ideogram")
    assert spec is not None
    for quantise, is_known in ((in_8_bits, True), (in_4_bits, False)):
        folder, meant = quantised_copy(tmp_path / quantise.__name__, quantise)
        options = options_with(model_family="ideogram", pretrained_model_name_or_path=str(folder))
        found = network_tensors(options.model, spec, tmp_path)
        assert (found is not None) == is_known
        if found is not None:
            assert found == {name: tuple(one.shape) for name, one in meant.items()}


def problems_of(folder: Path, family: str = "ideogram") -> list[str]:
    spec = find_spec(family)
    assert spec is not None
    options = options_with(model_family=family, pretrained_model_name_or_path=str(folder))
    hub = HubSettings.of({"HF_HUB_OFFLINE": "1"})
    return [problem.code for problem in model_problems(options, spec, hub)]


def test_a_quantiser_that_a_configuration_names_is_never_made(tmp_path: Path) -> None:
    """It is ignored where the weights are dequantised here, and refused elsewhere, by validate and by the engine."""
    folder, _ = quantised_copy(tmp_path, in_4_bits)
    assert problems_of(folder) == []
    assert isinstance(tiny_of(Ideogram4, folder).load_network().input_proj, torch.nn.Linear)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    shutil.rmtree(folder / "transformer")
    shutil.copytree(tiny_model("ideogram") / "transformer", folder / "transformer")
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    assert problems_of(folder) == ["unsafe_model"]
    with pytest.raises(ModelUnavailable, match="asks for a quantiser"):
        tiny_of(Ideogram4, folder).load_network()


def test_the_result_of_a_full_fine_tune_holds_no_quantised_weights(tmp_path: Path) -> None:
    folder, _ = quantised_copy(tmp_path, in_8_bits)
    copied = tiny_of(Ideogram4, folder).parts.copied()
    assert {name: one.is_readable for name, one in copied.items()} == {
        "unconditional_transformer": False,
        "vae": True,
        "text_encoder": False,
        "tokenizer": True,
    }
    copied["text_encoder"].load().save_pretrained(tmp_path / "again")
    (file,) = (tmp_path / "again").glob("*.safetensors")
    assert not [name for name in load_file(file) if name.endswith("_scale")]
    assert {one.dtype for one in load_file(file).values()} == {torch.bfloat16}
