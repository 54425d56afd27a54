"""``validate`` accepts whole what shipped configurations of the format ask for, family by family."""

from __future__ import annotations

import json
from typing import Any

import pytest

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.clips import moving_square
from tests.helpers.models import tiny_model
from tests.helpers.pictures import generate_images
from tests.helpers.video_files import write_video
from tests.training.conftest import Training
from trainer_engine.config.families import specs
from trainer_engine.contract.errors import Level
from training.preflight.run import examine_run
from training.preflight.summary import PreflightReport

USUAL: dict[str, Any] = {
    "base_model_precision": "int8-quanto",
    "checkpoint_step_interval": 10,
    "disable_bucket_pruning": True,
    "gradient_checkpointing": True,
    "hub_model_id": "a-lora",
    "learning_rate": 1e-4,
    "lora_type": "standard",
    "lr_scheduler": "constant",
    "max_train_steps": 100,
    "mixed_precision": "bf16",
    "model_type": "lora",
    "num_eval_images": 25,
    "num_train_epochs": 0,
    "optimizer": "adamw_bf16",
    "push_checkpoints_to_hub": False,
    "push_to_hub": False,
    "quantize_via": "cpu",
    "report_to": "none",
    "seed": 42,
    "use_ema": False,
    "validation_guidance_rescale": 0.0,
    "validation_prompt": "a 🟫 with a sign",
    "validation_prompt_library": False,
    "validation_seed": 42,
    "validation_steps": 50,
    "validation_torch_compile": False,
}
FLUX = {**USUAL, "model_family": "flux", "flow_schedule_shift": 3, "grad_clip_method": "value", "fuse_qkv_projections": False}
CANNY = {"type": "canny", "conditioning_type": "controlnet", "captions": ["a block"]}
LOKR = {
    "algo": "lokr",
    "multiplier": 1.0,
    "bypass_mode": True,
    "full_matrix": True,
    "linear_dim": 10_000,
    "linear_alpha": 1,
    "factor": 16,
    "apply_preset": {"target_module": ["Attention"], "module_algo_map": {"Attention": {"factor": 16}}},
}
IDEOGRAM: dict[str, Any] = {
    **USUAL,
    "model_family": "ideogram",
    "model_flavour": "fp8",
    "base_model_precision": "no_change",
    "caption_dropout_probability": 0.0,
    "checkpoints_total_limit": 5,
    "compress_disk_cache": False,
    "ideogram_auto_json": True,
    "ideogram_prompt_upsample": False,
    "ideogram_schedule_mu": 0.0,
    "ideogram_schedule_std": 1.5,
    "ideogram_validation": True,
    "lora_rank": 32,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 100,
    "max_grad_norm": 0.01,
    "minimum_image_size": 0,
    "optimizer": "optimi-lion",
    "resolution_type": "pixel_area",
    "resume_from_checkpoint": "latest",
    "skip_file_discovery": False,
    "train_batch_size": 1,
    "vae_batch_size": 1,
    "validation_guidance": 3.0,
    "validation_lycoris_strength": 1.0,
    "validation_negative_prompt": "ugly, cropped, blurry, low-quality, malformed text, incorrect spelling",
    "validation_num_inference_steps": 12,
}
BY_BLOCKS = {
    "dynamo_backend": "inductor",
    "dynamo_use_regional_compilation": True,
    "ideogram_prompt_enhancer_head_id": "diffusers/qwen3-vl-8b-instruct-lm-head",
    "strict_epoch_limit": False,
    "text_encoder_batch_size": 2,
}
CAPTION = {
    "crop": True,
    "crop_style": "random",
    "crop_aspect": "square",
    "instance_prompt": '{"high_level_description":"A photograph of 🟫."}',
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "flux lora": ({**FLUX, "lora_rank": 16, "lora_alpha": 16}, {}),
    "flux lora by blocks": ({**FLUX, "dynamo_backend": "inductor", "dynamo_use_regional_compilation": True}, {}),
    "flux lora with routes": (
        {**FLUX, "tread_config": {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 0, "end_layer_idx": -2}]}},
        {},
    ),
    "flux controlnet": ({**FLUX, "controlnet": True, "flux_lora_target": "controlnet", "lora_rank": 64}, {"conditioning": CANNY}),
    "flux kontext": (
        {
            **FLUX,
            "model_flavour": "kontext",
            "optimizer": "optimi-lion",
            "conditioning_multidataset_sampling": "random",
            "lr_warmup_steps": 0,
            "gradient_checkpointing_interval": 1,
            "vae_batch_size": 6,
        },
        {"conditioning": [{"type": "superresolution", "conditioning_type": "reference_strict"}]},
    ),
    "sdxl lokr": (
        {**USUAL, "model_family": "sdxl", "lora_type": "lycoris", "base_model_precision": "no_change", "loss_type": "huber"},
        {},
    ),
    "sdxl controlnet": ({**USUAL, "model_family": "sdxl", "controlnet": True, "use_gradient_checkpointing": True}, {"conditioning": CANNY}),
    "chroma": (
        {
            **USUAL,
            "model_family": "chroma",
            "flow_schedule_shift": 3,
            "fuse_qkv_projections": False,
            "grad_clip_method": "value",
            "lora_alpha": 16,
            "lora_rank": 16,
            "train_batch_size": 1,
            "vae_batch_size": 1,
            "validation_disable_unconditional": True,
            "validation_guidance": 4.0,
            "validation_negative_prompt": "ugly, cropped",
            "validation_num_inference_steps": 16,
        },
        {},
    ),
    "hidream": (
        {
            **USUAL,
            "model_family": "hidream",
            "model_flavour": "full",
            "aspect_bucket_rounding": 2,
            "attention_mechanism": "diffusers",
            "caption_dropout_probability": 0.1,
            "checkpoints_total_limit": 5,
            "compress_disk_cache": False,
            "delete_problematic_images": False,
            "disable_benchmark": False,
            "ema_update_interval": 2,
            "ema_validation": "none",
            "eval_steps_interval": 5,
            "evaluation_type": "clip",
            "flow_schedule_shift": 3,
            "grad_clip_method": "value",
            "gradient_accumulation_steps": 1,
            "hidream_load_balancing_loss_weight": 1e-5,
            "hidream_use_load_balancing_loss": False,
            "ignore_final_epochs": True,
            "learning_rate": 5e-5,
            "lora_alpha": 16,
            "lora_rank": 16,  # 128 in the file, which the layers of the micro model have no room for
            "lr_scheduler": "cosine",
            "lr_warmup_steps": 400_000,
            "max_grad_norm": 0.0,
            "minimum_image_size": 0,
            "optimizer": "optimi-lion",
            "prodigy_steps": 100_000,
            "resume_from_checkpoint": "latest",
            "skip_file_discovery": False,
            "text_encoder_4_precision": "int4-quanto",
            "train_batch_size": 1,
            "vae_batch_size": 1,
            "validation_disable_unconditional": True,
            "validation_guidance": 3.0,
            "validation_lycoris_strength": 1.0,
            "validation_negative_prompt": None,
            "validation_num_inference_steps": 30,
        },
        {},
    ),
    "qwen image": (
        {
            **USUAL,
            "model_family": "qwen_image",
            "model_flavour": "v1.0",
            "base_model_precision": "int2-quanto",
            "caption_dropout_probability": 0.0,
            "checkpoints_total_limit": 5,
            "compress_disk_cache": False,
            "disable_benchmark": True,
            "flow_schedule_shift": 1.73,
            "lora_alpha": 8,
            "lora_rank": 8,
            "lr_scheduler": "constant_with_warmup",
            "lr_warmup_steps": 10,
            "max_grad_norm": 0.01,
            "minimum_image_size": 0,
            "optimizer": "optimi-lion",
            "quantize_activations": False,
            "resume_from_checkpoint": "latest",
            "skip_file_discovery": False,
            "strict_epoch_limit": False,
            "train_batch_size": 1,
            "vae_batch_size": 1,
            "validation_guidance": 4.0,
            "validation_lycoris_strength": 1.0,
            "validation_negative_prompt": "ugly, cropped, blurry, low-quality, mediocre average",
            "validation_num_inference_steps": 30,
        },
        {},
    ),
    "anima": (
        {
            **USUAL,
            "model_family": "anima",
            "model_flavour": "base-v1.0",
            "base_model_precision": "no_change",
            "caption_dropout_probability": 0.1,
            "checkpoints_total_limit": 6,
            "compress_disk_cache": False,
            "disable_benchmark": True,
            "flow_schedule_shift": 3.0,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-5,
            "lora_alpha": 16,
            "lora_rank": 16,
            "loss_type": "l2",
            "lr_scheduler": "constant_with_warmup",
            "lr_warmup_steps": 250,
            "max_grad_norm": 0.01,
            "max_train_steps": 1000,
            "num_eval_images": 1,
            "resume_from_checkpoint": "latest",
            "skip_file_discovery": False,
            "strict_epoch_limit": False,
            "tracker_run_name": "anima-peft-lora",
            "train_batch_size": 1,
            "vae_batch_size": 1,
            "validation_disable_unconditional": True,
            "validation_guidance": 4.0,
            "validation_negative_prompt": "worst quality, low quality, score_1, score_2, score_3, blurry, cropped, artist name, signature",
            "validation_num_inference_steps": 20,
        },
        {"maximum_image_size": 1536, "target_downsample_size": 1024, "crop": True, "crop_style": "center", "crop_aspect": "square"},
    ),
    "qwen image that edits": (
        {
            **USUAL,
            "model_family": "qwen_image",
            "model_flavour": "edit-v2",
            "gradient_accumulation_steps": 4,
            "flow_schedule_shift": 1.73,
            "quantize_activations": False,
            "validation_guidance": 4.0,
            "validation_num_inference_steps": 30,
        },
        {"conditioning": [{"type": "superresolution", "conditioning_type": "reference_strict"}]},
    ),
    "lumina 2": (
        {
            **USUAL,
            "model_family": "lumina2",
            "checkpoint_step_interval": 50,
            "flow_schedule_auto_shift": True,
            "flow_schedule_shift": 0.0,
            "lora_alpha": 16,
            "lora_rank": 16,
            "tracker_project_name": "lora-training",
            "train_batch_size": 2,
            "vae_batch_size": 1,
            "validation_disable_unconditional": True,
            "validation_guidance": 4.0,
            "validation_negative_prompt": "ugly, cropped, blurry, low-quality, mediocre average",
            "validation_num_inference_steps": 40,
            "validation_resolution": "512x512",
        },
        {"crop": False, "crop_style": "random", "crop_aspect": "square", "resolution_type": "pixel"},
    ),
    "krea 2": (
        {
            **USUAL,
            "model_family": "krea2",
            "model_flavour": "raw",
            "base_model_precision": "int8-torchao",
            "caption_dropout_probability": 0.0,
            "checkpoints_total_limit": 5,
            "compress_disk_cache": False,
            "disable_bucket_pruning": True,
            "ignore_final_epochs": True,
            "lora_rank": 32,
            "lr_scheduler": "constant_with_warmup",
            "lr_warmup_steps": 100,
            "max_grad_norm": 0.01,
            "minimum_image_size": 0,
            "num_eval_images": 25,
            "optimizer": "optimi-lion",
            "quantize_via": "cpu",
            "resolution_type": "pixel_area",
            "skip_file_discovery": False,
            "use_ema": False,
            "vae_batch_size": 1,
            "validation_adapter_strength": 1.0,
            "validation_guidance": 4.5,
            "validation_guidance_rescale": 0.0,
            "validation_negative_prompt": "ugly, cropped, blurry, low-quality, mediocre average",
            "validation_num_inference_steps": 28,
            "validation_prompt_library": False,
            "validation_seed": 42,
        },
        {},
    ),
    "ideogram": ({**IDEOGRAM, "ignore_final_epochs": True}, CAPTION),
    "ideogram by blocks": ({**IDEOGRAM, **BY_BLOCKS}, CAPTION),
    "ideogram in more memory": (
        {
            **IDEOGRAM,
            **BY_BLOCKS,
            "ideogram_fp8_base_upcast": True,
            "gradient_checkpointing_interval": 2,
            "gradient_checkpointing_segment_stride": 4,
        },
        CAPTION,
    ),
    "wan": (
        {
            **USUAL,
            "model_family": "wan",
            "ignore_final_epochs": True,
            "lr_warmup_steps": 400_000,
            "validation_num_video_frames": 17,
            "validation_guidance_skip_layers": [1],
            "validation_guidance_skip_layers_start": 0.0,
            "validation_guidance_skip_layers_stop": 1.0,
        },
        {"dataset_type": "video", "video": {"num_frames": 17, "min_frames": 17}},
    ),
}


