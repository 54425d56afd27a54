"""What leaves as another program's file changes the network exactly as the adapter that it was."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtSigmaPipeline
from lycoris import LycorisNetwork, create_lycoris
from peft import LoKrConfig, LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers.models import tiny_family, tiny_pixart
from tests.helpers.params import first_fast
from trainer_engine.config.adapters.keys import split_key
from trainer_engine.config.adapters.other_names import ModuleKeys
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.export.__main__ import main
from trainer_engine.export.adapter_file import read_adapter
from trainer_engine.export.command import ExportRequest, export
from trainer_engine.export.conversion import by_factor, to_comfyui, to_diffusers
from trainer_engine.export.merging import merged_weights
from trainer_engine.families.inputs import StepInputs

PREFIXES = {"": "transformer."}
KEYS = {"": ModuleKeys("transformer.")}
METADATA = {"model_family": "pixart_sigma", "base_model": str(tiny_pixart())}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "lora": {"algo": "lora"},
    "dora": {"algo": "lora", "dora_wd": True},
    "loha": {"algo": "loha"},
    "lokr": {"algo": "lokr", "factor": 4},
    "lokr full matrix": {"algo": "lokr", "factor": 4, "full_matrix": True},
    "lokr beside the weight": {"algo": "lokr", "factor": 4, "bypass_mode": True},
    "full": {"algo": "full"},
    "diag-oft": {"algo": "diag-oft"},
}
PRESET = {"target_module": ["Attention", "FeedForward"], "target_name": [], "module_algo_map": {}, "name_algo_map": {}, "exclude_name": []}


def bare_network() -> nn.Module:
    return tiny_family().load_network().eval().requires_grad_(False)


def answer(network: nn.Module) -> Tensor:
    """Of the network to a fixed question, (1, 4, 8, 8)."""
    family, generator = tiny_family(), torch.Generator().manual_seed(3)
    prompts = family.collate_prompts([{"embeds": torch.randn(5, 32, generator=generator)}])
    with torch.no_grad():
        latents = torch.randn(1, 4, 8, 8, generator=generator)
        return family.predict(network, StepInputs(noisy_latents=latents, timesteps=torch.tensor([400]), prompts=prompts))


def shake(parameters: list[nn.Parameter]) -> None:
    """As far from doing nothing as a trained adapter."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def lycoris_file(place: Path, **how: Any) -> tuple[Path, Tensor]:
    """(a trained adapter of rank 2 and alpha 1, what the network answers with it)."""
    network = bare_network()
    LycorisNetwork.apply_preset(PRESET)
    adapter = create_lycoris(network, 1.0, linear_dim=2, linear_alpha=1, **how)
    adapter.apply_to()
    shake(list(adapter.parameters()))
    adapter.eval()
    wanted = answer(network)
    path = place / "adapter.safetensors"
    adapter.save_weights(str(path), None, dict(METADATA))
    return path, wanted


def peft_file(place: Path, **how: Any) -> tuple[Path, Tensor]:
    """The same with PEFT, rank 2 and alpha 3, under the keys of diffusers."""
    network = bare_network()
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_out.0"], **how), network)
    shake([parameter for parameter in network.parameters() if parameter.requires_grad])
    tensors = {f"transformer.{key}": tensor.contiguous() for key, tensor in get_peft_model_state_dict(network).items()}
    path = place / "adapter.safetensors"
    save_file(tensors, path, {**METADATA, "lora_adapter_metadata": '{"transformer.r": 2, "transformer.lora_alpha": 3}'})
    return path, answer(network)


MAKERS: dict[str, Callable[[Path], tuple[Path, Tensor]]] = {
    **{name: (lambda place, how=how: lycoris_file(place, **how)) for name, how in ALGORITHMS.items()},
    "peft": peft_file,
    "peft dora": lambda place: peft_file(place, use_dora=True),
}


def module_names() -> list[str]:
    return [name for name, _ in bare_network().named_modules()]


@pytest.mark.parametrize("name", first_fast(list(MAKERS), 4))
def test_merged_weights_answer_as_the_adapter_did(name: str, tmp_path: Path) -> None:
    path, wanted = MAKERS[name](tmp_path)
    network = bare_network()
    before, plain = copy.deepcopy(network.state_dict()), answer(network)
    merged = merged_weights(network, read_adapter(path, module_names()))
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    network.load_state_dict(merged, strict=False)
    assert (wanted - plain).abs().max() > 1e-2
    assert torch.allclose(answer(network), wanted, atol=2e-5)


