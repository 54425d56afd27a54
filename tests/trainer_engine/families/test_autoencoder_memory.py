"""Autoencoders that save memory, beside the same autoencoders of diffusers that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, AutoencoderTiny
from torch import Tensor, nn

from tests.helpers.models import options_with, tiny_model
from trainer_engine.config.options.computation import AutoencoderOptions
from trainer_engine.config.parse import check_options
from trainer_engine.contract.errors import Level
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.base import Family
from trainer_engine.families.common.autoencoder_memory import compute_in_strips, save_memory
from trainer_engine.families.load import load_family
from trainer_engine.runtime.devices import resolve_devices

FAMILIES = ("pixart_sigma", "flux", "sdxl", "sd1x", "wan", "qwen_image", "qwen_image_21")
IMAGES = ("pixart_sigma", "wan", "qwen_image", "qwen_image_21")
"""One family for each kind of autoencoder."""


def tiny(name: str, **values: Any) -> Family:
    options = options_with(model_family=name, pretrained_model_name_or_path=str(tiny_model(name)), **values)
    return load_family(options, resolve_devices(options, torch.device("cpu")))


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def fingerprint(place: Path, name: str, **values: Any) -> str:
    return tiny(name, **values).image_fingerprint(FileHashes(place / "hashes.json"))


@pytest.mark.parametrize("name", IMAGES)
def test_slices_give_each_image_the_latents_that_it_has_alone(name: str) -> None:
    family, plain, pixels = tiny(name, vae_enable_slicing=True), tiny(name), noise(3, 3, 64, 96)
    sliced = family.encode_images(pixels)
    assert torch.equal(sliced, torch.cat([plain.encode_images(one[None]) for one in pixels]))
    assert torch.allclose(sliced, plain.encode_images(pixels), atol=1e-5)


@pytest.mark.parametrize("name", IMAGES)
def test_tiles_change_only_images_that_are_larger_than_a_tile(name: str) -> None:
    family, plain = tiny(name, vae_enable_tiling=True), tiny(name)
    small, large = noise(1, 3, 256, 192), noise(1, 3, 288, 352)
    assert torch.equal(family.encode_images(small), plain.encode_images(small))
    tiled = family.encode_images(large)
    assert tiled.shape == plain.encode_images(large).shape and not torch.equal(tiled, plain.encode_images(large))


def test_tiled_latents_and_images_equal_those_of_the_library() -> None:
    vae = AutoencoderKL.from_pretrained(tiny_model("pixart_sigma"), subfolder="vae").eval()
    vae.enable_tiling()
    family, pixels = tiny("pixart_sigma", vae_enable_tiling=True), noise(1, 3, 288, 352)
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        wanted = (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        image = vae.decode(wanted / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).sample
    assert torch.allclose(family.encode_images(pixels), wanted, atol=1e-5)
    decoded: Tensor = family.autoencoder.decode(wanted)  # type: ignore[attr-defined]
    assert torch.allclose(decoded, image, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_tiles_change_the_address_of_latents(name: str, tmp_path: Path) -> None:
    plain = fingerprint(tmp_path, name)
    assert fingerprint(tmp_path, name, vae_enable_tiling=True) == f"{plain} tiled"
    assert fingerprint(tmp_path, name, vae_enable_slicing=True, vae_enable_patch_conv=True, vae_enable_temporal_roll=True) == plain


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 5, 3, padding=1),
        nn.Conv2d(3, 5, 3, stride=2),
        nn.Conv2d(3, 6, 1),
        nn.Conv2d(4, 4, 5, stride=3, padding=2, groups=2),
        nn.Conv2d(3, 5, 3, padding=2, dilation=2),
        nn.Conv3d(3, 5, 3, padding=1),
        nn.Conv3d(3, 5, (3, 1, 1), padding=(1, 0, 0), stride=(2, 1, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("strip_numbers", [1, 200, 1000, 10**9])
def test_a_convolution_in_strips_equals_the_complete_one(conv: nn.Conv2d | nn.Conv3d, strip_numbers: int) -> None:
    pixels = noise(2, conv.in_channels, 23, 17) if isinstance(conv, nn.Conv2d) else noise(2, conv.in_channels, 4, 23, 17)
    whole = type(conv).forward(conv, pixels)
    holder = nn.Sequential(conv)
    usual = conv._conv_forward
    compute_in_strips(holder, strip_numbers)
    strips = holder(pixels)
    conv._conv_forward = usual  # type: ignore[method-assign]
    assert strips.shape == whole.shape and torch.allclose(strips, whole, atol=1e-6)


@pytest.mark.parametrize("name", IMAGES)
def test_strips_give_the_latents_and_images_of_complete_convolutions(name: str) -> None:
    family, plain, pixels = tiny(name, vae_enable_patch_conv=True), tiny(name), noise(2, 3, 64, 96)
    autoencoder, whole = family.autoencoder, plain.autoencoder  # type: ignore[attr-defined]
    compute_in_strips(autoencoder.model, 3000)
    latents = plain.encode_images(pixels)
    assert torch.allclose(family.encode_images(pixels), latents, atol=1e-6)
    assert torch.allclose(autoencoder.decode(latents), whole.decode(latents), atol=1e-6)


def test_strips_bound_the_input_of_every_convolution() -> None:
    vae = AutoencoderKLWan.from_pretrained(tiny_model("wan"), subfolder="vae")
    save_memory(vae, AutoencoderOptions(vae_enable_patch_conv=True), strip_numbers=5000)
    largest: list[int] = []
    for part in vae.modules():
        strips = getattr(part, "_conv_forward", None) if isinstance(part, (nn.Conv2d, nn.Conv3d)) else None
        if strips is not None:
            convolved = strips._convolved
            strips._convolved = lambda pixels, *rest, compute=convolved: (largest.append(pixels.numel()), compute(pixels, *rest))[1]
    with torch.no_grad():
        vae.encode(noise(1, 3, 1, 64, 64))
    assert len(largest) > 50 and max(largest) < 5000 + 3 * 4 * 4 * 64 * 12


def test_previews_are_decoded_in_tiles_too() -> None:
    decoder = AutoencoderTiny(encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4).eval()
    latents = noise(1, 4, 24, 40)
    with torch.no_grad():
        whole = decoder.decode(latents).sample
        save_memory(decoder, AutoencoderOptions(vae_enable_tiling=True, vae_enable_slicing=True))
        tiled = decoder.decode(latents).sample
    assert decoder.use_tiling and tiled.shape == whole.shape and torch.allclose(tiled, whole, atol=1e-5)


def test_an_autoencoder_without_tiles_stays_as_it_is() -> None:
    vae = nn.Sequential(nn.Conv2d(3, 3, 1))
    save_memory(vae, AutoencoderOptions(vae_enable_tiling=True, vae_enable_slicing=True))
    assert not hasattr(vae, "use_tiling")


@pytest.mark.parametrize(("name", "reason"), [("wan", "some frames at a time"), ("sdxl", "single frames")])
def test_validate_says_that_rolling_over_frames_changes_nothing(name: str, reason: str) -> None:
    given = {"model_family": name, "vae_enable_temporal_roll": True, "vae_enable_tiling": True, "vae_enable_slicing": True}
    notes = [problem for problem in check_options(given)[1] if problem.option.startswith("vae_enable")]
    assert [(note.option, note.code, note.level) for note in notes] == [("vae_enable_temporal_roll", "no_effect", Level.NOTE)]
    assert reason in notes[0].message
