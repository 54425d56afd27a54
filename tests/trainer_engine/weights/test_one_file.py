"""A checkpoint in one file trains, encodes and generates what the same weights in a folder do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from tests.helpers.forked import run_forked
from tests.helpers.models import options_with, tiny_model
from tests.helpers.one_file import SD1, SD2, SDXL, original_unet, original_vae, write_one_file
from tests.helpers.tiny_run import train_here
from trainer_engine.config.families import specs
from trainer_engine.contract.checkpoint_files import list_checkpoints
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.load import load_family
from trainer_engine.runtime.devices import resolve_devices
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache

ENCODERS: Mapping[str, Mapping[str, str]] = {"sd1x": SD1, "sd2x": SD2, "sdxl": SDXL}
FAMILIES = list(ENCODERS)


def family_of(family: str, **values: Any) -> Any:
    options = options_with(model_family=family, **values)
    return load_family(options, resolve_devices(options, torch.device("cpu")))


def in_one_file(family: str, path: Path, **values: Any) -> Any:
    """The tiny model of a family, written into one file and opened from it, its configuration beside it without any weights."""
    model, bare = tiny_model(family), path.parent / "configuration"
    if not bare.exists():
        shutil.copytree(model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    write_one_file(model, path, ENCODERS[family])
    return family_of(family, pretrained_model_name_or_path=str(path), pretrained_config_name_or_path=str(bare), **values)


def in_folder(family: str, **values: Any) -> Any:
    return family_of(family, pretrained_model_name_or_path=str(tiny_model(family)), **values)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_of_every_component_equal_those_of_the_folder(family: str, tmp_path: Path) -> None:
    one, other = in_one_file(family, tmp_path / "model.safetensors"), in_folder(family)
    ours, theirs = one.load_network().state_dict(), other.load_network().state_dict()
    assert ours.keys() == theirs.keys() and all(ours[name].equal(weight) for name, weight in theirs.items())
    ours, theirs = (entry.parts.load_vae(None).state_dict() for entry in (one, other))
    assert ours.keys() == theirs.keys() and all(ours[name].equal(weight) for name, weight in theirs.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_latents_and_an_image_equal_those_of_the_folder(family: str, tmp_path: Path) -> None:
    one, other = in_one_file(family, tmp_path / "model.safetensors"), in_folder(family)
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert one.encode_images(pixels).equal(other.encode_images(pixels))
    made = []
    for family_ in (one, other):
        prompt, negative = family_.encode_prompts(["a red circle", ""])
        request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=64, steps=2, guidance=4.0, seed=3)
        made.append((prompt, family_.generate(family_.make_pipeline(family_.load_network().eval()), request)))
    (our_prompt, image), (their_prompt, wanted) = made
    assert all(our_prompt[name].equal(tensor) for name, tensor in their_prompt.items())
    assert np.array_equal(np.asarray(image), np.asarray(wanted))


def test_the_type_of_the_file_is_kept_and_a_half_file_loads_in_half(tmp_path: Path) -> None:
    family = in_one_file("sdxl", tmp_path / "model.safetensors", vae_dtype="default")
    path = tmp_path / "half.safetensors"
    save_file({key: tensor.half() for key, tensor in load_file(tmp_path / "model.safetensors").items()}, path)
    config = str(tmp_path / "configuration")
    half = family_of("sdxl", pretrained_model_name_or_path=str(path), pretrained_config_name_or_path=config)
    assert half.parts.load_vae(None).dtype == half.parts.load_clip(None).dtype == torch.float16
    assert family.parts.load_vae(None).dtype == torch.float32


def test_weights_that_a_file_lacks_are_named(tmp_path: Path) -> None:
    in_one_file("sd1x", tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    for gone in ("model.diffusion_model.out.2.weight", "cond_stage_model.transformer.text_model.final_layer_norm.weight"):
        save_file({key: tensor for key, tensor in tensors.items() if key != gone}, tmp_path / "gap.safetensors")
        config = {"pretrained_config_name_or_path": str(tmp_path / "configuration")}
        family = family_of("sd1x", pretrained_model_name_or_path=str(tmp_path / "gap.safetensors"), **config)
        with pytest.raises(ModelUnavailable, match="lacks 1 weights"):
            family.load_network() if "diffusion" in gone else family.encode_prompts(["a"])


def test_the_configuration_of_another_size_is_refused(tmp_path: Path) -> None:
    path = write_one_file(tiny_model("sd1x"), tmp_path / "model.safetensors", SD1)
    bare = Path(shutil.copytree(tiny_model("sd1x"), tmp_path / "configuration"))
    config = json.loads((bare / "unet/config.json").read_text())
    (bare / "unet/config.json").write_text(json.dumps({**config, "cross_attention_dim": 64}))
    family = family_of("sd1x", pretrained_model_name_or_path=str(path), pretrained_config_name_or_path=str(bare))
    with pytest.raises(ModelUnavailable, match="could not be loaded"):
        family.load_network()


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_network_alone_replaces_that_of_the_base_model(prefix: str, tmp_path: Path) -> None:
    tensors = original_unet(tiny_model("sd1x", seed=9) / "unet")
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, tmp_path / "unet.safetensors")
    ours = in_folder("sd1x", pretrained_unet_model_name_or_path=str(tmp_path / "unet.safetensors")).load_network().state_dict()
    theirs = family_of("sd1x", pretrained_model_name_or_path=str(tiny_model("sd1x", seed=9))).load_network().state_dict()
    assert all(ours[name].equal(weight) for name, weight in theirs.items())


@pytest.mark.parametrize(
    ("family", "prefix"),
    [("flux", ""), ("chroma", ""), ("wan", ""), ("qwen_image", ""), ("qwen_image", "model.diffusion_model."), ("qwen_image_21", "")],
)
def test_a_transformer_in_one_file_with_the_names_of_diffusers_is_loaded(family: str, prefix: str, tmp_path: Path) -> None:
    (weights,) = (tiny_model(family) / "transformer").glob("*.safetensors")
    save_file({prefix + key: tensor + 1 for key, tensor in load_file(weights).items()}, tmp_path / "network.safetensors")
    source = {"pretrained_transformer_model_name_or_path": str(tmp_path / "network.safetensors")}
    ours, theirs = in_folder(family, **source).load_network().state_dict(), in_folder(family).load_network().state_dict()
    assert all(ours[name].equal(weight + 1) for name, weight in theirs.items())


@pytest.mark.parametrize("how", ["original", "diffusers"])
def test_an_autoencoder_in_one_file_replaces_that_of_the_base_model(how: str, tmp_path: Path) -> None:
    folder = tiny_model("sdxl") / "vae"
    tensors = original_vae(folder) if how == "original" else load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file(
        {key: tensor * 1.5 if key.endswith("conv_in.weight") else tensor for key, tensor in tensors.items()}, tmp_path / "vae.safetensors"
    )
    ours = in_folder("sdxl", pretrained_vae_model_name_or_path=str(tmp_path / "vae.safetensors")).parts.load_vae(None).state_dict()
    theirs = in_folder("sdxl").parts.load_vae(None).state_dict()
    changed = {name for name, weight in theirs.items() if not ours[name].equal(weight)}
    assert changed == {"encoder.conv_in.weight", "decoder.conv_in.weight"}


def test_the_fingerprint_follows_the_file_and_not_its_name(tmp_path: Path) -> None:
    family = in_one_file("sd1x", tmp_path / "model.safetensors")
    config = {"pretrained_config_name_or_path": str(tmp_path / "configuration")}
    moved = Path(shutil.copy(tmp_path / "model.safetensors", tmp_path / "moved.safetensors"))
    hashes = FileHashes(tmp_path / "hashes.jsonl")
    same = family_of("sd1x", pretrained_model_name_or_path=str(moved), **config)
    assert same.text_fingerprint(hashes) == family.text_fingerprint(hashes)
    tensors = load_file(moved)
    other = tmp_path / "other.safetensors"
    save_file({key: tensor + 1 if "text_model" in key else tensor for key, tensor in tensors.items()}, other)
    changed = family_of("sd1x", pretrained_model_name_or_path=str(other), **config)
    assert changed.text_fingerprint(hashes) != family.text_fingerprint(hashes)


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_from_a_file_equals_that_from_the_folder_and_resumes(model_type: str, tmp_path: Path) -> None:
    in_one_file("sd1x", tmp_path / "model.safetensors")
    source = {"model": str(tmp_path / "model.safetensors"), "pretrained_config_name_or_path": str(tmp_path / "configuration")}
    usual = {"model_family": "sd1x", "model_type": model_type, "lora_rank": 2, "max_train_steps": 4}
    folder = train_here(tmp_path / "folder", **usual, model=str(tiny_model("sd1x")))
    train_here(tmp_path / "file", **usual, **source, stop_after=2)
    file = train_here(tmp_path / "file", **usual, **source)
    name = "pytorch_lora_weights.safetensors" if model_type == "lora" else "unet/diffusion_pytorch_model.safetensors"
    ours, theirs = (load_file(list_checkpoints(run.output_dir)[0].path / name) for run in (file, folder))
    assert ours.keys() == theirs.keys() and all(ours[key].equal(tensor) for key, tensor in theirs.items())
    if model_type == "lora":
        card = (file.output_dir / "README.md").read_text()
        assert f'StableDiffusionPipeline.from_single_file("{source["model"]}", torch_dtype' in card
    else:
        result = StableDiffusionPipeline.from_pretrained(file.output_dir / "pipeline", safety_checker=None)
        theirs = load_file(tiny_model("sd1x") / "text_encoder/model.safetensors")
        saved = load_file(file.output_dir / "pipeline/text_encoder/model.safetensors")
        assert all(saved[key].equal(tensor) for key, tensor in theirs.items())
        assert result("a cat", width=64, height=64, num_inference_steps=2).images[0].size == (64, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "model_type"), [("sd1x", "full"), ("sdxl", "lora")])
def test_text_encoders_of_a_file_train_as_those_of_the_folder(family: str, model_type: str, tmp_path: Path) -> None:
    in_one_file(family, tmp_path / "model.safetensors")
    source = {"model": str(tmp_path / "model.safetensors"), "pretrained_config_name_or_path": str(tmp_path / "configuration")}
    usual = {"model_family": family, "model_type": model_type, "lora_rank": 2, "max_train_steps": 2, "train_text_encoder": True}
    file = train_here(tmp_path / "file", **usual, **source)
    folder = train_here(tmp_path / "folder", **usual, model=str(tiny_model(family)))
    ours, theirs = (list_checkpoints(run.output_dir)[0].path for run in (file, folder))
    names = sorted(str(path.relative_to(theirs)) for path in theirs.rglob("*.safetensors") if path.parent.name != "optimizer")
    assert names and all(
        load_file(ours / name).keys() == load_file(theirs / name).keys()
        and all(tensor.equal(load_file(ours / name)[key]) for key, tensor in load_file(theirs / name).items())
        for name in names
    )


def test_an_adapter_of_a_run_from_a_file_is_exported(tmp_path: Path) -> None:
    in_one_file("sd1x", tmp_path / "model.safetensors")
    source = {"model": str(tmp_path / "model.safetensors"), "pretrained_config_name_or_path": str(tmp_path / "configuration")}
    run = train_here(tmp_path, model_family="sd1x", model_type="lora", lora_rank=2, max_train_steps=1, **source)
    adapter = list_checkpoints(run.output_dir)[0].path / "pytorch_lora_weights.safetensors"
    home = tmp_path / "hf"
    place_in_hub_cache(tmp_path / "configuration", specs()["sd1x"].repository(None), home)
    program = "import runpy; runpy.run_module('trainer_engine.export', run_name='__main__')"
    arguments, offline = ("--to", "merged", "--output", str(tmp_path / "merged")), {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    run_forked(program, str(adapter), *arguments, place=tmp_path, variables=offline)
    merged = load_file(tmp_path / "merged/unet/diffusion_pytorch_model.safetensors")
    base = load_file(tiny_model("sd1x") / "unet/diffusion_pytorch_model.safetensors")
    changed = {name for name, weight in base.items() if not merged[name].equal(weight)}
    assert changed and all("attn" in name for name in changed)
