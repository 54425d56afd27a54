"""What families share: the autoencoder between pixels and latents, and batches of prompts."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from tests.helpers.models import tiny_pixart
from trainer_engine.config.options.computation import AutoencoderOptions
from trainer_engine.families.common.autoencoder import Autoencoder, ShuffledAutoencoder
from trainer_engine.families.common.chat_prompts import padded
from trainer_engine.families.modules import cast_weights
from trainer_engine.tiny_models.autoencoders import build_shuffled_vae


def in_bfloat16() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(tiny_pixart(), subfolder="vae", torch_dtype=torch.bfloat16)


def test_images_are_decoded_rightly_while_another_thread_encodes_in_another_type() -> None:
    autoencoder = Autoencoder(in_bfloat16, torch.device("cpu"), AutoencoderOptions())
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = autoencoder.decode(latents)
    found: list[Tensor] = []
    decoding = threading.Thread(target=lambda: found.append(autoencoder.decode(latents)))

    def decode_meanwhile(*_: Any) -> None:
        decoding.start()
        decoding.join(timeout=0.5)  # it waits for its turn, or is done in the wrong type

    hook = autoencoder.model.encoder.register_forward_pre_hook(decode_meanwhile)
    autoencoder.encode(torch.zeros(1, 3, 64, 64), exact=True)
    hook.remove()
    decoding.join()
    assert len(found) == 1 and torch.equal(found[0], wanted)


@pytest.mark.parametrize("more", [(4,), (3, 4)], ids=["one state a token", "several states a token"])
def test_a_batch_of_prompts_is_padded_to_the_longest_one_or_the_next_multiple(more: tuple[int, ...]) -> None:
    prompts = [{"embeds": torch.ones(length, *more)} for length in (2, 5)]
    for multiple, longest in ((1, 5), (4, 8)):
        batch = padded(prompts, multiple)
        assert batch["embeds"].shape == (2, longest, *more)
        assert batch["mask"].tolist() == [[True] * length + [False] * (longest - length) for length in (2, 5)]
        assert torch.equal(batch["embeds"].flatten(2).amax(dim=2).bool(), batch["mask"])


def test_a_batch_of_prompts_has_a_mask_only_if_something_is_padded() -> None:
    prompts = [{"embeds": torch.ones(4, 2)}, {"embeds": torch.ones(4, 2)}]
    assert padded(prompts).keys() == padded(prompts, 2).keys() == {"embeds"}
    assert padded(prompts, 3)["mask"].sum(dim=1).tolist() == [4, 4]


@pytest.mark.parametrize("epsilon", [None, 1e-2])
def test_shuffled_latents_are_normalised_with_the_epsilon_of_the_autoencoder_or_with_another_one(epsilon: float | None) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = build_shuffled_vae()
    vae.bn.running_var.fill_(0.01)
    autoencoder = ShuffledAutoencoder(lambda: vae, torch.device("cpu"), AutoencoderOptions())
    autoencoder.epsilon = epsilon
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        squares = pixel_unshuffle(vae.encode(pixels).latent_dist.mode(), 2)
    deviation = (0.01 + (vae.config.batch_norm_eps if epsilon is None else epsilon)) ** 0.5
    wanted = (squares - vae.bn.running_mean.view(1, -1, 1, 1)) / deviation
    torch.testing.assert_close(autoencoder.encode(pixels), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        autoencoder.decode(wanted), vae.decode(pixel_shuffle(squares, 2), return_dict=False)[0].detach(), rtol=1e-3, atol=1e-3
    )


def test_weights_are_cast_and_tables_that_are_computed_keep_their_type() -> None:
    layer = torch.nn.BatchNorm1d(3)
    layer.register_buffer("angles", torch.arange(100.0), persistent=False)
    parameter = layer.weight
    cast_weights(layer, torch.bfloat16)
    assert layer.weight is parameter and layer.weight.dtype == layer.running_mean.dtype == torch.bfloat16
    assert layer.angles.dtype == torch.float32 and layer.num_batches_tracked.dtype == torch.int64