def examined(training: Training, config: dict[str, Any], dataset: dict[str, Any]) -> PreflightReport:
    """The configuration with the micro model of its family, pictures or clips, and the adapter file that it names."""
    home, family = training.home, config["model_family"]
    if dataset.get("dataset_type") == "video":
        (home / "sets").mkdir()
        write_video(home / "sets" / "a_square.mp4", moving_square(20))
    else:
        generate_images(home / "sets", count=2, size=(96, 96))
    media = {"id": "sets", "type": "local", "instance_data_dir": "sets", "caption_strategy": "instanceprompt", "instance_prompt": "a block"}
    media |= {
        "resolution": 64,
        "resolution_type": "pixel_area",
        "crop": False,
        "cache_dir_vae": "cache/vae/{model_family}/sets",
        "repeats": 4,
    }
    texts = {"id": "texts", "dataset_type": "text_embeds", "default": True, "type": "local", "cache_dir": "cache/text/{model_family}"}
    (home / "config" / "sets.json").write_text(json.dumps([{**media, **dataset}, texts]))
    (home / "config" / "lycoris.json").write_text(json.dumps(LOKR))
    places = {"data_backend_config": "config/sets.json", "output_dir": "output/here", "resolution": 64, "validation_resolution": "64x64"}
    flavour = config.get("model_flavour")
    seeing = {"flavour": flavour} if specs()[family].seeing_folders(flavour) else {}
    given = {**config, **places, "pretrained_model_name_or_path": str(tiny_model(family, **seeing))}
    if config["lora_type"] == "lycoris":
        given["lycoris_config"] = "config/lycoris.json"
    return examine_run(resolve_run(Home(home), {}, given), Home(home), {"CUDA_VISIBLE_DEVICES": ""})


