"""The autoencoder between pixels and latents."""

from __future__ import annotations

import threading
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tests.helpers.models import tiny_pixart
from trainer_engine.config.options.computation import AutoencoderOptions
from trainer_engine.families.common.autoencoder import Autoencoder


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
