"""Adapters of kohya's tools on the joint layers of Flux.1: they change the network as diffusers lets them, and begin a run exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.bench.published import published_network
from tests.helpers.checked_runs import checked
from tests.helpers.gradients import step_inputs, tiny
from tests.helpers.models import tiny_model
from tests.helpers.tiny_run import train_here
from trainer_engine.adapters.adapter import AddedAdapter
from trainer_engine.adapters.base import ADAPTER_FILE
from trainer_engine.adapters.build import make_trainable
from trainer_engine.adapters.validation_adapter import load_validation_adapters
from trainer_engine.config.adapters.file_header import open_adapter
from trainer_engine.config.adapters.joint_layers import joint_layers, taken_apart
from trainer_engine.config.adapters.other_names import renamed
from trainer_engine.config.adapters.validation_adapter import ValidationAdapterRun, ValidationAdapterSource
from trainer_engine.config.families import specs
from trainer_engine.contract.errors import InvalidOptions, ModelUnavailable
from trainer_engine.export.adapter_file import read_adapter, read_tensors
from trainer_engine.families.base import Family
from trainer_engine.families.common.flux_layers import ORIGINAL_NAMES

RANK, ALPHA = 3, 1.5
DOUBLE = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_proj": ("attn.to_add_out",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_mod_lin": ("norm1_context.linear",),
}
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
OUTPUTS = {f"single_transformer_blocks.{number}.proj_out" for number in range(2)}
TARGETS = sorted({name for names in (*DOUBLE.values(), *SINGLE.values()) for name in names} - {"proj_out"} | OUTPUTS)
GIVEN: dict[str, Any] = {"model_type": "lora", "lora_rank": RANK, "lora_alpha": ALPHA, "lora_dropout": 0}
GIVEN |= {"peft_lora_target_modules": json.dumps(TARGETS)}


def joint(network: nn.Module) -> Iterator[tuple[str, list[nn.Linear]]]:
    """Name of each layer in kohya's keys -> the layers of diffusers that it consists of, in the order of their rows."""
    for blocks, theirs, layers in (("transformer_blocks", "double", DOUBLE), ("single_transformer_blocks", "single", SINGLE)):
        for number in range(len(network.get_submodule(blocks)._modules)):
            for name, parts in layers.items():
                found = [network.get_submodule(f"{blocks}.{number}.{part}") for part in parts]
                yield f"{theirs}_blocks_{number}_{name}", found  # type: ignore[misc]


def kohya_file(path: Path, network: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator, tensors = torch.Generator().manual_seed(4), dict[str, Tensor]()
    for name, parts in joint(network):
        rows = sum(part.out_features for part in parts)
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.randn(RANK, parts[0].in_features, generator=generator) * 0.2
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.randn(rows, RANK, generator=generator) * 0.2
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(ALPHA)
    tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    save_file(tensors, path)
    return tensors


def prediction(family: Family, network: Any) -> Tensor:
    with torch.no_grad():
        return family.predict(network.eval(), step_inputs(family))


@pytest.fixture(scope="module")
def plain() -> tuple[Family, Any]:
    family = tiny("flux")
    return family, family.load_network()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, plain: tuple[Family, Any]) -> Path:
    path = tmp_path_factory.mktemp("kohya") / "style.safetensors"
    kohya_file(path, plain[1])
    return path


@pytest.fixture(scope="module")
def merged(plain: tuple[Family, Any], file: Path) -> Tensor:
    """The prediction of the network with the products of the matrices in its weights, part after part."""
    family, tensors = tiny("flux"), load_file(file)
    network: Any = family.load_network()
    with torch.no_grad():
        for name, parts in joint(network):
            change = tensors[f"lora_unet_{name}.lora_up.weight"] @ tensors[f"lora_unet_{name}.lora_down.weight"] * ALPHA / RANK
            for part, rows in zip(parts, change.split([part.out_features for part in parts]), strict=True):
                part.weight += rows
    found = prediction(family, network)
    assert not torch.allclose(found, prediction(*plain), atol=1e-2)
    return found


def with_validation_adapter(plain: tuple[Family, Any], file: Path) -> Tensor:
    family, network = plain
    source = ValidationAdapterSource(path=str(file), strength=1.0, place="validation_adapter_path")
    run = ValidationAdapterRun(label="style", sources=(source,))
    (adapter,) = load_validation_adapters(network, [run], torch.device("cpu"), torch.float32, family.spec.key_prefixes)
    with adapter.attached():
        return prediction(family, network)