def errors(report: PreflightReport) -> list[str]:
    return [str(problem) for problem in report.problems if problem.level is Level.ERROR]


@pytest.mark.parametrize("name", CASES)
def test_what_a_shipped_configuration_asks_for_is_accepted_whole(name: str, training: Training) -> None:
    report = examined(training, *CASES[name])
    assert errors(report) == []
    assert report.understood is not None and report.understood["model"]["parameters"] > 0


@pytest.mark.parametrize(("layers", "count"), [([0, 1], 0), ([2], 1), ([9, 10], 1)])
def test_a_block_that_the_local_network_lacks_is_named(layers: list[int], count: int, training: Training) -> None:
    config, dataset = CASES["wan"]
    report = examined(training, {**config, "validation_guidance_skip_layers": layers}, dataset)
    named = [problem for problem in report.problems if problem.code == "no_such_layer"]
    assert len(errors(report)) == len(named) == count
    assert all(problem.expected == "numbers from 0 to 1" and str(problem.got) == str(layers[0]) for problem in named)


def test_former_names_count_in_a_run(training: Training) -> None:
    config, dataset = CASES["flux lora"]
    former = {name: value for name, value in config.items() if name not in ("gradient_checkpointing", "flow_schedule_shift")}
    resolved = examined(training, {**former, "use_gradient_checkpointing": False, "flux_schedule_shift": 2}, dataset).resolved
    assert resolved.options is not None
    assert resolved.options.model.gradient_checkpointing is False
    assert resolved.options.objective.flow_schedule_shift == 2.0
