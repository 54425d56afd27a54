from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from tests.helpers.models import options_with, tiny_family, tiny_pixart
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.load import load_family
from trainer_engine.families.modules import unwrap
from trainer_engine.runtime.devices import resolve_devices


def test_latents_are_the_scaled_mode_of_the_autoencoder() -> None:
    vae = AutoencoderKL.from_pretrained(tiny_pixart() / "vae")
    pixels = torch.rand(2, 3, 64, 128) * 2 - 1
    with torch.no_grad():
        wanted = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    latents = tiny_family().encode_images(pixels)
    assert latents.shape == (2, 4, 8, 16)
    assert latents.dtype == torch.float32
    assert torch.allclose(latents, wanted, atol=1e-5)


def test_encode_and_decode_are_inverse_in_scale() -> None:
    family = tiny_family()
    pixels = torch.full((1, 3, 64, 64), 0.5)
    assert family.autoencoder.decode(family.encode_images(pixels))[0, :, 20:40, 20:40].mean().item() == pytest.approx(0.5, abs=0.05)


def test_exact_encoding_uses_float32_and_goes_back_to_the_usual_type() -> None:
    family = tiny_family()
    family.vae().to(torch.bfloat16)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    rounded, exact = family.encode_images(pixels), family.encode_images(pixels, exact=True)
    assert family.vae().dtype == torch.bfloat16
    assert not torch.equal(rounded, exact)
    assert torch.allclose(rounded.float(), exact, atol=0.2)


def test_the_encoders_weights_are_gone_after_freeing() -> None:
    family = tiny_family()
    family.encode_images(torch.zeros(1, 3, 64, 64))
    family.encode_prompts(["a red circle"])
    watched = [weakref.ref(family.autoencoder.model), weakref.ref(family.text._loaded[0])]
    family.free_encoders()
    gc.collect()
    assert [reference() for reference in watched] == [None, None]


def test_the_denoiser_is_loaded_to_be_trained() -> None:
    network = tiny_family().load_network()
    assert network.training
    assert network.gradient_checkpointing
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in network.parameters())
    assert not tiny_family(gradient_checkpointing=False).load_network().gradient_checkpointing


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ({"mixed_precision": "no"}, torch.float32),
        ({"mixed_precision": "bf16", "optimizer": "adamw_bf16"}, torch.bfloat16),
        ({"mixed_precision": "bf16", "optimizer": "torch-adamw"}, torch.float32),
    ],
)
def test_weights_have_the_type_that_they_are_trained_in(values: dict[str, str], dtype: torch.dtype) -> None:
    assert tiny_family(**values).load_network().dtype == dtype


def test_the_base_precision_rounds_the_weights_that_are_loaded() -> None:
    plain = tiny_family().load_network().state_dict()
    rounded = tiny_family(base_model_precision="bf16").load_network().state_dict()
    assert all(torch.equal(rounded[name], tensor.bfloat16().float()) for name, tensor in plain.items())


def test_a_saved_denoiser_loads_again_with_the_same_bytes(tmp_path: Path) -> None:
    family = tiny_family(base_model_precision="bf16")
    network = family.load_network()
    with torch.no_grad():
        next(network.parameters()).add_(1e-3)
    family.save_component("transformer", network, tmp_path / "transformer")
    again = family.load_network(tmp_path).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())
    assert str(tiny_pixart()) in json.loads((tmp_path / "transformer/config.json").read_text())["_name_or_path"]


def test_wrapped_networks_are_seen_through() -> None:
    network = tiny_family().load_network()
    assert unwrap(torch.nn.DataParallel(network)) is network
    assert unwrap(network) is network