def test_diffusers_reads_the_file_in_the_same_way(tmp_path: Path, file: Path, plain: tuple[Family, Any]) -> None:
    """Apart from the first layer of single blocks, whose parts have the sizes of the published network there."""
    path = tmp_path / "style.safetensors"
    save_file({key: tensor for key, tensor in load_file(file).items() if "linear1" not in key}, path)
    pipeline = FluxPipeline.from_pretrained(tiny_model("flux"))
    pipeline.load_lora_weights(path)
    wanted = prediction(tiny("flux"), pipeline.transformer)
    assert torch.allclose(with_validation_adapter(plain, path), wanted, atol=1e-5)
    assert not torch.allclose(with_validation_adapter(plain, file), wanted, atol=1e-2)


def test_a_validation_adapter_gives_the_output_of_the_merged_weights(file: Path, merged: Tensor, plain: tuple[Family, Any]) -> None:
    assert torch.allclose(with_validation_adapter(plain, file), merged, atol=1e-5)


def test_a_run_begins_with_the_output_of_the_merged_weights(tmp_path: Path, file: Path, merged: Tensor) -> None:
    chosen = {**GIVEN, "init_lora": str(file)}
    assert checked(tmp_path, model_family="flux", model=str(tiny_model("flux")), **chosen).errors == []
    family = tiny("flux", **chosen)
    adapter = make_trainable(family, None)
    assert isinstance(adapter, AddedAdapter)
    assert torch.allclose(prediction(family, adapter.network), merged, atol=1e-5)


def test_what_such_a_run_saves_begins_another_one_bit_for_bit(tmp_path: Path, file: Path) -> None:
    chosen = {**GIVEN, "model_family": "flux", "model": str(tiny_model("flux")), "init_lora": str(file), "max_train_steps": 1}
    run = train_here(tmp_path, **chosen, learning_rate=1e-12, lr_warmup_steps=0)
    saved, ups = load_file(run.output_dir / ADAPTER_FILE), load_file(file)["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"]
    names = [f"transformer.transformer_blocks.0.attn.{name}.lora_B.weight" for name in ("to_q", "to_k", "to_v")]
    assert torch.allclose(torch.cat([saved[name] for name in names]), ups, atol=1e-9)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "", "transformer."])
