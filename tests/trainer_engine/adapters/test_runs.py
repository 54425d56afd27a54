"""Whole runs that train an adapter: frozen below, exact on resume, used afterwards."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.helpers.forked import run_forked
from tests.helpers.models import tiny_model, tiny_pixart
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import HereRun, train_here

LOKR = {"algo": "lokr", "multiplier": 1.0, "linear_dim": 2, "linear_alpha": 1, "factor": 4}
PRESET = {"apply_preset": {"target_module": ["Attention", "FeedForward"]}}
STANDARD: dict[str, Any] = {"model_type": "lora", "lora_rank": 4, "lora_dropout": 0.1}


def lycoris(place: Path, **document: Any) -> dict[str, Any]:
    """Options of a run with an adapter file under ``place``."""
    path = place / "adapter.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**PRESET, **document}))
    return {"model_type": "lora", "lora_type": "lycoris", "lycoris_config": str(path)}


def adapter_of(run: HereRun) -> dict[str, torch.Tensor]:
    return load_file(run.output_dir / "pytorch_lora_weights.safetensors")


ADAPTERS: dict[str, Any] = {
    "standard": lambda place: STANDARD,
    "dora": lambda place: {**STANDARD, "use_dora": True},
    **{
        algo: lambda place, algo=algo: lycoris(place, **{**LOKR, "algo": algo})
        for algo in ("lora", "loha", "lokr", "full", "ia3", "glora", "diag-oft", "boft", "tlora")
    },
    "dylora": lambda place: lycoris(place, **{**LOKR, "algo": "dylora", "linear_dim": 4, "block_size": 2}),
}
OFTEN = ("standard", "dora", "lokr", "tlora")
"""Adapters of the fast tests: those of PEFT, the usual one of LyCORIS, and one that takes part in each step."""


@pytest.mark.parametrize("name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in ADAPTERS])
def test_a_resumed_adapter_equals_one_trained_in_one_go(name: str, tmp_path: Path) -> None:
    options = {**ADAPTERS[name](tmp_path), "use_ema": True, "checkpoint_step_interval": 2}
    straight = assert_resumes_exactly(tmp_path, **options)
    files = straight.files()
    assert straight.step == 4 and "pytorch_lora_weights.safetensors" in files
    assert not any(file.startswith("transformer") for file in files)
    assert (straight.output_dir / "ema/pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize("name", ["standard", "lokr"])
def test_the_file_names_the_base_model_and_the_options_of_its_training(name: str, tmp_path: Path) -> None:
    run = train_here(tmp_path, **ADAPTERS[name](tmp_path))
    with safe_open(run.output_dir / "pytorch_lora_weights.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["model_family"] == "pixart_sigma"
    assert metadata["base_model"] == str(tiny_pixart())
    assert metadata["global_step"] == "4"
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"].startswith("pixart-sigma/")
    assert json.loads(metadata["lycoris_config"])["algo"] == "lokr" if name == "lokr" else "lora_adapter_metadata" in metadata
    assert "lora_dropout" not in metadata.get("lora_adapter_metadata", ""), "diffusers would zero inputs while it generates"
    assert (run.output_dir / "lycoris_config.json").is_file() == (name == "lokr")
    assert any(tensor.abs().max() > 0 for key, tensor in adapter_of(run).items() if "lora_B" in key or "lokr_w2" in key)


@pytest.mark.parametrize("name", ["standard", "lokr"])
def test_the_result_has_comfyui_keys_if_the_option_is_set(name: str, tmp_path: Path) -> None:
    options = {**ADAPTERS[name](tmp_path), "lora_format": "comfyui"}
    run = train_here(tmp_path, **options)
    found = adapter_of(run)
    parts = {"alpha", "weight"} if name == "standard" else {"alpha", "lokr_w1", "lokr_w2_a", "lokr_w2_b"}
    assert {key.rpartition(".")[2] for key in found} == parts
    assert all(key.startswith("transformer.transformer_blocks.") for key in found)
    assert "models/loras" in (run.output_dir / "README.md").read_text()
    again = train_here(tmp_path, **options, resume_from_checkpoint="latest")
    assert again.step == 4


def test_the_readme_shows_a_clip_once_as_its_gif(tmp_path: Path) -> None:
    clip = {"validation_disable": False, "validation_prompt": "a cat", "validation_resolution": "64x64", "validation_num_video_frames": 5}
    wan = {"model_family": "wan", "model": str(tiny_model("wan")), "model_type": "lora", "validation_disable_unconditional": True}
    mp4 = tmp_path / "output/validation_images/step_1_validation_0_64x64.mp4"
    mp4.parent.mkdir(parents=True)
    mp4.touch()  # where PyAV is installed the run replaces it
    run = train_here(tmp_path, **wan, **clip, disable_benchmark=True, validation_num_inference_steps=1, max_train_steps=1)
    samples = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (run.output_dir / "README.md").read_text())
    assert samples == ["validation_images/step_1_validation_0_64x64.gif"]


@pytest.mark.parametrize("name", ["standard", "lokr", "ia3"])
def test_the_lines_of_the_readme_load_the_adapter(name: str, tmp_path: Path) -> None:
    drawing = {"validation_disable": False, "validation_prompt": "a cat", "validation_resolution": "64x64", "disable_benchmark": True}
    run = train_here(tmp_path, **ADAPTERS[name](tmp_path), **drawing, validation_num_inference_steps=1, max_train_steps=2)
    text = (run.output_dir / "README.md").read_text()
    assert f'base_model: "{tiny_pixart()}"' in text
    samples = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert len(samples) == 2
    assert all((run.output_dir / sample).is_file() for sample in samples)
    code = text.split("```python")[1].split("```")[0]
    asked = "\nimport sys; sys.exit(not any('lora' in name or 'lycoris' in type(module).__module__ for name, module in LOOK))"
    where = "((module.lora_name, module) for module in adapter.loras)" if name != "standard" else "pipeline.transformer.named_modules()"
    code += asked.replace("LOOK", where)
    run_forked(code, place=run.output_dir)