@pytest.mark.parametrize("name", ["lora", "loha", "lokr", "lokr full matrix"])
def test_the_files_own_multiplier_counts_in_every_form(name: str, tmp_path: Path) -> None:
    path, _ = lycoris_file(tmp_path, **ALGORITHMS[name])
    whole = read_adapter(path, module_names())
    half = dataclasses.replace(whole, metadata={**whole.metadata, "lycoris_config": '{"multiplier": 0.5}'})
    network = bare_network()
    base, one, other = network.state_dict(), merged_weights(network, whole), merged_weights(network, half)
    for key, weight in one.items():
        assert torch.allclose(other[key] - base[key], (weight - base[key]) / 2, atol=1e-6)
    (plain,), (halved,) = to_diffusers(whole, PREFIXES), to_diffusers(half, PREFIXES)
    scaled = [key for key in plain if not torch.equal(plain[key], halved[key])]
    assert len(scaled) == len(whole.modules)
    assert all(torch.allclose(halved[key], plain[key] / 2) for key in scaled)
    first, second = to_comfyui(whole, {"": ModuleKeys("t.")}), to_comfyui(half, {"": ModuleKeys("t.")})
    changed = [key for key in first if not torch.equal(first[key], second[key])]
    assert len(changed) == len(whole.modules)
    assert all(torch.allclose(second[key], first[key] / 2) for key in changed)


def test_half_the_strength_is_half_the_change_of_the_weights(tmp_path: Path) -> None:
    path, _ = lycoris_file(tmp_path, algo="lokr", factor=4)
    network, adapter = bare_network(), read_adapter(path, module_names())
    whole, half = merged_weights(network, adapter), merged_weights(network, adapter, 0.5)
    for key, weight in network.state_dict().items():
        if key in whole:
            assert torch.allclose(half[key] - weight, (whole[key] - weight) / 2, atol=1e-6)


@pytest.mark.parametrize("name", ["lora", "loha", "peft"])
def test_peft_gives_the_same_answer_from_exported_loras(name: str, tmp_path: Path) -> None:
    path, wanted = MAKERS[name](tmp_path)
    (tensors,) = to_diffusers(read_adapter(path, module_names()), PREFIXES)
    ranks = {key.removeprefix("transformer.")[: -len(".lora_A.weight")]: len(tensor) for key, tensor in tensors.items() if "lora_A" in key}
    network = bare_network()
    inject_adapter_in_model(LoraConfig(r=1, target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks), network)
    result = set_peft_model_state_dict(network, {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()})
    assert not result.unexpected_keys
    assert torch.allclose(answer(network), wanted, atol=2e-5)


@pytest.mark.parametrize("name", ["lokr", "lokr full matrix"])
def test_peft_gives_the_same_answer_from_an_exported_lokr(name: str, tmp_path: Path) -> None:
    path, wanted = MAKERS[name](tmp_path)
    (tensors,) = to_diffusers(read_adapter(path, module_names()), PREFIXES)
    assert not any(key.endswith(".alpha") for key in tensors)
    network = bare_network()
    modules = sorted({key.removeprefix("transformer.").rpartition(".lokr_")[0] for key in tensors})
    rank = 10_000 if "full" in name else 2
    inject_adapter_in_model(LoKrConfig(r=rank, alpha=rank, decompose_factor=4, target_modules=modules), network)
    result = set_peft_model_state_dict(network, {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()})
    assert not result.unexpected_keys
    assert torch.allclose(answer(network), wanted, atol=2e-5)


def test_a_lokr_of_two_factors_becomes_two_files(tmp_path: Path) -> None:
    path, wanted = lycoris_file(tmp_path, algo="lokr", factor=4, full_matrix=True)
    adapter = read_adapter(path, module_names())
    assert len(by_factor(adapter.modules)) == 1
    other = {"lokr_w1": torch.ones(16, 16), "lokr_w2": torch.ones(2, 2)}
    groups = by_factor({**adapter.modules, "another": other})
    assert [len(group) for group in groups] == [len(adapter.modules), 1]
    assert set(groups[1]) == {"another"}


@pytest.mark.parametrize("name", ["dora", "peft dora", "full", "diag-oft"])
def test_an_algorithm_that_diffusers_cannot_hold_is_refused(name: str, tmp_path: Path) -> None:
    path, _ = MAKERS[name](tmp_path)
    with pytest.raises(ModelUnavailable, match="cannot hold") as refused:
        to_diffusers(read_adapter(path, module_names()), PREFIXES)
    assert "--to merged" in refused.value.hint


@pytest.mark.parametrize("name", ["lora", "peft"])
def test_loras_for_comfyui_carry_their_alpha(name: str, tmp_path: Path) -> None:
    path, _ = MAKERS[name](tmp_path)
    adapter = read_adapter(path, module_names())
    tensors = to_comfyui(adapter, KEYS)
    names = {split_key(key)[0] for key in tensors}
    assert names == set(adapter.modules)
    assert all(key.startswith("transformer.") for key in tensors)
    for name in names:
        change = tensors[f"transformer.{name}.lora_B.weight"] @ tensors[f"transformer.{name}.lora_A.weight"]
        alpha = tensors[f"transformer.{name}.alpha"].item()
        (plain,) = to_diffusers(adapter, PREFIXES)
        wanted = plain[f"transformer.{name}.lora_B.weight"] @ plain[f"transformer.{name}.lora_A.weight"]
        assert torch.allclose(change * alpha / 2, wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["lora", "peft", "peft dora"])