def test_names_with_dots_are_read_too(tmp_path: Path, file: Path, plain: tuple[Family, Any], prefix: str) -> None:
    """As the published code and trainers that follow it write them."""
    originals = {renamed(name, ORIGINAL_NAMES.names) for name, _ in plain[1].named_modules()} - {""}
    originals |= {
        f"{blocks}_blocks.{n}.{name}"
        for blocks in ("double", "single")
        for n in range(4)
        for name in ("img_attn.qkv", "txt_attn.qkv", "linear1")
    }
    flat = {name.replace(".", "_"): name for name in originals}
    dotted = {}
    for key, tensor in load_file(file).items():
        name, _, part = key.removeprefix("lora_unet_").partition(".")
        dotted[f"{prefix}{flat[name]}.{part.replace('lora_down', 'lora_A').replace('lora_up', 'lora_B')}"] = tensor
    save_file(dotted, tmp_path / "dotted.safetensors")
    names = [name for name, _ in plain[1].named_modules()]
    ours, theirs = (read_adapter(one, names, plain[0].spec.key_prefixes) for one in (tmp_path / "dotted.safetensors", file))
    assert ours.modules.keys() == theirs.modules.keys() and len(ours.modules) == sum(len(parts) for _, parts in joint(plain[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_rows_of_a_part_are_read_from_their_place_in_the_file(tmp_path: Path, plain: tuple[Family, Any], dtype: torch.dtype) -> None:
    path = tmp_path / "short.safetensors"
    tensors = kohya_file(path, plain[1], dtype)
    header = taken_apart(open_adapter(path), [name for name, _ in plain[1].named_modules()])
    found = read_tensors(header)
    for name, parts in joint(plain[1]):
        if len(parts) == 1:
            continue
        whole, first = tensors[f"lora_unet_{name}.lora_up.weight"], 0
        for module, part in ((_name_of(plain[1], part), part) for part in parts):
            rows = found[f"{module}.lora_up.weight"]
            assert rows.dtype == dtype and torch.equal(rows, whole[first : first + part.out_features])
            assert torch.equal(found[f"{module}.lora_down.weight"], tensors[f"lora_unet_{name}.lora_down.weight"])
            first += part.out_features
        assert first == len(whole)


def _name_of(network: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in network.named_modules() if module is wanted)


def changed(tensors: Mapping[str, Tensor], key: str, value: Tensor | None) -> dict[str, Tensor]:
    return {**{name: one for name, one in tensors.items() if name != key}, **({} if value is None else {key: value})}


QKV = "lora_unet_double_blocks_0_img_attn_qkv"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"{QKV}.dora_scale", torch.ones(6, 1)),
        (f"{QKV}.lora_up.weight", None),
        (f"{QKV}.lora_up.weight", torch.zeros(7, RANK)),
        (f"{QKV}.lora_up.weight", torch.zeros(6, RANK, 1)),
        ("lora_unet_double_blocks_77_img_attn_qkv.alpha", torch.tensor(1.0)),
    ],
)
def test_a_joint_layer_that_cannot_be_taken_apart_is_refused_before_a_start_and_by_the_engine(
    tmp_path: Path, file: Path, plain: tuple[Family, Any], key: str, value: Tensor | None
) -> None:
    path = tmp_path / "other.safetensors"
    save_file(changed(load_file(file), key, value), path)
    with pytest.raises(ModelUnavailable, match="belong to no module"):
        read_adapter(path, [name for name, _ in plain[1].named_modules()], plain[0].spec.key_prefixes)
    chosen = {**GIVEN, "init_lora": str(path)}
    report = checked(tmp_path, model_family="flux", model=str(tiny_model("flux")), **chosen)
    assert [(one.option, one.code) for one in report.errors] == [("init_lora", "does_not_fit")]
    with pytest.raises(InvalidOptions, match="belong to no layer"):
        make_trainable(tiny("flux", **chosen), None)


def test_validate_reads_such_a_file_as_a_validation_adapter(tmp_path: Path, file: Path) -> None:
    usual: dict[str, Any] = {"model_family": "flux", "model": str(tiny_model("flux")), "model_type": "lora", "lora_rank": 2}
    usual |= {"validation_disable": False, "validation_prompt": "a cat", "validation_adapter_path": str(file)}
    report = checked(tmp_path, **usual)
    assert [one for one in report.problems if one.option.startswith("validation_adapter")] == []


def test_a_file_without_joint_layers_is_left_as_it_is(tmp_path: Path, plain: tuple[Family, Any]) -> None:
    save_file({"transformer.x_embedder.lora_A.weight": torch.zeros(2, 64)}, tmp_path / "plain.safetensors")
    header = open_adapter(tmp_path / "plain.safetensors")
    names = [name for name, _ in plain[1].named_modules()]
    assert taken_apart(header, names) is header and taken_apart(header, []) is header


@pytest.mark.parametrize("family", ["flux", "chroma"])
def test_the_names_cover_every_layer_of_the_published_blocks(family: str) -> None:
    network = published_network(family, specs()[family].default_flavour)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and "_blocks." in name]
    parts = {name for _, found in joint_names(linear) for name in found}
    assert {name for name in linear if not renamed(name, ORIGINAL_NAMES.names)} == parts


JOINT = [name for name, spec in specs().items() if (names := spec.components[spec.network].original_names) and names.joint]


def test_the_families_with_joint_layers_are_known() -> None:
    assert set(JOINT) >= {"flux", "chroma", "lumina2", "ideogram"}


@pytest.mark.parametrize("family", JOINT)
def test_the_parts_of_a_joint_layer_have_the_rows_of_the_published_network(family: str) -> None:
    network = published_network(family, specs()[family].default_flavour)
    sizes = {name: module.out_features for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    found = joint_layers(set(sizes), [""])
    assert len(found) > 20
    for parts in found.values():
        unit = sizes[parts[0][0]] // parts[0][1]
        assert [sizes[name] for name, _ in parts] == [rows * unit for _, rows in parts]


def joint_names(modules: list[str]) -> Iterator[tuple[str, list[str]]]:
    for name, parts in joint_layers(set(modules), [""]).items():
        yield name, [part for part, _ in parts]
