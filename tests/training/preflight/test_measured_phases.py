"""The estimates of encoding and of validation are within 10 % of the bytes of all tensors that live in them.

The models are small, with encoders of several layers and autoencoders of two: what lives in a layer does not depend on its width.
"""

from __future__ import annotations

import gc
import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage21, AutoencoderKLWan
from torch import nn
from transformers import CLIPTextModel, Qwen3Model, T5EncoderModel, UMT5EncoderModel

from tests.helpers.live_bytes import LiveBytes, tensors_of
from tests.helpers.models import options_with
from tests.helpers.params import first_fast, first_rows_fast
from trainer_engine.adapters.build import make_trainable
from trainer_engine.config.datasets.sizes import caption_bytes
from trainer_engine.config.families import specs
from trainer_engine.datasets.buckets import Effective
from trainer_engine.datasets.report import DatasetReport
from trainer_engine.families.base import Family
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.load import load_family
from trainer_engine.runtime.devices import resolve_devices
from training.preflight.autoencoder import autoencoder_bytes, decoding_bytes, encoded_bytes
from training.preflight.network import component_tensors, count_parameters, network_tensors
from training.preflight.on_device import EstimatedRun
from training.preflight.phases import phases
from training.preflight.text_encoders import text_encoder_memory

NOTHING = DatasetReport([], Effective(1, 1, 1))
TOLERANCE = 0.10
EDGE = 64
WIDER_TEXT: dict[type[Any], dict[str, Any]] = {
    CLIPTextModel: {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4},
    T5EncoderModel: {"d_model": 192, "d_ff": 512, "d_kv": 48, "num_layers": 4},
    UMT5EncoderModel: {"d_model": 192, "d_ff": 512, "d_kv": 48, "num_layers": 4},
    Qwen3Model: {"hidden_size": 128, "intermediate_size": 512},
}
"""Class of a text encoder -> what makes its smallest model wide enough that its weights count."""
TEXT = {"sd1x": CLIPTextModel, "pixart_sigma": T5EncoderModel, "wan": UMT5EncoderModel, "z_image": Qwen3Model, "flux2": Qwen3Model}
KL = {"block_out_channels": (32, 64, 128, 128), "layers_per_block": 2, "norm_num_groups": 8}
AUTOENCODERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "sd1x": (AutoencoderKL, KL),
    "flux2": (AutoencoderKLFlux2, KL),
    "sana": (
        AutoencoderDC,
        {
            **dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (16, 32, 32, 32, 32, 32)),
            **dict.fromkeys(("encoder_layers_per_block", "decoder_layers_per_block"), (2,) * 6),
        },
    ),
    "wan": (AutoencoderKLWan, {"base_dim": 8, "num_res_blocks": 2}),
    "qwen_image_21": (AutoencoderKLQwenImage21, {"base_dim": 8, "decoder_base_dim": 12, "num_res_blocks": 2}),
}


def made(family: str, folder: Path) -> None:
    importlib.import_module(f"trainer_engine.families.{family}.tiny").make_tiny(folder)


def widened(cls: type[Any], folder: Path, changes: Mapping[str, Any]) -> None:
    """Replaces a component with a wider one of random weights."""
    if issubclass(cls, (AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage21, AutoencoderKLWan)):
        config: dict[str, Any] = {**cls.load_config(folder), **changes}
        make: Callable[[], nn.Module] = lambda: cls.from_config(config)  # noqa: E731
    else:
        config = cls.config_class.from_pretrained(folder, **changes)
        make = lambda: cls(config)  # noqa: E731
    shutil.rmtree(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wider: Any = make()
    wider.save_pretrained(folder)


def unstated(family: str, folder: Path) -> None:
    """Let the network say no more how wide a text encoder it was made for: these tests do not load it."""
    spec = specs()[family]
    path = folder / spec.components[spec.network].folder / "config.json"
    widths = {states.width for states in spec.prompts.states}
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in widths}))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("phases")
    for family, cls in TEXT.items():
        made(family, place / "texts" / family)
        widened(cls, place / "texts" / family / "text_encoder", WIDER_TEXT[cls])
        unstated(family, place / "texts" / family)
    for family, (autoencoder, changes) in AUTOENCODERS.items():
        made(family, place / family)
        widened(autoencoder, place / family / "vae", changes)
    return place


