"""Whole runs with control images: checkpoints, results that diffusers loads, validation images, exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxControlPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.models import tiny_model
from tests.helpers.params import first_fast
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import HereRun, train_here
from tests.trainer_engine.families.controlnet.runs import controlled_datasets, generated_datasets
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.events import ImageEvent
from trainer_engine.export.__main__ import main

ADAPTER = "pytorch_lora_weights.safetensors"
LORA: dict[str, Any] = {"model_type": "lora", "lora_type": "standard", "lora_rank": 4, "lora_dropout": 0.0}
SHOWN: dict[str, Any] = {"validation_disable": False, "validation_num_inference_steps": 2, "validation_resolution": "64x64"}


def controlled_run(place: Path, **options: Any) -> HereRun:
    datasets = options.pop("datasets", None) or controlled_datasets(place)
    chosen = {"max_train_steps": 4, "learning_rate": 1e-2, "model_flavour": "dev", **options}
    return train_here(place, datasets=datasets, model_family="flux", model=str(tiny_model("flux", flavour="dev")), control=True, **chosen)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> HereRun:
    """A run of an adapter, which is also evaluated and generates images."""
    place = tmp_path_factory.mktemp("control")
    return controlled_run(place, **LORA, **SHOWN, validation_step_interval=4, num_eval_images=1, validation_prompt="a house", seed=3)


def pipeline_of(folder: Path | None = None) -> Any:
    pipeline: Any = FluxControlPipeline.from_pretrained(folder or tiny_model("flux", flavour="dev"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def latents_of(pipeline: Any) -> Tensor:
    """What a pipeline generates from a fixed control image and seed."""
    control = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    how: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 2, "output_type": "latent"}
    made: Tensor = pipeline("a cat", control_image=control, generator=torch.Generator().manual_seed(1), **how).images
    return made


@pytest.mark.parametrize("options", first_fast([{"model_type": "full", "use_ema": True}, {**LORA, "gradient_checkpointing": True}]))
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(options: dict[str, Any], tmp_path: Path) -> None:
    straight = assert_resumes_exactly(tmp_path, controlled_run, caption_dropout_probability=0.3, **options)
    file = "pipeline/transformer/diffusion_pytorch_model.safetensors" if options["model_type"] == "full" else ADAPTER
    tensors = load_file(straight.output_dir / file)
    (name,) = [name for name in tensors if name.endswith(("x_embedder.weight", "x_embedder.lora_A.weight"))]
    assert tensors[name].shape[1] == 128
    if options["model_type"] == "full":
        assert tensors[name][:, 64:].any(), "the new channels have learned"
        assert latents_of(pipeline_of(straight.output_dir / "pipeline_ema")).isfinite().all()


def test_the_adapter_loads_in_diffusers_and_changes_what_is_generated(trained: HereRun) -> None:
    plain = pipeline_of()
    plain.load_lora_weights(trained.output_dir, weight_name=ADAPTER)
    with safe_open(trained.output_dir / ADAPTER, framework="pt") as file:
        assert file.metadata()["control"] == "true"
    assert plain.transformer.config.in_channels == 128
    with_adapter = latents_of(plain)
    plain.disable_lora()
    assert not torch.allclose(with_adapter, latents_of(plain))


def test_the_model_card_loads_the_adapter_as_it_says(trained: HereRun) -> None:
    card = (trained.output_dir / "README.md").read_text()
    assert "from diffusers import FluxControlPipeline" in card and "load_lora_weights" in card
    assert "control_image of the pipeline" in card


def test_validation_images_are_generated_from_the_control_images_of_the_datasets(trained: HereRun) -> None:
    images = trained.heard.of(ImageEvent)
    shown = sorted(path.name for path in (trained.output_dir / "validation_images").iterdir())
    assert len(images) == len(shown) == 4 and [name.split("_")[1] for name in shown] == ["0", "0", "4", "4"]


def test_a_merged_export_generates_what_the_adapter_does(trained: HereRun, tmp_path: Path) -> None:
    assert main([str(trained.output_dir), "--to", "merged", "--output", str(tmp_path / "merged")]) == 0
    merged, added = pipeline_of(tmp_path / "merged"), pipeline_of()
    added.load_lora_weights(trained.output_dir, weight_name=ADAPTER)
    assert torch.allclose(latents_of(merged), latents_of(added), rtol=1e-4, atol=1e-5)


def test_an_adapter_of_another_trainer_is_merged_by_the_width_of_its_first_layer(trained: HereRun, tmp_path: Path) -> None:
    save_file(load_file(trained.output_dir / ADAPTER), tmp_path / "theirs.safetensors")
    named = ["--model_family", "flux", "--base", str(tiny_model("flux", flavour="dev"))]
    assert main([str(tmp_path / "theirs.safetensors"), "--to", "merged", "--output", str(tmp_path / "merged"), *named]) == 0
    assert pipeline_of(tmp_path / "merged").transformer.config.in_channels == 128


def as_comfyui_reads_it(path: Path, base: Tensor) -> Tensor:
    """The first layer of the base model with the adapter: padded with zeros to the stated shape, and alpha / rank times the product."""
    tensors = load_file(path)
    down, up, alpha, shape = (
        tensors[f"transformer.x_embedder.{part}"] for part in ("lora_A.weight", "lora_B.weight", "alpha", "reshape_weight")
    )
    whole = torch.zeros(shape.tolist())
    whole[:, : base.shape[1]] = base
    return whole + float(alpha) / len(down) * (up @ down)


def test_the_keys_of_comfyui_state_the_shape_of_the_widened_layer(trained: HereRun, tmp_path: Path) -> None:
    assert main([str(trained.output_dir), "--to", "comfyui", "--output", str(tmp_path / "comfyui.safetensors")]) == 0
    assert main([str(trained.output_dir), "--to", "merged", "--output", str(tmp_path / "merged")]) == 0
    base, merged = (pipeline_of(folder).transformer.x_embedder.weight for folder in (None, tmp_path / "merged"))
    assert torch.allclose(as_comfyui_reads_it(tmp_path / "comfyui.safetensors", base), merged, atol=1e-6)


def test_a_run_writes_and_reads_the_keys_of_comfyui(trained: HereRun, tmp_path: Path) -> None:
    run = controlled_run(tmp_path / "one", **LORA, lora_format="comfyui", max_train_steps=1)
    file = run.output_dir / ADAPTER
    assert load_file(file)["transformer.x_embedder.reshape_weight"].tolist() == [32, 128]
    again = controlled_run(tmp_path / "other", **LORA, init_lora=str(file), max_train_steps=1, learning_rate=1e-9)
    name = "transformer.x_embedder.lora_A.weight"
    assert torch.allclose(load_file(again.output_dir / ADAPTER)[name], load_file(file)[name], atol=1e-6)


def test_an_adapter_begins_with_the_weights_of_another_one(trained: HereRun, tmp_path: Path) -> None:
    begun = controlled_run(tmp_path, **LORA, init_lora=str(trained.output_dir / ADAPTER), max_train_steps=1, learning_rate=1e-9)
    assert begun.code is ExitCode.COMPLETED
    ours, theirs = (load_file(run.output_dir / ADAPTER) for run in (begun, trained))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs) and ours.keys() == theirs.keys()


def test_generated_edges_are_control_images(tmp_path: Path) -> None:
    datasets = generated_datasets(tmp_path)
    run = controlled_run(tmp_path, **LORA, datasets=datasets, cache_dir=str(tmp_path / "cache"), max_train_steps=1)
    assert run.code is ExitCode.COMPLETED
    assert len(list((tmp_path / "cache/conditioning_data/pictures_conditioning_canny").rglob("*.png"))) == 8


@pytest.mark.parametrize("precision", ["int8-quanto", "nf4-bnb"])
def test_the_widened_base_of_an_adapter_may_be_quantised(precision: str, tmp_path: Path) -> None:
    run = controlled_run(tmp_path, **LORA, base_model_precision=precision, max_train_steps=1)
    assert run.code is ExitCode.COMPLETED
    assert load_file(run.output_dir / ADAPTER)["transformer.x_embedder.lora_B.weight"].any(), "the layer has learned"
