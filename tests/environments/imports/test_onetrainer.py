"""JSON of OneTrainer: a full fine-tune of SDXL with its concepts inside, and a Flux LoKr with concepts and samples in files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.environments.imports.conftest import Refused, Translate, reasons, sets

CONCEPTS: list[dict[str, Any]] = [
    {
        "name": "cats",
        "path": "datasets/cats",
        "enabled": True,
        "balancing": 2.0,
        "balancing_strategy": "REPEATS",
        "image": {
            "enable_random_flip": True,
            "enable_crop_jitter": True,
            "enable_resolution_override": False,
            "resolution_override": "512",
        },
        "text": {"prompt_source": "sample", "enable_tag_shuffling": True, "keep_tags_count": 2, "tag_delimiter": ","},
    },
    {"name": "held", "path": "datasets/held", "type": "VALIDATION", "image": {}, "text": {"prompt_source": "filename"}},
    {"name": "off", "path": "datasets/off", "enabled": False, "image": {}, "text": {}},
]
SAMPLES: list[dict[str, Any]] = [
    {
        "enabled": True,
        "prompt": "a cat",
        "negative_prompt": "blurry",
        "height": 1024,
        "width": 768,
        "seed": 42,
        "diffusion_steps": 20,
        "cfg_scale": 7.0,
    },
]
FULL: dict[str, Any] = {
    "__version": 9,
    "training_method": "FINE_TUNE",
    "model_type": "STABLE_DIFFUSION_XL_10_BASE",
    "base_model_name": "stabilityai/stable-diffusion-xl-base-1.0",
    "workspace_dir": "workspace/run",
    "cache_dir": "workspace/cache",
    "tensorboard": True,
    "train_device": "cuda",
    "temp_device": "cpu",
    "tensorboard_port": 6006,
    "gradient_checkpointing": "ON",
    "output_model_destination": "models/sdxl.safetensors",
    "aspect_ratio_bucketing": True,
    "latent_caching": True,
    "learning_rate_scheduler": "COSINE",
    "learning_rate": 1e-05,
    "learning_rate_warmup_steps": 100,
    "epochs": 20,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "ema": "CPU",
    "ema_decay": 0.999,
    "ema_update_step_interval": 5,
    "train_dtype": "BFLOAT_16",
    "resolution": "1024",
    "attention_mechanism": "SDP",
    "loss_weight_fn": "MIN_SNR_GAMMA",
    "loss_weight_strength": 5.0,
    "offset_noise_weight": 0.05,
    "unet": {"train": True, "weight_dtype": "FLOAT_32"},
    "text_encoder": {"train": False},
    "optimizer": {
        "optimizer": "ADAMW",
        "eps": 1e-8,
        "weight_decay": 0.01,
        "beta1": 0.9,
        "beta2": 0.999,
        "fused": True,
        "stochastic_rounding": False,
    },
    "sample_after": 1,
    "sample_after_unit": "EPOCH",
    "save_every": 5,
    "save_every_unit": "EPOCH",
    "secrets": {"huggingface_token": "hf_very_secret"},
    "concepts": CONCEPTS,
    "samples": SAMPLES,
}
LOKR: dict[str, Any] = {
    "training_method": "LORA",
    "model_type": "FLUX_DEV_1",
    "base_model_name": "black-forest-labs/FLUX.1-dev",
    "peft_type": "LOKR",
    "lokr_dim": 8,
    "lora_rank": 16,
    "lora_alpha": 4.0,
    "lokr_decompose_factor": 16,
    "layer_filter_preset": "attn-mlp",
    "resolution": "512,768",
    "transformer": {"weight_dtype": "NFLOAT_4"},
    "learning_rate": 3e-4,
    "epochs": 50,
    "batch_size": 1,
    "timestep_distribution": "LOGIT_NORMAL",
    "noising_weight": 0.5,
    "timestep_shift": 3.0,
    "ema": "OFF",
    "train_dtype": "BFLOAT_16",
    "concept_file_name": "concepts.json",
    "sample_definition_file_name": "samples.json",
    "sample_after": 10,
    "sample_after_unit": "MINUTE",
    "optimizer": {"optimizer": "ADAMW_8BIT"},
    "learning_rate_warmup_steps": 0,
    "save_every": 200,
    "save_every_unit": "STEP",
}


def test_a_full_fine_tune_keeps_every_number(imported: Translate) -> None:
    assert imported(json.dumps(FULL)).planned.config == {
        "model_family": "sdxl",
        "model_flavour": "base-1.0",
        "pretrained_model_name_or_path": "stabilityai/stable-diffusion-xl-base-1.0",
        "model_type": "full",
        "num_train_epochs": 20,
        "max_train_steps": 0,
        "train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-5,
        "max_grad_norm": 1.0,
        "grad_clip_method": "norm",
        "gradient_checkpointing": True,
        "optimizer": "torch-adamw",
        "adam_epsilon": 1e-8,
        "adam_weight_decay": 0.01,
        "optimizer_beta1": 0.9,
        "optimizer_beta2": 0.999,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 100,
        "mixed_precision": "bf16",
        "use_ema": True,
        "ema_device": "cpu",
        "ema_decay": 0.999,
        "ema_update_interval": 5,
        "attention_mechanism": "diffusers",
        "output_dir": "workspace/run",
        "report_to": "tensorboard",
        "checkpoint_epoch_interval": 5,
        "checkpoint_step_interval": 1_000_000,
        "offset_noise": True,
        "noise_offset": 0.05,
        "noise_offset_probability": 1.0,
        "snr_gamma": 5.0,
        "caption_dropout_probability": 0.0,
        "validation_step_interval": 0,
        "validation_epoch_interval": 1,
        "validation_prompt": "a cat",
        "validation_resolution": "768x1024",
        "validation_guidance": 7.0,
        "validation_num_inference_steps": 20,
        "validation_seed": 42,
        "validation_negative_prompt": "blurry",
        "data_backend_config": "mine/multidatabackend.json",
    }


def test_concepts_become_sets(imported: Translate) -> None:
    shuffled = {"enable": True, "count": 10, "position_start": 2, "include_original": False}
    assert sets(imported(json.dumps(FULL))) == [
        {
            "id": "cats",
            "dataset_type": "image",
            "instance_data_dir": "datasets/cats",
            "caption_strategy": "textfile",
            "resolution": 1024,
            "crop": False,
            "caption_shuffle": shuffled,
            "repeats": 1,
        },
        {
            "id": "held",
            "dataset_type": "eval",
            "instance_data_dir": "datasets/held",
            "caption_strategy": "filename",
            "resolution": 1024,
            "crop": False,
            "repeats": 0,
        },
        {"id": "mine-text-embeds", "dataset_type": "text_embeds", "default": True},
    ]


def test_a_full_fine_tune_names_what_it_leaves_out_and_no_default(imported: Translate) -> None:
    found = imported(json.dumps(FULL))
    assert set(reasons(found)) == {
        "optimizer.fused",
        "output_model_destination",
        "concepts[0].image.enable_random_flip",
        "concepts[2]",
        "cache_dir",
        "secrets",
    }
    assert "hf_very_secret" not in str(found)


def test_concepts_and_samples_may_come_in_files_of_their_own(imported: Translate) -> None:
    found = imported(json.dumps(LOKR), json.dumps(CONCEPTS), json.dumps([*SAMPLES, {**SAMPLES[0], "prompt": "a dog", "seed": 1}]))
    config = found.planned.config
    assert [(one["id"], one.get("resolution")) for one in sets(found)] == [
        *(("cats", 512), ("cats-2", 768), ("held", 512), ("held-2", 768)),
        ("mine-text-embeds", None),
    ]
    assert json.loads(config["user_prompt_library"]) == {"prompt-01": "a cat", "prompt-02": "a dog"}
    assert {"sample_after", "samples file 1[1]"} <= set(reasons(found)) and "concept_file_name" not in reasons(found)


def test_a_flux_lokr_keeps_its_adapter_and_timesteps(imported: Translate) -> None:
    found = imported(json.dumps(LOKR), json.dumps(CONCEPTS))
    config = found.planned.config
    assert (config["model_family"], config["model_flavour"], config["base_model_precision"]) == ("flux", "dev", "nf4-bnb")
    assert (config["flow_sigmoid_scale"], config["flow_schedule_shift"], config["optimizer"]) == (1.5, 3.0, "bnb-adamw8bit")
    assert (config["checkpoint_step_interval"], config["num_train_epochs"]) == (200, 50)
    assert found.planned.adapter == {
        "algo": "lokr",
        "multiplier": 1.0,
        "linear_dim": 8,
        "linear_alpha": 4.0,
        "factor": 16,
        "apply_preset": {"target_module": ["FluxAttention", "FeedForward"]},
    }
    assert "sample_definition_file_name" in reasons(found)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("epochs", "many", "epochs"),
        ("epochs", 1.5, "epochs"),
        ("optimizer", "ADAMW", "optimizer"),
        ("concepts", {"path": "x"}, "concepts"),
        ("concepts", [3], "concepts[0]"),
        ("resolution", "wide", "resolution"),
        ("base_model_name", ["a"], "base_model_name"),
    ],
)
def test_a_wrong_type_is_named(refused: Refused, key: str, value: Any, name: str) -> None:
    assert (name, "wrong_type") in refused(json.dumps({**FULL, key: value}))