def known(place: Path, name: str, **values: Any) -> tuple[Family, EstimatedRun]:
    options = options_with(model_family=name, pretrained_model_name_or_path=str(place / name), **values)
    family = load_family(options, resolve_devices(options, torch.device("cpu")))
    tensors = network_tensors(options.model, family.spec, place)
    assert tensors is not None
    folders = ("vae", *family.spec.prompts.text_encoder_folders)
    parts = {folder: component_tensors(options.model, family.spec, folder, place) or {} for folder in folders}
    run = EstimatedRun(options=options, spec=family.spec, parameters=count_parameters(tensors), tensors=tensors, parts=parts, on_cpu=True)
    return family, run


@pytest.mark.parametrize("name", first_fast(sorted(TEXT), 2))
def test_the_estimate_is_what_reading_captions_holds(name: str, place: Path) -> None:
    gc.collect()
    family, run = known(place / "texts", name)
    family.encode_prompts(["a cat"])
    [encoder] = [one for one in gc.get_objects() if type(one) is TEXT[name]]
    weights = tensors_of(encoder)
    for batch in (1, 4):
        with LiveBytes(weights) as live:
            family.encode_prompts(["a picture of a cat", "a dog", "", "a red circle"][:batch])
        texts = text_encoder_memory(run, batch)
        assert texts.weights + texts.reading == pytest.approx(live.peak, rel=TOLERANCE)


ENCODED = [
    ("sd1x", 1, 3),
    ("flux2", 1, 2),
    ("wan", 9, 1),
    ("sd1x", 1, 1),
    ("wan", 1, 1),
    ("wan", 17, 1),
    ("qwen_image_21", 1, 2),
    ("sana", 1, 2),
]


@pytest.mark.parametrize(("name", "frames", "count"), first_rows_fast(ENCODED, 3))
def test_the_estimate_is_what_the_autoencoder_holds(name: str, frames: int, count: int, place: Path) -> None:
    family, run = known(place, name)
    pixels = torch.rand(count, 3, *([frames] if frames > 1 else []), EDGE, EDGE)
    family.encode_images(pixels[:1])
    autoencoder: Any = family.autoencoder  # type: ignore[attr-defined]
    weights = tensors_of(autoencoder.model)
    with LiveBytes([*weights, pixels]) as live:
        latents = family.encode_images(pixels)
    assert autoencoder_bytes(run) + encoded_bytes(run, (EDGE, EDGE), frames, count) == pytest.approx(live.peak, rel=TOLERANCE)
    with LiveBytes(weights) as live:
        autoencoder.decode(latents[:1])
    shown = known(place, name, validation_resolution=f"{EDGE}x{EDGE}", **({"validation_num_video_frames": frames} if frames > 1 else {}))[1]
    assert autoencoder_bytes(run) + decoding_bytes(shown) == pytest.approx(live.peak, rel=TOLERANCE)


def test_tiles_and_slices_need_less(place: Path) -> None:
    _, usual = known(place, "sd1x")
    _, sliced = known(place, "sd1x", vae_enable_slicing=True)
    _, tiled = known(place, "sd1x", vae_enable_tiling=True)
    large = (1024, 1024)
    assert encoded_bytes(usual, large, 1, 4) > 3.5 * encoded_bytes(sliced, large, 1, 4)
    assert encoded_bytes(usual, large, 1, 1) > 3 * encoded_bytes(tiled, large, 1, 1)
    assert encoded_bytes(usual, (512, 512), 1, 1) <= encoded_bytes(tiled, (512, 512), 1, 1), "an image that is no larger than a tile"


