"""Values that shipped configurations of the format combine, put to ``validate`` whole, with rows in the place of the hub's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.dataset_hub import rows, shard, shards, write
from tests.helpers.models import tiny_model
from tests.helpers.video_files import write_video
from trainer_engine.config.datasets.names import are_datasets
from training.preflight.run import examine_run
from training.preflight.summary import PreflightReport

ROWS = {"type": "huggingface", "metadata_backend": "huggingface", "cache_dir_vae": "cache/vae/{model_family}/rows"}
TEXTS = {"id": "alt-embed-cache", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text/{model_family}"}
PICTURES = {
    **ROWS,
    "id": "pictures",
    "caption_strategy": "instanceprompt",
    "instance_prompt": "a picture",
    "crop": True,
    "crop_style": "random",
    "crop_aspect": "square",
    "resolution": 256,
    "resolution_type": "pixel_area",
    "minimum_image_size": 128,
    "maximum_image_size": 256,
    "target_downsample_size": 256,
}
CANNY = {"type": "canny", "conditioning_type": "controlnet", "captions": ["edges"]}
EDGES = {**PICTURES, "crop": False, "repeats": 4, "conditioning": CANNY}
CLIPS = {
    **ROWS,
    "id": "clips",
    "dataset_type": "video",
    "caption_strategy": "huggingface",
    "crop": False,
    "resolution": 128,
    "resolution_type": "pixel_area",
    "video": {"num_frames": 17},
    "huggingface": {"video_column": "video", "caption_column": "prompt"},
}
GIVEN: dict[str, Any] = {
    "output_dir": "output/examples/x",
    "data_backend_config": "config/examples/sets.json",
    "model_type": "lora",
    "lora_type": "standard",
    "lora_rank": 16,
    "max_train_steps": 100,
    "num_train_epochs": 0,
    "train_batch_size": 1,
    "learning_rate": 1e-4,
    "optimizer": "adamw_bf16",
    "lr_scheduler": "constant",
    "mixed_precision": "bf16",
    "seed": 42,
    "report_to": "none",
    "push_to_hub": False,
    "push_checkpoints_to_hub": False,
    "hub_model_id": "x",
    "tracker_project_name": "lora-training",
    "tracker_run_name": "x",
    "use_ema": False,
    "disable_benchmark": False,
    "minimum_image_size": 0,
    "resume_from_checkpoint": "latest",
    "vae_batch_size": 1,
    "gradient_checkpointing": True,
    "quantize_via": "cpu",
    "validation_guidance_rescale": 0.0,
    "validation_num_inference_steps": 16,
    "validation_prompt": "a picture",
    "validation_resolution": "256x256",
    "validation_seed": 42,
    "validation_torch_compile": False,
}
LOKR = {"bypass_mode": True, "algo": "lokr", "multiplier": 1.0, "linear_dim": 10000, "linear_alpha": 1, "factor": 4}
PRESET = {"target_module": ["Attention"], "module_algo_map": {"Attention": {"factor": 2}}}
OF_LYCORIS = {"lora_type": "lycoris", "lora_alpha": 128, "lora_rank": 128, "lycoris_config": "config/examples/lycoris.json"}
OF_FLOW = {"flow_schedule_shift": 3, "grad_clip_method": "value", "num_eval_images": 25, "validation_disable_unconditional": True}
QUANTISED = {"base_model_precision": "int8-quanto", "fuse_qkv_projections": False, "disable_bucket_pruning": True}
STEERED = {"controlnet": True, "flux_lora_target": "controlnet"}
OF_WAN = {
    "model_family": "wan",
    "compress_disk_cache": True,
    "delete_problematic_images": False,
    "ema_update_interval": 2,
    "grad_clip_method": "value",
    "offload_during_startup": True,
    "strict_epoch_limit": False,
    "vae_enable_slicing": True,
    "vae_enable_tiling": True,
    "validation_num_video_frames": 17,
}
OF_THIS_MACHINE = "memory_too_small"
"""The code of an error of networks in the published size."""
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pixart with a LoKr": ({**OF_FLOW, **OF_LYCORIS, "model_family": "pixart", "base_model_precision": "no_change"}, PICTURES),
    "pixart with a ControlNet": ({**OF_FLOW, "model_family": "pixart_sigma", "controlnet": True, "num_eval_images": 1}, EDGES),
    "sdxl with a LoKr": ({**OF_LYCORIS, "model_family": "sdxl", "loss_type": "huber", "caption_dropout_probability": 0.1}, PICTURES),
    "sdxl with a ControlNet": ({"model_family": "sdxl", "controlnet": True, "lr_warmup_steps": 0, "lora_alpha": 16}, EDGES),
    "flux": ({**OF_FLOW, **QUANTISED, "model_family": "flux", "controlnet": False, "lora_alpha": 16}, PICTURES),
    "flux with a ControlNet": (
        {**OF_FLOW, **QUANTISED, **STEERED, "model_family": "flux"},
        EDGES,
    ),
    "kontext": (
        {
            **QUANTISED,
            "model_family": "flux",
            "model_flavour": "kontext",
            "conditioning_multidataset_sampling": "random",
            "gradient_checkpointing_interval": 1,
            "optimizer": "optimi-lion",
            "learning_rate": 1e-8,
        },
        EDGES,
    ),
    "chroma": ({**OF_FLOW, **QUANTISED, "model_family": "chroma", "controlnet": False, "validation_guidance": 4.0}, PICTURES),
    "sana with a LoKr": (
        {
            **OF_FLOW,
            **OF_LYCORIS,
            "model_family": "sana",
            "ema_validation": "comparison",
            "lr_scheduler": "constant_with_warmup",
            "lr_warmup_steps": 10,
            "use_ema": True,
            "validation_lycoris_strength": 1.0,
            "validation_negative_prompt": "blurry",
            "validation_disable_unconditional": False,
        },
        PICTURES,
    ),
    "auraflow with a LoKr": (
        {
            **OF_FLOW,
            **OF_LYCORIS,
            "model_family": "auraflow",
            "model_flavour": "pony",
            "learning_rate": 4e-5,
            "max_grad_norm": 0.01,
            "optimizer": "optimi-lion",
            "validation_guidance": 4.0,
            "validation_num_inference_steps": 30,
        },
        PICTURES,
    ),
    "lumina 2": (
        {
            **QUANTISED,
            "model_family": "lumina2",
            "checkpoint_step_interval": 50,
            "flow_schedule_auto_shift": True,
            "flow_schedule_shift": 0.0,
            "lora_alpha": 16,
            "train_batch_size": 2,
            "validation_disable_unconditional": True,
            "validation_guidance": 4.0,
            "validation_negative_prompt": "ugly, cropped, blurry, low-quality, mediocre average",
            "validation_num_inference_steps": 40,
            "validation_prompt_library": False,
            "validation_resolution": "512x512",
            "validation_steps": 50,
        },
        {**PICTURES, "crop": False, "resolution_type": "pixel"},
    ),
    "qwen image": (
        {
            "model_family": "qwen_image",
            "model_flavour": "v1.0",
            "base_model_precision": "int2-quanto",
            "flow_schedule_shift": 1.73,
            "optimizer": "optimi-lion",
            "lr_scheduler": "constant_with_warmup",
            "lr_warmup_steps": 10,
            "max_grad_norm": 0.01,
            "validation_guidance": 4.0,
        },
        PICTURES,
    ),
    "wan": (
        {**OF_WAN, "model_flavour": "t2v-480p-14b-2.1"},
        CLIPS,
    ),
    "wan from a first frame": (
        {**OF_WAN, **OF_FLOW, "model_flavour": "i2v-14b-2.1", "base_model_precision": "int8-quanto", "validation_guidance": 5},
        {**CLIPS, "video": {"num_frames": 17, "min_frames": 17, "is_i2v": True}, "conditioning_image_embeds": "seen"},
    ),
    "wan from a first frame at 720p": (
        {**OF_WAN, **OF_LYCORIS, "model_flavour": "i2v-14b-2.1-720p", "resolution": 128, "validation_using_datasets": True},
        {**CLIPS, "cache_dir_conditioning_image_embeds": "cache/seen", "conditioning_image_embed_batch_size": 2},
    ),
    "wan from a first frame without validations": (
        {**OF_WAN, "model_flavour": "i2v-14b-2.1", "validation_disable": True, "disable_bucket_pruning": True},
        {**CLIPS, "crop": True, "crop_style": "random", "crop_aspect": "closest", "crop_aspect_buckets": [1.5]},
    ),
}
MADE_FOR = {name: {"animates": True} for name in CASES if "from a first frame" in name}
"""Case -> how its micro model is made, if it is not the usual one of its family."""
SEEN = {"id": "seen", "type": "local", "dataset_type": "conditioning_image_embeds", "cache_dir": "cache/seen", "disabled": False}


@pytest.fixture(scope="module")
def hub_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows of pictures and of clips, laid out like datasets of the hub."""
    place = tmp_path_factory.mktemp("rows")
    clip = write_video(place / "clip.mp4", 20, size=(160, 96)).read_bytes()
    cells = [{"video": {"bytes": clip, "path": f"{number}.mp4"}, "prompt": f"clip {number}"} for number in range(3)]
    pictures = write(place / "pictures", shards(1, rows(4, size=(300, 300))))
    return {"pictures": pictures, "clips": write(place / "clips", {"data/train-00000-of-00001.parquet": shard(cells)})}


