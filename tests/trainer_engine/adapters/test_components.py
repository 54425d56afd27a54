"""Two trained components are two entries of a spec: adapters, checkpoints and exports follow."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers.models import tiny_family
from trainer_engine.adapters.full import Full
from trainer_engine.adapters.lora import LoraAdapter
from trainer_engine.checkpointing.snapshot import as_it_is
from trainer_engine.config.adapters.keys import METADATA_KEY
from trainer_engine.config.families import find_spec
from trainer_engine.config.family_parts import Component, Role
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.checkpoint_files import ADAPTER_FILE
from trainer_engine.contract.errors import CheckpointUnusable
from trainer_engine.export.adapter_file import read_adapter
from trainer_engine.export.conversion import to_comfyui, to_diffusers
from trainer_engine.export.merging import merged_weights
from trainer_engine.families.common.pipeline_folder import trained_parts
from trainer_engine.families.modules import JointNetwork, join, split

LORA = {"model_type": "lora", "lora_type": "standard", "lora_rank": 2, "lora_alpha": 3.0, "lora_dropout": 0.0}


class Small(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """One block of two linear layers."""

    @register_to_config
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"to_q": nn.Linear(width, width), "fc1": nn.Linear(width, width)})

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block["fc1"](torch.tanh(self.block["to_q"](x)))


def spec_of_two() -> FamilySpec:
    """A family that trains a transformer and its text encoder; the keys of the second one differ from its name."""
    known = find_spec("pixart_sigma")
    assert known is not None
    components = {
        "transformer": Component("transformer", "transformer.", Role.TRAINED, lora_targets=("to_q",)),
        "text_encoder": Component("text_encoder_1", "te.", Role.TRAINED, comfyui_prefix="text_encoders.", lora_targets=("fc1",)),
        "vae": Component("vae", "vae."),
    }
    return dataclasses.replace(known, components=MappingProxyType(components))


def network_of_two() -> nn.Module:
    torch.manual_seed(0)
    return join({"transformer": Small(), "text_encoder": Small()}).requires_grad_(False)


def options() -> TrainingOptions:
    return tiny_family(**LORA).options


def adapter_on(network: nn.Module) -> LoraAdapter:
    spec = spec_of_two()
    targets = {name: component.lora_targets for name, component in spec.trained.items()}
    return LoraAdapter(network, options().adapter, spec, targets, {"model_family": "two"})


def answer(network: nn.Module) -> Tensor:
    x = torch.linspace(-1, 1, 12).reshape(2, 6)
    found: Tensor = network("transformer", network("text_encoder", x))
    return found


def train(adapter: LoraAdapter, steps: int = 5) -> list[float]:
    optimizer = torch.optim.AdamW(adapter.parameters, lr=0.05)
    losses = []
    for _ in range(steps):
        loss = answer(adapter.network).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture
def trained(tmp_path: Path) -> LoraAdapter:
    adapter = adapter_on(network_of_two())
    losses = train(adapter)
    assert losses[-1] < losses[0]
    adapter.save(tmp_path)
    return adapter


def test_an_adapter_file_holds_the_keys_and_the_configuration_of_both_components(trained: LoraAdapter, tmp_path: Path) -> None:
    parts = ("lora_A.weight", "lora_B.weight")
    modules = ("transformer.block.to_q", "te.block.fc1")
    assert set(load_file(tmp_path / ADAPTER_FILE)) == {f"{module}.{part}" for module in modules for part in parts}
    assert trained.names == [
        f"{module}.lora_{matrix}.default.weight" for module in ("transformer.block.to_q", "text_encoder.block.fc1") for matrix in "AB"
    ]
    with safe_open(tmp_path / ADAPTER_FILE, framework="pt") as file:
        stated = json.loads(file.metadata()[METADATA_KEY])
    assert (stated["transformer.target_modules"], stated["te.target_modules"], stated["te.lora_alpha"]) == (["to_q"], ["fc1"], 3.0)


def test_a_reloaded_adapter_gives_the_same_answer(trained: LoraAdapter, tmp_path: Path) -> None:
    again = adapter_on(network_of_two())
    assert not torch.equal(answer(again.network), answer(trained.network))
    again.restore(tmp_path)
    assert torch.equal(answer(again.network), answer(trained.network))
    again.save(tmp_path / "again")
    assert (tmp_path / "again" / ADAPTER_FILE).read_bytes() == (tmp_path / ADAPTER_FILE).read_bytes()


def test_a_file_of_one_component_alone_is_refused(trained: LoraAdapter, tmp_path: Path) -> None:
    one = {key: tensor for key, tensor in trained.tensors().items() if key.startswith("transformer.")}
    (tmp_path / "one").mkdir()
    save_file(one, tmp_path / "one" / ADAPTER_FILE)
    with pytest.raises(CheckpointUnusable, match="lacks 1 of the 2 layers"):
        adapter_on(network_of_two()).restore(tmp_path / "one")


def test_exports_keep_both_prefixes_and_merging_gives_the_same_answer(trained: LoraAdapter, tmp_path: Path) -> None:
    spec, network = spec_of_two(), network_of_two()
    names = [name for name, _ in network.named_modules()]
    adapter = read_adapter(tmp_path / ADAPTER_FILE, names, spec.key_prefixes)
    (diffusers,) = to_diffusers(adapter, spec.diffusers_prefixes)
    assert {key.rpartition(".lora_")[0] for key in diffusers} == {"transformer.block.to_q", "te.block.fc1"}
    comfyui = to_comfyui(adapter, spec.comfyui_keys)
    assert {"diffusion_model.block.to_q.alpha", "text_encoders.block.fc1.alpha"} <= set(comfyui)
    assert comfyui["text_encoders.block.fc1.alpha"].item() == 3.0
    network.load_state_dict(merged_weights(network, adapter), strict=False)
    assert torch.allclose(answer(network), answer(trained.network), atol=1e-5)


def test_a_full_checkpoint_and_a_pipeline_have_a_folder_for_each_trained_component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = tiny_family(gradient_checkpointing=False)
    monkeypatch.setattr(family, "spec", spec_of_two())
    monkeypatch.setattr(type(family), "load_component", lambda self, name, dtype, folder=None: Small.from_pretrained(folder))
    network = network_of_two()
    full = Full(family, network)
    full.save(tmp_path / "checkpoint")
    full.snapshot(as_it_is)(tmp_path / "held")
    for place in ("checkpoint", "held"):
        assert sorted(path.name for path in (tmp_path / place).iterdir()) == ["text_encoder_1", "transformer"]
    again = family.load_network(tmp_path / "held")
    assert isinstance(again, JointNetwork) and torch.equal(answer(again), answer(network))
    assert all(parameter.requires_grad for parameter in again.parameters())
    parts = trained_parts(family, network)
    assert {folder: part.cls for folder, part in parts.items()} == {"transformer": "Small", "text_encoder_1": "Small"}


def test_a_trained_controlnet_beside_a_frozen_transformer_is_the_network_of_the_run() -> None:
    components = {
        "controlnet": Component("controlnet", "controlnet.", Role.TRAINED),
        "transformer": Component("transformer", "transformer."),
    }
    spec = dataclasses.replace(spec_of_two(), components=components)
    network = Small()
    assert join({"controlnet": network}) is network and split(network, spec) == {"controlnet": network}
    assert spec.diffusers_prefixes == {"": "controlnet."}
    assert spec.base_folders[:2] == ("controlnet", "transformer")