VALIDATED: list[tuple[str, dict[str, Any]]] = [
    ("sd1x", {}),
    ("sd1x", {"model_type": "lora", "lora_rank": 8}),
    ("flux2", {"model_type": "lora", "lora_rank": 8}),
    ("wan", {}),
]


@pytest.mark.parametrize(("name", "values"), VALIDATED)
def test_the_estimate_is_what_a_validation_holds(name: str, values: dict[str, Any], place: Path) -> None:
    values = {"model_type": "full", "optimizer": "torch-sgd", "validation_resolution": f"{2 * EDGE}x{2 * EDGE}", **values}
    family, run = known(place, name, **values)
    positive, negative = family.encode_prompts(["a picture of a cat", ""])
    family.free_encoders()
    network = make_trainable(family, None).network.eval()
    pipeline = family.make_pipeline(network)
    guidance = run.options.validation.validation_guidance
    request = GenerationRequest(prompt=positive, negative=negative, width=2 * EDGE, height=2 * EDGE, steps=2, guidance=guidance, seed=1)
    autoencoder: Any = family.autoencoder  # type: ignore[attr-defined]
    with torch.no_grad(), LiveBytes([*tensors_of(network), *tensors_of(autoencoder.model)]) as live:
        family.generate(pipeline, request)
    *_, validation = phases(run, NOTHING)
    assert validation.name == "validation"
    assert validation.memory.middle == pytest.approx(live.peak, rel=TOLERANCE)


def test_text_encoders_that_wait_on_the_host_leave_the_device(place: Path) -> None:
    _, run = known(place / "texts", "flux2")
    _, streamed = known(place / "texts", "flux2", ramtorch_text_encoder=True)
    usual, moved = (text_encoder_memory(replace(one, on_cpu=False), 1) for one in (run, streamed))
    assert usual.host == 0 and moved.weights < usual.weights / 8 and moved.weights + moved.host == usual.weights


def test_quantised_text_encoders_keep_their_tables() -> None:
    layer = "encoder.block.0.layer."
    linear = {f"{layer}0.SelfAttention.q.weight": (100, 100), f"{layer}1.DenseReluDense.wi_0.weight": (200, 100)}
    tensors = {"shared.weight": (50, 100), "encoder.final_layer_norm.weight": (100,), **linear}
    options = options_with(text_encoder_1_precision="int8-quanto")
    run = EstimatedRun(options=options, spec=specs()["pixart_sigma"], parameters=1, tensors=None, parts={"text_encoder": tensors})
    assert text_encoder_memory(run, 1).weights == pytest.approx(1.01 * 30_000 + 4 * (5_000 + 100), abs=1)


def test_layers_that_no_flavour_reads_are_not_counted() -> None:
    layers = {f"model.layers.{number}.self_attn.q_proj.weight": (10, 10) for number in range(40)}
    parts = {"text_encoder": {**layers, "lm_head.weight": (1000, 10), "model.visual.blocks.0.weight": (1000, 10)}}
    run = EstimatedRun(options=options_with(), spec=specs()["flux2"], parameters=1, tensors=None, parts=parts)
    assert text_encoder_memory(run, 1).weights == 4 * 28 * 100


def test_each_flavour_has_text_encoders_of_its_own() -> None:
    spec = specs()["flux2"]
    found = {flavour: spec.prompts.encoders_of(flavour) for flavour in spec.flavours}
    assert [found[flavour].names[0] for flavour in ("dev", "klein-9b", "klein-4b")] == ["Mistral Small 3", "Qwen3 8B", "Qwen3 4B"]
    assert found["dev"].parameters > found["klein-9b"].parameters > found["klein-4b"].parameters
    assert [caption_bytes(spec, flavour=name) for name in ("dev", "klein-9b", "klein-4b")] == [512 * 3 * 2 * n for n in (5120, 4096, 2560)]