def test_a_file_that_takes_no_alpha_has_the_scale_in_its_weights(name: str, tmp_path: Path) -> None:
    path, _ = MAKERS[name](tmp_path)
    adapter = read_adapter(path, module_names())
    stated, worked_in = to_comfyui(adapter, KEYS), to_comfyui(adapter, {"": ModuleKeys("transformer.", takes_alpha=False)})
    assert worked_in.keys() == {key for key in stated if not key.endswith(".alpha")}
    for key, up in ((key, up) for key, up in stated.items() if key.endswith(".lora_B.weight")):
        alpha = stated[key.replace("lora_B.weight", "alpha")].item()
        assert alpha != 2 and torch.allclose(worked_in[key], up * (alpha / 2))
        down = key.replace("lora_B", "lora_A")
        assert torch.equal(worked_in[down], stated[down])


def test_other_algorithms_keep_their_tensors_for_comfyui(tmp_path: Path) -> None:
    path, _ = lycoris_file(tmp_path, algo="lokr", factor=4)
    tensors, theirs = to_comfyui(read_adapter(path, module_names()), KEYS), load_file(path)
    assert len(tensors) == len(theirs)
    name = "transformer_blocks.0.attn1.to_q"
    assert torch.equal(tensors[f"transformer.{name}.lokr_w2_a"], theirs[f"lycoris_{name.replace('.', '_')}.lokr_w2_a"])


def test_each_algorithm_of_a_mixed_file_keeps_its_form_for_comfyui(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    lokr = read_adapter(lycoris_file(tmp_path / "a", **ALGORITHMS["lokr"])[0], module_names())
    lora = read_adapter(lycoris_file(tmp_path / "b", **ALGORITHMS["lora"])[0], module_names())
    first, *others = lora.modules
    mixed = dataclasses.replace(lokr, kind="other", modules={first: lora.modules[first], **{name: lokr.modules[name] for name in others}})
    tensors = to_comfyui(mixed, KEYS)
    assert f"transformer.{first}.lora_A.weight" in tensors
    assert all(any(key.startswith(f"transformer.{name}.lokr_") for key in tensors) for name in others)


def test_an_adapter_that_depends_on_the_timestep_is_not_merged(tmp_path: Path) -> None:
    path, _ = lycoris_file(tmp_path, algo="lora")
    adapter = read_adapter(path, module_names())
    by_timestep = dataclasses.replace(adapter, metadata={**adapter.metadata, "lycoris_config": '{"algo": "lora", "x": {"algo": "TLoRA"}}'})
    with pytest.raises(ModelUnavailable, match="timestep"):
        merged_weights(bare_network(), by_timestep)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_file({"transformer.nowhere.to_q.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "adapter.safetensors")
    with pytest.raises(ModelUnavailable, match="nowhere"):
        read_adapter(tmp_path / "adapter.safetensors", module_names())


def test_the_command_writes_a_pipeline_that_generates_with_the_adapter(tmp_path: Path) -> None:
    path, wanted = lycoris_file(tmp_path, algo="lokr", factor=4)
    (line,) = export(
        ExportRequest(adapter=path, form="merged", output=tmp_path / "merged", base=None, model_family=None, strength=1.0, dtype="float32")
    )
    assert "from_pretrained" in line
    network = tiny_family(pretrained_model_name_or_path=str(tmp_path / "merged")).load_network().eval()
    assert torch.allclose(answer(network), wanted, atol=2e-5)


def test_the_command_line_shows_how_to_load_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = lycoris_file(tmp_path, algo="lokr", factor=4)
    path.rename(tmp_path / "pytorch_lora_weights.safetensors")
    out = tmp_path / "out.safetensors"
    assert main([str(tmp_path), "--to", "diffusers", "--output", str(out)]) == 0
    assert not hasattr(PixArtSigmaPipeline, "load_lora_weights") and "--to merged" in capsys.readouterr().out
    with safe_open(out, framework="pt") as file:
        assert all(key.startswith("transformer.") for key in file.keys())  # noqa: SIM118
    content = out.read_bytes()
    assert main([str(tmp_path), "--to", "comfyui", "--output", str(out)]) != 0
    assert "is there already" in capsys.readouterr().err
    assert out.read_bytes() == content


def test_a_file_that_is_no_adapter_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter.safetensors").write_bytes(b"nothing")
    assert main([str(tmp_path / "adapter.safetensors"), "--to", "merged", "--output", str(tmp_path / "out")]) != 0
    assert "is no adapter file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
