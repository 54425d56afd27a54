"""The sizes of cache entries that the documents and ``validate`` state are those that families really store."""

from __future__ import annotations

import pytest
import torch

from trainer_engine.config.datasets.docs import page
from trainer_engine.config.datasets.sizes import caption_bytes, latent_bytes, size_rows, stores_padding
from trainer_engine.config.families import specs


def test_sizes_are_those_of_the_published_models() -> None:
    """Latents of 1024 px: 4 x 128 x 128 and 16 x 128 x 128; a Flux caption: 512 states of 4096 numbers and a pooled one of 768."""
    known = specs()
    assert latent_bytes(known["pixart_sigma"], 1024, 1024, number=4) == 4 * 128 * 128 * 4
    assert latent_bytes(known["flux"], 1024, 1024) == 16 * 128 * 128 * 2
    assert latent_bytes(known["wan"], 832, 480, frames=81) == 21 * 16 * 60 * 104 * 2
    assert caption_bytes(known["flux"]) == (512 * 4096 + 768) * 2
    assert caption_bytes(known["flux"], flavour="schnell") == (256 * 4096 + 768) * 2
    assert caption_bytes(known["flux"], unpadded=True) == (50 * 4096 + 768) * 2
    assert caption_bytes(known["pixart_sigma"], 1000) == 300 * 4096 * 2
    assert caption_bytes(known["sdxl"]) == (77 * 2048 + 1280) * 2


def test_a_masked_flux_caption_takes_a_tenth() -> None:
    flux = specs()["flux"]
    assert caption_bytes(flux, unpadded=True) < caption_bytes(flux) / 10
    assert stores_padding(flux, {}) and not stores_padding(flux, {"flux_attention_masked_training": True})
    assert stores_padding(flux, {"t5_padding": "unmodified"}) and not stores_padding(flux, {"t5_padding": "zero"})
    assert not stores_padding(specs()["pixart_sigma"], {})


def test_the_page_has_a_row_for_every_family() -> None:
    rows = list(size_rows(specs()))
    assert {row[0].split("`")[1] for row in rows} == set(specs())
    text = page()
    assert all(f"| {' | '.join(row)} |" in text for row in rows)
    halves = [(float(short), float(exact)) for _, short, exact, _ in rows]
    assert all(short == pytest.approx(exact / 2, abs=0.06) for short, exact in halves)


@pytest.mark.parametrize("name", sorted(specs()))
def test_padding_is_stored_where_the_spec_says_so(name: str) -> None:
    """On the tiny model of each family: is an embedding as long as the prompt, or as the limit?"""
    from tests.helpers.models import options_with, tiny_model
    from trainer_engine.families.load import load_family
    from trainer_engine.runtime.devices import resolve_devices

    options = options_with(model_family=name, pretrained_model_name_or_path=str(tiny_model(name)))
    family = load_family(options, resolve_devices(options, torch.device("cpu")))
    short, long = family.encode_prompts(["a cat", "a red cat on a blue sofa under a large lamp"])
    assert (len(short["embeds"]) == len(long["embeds"])) is specs()[name].prompts.stores_padding
    assert ("pooled" in short) is bool(specs()[name].prompts.pooled)
