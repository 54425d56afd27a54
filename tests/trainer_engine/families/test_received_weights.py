"""A process that gets the weights of its network from another one makes the same network without reading them."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pytest
import torch
from diffusers import FluxTransformer2DModel

from tests.helpers.models import tiny_family, tiny_model, tiny_pixart
from trainer_engine.adapters.build import make_trainable
from trainer_engine.config.families import specs
from trainer_engine.contract.errors import InvalidOptions, ModelUnavailable
from trainer_engine.families.base import Family
from trainer_engine.weights.hub import Part, Source
from trainer_engine.weights.loading import load_diffusers

SHARED = {"fsdp_enable": True, "fsdp_cpu_ram_efficient_loading": True, "optimizer": "torch-adamw"}


def family_of(model: Path, name: str = "pixart_sigma", *, receives: bool, **options: object) -> Family:
    family = tiny_family(model_family=name, pretrained_model_name_or_path=str(model), **SHARED, **options)
    family.receives_weights = receives
    return family


@pytest.mark.parametrize("name", specs())
def test_the_networks_of_every_family_have_the_same_shapes_types_and_buffers(name: str) -> None:
    loaded, made = (family_of(tiny_model(name), name, receives=receives).load_network() for receives in (False, True))
    assert type(loaded) is type(made) and made.training
    theirs, ours = dict(loaded.named_parameters()), dict(made.named_parameters())
    assert list(theirs) == list(ours)
    for key, parameter in ours.items():
        assert (parameter.shape, parameter.dtype, parameter.requires_grad) == (theirs[key].shape, theirs[key].dtype, True), key
        assert not parameter.any() and parameter.device.type == "cpu"
    buffers, wanted = dict(made.named_buffers()), dict(loaded.named_buffers())
    assert buffers.keys() == wanted.keys() and all(torch.equal(buffers[key], buffer) for key, buffer in wanted.items())
    assert made.config == loaded.config


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A model whose network has a configuration and a file of weights that nothing can read."""
    model = shutil.copytree(tiny_pixart(), tmp_path / "broken")
    (model / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    return model


def test_weights_are_not_read_by_a_process_that_gets_them(broken: Path) -> None:
    network = family_of(broken, receives=True).load_network()
    assert sum(parameter.numel() for parameter in network.parameters()) > 10_000
    with pytest.raises(ModelUnavailable):
        family_of(broken, receives=False).load_network()


@pytest.mark.parametrize("options", [{"lora_rank": 4}, {"lora_rank": 4, "use_dora": True}])
def test_an_adapter_is_made_on_weights_that_are_not_there_yet(broken: Path, options: dict[str, object]) -> None:
    made = make_trainable(family_of(broken, receives=True, model_type="lora", **options), None)
    loaded = make_trainable(family_of(tiny_pixart(), receives=False, model_type="lora", **options), None)
    assert [(name, one.shape) for name, one in made.named_parameters] == [(name, one.shape) for name, one in loaded.named_parameters]
    assert set(made.unsharded) == set(made.parameters), "the adapter stays complete"


def test_an_adapter_that_copies_the_base_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "adapter.json"
    file.write_text('{"algo": "full", "multiplier": 1.0, "linear_dim": 4, "linear_alpha": 1}')
    lycoris = {"model_type": "lora", "lora_type": "lycoris", "lycoris_config": str(file)}
    with pytest.raises(InvalidOptions) as refused:
        make_trainable(family_of(tiny_pixart(), receives=False, **lycoris), None)
    [problem] = refused.value.problems
    assert (problem.option, problem.code, problem.got) == ("lycoris_config.algo", "needs_own_weights", "full")
    assert "lokr" in (problem.expected or "") and "fsdp_cpu_ram_efficient_loading" in (problem.hint or "")


def test_a_network_that_is_not_read_takes_no_memory(tmp_path: Path) -> None:
    size = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 128, "num_attention_heads": 24}
    with torch.device("meta"):
        shape = FluxTransformer2DModel(**size)
    shape.save_config(tmp_path)
    part, process = Part(Source(str(tmp_path)), tmp_path), psutil.Process()
    before = process.memory_info().rss
    with torch.device("meta"):
        network = load_diffusers(FluxTransformer2DModel, part, torch.float32)
    bytes_of_network = sum(parameter.nbytes for parameter in network.parameters())
    assert bytes_of_network > 1 << 30
    assert process.memory_info().rss - before < bytes_of_network / 10
