"""Files of weights are named by what they hold, from their headers alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.helpers.models import options_with, tiny_family, tiny_model
from tests.helpers.one_file import SD1, SD2, SDXL, original_unet, original_vae, write_one_file
from trainer_engine.config.components import BASE, CONFIG, NETWORKS, VAE, component_source, find_component, model_sources, noise_schedule
from trainer_engine.config.families import specs
from trainer_engine.config.one_file.contents import Contents, Kind, contents_of, file_problem
from trainer_engine.config.one_file.header import read_header, stated_schedule
from trainer_engine.config.one_file.unet_names import diffusers_names
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.config.parse import check_options
from trainer_engine.config.resuming.base_weights import base_differences, base_weights, moved_sources
from trainer_engine.config.rules.noise_schedule import schedule_problems
from trainer_engine.contract.errors import ModelUnavailable, Problem

ENCODERS: Mapping[str, Mapping[str, str]] = {"sd1x": SD1, "sd2x": SD2, "sdxl": SDXL}
UNET, TRANSFORMER = NETWORKS["unet"][0], NETWORKS["transformer"][0]
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
NO_CACHE = Path("no-cache")


def checkpoint(family: str, place: Path, **how: Any) -> Path:
    return write_one_file(tiny_model(family), place / f"{family}.safetensors", ENCODERS[family], **how)


def of_shapes(place: Path, **shapes: tuple[int, ...]) -> Path:
    """A file with tensors of these shapes; ``__`` stands for a dot."""
    path = place / "file.safetensors"
    save_file({key.replace("__", "."): torch.zeros(shape, dtype=torch.float16) for key, shape in shapes.items()}, path)
    return path


def problem_of(option: str, path: Path, family: str, flavour: str | None = None) -> Problem:
    found = file_problem(option, path, specs()[family], flavour)
    assert found is not None
    return found


@pytest.mark.parametrize("family", ENCODERS)
def test_a_checkpoint_is_usable_for_its_own_family_alone(family: str, tmp_path: Path) -> None:
    path = checkpoint(family, tmp_path)
    for name, spec in specs().items():
        problem = file_problem(BASE, path, spec, None)
        assert (problem is None) == (name == family), name
        if problem is not None:
            assert problem.code == "other_model" and f"is a {specs()[family].title} checkpoint" in problem.message
            assert spec.title.split()[0] in problem.message and f"model_family={family}" in problem.hint


@pytest.mark.parametrize(
    ("shapes", "kind", "text"),
    [
        ({"lora_unet_down_blocks_0__lora_down__weight": (4, 8)}, Kind.ADAPTER, "an adapter"),
        ({"transformer__blocks__0__attn__to_q__lora_A__weight": (4, 8)}, Kind.ADAPTER, "an adapter"),
        ({"lycoris_blocks_0_attn__lokr_w1": (4, 8)}, Kind.ADAPTER, "an adapter"),
        ({"control_model__time_embed__0__weight": (4, 4)}, Kind.OTHER, "a ControlNet"),
        ({"first_stage_model__decoder__conv_in__weight": (8, 4, 3, 3)}, Kind.VAE, "an autoencoder"),
        (
            {"decoder__conv_in__weight": (8, 4, 3, 3), "encoder__down_blocks__0__resnets__0__conv1__weight": (8, 8, 3, 3)},
            Kind.VAE,
            "an auto",
        ),
        ({"text_model__embeddings__position_embedding__weight": (77, 8)}, Kind.OTHER, "a text encoder"),
        ({"encoder__block__0__layer__0__SelfAttention__q__weight": (8, 8)}, Kind.OTHER, "a text encoder"),
        ({"double_blocks__0__img_attn__qkv__weight": (8, 8)}, Kind.NETWORK, "the network of Flux.1"),
        ({"model__diffusion_model__double_blocks__0__img_attn__qkv__weight": (8, 8)}, Kind.NETWORK, "the network of Flux.1"),
        ({"patch_embedding__weight": (8, 16, 1, 2, 2)}, Kind.NETWORK, "the network of Wan text-to-video"),
        ({"patch_embedding__weight": (8, 36, 1, 2, 2)}, Kind.NETWORK, "the network of Wan image-to-video"),
        ({"patch_embedding__weight": (8, 48, 1, 2, 2), "blocks__0__norm3__bias": (8,)}, Kind.NETWORK, "a network without"),
        ({"patch_embedding__weight": (8,), "blocks__0__norm3__bias": (8,)}, Kind.NETWORK, "a network without"),
        (
            {"double_blocks__0__img_attn__qkv__weight": (8, 8), "distilled_guidance_layer__in_proj__bias": (8,)},
            Kind.NETWORK,
            "the network of Chroma",
        ),
        ({"model__diffusion_model__joint_blocks__0__x_block__mlp__fc1__weight": (8, 8)}, Kind.OTHER, "a Stable Diffusion 3"),
        ({ATTENTION.replace(".", "__"): (64, 768)}, Kind.NETWORK, "the network of Stable Diffusion 1"),
        ({ATTENTION.replace(".", "__"): (64, 1024)}, Kind.NETWORK, "the network of Stable Diffusion 2"),
        ({ATTENTION.replace(".", "__"): (64, 2048)}, Kind.NETWORK, "the network of Stable Diffusion XL"),
        (
            {ATTENTION.replace(".", "__"): (64, 2048), "encoder_hid_proj__weight": (2048, 4096)},
            Kind.NETWORK,
            "the network of Kolors without",
        ),
        ({"transformer_blocks__0__attn1__to_q__weight": (8, 8)}, Kind.NETWORK, "a network without"),
        ({"clip_l": (1, 768), "clip_g": (1, 1280)}, Kind.OTHER, "no model that is known here (its first key is 'clip_g')"),
    ],
)
def test_every_kind_of_file_is_named(shapes: dict[str, tuple[int, ...]], kind: Kind, text: str, tmp_path: Path) -> None:
    header = read_header(of_shapes(tmp_path, **shapes))
    found = contents_of({key: tensor.shape for key, tensor in header.tensors.items()})
    assert found.kind is kind and found.text.startswith(text)
    problem = problem_of(BASE, header.path, "sdxl")
    assert problem.message == f"file.safetensors is {found.text}; this run trains Stable Diffusion XL."


def test_a_file_without_tensors_is_no_model() -> None:
    assert contents_of({}) == Contents(Kind.OTHER, "a file without tensors")


@pytest.mark.parametrize(
    ("option", "family", "shapes", "hint"),
    [
        (BASE, "sd1x", {"unet__lora_A__weight": (4, 8)}, "set init_lora to it"),
        (BASE, "sdxl", {"decoder__conv_in__weight": (8, 4, 3, 3)}, f"set {VAE} to it"),
        (BASE, "flux", {"double_blocks__0__img_attn__qkv__weight": (8, 8)}, f"set {TRANSFORMER} to it"),
        (
            TRANSFORMER,
            "flux",
            {"double_blocks__0__img_attn__qkv__weight": (8, 8), "distilled_guidance_layer__in_proj__bias": (8,)},
            "set model_family=chroma",
        ),
        (TRANSFORMER, "chroma", {"double_blocks__0__img_attn__qkv__weight": (8, 8)}, "set model_family=flux"),
        (BASE, "qwen_image", {"transformer_blocks__0__txt_mod__1__weight": (8, 8)}, f"set {TRANSFORMER} to it"),
        (BASE, "krea2", {"txtfusion__projector__weight": (1, 12)}, f"set {TRANSFORMER} to it"),
        (TRANSFORMER, "flux", {"text_fusion__projector__weight": (1, 12)}, "set model_family=krea2"),
        (TRANSFORMER, "wan", {"transformer_blocks__0__txt_mod__1__weight": (8, 8)}, "set model_family=qwen_image"),
        (BASE, "sdxl", {ATTENTION.replace(".", "__"): (64, 2048)}, f"set {UNET} to it"),
        (UNET, "sdxl", {ATTENTION.replace(".", "__"): (64, 768)}, "set model_family=sd1x"),
        (UNET, "kolors", {ATTENTION.replace(".", "__"): (64, 2048)}, "set model_family=sdxl"),
        (VAE, "pixart_sigma", {"double_blocks__0__img_attn__qkv__weight": (8, 8)}, "set model_family=flux"),
    ],
)
def test_a_hint_says_what_the_file_is_good_for(
    option: str, family: str, shapes: dict[str, tuple[int, ...]], hint: str, tmp_path: Path
) -> None:
    assert problem_of(option, of_shapes(tmp_path, **shapes), family).hint.startswith(hint)


def test_an_inpainting_model_and_an_autoencoder_of_other_latents_are_named(tmp_path: Path) -> None:
    path = write_one_file(tiny_model("sd1x"), tmp_path / "inpainting.safetensors", SD1)
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(16, 9, 3, 3)
    save_file(tensors, path)
    problem = problem_of(BASE, path, "sd1x")
    assert "takes latents of 9 channels; those of Stable Diffusion 1 have 4" in problem.message and "inpainting" in problem.hint
    save_file(original_vae(tiny_model("flux") / "vae"), tmp_path / "vae.safetensors")
    assert "decodes latents of 16 channels" in problem_of(VAE, tmp_path / "vae.safetensors", "sdxl").message
    assert file_problem(VAE, tmp_path / "vae.safetensors", specs()["flux"], None) is None


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00", b"PK\x03\x04" + bytes(60), b"\xff" * 40, (90).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_no_safetensors_is_refused_unread(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert problem_of(BASE, path, "sd1x").code in ("not_safetensors", "cut_off")


def test_a_pipe_and_a_missing_file_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("pipe.safetensors", "missing.safetensors", "."):
        assert problem_of(BASE, tmp_path / name, "sd1x").code == "not_found"


def test_the_engine_refuses_a_file_with_the_words_of_the_check(tmp_path: Path) -> None:
    path = checkpoint("sd1x", tmp_path)
    values = {BASE: str(path), CONFIG: str(tiny_model("sdxl"))}
    with pytest.raises(ModelUnavailable) as refused:
        tiny_family(model_family="sdxl", **values).load_network()
    problem = problem_of(BASE, path, "sdxl")
    assert (refused.value.message, refused.value.hint) == (problem.message, problem.hint)


@pytest.mark.parametrize("family", ENCODERS)
def test_the_original_names_of_a_unet_are_known_without_torch(family: str, tmp_path: Path) -> None:
    named = diffusers_names(original_unet(tiny_model(family) / "unet"))
    with safe_open(tiny_model(family) / "unet/diffusion_pytorch_model.safetensors", "pt") as file:
        assert {name: tuple(tensor.shape) for name, tensor in named.items()} == {
            name: tuple(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118
        }
    assert diffusers_names(named) == named and diffusers_names({"double_blocks.0.x": 1, "a.b": 2}) == {}


def file_options(path: Path, family: str, **values: Any) -> ModelOptions:
    return options_with(model_family=family, **{BASE: str(path), CONFIG: str(tiny_model(family)), **values}).model


def test_the_identity_covers_the_file_and_not_its_name(tmp_path: Path) -> None:
    spec, path = specs()["sd1x"], checkpoint("sd1x", tmp_path)
    before = base_weights(file_options(path, "sd1x"), spec, NO_CACHE)
    assert all(part.digest for part in before.values())
    assert before["unet"].source == str(path) and before["tokenizer"].source == str(tiny_model("sd1x"))
    moved = path.rename(tmp_path / "moved.safetensors")
    after = base_weights(file_options(moved, "sd1x"), spec, NO_CACHE)
    assert base_differences(before, after) == [] and moved_sources(before, after) == [f"{moved} holds the same weights as {path}"]
    write_one_file(tiny_model("sd1x", seed=3), path, SD1)
    (difference,) = base_differences(before, base_weights(file_options(path, "sd1x"), spec, NO_CACHE))
    assert difference == f"base model {path} has changed: the files of unet, vae, text_encoder were replaced"


def test_a_file_needs_the_configuration_of_its_flavour_and_nothing_else() -> None:
    model = ModelOptions(model_family="sdxl", model_type="full", pretrained_model_name_or_path="/models/a.safetensors", revision="fp16")
    spec = specs()["sdxl"]
    assert model_sources(model, spec) == {BASE: "/models/a.safetensors", CONFIG: spec.repository(None)}
    network, tokenizer = component_source(model, spec, "unet"), component_source(model, spec, "tokenizer")
    assert network.config is not None and str(network.config) == str(tokenizer) == f"{spec.repository(None)} at fp16"
    assert find_component(network, NO_CACHE) is None


@pytest.mark.parametrize(
    ("how", "stated"),
    [
        ({}, {}),
        ({"metadata": {"modelspec.prediction_type": "epsilon"}}, {"prediction_type": "epsilon"}),
        ({"metadata": {"modelspec.prediction_type": "v"}}, {"prediction_type": "v_prediction"}),
        ({"v_pred": torch.zeros(0)}, {"prediction_type": "v_prediction"}),
        ({"ztsnr": torch.zeros(0)}, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ],
)
def test_what_a_checkpoint_states_of_its_schedule_counts_for_engine_and_check(
    how: dict[str, Any], stated: dict[str, Any], tmp_path: Path
) -> None:
    path = checkpoint("sd1x", tmp_path, **how)
    assert stated_schedule(read_header(path)) == stated
    values = {"model_family": "sd1x", BASE: str(path), CONFIG: str(tiny_model("sd1x"))}
    family, model = tiny_family(**values), options_with(**values).model
    schedule = noise_schedule(model, specs()["sd1x"], NO_CACHE)
    assert family.scheduler_config() == schedule and schedule.items() >= stated.items()
    assert family.prediction_type == stated.get("prediction_type", "epsilon")


def test_a_unet_in_one_file_states_its_schedule_and_a_base_model_without_its_unet_none(tmp_path: Path) -> None:
    path = tmp_path / "unet.safetensors"
    save_file({**original_unet(tiny_model("sd1x") / "unet"), "v_pred": torch.zeros(0)}, path)
    alone = options_with(model_family="sd1x", **{BASE: str(tiny_model("sd1x")), UNET: str(path)}).model
    assert noise_schedule(alone, specs()["sd1x"], NO_CACHE)["prediction_type"] == "v_prediction"
    base = checkpoint("sd1x", tmp_path, v_pred=torch.zeros(0))
    replaced = file_options(base, "sd1x", **{UNET: str(tiny_model("sd1x"))})
    assert noise_schedule(replaced, specs()["sd1x"], NO_CACHE)["prediction_type"] == "epsilon"


def test_a_velocity_checkpoint_in_one_file_is_not_trained_on_the_noise_unnoticed(tmp_path: Path) -> None:
    path, spec = checkpoint("sd1x", tmp_path, v_pred=torch.zeros(0), ztsnr=torch.zeros(0)), specs()["sd1x"]
    values = {"model_family": "sd1x", BASE: str(path), CONFIG: str(tiny_model("sd1x"))}
    options = options_with(**values, prediction_type="epsilon")
    found = {problem.code: problem for problem in schedule_problems(options, spec, noise_schedule(options.model, spec, NO_CACHE))}
    assert found.keys() == {"ends_in_noise", "contradicts_base_model"}
    options = options_with(**values)
    assert list(schedule_problems(options, spec, noise_schedule(options.model, spec, NO_CACHE))) == []


def test_the_options_of_files_are_noted_where_they_do_nothing() -> None:
    given = options_with(model_family="sd1x", **{BASE: str(tiny_model("sd1x")), CONFIG: "/models/sd"}).as_values()
    _, problems = check_options(given)
    assert [problem.code for problem in problems if problem.option == CONFIG] == ["no_effect"]


def test_the_check_of_a_file_needs_no_torch(tmp_path: Path) -> None:
    path = checkpoint("sd1x", tmp_path)
    program = (
        "import sys\nfrom pathlib import Path\nfrom trainer_engine.config.families import specs\n"
        "from trainer_engine.config.one_file.contents import file_problem\n"
        f"print(file_problem({BASE!r}, Path({str(path)!r}), specs()['sdxl'], None).message, 'torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert answer.strip() == "sd1x.safetensors is a Stable Diffusion 1 checkpoint; this run trains Stable Diffusion XL. False"
