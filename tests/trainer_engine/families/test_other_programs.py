"""Adapters in the keys of ComfyUI and kohya's tools: every key is one that the programs know, and they load in diffusers and here.

The rules are facts of ComfyUI's ``comfy/lora.py`` (``model_lora_keys_unet``), ``comfy/utils.py`` (``..._to_diffusers``) and of the names of
the layers in its networks.
"""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Mapping, Set
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.bench.published import published, published_network
from tests.helpers.checked_runs import checked
from tests.helpers.family_folders import assert_all_state
from tests.helpers.models import UNETS, tiny_family, tiny_model, undistilled
from tests.helpers.params import first_fast, often
from tests.trainer_engine.families.trained_adapters import ADAPTERS, RESULT, network_in, output_of, pipeline_of, prefix_of, trained
from trainer_engine.adapters.adapter import AddedAdapter
from trainer_engine.adapters.build import make_trainable
from trainer_engine.adapters.validation_adapter import load_validation_adapters
from trainer_engine.config.adapters.joint_layers import JOINT_RANKS
from trainer_engine.config.adapters.keys import METADATA_KEY, keys_by_module
from trainer_engine.config.adapters.other_names import OriginalNames, modules_by_other_name, renamed
from trainer_engine.config.adapters.validation_adapter import ValidationAdapterRun, ValidationAdapterSource
from trainer_engine.config.families import specs
from trainer_engine.config.one_file.unet_names import diffusers_names, original_names
from trainer_engine.export.__main__ import main
from trainer_engine.export.adapter_file import read_adapter
from trainer_engine.export.conversion import lora_parts

PARTLY_LOADED = tuple(name for name, facts in ADAPTERS.items() if facts.not_loaded)
"""Families with layers that ComfyUI loads nothing for."""
JOINED = tuple(name for name, spec in specs().items() if spec.joins_for_comfyui)
"""Families of which ComfyUI has layers as one: its file holds a LoRA of a larger rank."""


def rule_of(family: str) -> re.Pattern[str]:
    """The keys of modules that ComfyUI loads."""
    return re.compile(ADAPTERS[family].comfyui, re.VERBOSE)


def adaptable(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d))]


@pytest.mark.parametrize(("family", "flavour"), list(published()))
def test_comfyui_knows_the_key_of_every_layer_of_the_published_network(family: str, flavour: str) -> None:
    (keys,) = specs()[family].comfyui_keys.values()
    rule, never = rule_of(family), ADAPTERS[family].not_loaded
    layers = [layer for layer in adaptable(published_network(family, flavour)) if not never or not re.search(never, layer)]
    found = [keys.key(layer, "alpha").removesuffix(".alpha") for layer in layers]
    assert [key for key in found if not rule.fullmatch(key)] == []
    rows = {layer: keys.rows_of(layer) for layer in layers}
    assert all(len({keys.key(row, "alpha") for row in layers_of_one}) == 1 for layers_of_one in rows.values() if layers_of_one)
    assert len(set(found)) == len({of_one or (layer,) for layer, of_one in rows.items()}) > 100


def test_every_family_has_a_rule() -> None:
    assert_all_state("network", "ADAPTERS", [family for family, facts in ADAPTERS.items() if facts.comfyui])


@pytest.mark.parametrize("family", PARTLY_LOADED)
def test_no_target_of_an_adapter_is_a_layer_that_comfyui_does_not_load(family: str) -> None:
    spec, never = specs()[family], ADAPTERS[family].not_loaded
    endings = {ending for target in spec.adapters.lora_targets.values() for ending in target}
    layers = [layer for layer in adaptable(published_network(family, spec.default_flavour)) if re.search(never, layer)]
    assert layers and not [layer for layer in layers if layer in endings or layer.endswith(tuple(f".{ending}" for ending in endings))]


