"""Whole runs that train a ControlNet: results, checkpoints, validation images, and control images that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
from PIL import Image
from safetensors.torch import load_file

from tests.helpers.models import tiny_model
from tests.helpers.params import first_fast
from tests.helpers.resuming import assert_resumes_exactly
from tests.trainer_engine.families.controlnet.runs import controlled_datasets, controlled_run, generated_datasets
from tests.trainer_engine.families.controlnet.test_unets import awake, steered
from trainer_engine.config.families import specs
from trainer_engine.contract.events import ImageEvent, Notification

WEIGHTS = "diffusion_pytorch_model.safetensors"
PIPELINES = {
    "sd1x": StableDiffusionControlNetPipeline,
    "sd2x": StableDiffusionControlNetPipeline,
    "sdxl": StableDiffusionXLControlNetPipeline,
}


@pytest.mark.parametrize("family", first_fast(["sdxl", "sd1x"]))
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(family: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"use_ema": True, "caption_dropout_probability": 0.3, "gradient_checkpointing": True}
    straight = assert_resumes_exactly(tmp_path, controlled_run, family=family, **options)
    assert (straight.output_dir / "controlnet_ema" / WEIGHTS).is_file()
    for config in tmp_path.rglob("controlnet*/config.json"):
        assert str(tmp_path) not in config.read_text(), "a result has no path of the machine that trained it"
    checkpoint = straight.output_dir / "checkpoint-4" / "controlnet"
    assert (checkpoint / WEIGHTS).read_bytes() == (straight.output_dir / "controlnet" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("family", sorted(PIPELINES))
def test_diffusers_loads_the_result_and_generates_with_it(family: str, tmp_path: Path) -> None:
    run = controlled_run(tmp_path, family, max_train_steps=2)
    controlnet = ControlNetModel.from_pretrained(run.output_dir / "controlnet")
    pipeline: Any = PIPELINES[family].from_pretrained(tiny_model(family), controlnet=controlnet)
    assert pipeline("a cat", image=Image.new("RGB", (64, 64)), width=64, height=64, num_inference_steps=2).images[0].size == (64, 64)
    card = (run.output_dir / "controlnet" / "README.md").read_text()
    assert f"from diffusers import ControlNetModel, {PIPELINES[family].__name__}" in card


def test_every_layer_learns_from_the_control_images(tmp_path: Path) -> None:
    start = dict(steered("sd1x", seed=7).load_network().named_parameters())
    run = controlled_run(tmp_path, max_train_steps=6, learning_rate=1e-2)
    trained = load_file(run.output_dir / "controlnet" / WEIGHTS)
    same = [name for name, tensor in trained.items() if torch.equal(tensor, start[name])]
    assert trained.keys() == start.keys() and not same


def test_generated_edges_steer_a_controlnet(tmp_path: Path) -> None:
    run = controlled_run(tmp_path, datasets=generated_datasets(tmp_path), cache_dir=str(tmp_path / "cache"), max_train_steps=2)
    assert (run.output_dir / "controlnet" / WEIGHTS).is_file()
    assert len(list((tmp_path / "cache/conditioning_data/pictures_conditioning_canny").rglob("*.png"))) == 8


def test_validation_images_are_generated_from_the_control_images_of_the_datasets(tmp_path: Path) -> None:
    options: dict[str, Any] = {"validation_disable": False, "validation_step_interval": 2, "validation_num_inference_steps": 2}
    more: dict[str, Any] = {"validation_resolution": "64x128", "num_eval_images": 2, "validation_prompt": "a house", "seed": 3}
    run = controlled_run(tmp_path, max_train_steps=2, **options, **more)
    images = [event for event in run.heard.events if isinstance(event, ImageEvent)]
    shown = {path.name for path in (run.output_dir / "validation_images").iterdir()}
    steps = [name.split("_")[1] for name in sorted(shown)]
    assert steps == ["0"] * 4 + ["2"] * 4 and len(images) == 8, "each pair with its caption and with the prompt, before and after"
    assert all(name.endswith("_64x128.png") for name in shown)


def test_validation_images_are_generated_from_named_control_images_beside_their_inputs(tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), "white").save(tmp_path / "edges.png")
    inputs = json.dumps([{"path": str(tmp_path / "edges.png"), "prompt": "a house"}])
    options: dict[str, Any] = {"validation_disable": False, "validation_step_interval": 1, "validation_num_inference_steps": 2}
    more: dict[str, Any] = {"validation_resolution": "64x64", "validation_input": inputs, "validation_stitch_input_location": "left"}
    run = controlled_run(tmp_path, max_train_steps=1, **options, **more)
    (shown,) = [path for path in (run.output_dir / "validation_images").iterdir() if path.name.startswith("step_1_")]
    with Image.open(shown) as image:
        assert image.width > image.height == 64 and image.convert("RGB").getpixel((2, 30)) == (255, 255, 255)


def test_a_control_image_has_an_effect_on_the_generated_image(tmp_path: Path) -> None:
    family = steered("sd1x")
    network = awake(family.load_network()).eval()
    [prompt] = family.encode_prompts(["a cat"])
    from trainer_engine.families.generation import GenerationRequest

    pipeline = family.make_pipeline(network)
    controls = [Image.new("RGB", (100, 50), colour) for colour in ("black", "white")]
    requests = [
        GenerationRequest(prompt=prompt, negative=prompt, width=64, height=64, steps=2, guidance=2.0, seed=1, control=control)
        for control in controls
    ]
    one, other = (family.generate(pipeline, request) for request in requests)
    assert isinstance(one, Image.Image) and isinstance(other, Image.Image)
    assert one.size == (64, 64) and one.tobytes() != other.tobytes()


def test_a_control_image_that_cannot_be_decoded_is_left_out_and_named(tmp_path: Path) -> None:
    datasets = controlled_datasets(tmp_path)
    broken = sorted((tmp_path / "controls").glob("*.png"))[0]
    content = broken.read_bytes()
    middle = len(content) // 2
    broken.write_bytes(content[:middle] + bytes(40) + content[middle + 40 :])
    run = controlled_run(tmp_path, datasets=datasets, max_train_steps=2)
    messages = [event.message for event in run.heard.events if isinstance(event, Notification) and event.code == "files_left_out"]
    assert any(broken.name in message and "controls" in message for message in messages)
    assert (run.output_dir / "controlnet" / WEIGHTS).is_file()


def test_an_adapter_on_a_controlnet_is_trained_and_resumed(tmp_path: Path) -> None:
    network: Any = awake(steered("sd1x").load_network())
    network.save_pretrained(tmp_path / "mine")
    options: dict[str, Any] = {"model_type": "lora", "lora_type": "standard", "lora_rank": 2}
    options["controlnet_model_name_or_path"] = str(tmp_path / "mine")
    straight = assert_resumes_exactly(tmp_path, controlled_run, **options)
    keys = load_file(straight.output_dir / "pytorch_lora_weights.safetensors")
    assert all(key.startswith("controlnet.") for key in keys)


@pytest.mark.parametrize("is_new", [True, False])
def test_the_card_of_an_adapter_on_a_controlnet_loads_it(is_new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = awake(steered("sd1x").load_network())
    network.save_pretrained(tmp_path / "mine")
    options: dict[str, Any] = {"model_type": "lora", "lora_type": "standard", "lora_rank": 2, "max_train_steps": 1}
    own = {} if is_new else {"controlnet_model_name_or_path": str(tmp_path / "mine")}
    run = controlled_run(tmp_path, **options, **own)
    code = (run.output_dir / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(run.output_dir)
    found: dict[str, Any] = {}
    exec(code, found)
    assert isinstance(found["pipeline"], StableDiffusionControlNetPipeline)
    assert any("lora_A" in name for name, _ in found["pipeline"].controlnet.named_parameters())


@pytest.mark.parametrize("kind", first_fast(["standard", "lycoris"]))
def test_an_adapter_on_a_new_controlnet_trains_its_new_layers_whole(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model_type": "lora", "lora_type": kind, "learning_rate": 1e-2, "use_ema": True}
    if kind == "lycoris":
        (tmp_path / "lokr.json").write_text(json.dumps({**specs()["sd1x"].adapters.lycoris_start, "factor": 2}))
        options["lycoris_config"] = str(tmp_path / "lokr.json")
    else:
        options["lora_rank"] = 2
    straight = assert_resumes_exactly(tmp_path, controlled_run, **options)
    assert (straight.output_dir / "ema/controlnet" / WEIGHTS).is_file()
    start = dict(steered("sd1x", seed=7).load_network().named_parameters())
    below = load_file(straight.output_dir / "controlnet" / WEIGHTS)
    assert below.keys() == start.keys()
    changed = {name for name, tensor in below.items() if not torch.equal(tensor, start[name])}
    assert changed == {name for name in start if name.startswith("controlnet_")}
    ControlNetModel.from_pretrained(straight.output_dir / "controlnet")


def test_a_checkpoint_records_the_network_beside_the_controlnet(tmp_path: Path) -> None:
    run = controlled_run(tmp_path, max_train_steps=2)
    state = json.loads((run.output_dir / "checkpoint-2" / "training_state.json").read_text())
    assert state["identity"]["controlnet"] is True
    assert state["base"]["unet"]["digest"] and "controlnet" not in state["base"]