def validated(place: Path, options: dict[str, Any], datasets: list[dict[str, Any]], **model: Any) -> PreflightReport:
    """What ``validate`` says of the options with the micro model of their family; ``model``: how it is made."""
    home, family = Home(place), "pixart_sigma" if options["model_family"] == "pixart" else options["model_family"]
    (place / "config/examples").mkdir(parents=True)
    (place / "config/examples/sets.json").write_text(json.dumps(datasets))
    (place / "config/examples/lycoris.json").write_text(json.dumps({**LOKR, "apply_preset": PRESET}))
    values = {**GIVEN, "pretrained_model_name_or_path": str(tiny_model(family, **model)), **options}
    variables = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hf")}
    return examine_run(resolve_run(home, {}, {f"--{name}": value for name, value in values.items()}), home, variables)


@pytest.mark.parametrize("case", CASES)
def test_values_of_shipped_configurations_validate_together(case: str, hub_rows: dict[str, Path], tmp_path: Path) -> None:
    options, entry = CASES[case]
    datasets = [{**entry, "dataset_name": str(hub_rows[entry["id"]])}, TEXTS, *([SEEN] if "conditioning_image_embeds" in entry else [])]
    report = validated(tmp_path, options, datasets, **MADE_FOR.get(case, {}))
    assert [str(problem) for problem in report.errors if problem.code != OF_THIS_MACHINE] == []
    assert are_datasets(datasets) and report.understood is not None


def test_a_set_of_rows_that_is_not_there_is_the_only_error(tmp_path: Path) -> None:
    options, entry = CASES["kontext"]
    report = validated(tmp_path, options, [{**entry, "dataset_name": "owner/nowhere"}, TEXTS])
    assert [problem.option for problem in report.errors] == ["dataloader[0].dataset_name"]