@cache
def result_of(family: str) -> Path:
    """The folder with a trained adapter of rank 4 and alpha 2, under the keys of diffusers."""
    place = Path(tempfile.mkdtemp(prefix=f"result-{family}-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return trained(place, family)


def exported(family: str, place: Path) -> Path:
    """The same adapter in a folder of its own, under the keys of ComfyUI."""
    assert main([str(result_of(family)), "--to", "comfyui", "--output", str(place / RESULT)]) == 0
    return place


def split_rows(family: str, folder: Path) -> nn.Module:
    """The network with an adapter for ComfyUI merged by hand, each layer with its rows of the joined one."""
    network, (keys,) = network_in(pipeline_of(family)), specs()[family].comfyui_keys.values()
    tensors = load_file(folder / RESULT)
    for name, layer in network.named_modules():
        down = tensors.get(keys.key(name, "lora_A.weight")) if isinstance(layer, nn.Linear) else None
        if down is not None:
            up, alpha = tensors[keys.key(name, "lora_B.weight")], tensors[keys.key(name, "alpha")]
            rows = keys.rows_of(name) or (name,)
            sizes = [network.get_submodule(row).weight.shape[0] for row in rows]
            change = (up @ down * (alpha / len(down))).split(sizes)[rows.index(name)]
            layer.weight.data += change
    return network


def network_with(family: str, folder: Path) -> nn.Module:
    """The network of the family's pipeline with the adapter in it, by diffusers, or by PEFT where diffusers has no loader."""
    if family in JOINED and any(key.startswith("diffusion_model.") for key in load_file(folder / RESULT)):
        return split_rows(family, folder)  # diffusers splits them at the sizes of the published network alone
    if not ADAPTERS[family].loads_in_diffusers:
        network = network_in(pipeline_of(family))
        tensors = {key.removeprefix("transformer."): one for key, one in load_file(folder / RESULT).items()}
        names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
        alphas = {name: tensors[f"{name}.alpha"].item() if f"{name}.alpha" in tensors else 2 for name in names}
        inject_adapter_in_model(LoraConfig(r=4, target_modules=names, alpha_pattern=alphas), network)
        set_peft_model_state_dict(network, {key: one for key, one in tensors.items() if not key.endswith(".alpha")})
        return network
    pipeline = pipeline_of(family)
    pipeline.load_lora_weights(folder, weight_name=RESULT)
    return network_in(pipeline)


@pytest.mark.parametrize("family", often(ADAPTERS))
def test_an_export_for_comfyui_loads_in_diffusers_with_the_same_output(family: str, tmp_path: Path) -> None:
    folder, rule = exported(family, tmp_path), rule_of(family)
    keys = load_file(folder / RESULT).keys()
    modules = {re.sub(r"\.(alpha|lora_[AB]\.weight|lora_(down|up)\.weight)$", "", key) for key in keys}
    assert all(rule.fullmatch(module) for module in modules)
    (names,) = specs()[family].comfyui_keys.values()
    trained_layers = {key.removeprefix("transformer.").partition(".lora_")[0] for key in load_file(result_of(family) / RESULT)}
    assert len(modules) == len({names.rows_of(layer) or (layer,) for layer in trained_layers})
    found, wanted = (output_of(family, network_with(family, place)) for place in (folder, result_of(family)))
    assert not torch.allclose(wanted, output_of(family, network_in(pipeline_of(family))), atol=1e-4)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["sd3", "wan", "lumina2", "auraflow"])
def test_a_run_writes_the_file_that_an_export_writes(family: str, tmp_path: Path) -> None:
    run, other = trained(tmp_path / "run", family, lora_format="comfyui") / RESULT, exported(family, tmp_path) / RESULT
    ours, theirs = load_file(run), load_file(other)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    with safe_open(run, framework="pt") as file:
        assert METADATA_KEY not in file.metadata(), "diffusers would scale the weights by it once more"


def beginning(family: str, file: Path, **options: Any) -> dict[str, Tensor]:
    """The weights that a run begins with that names the file as ``init_lora``."""
    usual = {"model_family": family, "pretrained_model_name_or_path": str(tiny_model(family)), "model_type": "lora", "lora_rank": 4}
    chosen = {**usual, **undistilled(family), "lora_alpha": 2, "init_lora": str(file), **options}
    adapter = make_trainable(tiny_family(**chosen), None)
    assert isinstance(adapter, AddedAdapter)
    return adapter.tensors()


@pytest.mark.parametrize("family", often(ADAPTERS))
def test_a_run_begins_with_an_export_for_comfyui(family: str, tmp_path: Path) -> None:
    (keys,) = specs()[family].comfyui_keys.values()
    found = beginning(family, exported(family, tmp_path) / RESULT, lora_alpha=2 if keys.takes_alpha else 4)
    for key, wanted in load_file(result_of(family) / RESULT).items():
        scale = 0.5 if "lora_B" in key and not keys.takes_alpha else 1
        assert torch.equal(found[key], scale * wanted)


@pytest.mark.parametrize("family", JOINED)
def test_an_export_with_joined_layers_is_read_as_what_was_exported(family: str, tmp_path: Path) -> None:
    file, shown = exported(family, tmp_path) / RESULT, {"validation_disable": False}
    shown |= {"validation_adapter_path": str(file), "init_lora": str(file), "pretrained_model_name_or_path": str(tiny_model(family))}
    assert checked(tmp_path, model_family=family, model_type="lora", lora_rank=4, lora_alpha=2, **shown).errors == []
    wanted = output_of(family, network_with(family, result_of(family)))
    torch.testing.assert_close(output_with(family, file), wanted, rtol=1e-5, atol=1e-5)
    back = tmp_path / "again" / RESULT
    assert (
        main([str(file), "--to", "diffusers", "--output", str(back)])
        == main([str(result_of(family) / RESULT), "--to", "diffusers", "--output", str(tmp_path / "once.safetensors")])
        == 0
    )
    ours, theirs = load_file(back), load_file(tmp_path / "once.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("family", JOINED)
def test_parts_without_an_adapter_and_parts_of_several_scales_are_read_as_they_were(family: str, tmp_path: Path) -> None:
    with safe_open(result_of(family) / RESULT, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != METADATA_KEY}
    tensors = {key: one for key, one in load_file(result_of(family) / RESULT).items() if ".to_k." not in key}
    names = {key.partition(".lora_")[0] for key in tensors}
    alphas = {f"{name}.alpha": torch.tensor(1.0 if name.endswith(".to_v") else 2.0) for name in names}
    save_file(tensors | alphas, tmp_path / RESULT, metadata)
    assert main([str(tmp_path / RESULT), "--to", "comfyui", "--output", str(tmp_path / "comfyui.safetensors")]) == 0
    modules = [name for name, _ in network_in(pipeline_of(family)).named_modules()]
    ours, theirs = (read_adapter(tmp_path / name, modules, specs()[family].key_prefixes) for name in ("comfyui.safetensors", RESULT))
    assert ours.modules.keys() == theirs.modules.keys() and len(ours.modules) == len(names)
    for name, parts in ours.modules.items():
        (down, up, alpha), (same, other, factor) = lora_parts(ours, name, parts), lora_parts(theirs, name, theirs.modules[name])
        assert torch.equal(down, same)
        torch.testing.assert_close(up * (alpha / len(down)), other * (factor / len(down)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", JOINED)
def test_a_joined_layer_without_stated_ranks_is_a_lora_of_its_whole_rank_on_each_part(family: str, tmp_path: Path) -> None:
    exported(family, tmp_path)
    for stated in (None, "[]", '{"layers.0.attention.qkv": [4, 4]}', '{"layers.0.attention.qkv": [4, 4, -4]}'):
        save_file(load_file(tmp_path / RESULT), tmp_path / "bare.safetensors", {} if stated is None else {JOINT_RANKS: stated})
        network = network_in(pipeline_of(family))
        names = [name for name, _ in network.named_modules()]
        adapter = read_adapter(tmp_path / "bare.safetensors", names, specs()[family].key_prefixes)
        attention = next(name for name in names if name.startswith("layers.0.") and name.endswith(".to_q"))
        assert len(adapter.modules[attention]["lora_A.weight"]) == 12
    wanted = output_of(family, network_with(family, result_of(family)))
    torch.testing.assert_close(output_with(family, tmp_path / "bare.safetensors"), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", JOINED)
def test_a_joined_change_is_the_change_of_each_part(family: str, tmp_path: Path) -> None:
    """As an exported LoHa or LoKr is."""
    file, (keys,) = exported(family, tmp_path) / RESULT, specs()[family].comfyui_keys.values()
    tensors, changed, network = load_file(file), dict[str, Tensor](), network_in(pipeline_of(family))
    for name in {key.rpartition(".lora_")[0] for key in tensors if ".lora_A" in key}:
        down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        changed[f"{name}.diff"] = up @ down * (tensors[f"{name}.alpha"] / len(down))
    save_file(changed, tmp_path / "whole.safetensors")
    names = {name for name, _ in network.named_modules()}
    adapter = read_adapter(tmp_path / "whole.safetensors", names, specs()[family].key_prefixes)
    split = split_rows(family, tmp_path)
    for name, parts in adapter.modules.items():
        change = split.get_submodule(name).weight - network.get_submodule(name).weight
        torch.testing.assert_close(parts["diff"], change, rtol=1e-4, atol=1e-6)
    assert any(keys.rows_of(name) for name in adapter.modules)


def output_with(family: str, file: Path) -> Tensor:
    """The output of the family's network with a file as its validation adapter."""
    network = network_in(pipeline_of(family))
    runs = [ValidationAdapterRun("style", (ValidationAdapterSource(str(file), 1.0, "validation_adapter_path"),))]
    (adapter,) = load_validation_adapters(network, runs, torch.device("cpu"), torch.float32, specs()[family].key_prefixes)
    with adapter.attached():
        return output_of(family, network)


def in_flat_keys(family: str, place: Path, names: Mapping[str, str]) -> Path:
    """The adapter in a file of kohya's tools. ``names``: module -> its name there, with dots."""
    found: dict[str, Tensor] = {}
    for key, tensor in load_file(result_of(family) / RESULT).items():
        module, _, part = key.removeprefix(prefix_of(family)).partition(".lora_")
        flat = f"lora_unet_{names[module].replace('.', '_')}"
        found |= {f"{flat}.lora_{'down' if part == 'A.weight' else 'up'}.weight": tensor, f"{flat}.alpha": torch.tensor(2.0)}
    save_file(found, place / "kohya.safetensors")
    return place / "kohya.safetensors"


def names_elsewhere(family: str) -> dict[str, str]:
    modules = {name for name, _ in network_in(pipeline_of(family)).named_modules()}
    names = specs()[family].components[specs()[family].network].original_names
    if names is None:
        return original_names(modules)
    return {module: renamed(module, names.names) for module in modules}


@pytest.mark.parametrize("family", first_fast(["sdxl", "flux3", *sorted({*UNETS} - {"sdxl"}), "wan", "anima", "auraflow"], 2))
def test_a_file_with_the_names_of_the_original_code_is_an_adapter_to_start_from_and_to_validate_with(family: str, tmp_path: Path) -> None:
    file = in_flat_keys(family, tmp_path, names_elsewhere(family))
    wanted = load_file(result_of(family) / RESULT)
    found = beginning(family, file)
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    shown = {"validation_adapter_path": str(file), "validation_disable": False}
    usual = {"pretrained_model_name_or_path": str(tiny_model(family)), "model_type": "lora", "lora_rank": 4, "lora_alpha": 2}
    assert checked(tmp_path, model_family=family, init_lora=str(file), **usual, **shown).errors == []
    wanted = output_of(family, network_with(family, result_of(family)))
    torch.testing.assert_close(output_with(family, file), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "flavour"), [one for one in published() if one[0] in UNETS])
def test_the_original_names_of_a_unet_are_those_that_its_files_are_read_by(family: str, flavour: str) -> None:
    tensors = published_network(family, flavour).state_dict().keys()
    never = ADAPTERS[family].not_loaded
    tensors = [name for name in tensors if not never or not re.search(never, name)]
    original = original_names({name.rpartition(".")[0] for name in tensors})
    named = {name: f"{original[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}" for name in tensors}
    assert diffusers_names({other: name for name, other in named.items()}) == {name: name for name in tensors}


def test_kohyas_keys_of_sdxl_are_understood() -> None:
    modules = [name for name, _ in published_network("sdxl", "base-1.0").named_modules()]
    wanted = {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k",
        "lora_unet_input_blocks_8_1_proj_in": "down_blocks.2.attentions.1.proj_in",
        "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj": "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
        "lora_unet_output_blocks_5_2_conv": "up_blocks.1.upsamplers.0.conv",
        "lora_unet_output_blocks_8_0_skip_connection": "up_blocks.2.resnets.2.conv_shortcut",
        "lora_unet_time_embed_0": "time_embedding.linear_1",
    }
    found, strangers = keys_by_module([f"{key}.alpha" for key in wanted], modules)
    assert strangers == [] and {parts["alpha"].removesuffix(".alpha"): name for name, parts in found.items()} == wanted


def test_a_name_that_two_layers_have_is_none() -> None:
    names = [OriginalNames(mark="d", names=(("a|b", "c"), ("d", "e")))]
    assert modules_by_other_name(["a", "b", "d"], [], names) == {"e": "d"}
    assert modules_by_other_name(["d", "e"], [], names) == {}
    assert modules_by_other_name(["unet.d", "te.d"], ["unet.", "te."], names) == {"unet.e": "unet.d", "te.e": "te.d"}


def test_names_of_another_network_are_not_read() -> None:
    names = [OriginalNames(mark="other", names=(("d", "wrong"),)), OriginalNames(mark="own", names=(("d", "e"),))]
    assert modules_by_other_name(["d", "own"], [], names) == {"e": "d"}


@pytest.mark.parametrize("family", often(name for name, spec in specs().items() if spec.components[spec.network].original_names))
def test_every_layer_is_found_by_the_name_that_its_own_family_states(family: str) -> None:
    layers = [name for name, module in network_in(pipeline_of(family)).named_modules() if isinstance(module, nn.Linear)]
    stated = {layer: other for layer, other in names_elsewhere(family).items() if layer in layers and other and other != layer}
    (keys,) = specs()[family].comfyui_keys.values()
    stated = {layer: other for layer, other in stated.items() if not keys.rows_of(layer)}
    found, strangers = keys_by_module([f"diffusion_model.{other}.alpha" for other in stated.values()], layers)
    assert strangers == [] and found.keys() == stated.keys()
    names = specs()[family].components[specs()[family].network].original_names
    assert names is not None
    alike = [name for name, spec in specs().items() if spec.components[spec.network].original_names == names]
    assert [other for other in specs() if names.mark in layers_of(other)] == alike and family in alike, "a mark that another network has"


@cache
def layers_of(family: str) -> Set[str]:
    return {name for name, _ in network_in(pipeline_of(family)).named_modules()}
