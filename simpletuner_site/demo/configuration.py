"""The demo's configuration: the tutorial's PixArt configuration with other paths and smaller sizes and step counts."""

from __future__ import annotations

from typing import Any

from simpletuner_site.demo.folders import ENVIRONMENT, PROMPTS_FILE, DemoFolders

STEPS = 640
EDGE = 128
MEGAPIXELS = EDGE * EDGE / 1e6
PROMPTS = {
    "boat": "a white boat on the sea under an orange sky",
    "moon": "a blue moon over dark mountains at night",
    "house": "a red house in the snow",
    "forest": "a forest in green light",
}
"""The prompt library: shortname -> prompt of every validation."""


def datasets(folders: DemoFolders) -> list[dict[str, Any]]:
    """The content of ``multidatabackend.json``."""
    return [
        {
            "id": "demo-pictures",
            "type": "local",
            "dataset_type": "image",
            "instance_data_dir": str(folders.pictures),
            "caption_strategy": "filename",
            "resolution": MEGAPIXELS,
            "resolution_type": "area",
            "minimum_image_size": MEGAPIXELS,
            "maximum_image_size": 2 * MEGAPIXELS,
            "target_downsample_size": 1.5 * MEGAPIXELS,
            "cache_dir_vae": str(folders.caches / "vae"),
            "crop": True,
            "crop_style": "center",
            "crop_aspect": "square",
            "metadata_backend": "discovery",
        },
        {
            "id": "demo-text-embeds",
            "type": "local",
            "dataset_type": "text_embeds",
            "default": True,
            "cache_dir": str(folders.caches / "text"),
            "write_batch_size": 128,
        },
    ]


def hyperparameters(folders: DemoFolders) -> dict[str, Any]:
    """The options that the tutorial's third step sets."""
    return {
        # By its path, so that a server that is started later, without the demo's HF_HOME, finds it too.
        "--pretrained_model_name_or_path": str(folders.model),
        "--output_dir": str(folders.output),
        "--train_batch_size": 4,
        "--gradient_accumulation_steps": 1,
        "--learning_rate": 0.001,
        "--optimizer": "adamw_bf16",
        "--lr_scheduler": "cosine",
        "--lr_warmup_steps": 20,
        "--max_train_steps": STEPS,
        "--num_train_epochs": 0,
        "--caption_dropout_probability": 0.1,
        "--mixed_precision": "no",  # float32: bfloat16 is slow on most CPUs
        "--vae_dtype": "fp32",
        "--prediction_type": "v_prediction",  # trained from scratch, it learns colours far sooner than with noise as target
        "--user_prompt_library": f"config/{ENVIRONMENT}/{PROMPTS_FILE}",
        "--validation_disable_unconditional": True,
        "--validation_negative_prompt": "",
        "--validation_guidance": 2.0,
        "--validation_resolution": f"{EDGE}x{EDGE}",
        "--validation_noise_scheduler": "euler-a",
        "--validation_num_inference_steps": 20,
        "--validation_step_interval": STEPS // 4,
        "--validation_seed": 12345,
        "--checkpoint_step_interval": STEPS // 2,
        "--checkpoints_total_limit": 2,
        "--resume_from_checkpoint": "latest",
        "--cache_dir_vae": str(folders.caches / "vae"),
        "--seed": 1337,
        "--report_to": "none",
    }