def test_networks_with_size_conditions_get_the_size() -> None:
    family = tiny_family(pretrained_model_name_or_path=str(tiny_pixart(size_conditions=True)))
    network, prompts = family.load_network(), family.encode_prompts(["a red circle"])
    heard: list[dict[str, torch.Tensor]] = []
    network.adaln_single.register_forward_pre_hook(lambda _module, args: heard.append(args[1]))
    latents, timesteps, batch = torch.zeros(1, 4, 8, 16), torch.tensor([5]), family.collate_prompts(prompts)
    family.predict(network, StepInputs(noisy_latents=latents, timesteps=timesteps, prompts=batch)).sum().backward()
    assert heard[0]["resolution"].tolist() == [[64.0, 128.0]]
    assert heard[0]["aspect_ratio"].tolist() == [[0.5]]
    image = family.generate(
        family.make_pipeline(network),
        GenerationRequest(prompt=prompts[0], negative=prompts[0], width=128, height=64, steps=2, guidance=2.0, seed=0),
    )
    assert image.size == (128, 64)
    assert heard[-1]["resolution"].tolist() == [[64.0, 128.0]] * 2


def test_fingerprints_follow_weights_and_number_types(tmp_path: Path) -> None:
    hashes, copied = FileHashes(tmp_path / "hashes.jsonl"), tmp_path / "model"
    shutil.copytree(tiny_pixart(), copied)
    first, same_elsewhere = tiny_family(), tiny_family(pretrained_model_name_or_path=str(copied))
    assert first.image_fingerprint(hashes) == same_elsewhere.image_fingerprint(hashes)
    assert first.text_fingerprint(hashes) == same_elsewhere.text_fingerprint(hashes)
    weights = copied / "vae/diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1e-3 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    assert first.image_fingerprint(hashes) != same_elsewhere.image_fingerprint(hashes)
    assert first.text_fingerprint(hashes) == same_elsewhere.text_fingerprint(hashes)


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    shutil.copytree(tiny_pixart(), tmp_path / "model")
    weights = tmp_path / "model/transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["proj_out.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    family = tiny_family(pretrained_model_name_or_path=str(tmp_path / "model"))
    with pytest.raises(ModelUnavailable, match=r"part transformer of .* lacks 1 weights, among them proj_out.weight"):
        family.load_network()


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_broken_weights_are_refused_by_name(tmp_path: Path, part: str) -> None:
    shutil.copytree(tiny_pixart(), tmp_path / "model")
    next((tmp_path / "model" / part).glob("*.safetensors")).write_bytes(b"half a download")
    family = tiny_family(pretrained_model_name_or_path=str(tmp_path / "model"))
    use = {"transformer": family.load_network, "vae": family.vae, "text_encoder": lambda: family.encode_prompts([""])}[part]
    with pytest.raises(ModelUnavailable, match=f"part {part} of .*model could not be loaded"):
        use()


def test_another_autoencoder_and_text_encoder_can_replace_those_of_the_model(tmp_path: Path) -> None:
    shutil.copytree(tiny_pixart() / "vae", tmp_path / "vae-alone")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(tiny_pixart() / part, tmp_path / "t5" / part)
    shutil.copytree(tiny_pixart(), tmp_path / "model", ignore=shutil.ignore_patterns("vae", "text_encoder", "tokenizer"))
    family = tiny_family(
        pretrained_model_name_or_path=str(tmp_path / "model"),
        pretrained_vae_model_name_or_path=str(tmp_path / "vae-alone"),
        pretrained_t5_model_name_or_path=str(tmp_path / "t5"),
    )
    assert family.encode_images(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 8, 8)
    (ours,), (usual,) = family.encode_prompts(["a cat"]), tiny_family().encode_prompts(["a cat"])
    assert torch.allclose(ours["embeds"], usual["embeds"], atol=1e-5)  # weights of two files may lie in memory in two ways


def test_a_prompt_beyond_the_limit_is_cut_off() -> None:
    assert tiny_family().encode_prompts(["cat " * 1_000])[0]["embeds"].shape == (300, 32)


def test_the_family_is_found_by_its_alias() -> None:
    options = options_with(model_family="pixart")
    assert load_family(options, resolve_devices(options, torch.device("cpu"))).spec.name == "pixart_sigma"
