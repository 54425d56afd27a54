from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PixArtSigmaPipeline
from PIL import Image, ImageDraw

from tests.helpers.forked import run_forked
from tests.helpers.models import tiny_pixart
from trainer_engine.caches.decoding import pixels_of
from trainer_engine.families.pixart_sigma.tiny import make_tiny
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache


def hashes_of(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (hashes_of(make_tiny(tmp_path / name, seed=seed)) for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    assert first == again
    assert first["transformer/diffusion_pytorch_model.safetensors"] != other["transformer/diffusion_pytorch_model.safetensors"]


def test_making_a_model_leaves_the_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    make_tiny(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_diffusers_loads_the_tiny_model_and_generates_the_same_image_twice() -> None:
    pipeline = PixArtSigmaPipeline.from_pretrained(tiny_pixart())
    pipeline.set_progress_bar_config(disable=True)
    images = [
        pipeline(
            "a red circle",
            width=128,
            height=64,
            num_inference_steps=2,
            use_resolution_binning=False,
            clean_caption=False,
            generator=torch.Generator().manual_seed(3),
        ).images[0]
        for _ in range(2)
    ]
    assert images[0].size == (128, 64)
    assert images[0].tobytes() == images[1].tobytes()


def test_the_autoencoder_shows_what_it_encoded() -> None:
    vae = AutoencoderKL.from_pretrained(tiny_pixart() / "vae")
    image = Image.new("RGB", (128, 128), (40, 90, 200))
    ImageDraw.Draw(image).rectangle((32, 32, 95, 95), fill=(230, 180, 20))
    pixels = pixels_of(image)[None]
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        shown = vae.decode(latents).sample
    assert latents.shape == (1, 4, 16, 16)
    assert (shown - pixels)[:, :, 48:80, 48:80].abs().max() < 0.1
    assert (shown - pixels).square().mean().sqrt() < 0.2


def test_the_text_encoder_distinguishes_words() -> None:
    pipeline = PixArtSigmaPipeline.from_pretrained(tiny_pixart())
    red, blue = (pipeline.encode_prompt(text, False)[0] for text in ("a red circle", "a blue circle"))
    assert (red - blue).abs().max() > 0.01


def test_the_hub_cache_holds_the_tiny_model_under_its_repository(tmp_path: Path) -> None:
    snapshot = place_in_hub_cache(tiny_pixart(), "some-org/some-model", tmp_path)
    assert snapshot.parent.parent == tmp_path / "hub" / "models--some-org--some-model"
    assert (tmp_path / "hub/models--some-org--some-model/refs/main").read_text() == snapshot.name
    assert hashes_of(snapshot) == hashes_of(tiny_pixart())


def test_the_command_makes_the_folder(tmp_path: Path) -> None:
    program = "import runpy; runpy.run_module('trainer_engine.families.pixart_sigma.tiny', run_name='__main__')"
    run_forked(program, "--size", "demo", str(tmp_path / "model"), place=tmp_path)
    transformer = PixArtSigmaPipeline.from_pretrained(tmp_path / "model").transformer
    assert 3_000_000 < sum(parameter.numel() for parameter in transformer.parameters()) < 6_000_000
