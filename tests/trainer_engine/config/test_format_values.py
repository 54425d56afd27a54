"""Values that shipped configurations of the format ask for, one by one: each is accepted for the families that are here."""

from __future__ import annotations

from typing import Any

import pytest

from trainer_engine.config.compatibility import check_compatibility

FLUX: dict[str, Any] = {
    "--model_family": "flux",
    "--model_type": "lora",
    "--lora_type": "standard",
    "--data_backend_config": "multidatabackend.json",
    "--output_dir": "output/x",
    "--max_train_steps": 100,
    "--mixed_precision": "bf16",
}
LYCORIS = {**FLUX, "--lora_type": "lycoris", "--lycoris_config": "lycoris_config.json"}
FULL = {**FLUX, "--model_family": "pixart_sigma", "--model_type": "full", "--optimizer": "adamw_bf16"}
SDXL = {**FLUX, "--model_family": "sdxl"}
WAN = {**FLUX, "--model_family": "wan"}
STEERED = {"--model_type": "full", "--controlnet": True}
BY_BLOCKS = {"dynamo_backend": "inductor", "dynamo_use_regional_compilation": True}
IMAGES = {"id": "images", "type": "local", "instance_data_dir": "pictures", "caption_strategy": "filename"}
HUB = {
    "id": "hub",
    "type": "huggingface",
    "dataset_name": "owner/pictures",
    "metadata_backend": "huggingface",
    "caption_strategy": "instanceprompt",
    "instance_prompt": "a picture",
}
TEXT = {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"}

OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (FULL, {"disable_bucket_pruning": True}),
    (FLUX, {"vae_enable_tiling": True, "vae_enable_slicing": True}),
    (WAN, {"vae_enable_tiling": True, "vae_enable_slicing": True, "vae_enable_temporal_roll": True, "vae_enable_patch_conv": True}),
    (WAN, {"validation_num_video_frames": 17, "framerate": 16}),
    *(
        (LYCORIS, {"base_model_precision": name})
        for name in ("int8-torchao", "int8-sdnq", "fp8wo-torchao", "fp8-torchao", "int8-quanto", "nf4-bnb", "int4-torchao")
    ),
    (FLUX, {"base_model_precision": "int8-sdnq", "sdnq_use_quantized_matmul": False, "sdnq_group_size": 0}),
    (FLUX, {"base_model_precision": "int8-torchao", "quantize_via": "pipeline"}),
    *(
        (FLUX, {"attention_mechanism": name})
        for name in ("diffusers", "flash-attn-3-hub", "flash-attn-varlen-hub", "native-efficient", "cudnn", "native-flash", "xformers")
    ),
    (FLUX, {"compress_disk_cache": False}),
    *((FLUX, {"base_model_precision": name, **BY_BLOCKS}) for name in ("int8-quanto", "int8-torchao", "no_change")),
    (FLUX, {"num_train_epochs": 0, "ignore_final_epochs": True, "strict_epoch_limit": False}),
    (FLUX, {"lr_scheduler": "cosine", "lr_warmup_steps": 400_000, "max_grad_norm": 0.0, "grad_clip_method": "value"}),
    (FLUX, {"evaluation_type": "none", "eval_steps_interval": 999_999, "validation_step_interval": 999_999, "validation_steps": 999_999}),
    (FLUX, {"validation_prompt": None, "validation_negative_prompt": None, "validation_disable_unconditional": True}),
    (FLUX, {"flow_schedule_auto_shift": True, "flow_schedule_shift": 0.0, "loss_type": "l2"}),
    (FLUX, {"flux_use_uniform_schedule": True, "flux_schedule_auto_shift": True}),
    (FLUX, {"push_to_hub": "true", "gradient_checkpointing": "true", "learning_rate": "1e-4", "validation_num_inference_steps": "20"}),
    (FLUX, {"text_encoder_batch_size": 2, "allow_dataset_oversubscription": True, "validation_torch_compile": "false"}),
    (FLUX, {"ramtorch": True, "ramtorch_target_modules": "blocks.*", "ramtorch_transformer_percent": 100, "ramtorch_text_encoder": True}),
    (FLUX, {"gradient_checkpointing_backend": "torch", "gradient_checkpointing_interval": 2, "gradient_checkpointing_segment_stride": 4}),
    (FLUX, {"resolution": 512, "resolution_type": "pixel", "aspect_bucket_rounding": 2, "minimum_image_size": 0}),
    (FLUX, {"model_flavour": "kontext", "conditioning_multidataset_sampling": "random", "optimizer": "optimi-lion", "vae_batch_size": 6}),
    (SDXL, {"use_gradient_checkpointing": True, "validation_resolution": "1024x1024,1280x768", "model_flavour": "base-1.0"}),
    (SDXL, {"loss_type": "huber", "learning_rate": 3e-7, "allow_tf32": True}),
    (WAN, {"enable_chunked_feed_forward": True, "feed_forward_chunk_size": 2, "pretrained_transformer_subfolder": "none"}),
    (WAN, {"attention_mechanism": "sageattention", "pretrained_t5_model_name_or_path": "owner/model", "ema_validation": "ema_only"}),
    (
        WAN,
        {
            "validation_guidance_skip_layers": [9],
            "validation_guidance_skip_layers_start": 0.0,
            "validation_guidance_skip_layers_stop": 1.0,
        },
    ),
    (WAN, {"tread_config": {"routes": [{"selection_ratio": 0.1, "start_layer_idx": 24, "end_layer_idx": -2}]}}),
    (FLUX, {"dynamo_backend": "inductor", "dynamo_mode": "max-autotune", "dynamo_use_regional_compilation": True}),
    (FLUX, {"offload_during_startup": True, "offload_during_save": True}),
    (FLUX, {"musubi_blocks_to_swap": 8}),
    (FULL, {"gradient_checkpointing_interval": 2}),
    (FULL, {"gradient_checkpointing_interval": 1, "gradient_checkpointing_segment_stride": 2}),
    (FLUX, {"gradient_checkpointing_backend": "unsloth"}),
    (FLUX, {"ramtorch": True}),
    (FLUX, {"enable_group_offload": True, "group_offload_type": "block_level", "group_offload_blocks_per_group": 1}),
    (SDXL, {"validation_step_interval": 0, "validation_guidance": 0}),
    (FLUX, {"vae_cache_disable": True}),
    (FLUX, {"vae_cache_ondemand": True, "text_cache_ondemand": True}),
    (FULL, {"fuse_qkv_projections": True}),
    (FLUX, {"adam_weight_decay": 0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}),
    (SDXL, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "training_scheduler_timestep_spacing": "trailing"}),
    (SDXL, {"offset_noise": True, "noise_offset": 0.05, "input_perturbation": 0.1}),
    (SDXL, {"timestep_bias_strategy": "later", "timestep_bias_multiplier": 2.0, "snr_gamma": 5, "snr_weight": 1.0}),
    (SDXL, {"train_text_encoder": True, "text_encoder_lr": 1e-6}),
    (FLUX, {"masked_loss_probability": 0.5}),
    (FLUX, {"ema_device": "cpu", "ema_cpu_only": True, "ema_warmup_steps": 10, "use_ema": True}),
    (FLUX, {"lr_scale": True}),
    (FLUX, {"optimizer": "optimi-adamw", "optimizer_release_gradients": True, "gradient_accumulation_steps": 1}),
    (FLUX, {"num_machines": 2, "machine_rank": 0, "main_process_ip": "10.0.0.1", "main_process_port": 29500, "same_network": True}),
    (FLUX, {"skip_file_discovery": "vae aspect", "metadata_update_interval": 65, "aspect_bucket_worker_count": 4}),
    (FLUX, {"tread_config": {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}]}}),
    (FULL, {"tread_config": '{"routes": [{"selection_ratio": 0.1, "start_layer_idx": 4, "end_layer_idx": -4}]}'}),
    (FLUX, {"model_flavour": "schnell", "assistant_lora_strength": 1.0, "assistant_lora_inference_strength": 0.0}),
    (FLUX, {"tokenizer_max_length": 512}),
    (FLUX, {"musubi_blocks_to_swap": 8, "dynamo_backend": "inductor", "dynamo_use_regional_compilation": True}),
    (FLUX, {"base_model_precision": "int8-sdnq", "sdnq_compile_mode": "compile", "sdnq_hadamard_group_size": 128, "sdnq_group_size": -1}),
    *((FLUX, {"attention_mechanism": name}) for name in ("metal-flash-attention", "metal-flash-attention-int8")),
    (FLUX, {"delete_problematic_images": True, "delete_unwanted_images": False}),
    (FLUX, {"keep_vae_loaded": True, "delete_model_after_load": True, "fully_unload_text_encoder": True, "torch_num_threads": 4}),
]
DATASETS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    (FLUX, [HUB]),
    (
        FLUX,
        [{**HUB, "caption_strategy": "huggingface", "huggingface": {"caption_column": "caption"}, "split": "train", "revision": "main"}],
    ),
    (FLUX, [{**HUB, "caption_strategy": "huggingface", "caption_column": "text", "image_column": "image"}]),
    (FULL, [{**IMAGES, "start_epoch": 2, "end_epoch": 4, "train_batch_size": 1}, {**IMAGES, "id": "first", "instance_data_dir": "others"}]),
    (FLUX, [{**IMAGES, "conditioning": [{"type": "superresolution", "conditioning_type": "reference_strict"}]}]),
    (FLUX, [{**IMAGES, "conditioning": {"type": "canny", "params": {"low_threshold": 100, "high_threshold": 200}, "captions": False}}]),
    (FLUX, [IMAGES, {**IMAGES, "id": "prior", "instance_data_dir": "others", "is_regularisation_data": True}]),
    (
        FLUX,
        [{**IMAGES, "caption_strategy": "parquet", "parquet": {"path": "t.parquet", "filename_column": "id", "caption_column": "text"}}],
    ),
    (
        FLUX,
        [{**IMAGES, "skip_file_discovery": "vae", "hash_filenames": True, "preserve_data_backend_cache": True, "scan_for_errors": True}],
    ),
    (WAN, [{**IMAGES, "dataset_type": "video", "video": {"num_frames": 81, "min_frames": 81, "bucket_strategy": "aspect_ratio"}}]),
    (WAN, [{**HUB, "dataset_type": "video", "video": {"num_frames": 33, "frame_interval": 2}, "video_column": "video"}]),
    (
        {**SDXL, "--model_type": "full", "--controlnet": True},
        [{**IMAGES, "conditioning": [{"type": "canny", "conditioning_type": "controlnet"}]}],
    ),
    ({**FLUX, **STEERED}, [{**HUB, "conditioning": [{"type": "canny", "captions": False}]}]),
    (
        {**FLUX, "--controlnet": True, "--flux_lora_target": "controlnet", "--lora_rank": 64, "--lora_alpha": 64},
        [{**HUB, "conditioning": {"type": "canny", "conditioning_type": "controlnet", "captions": ["a block"]}}],
    ),
    (
        {**SDXL, "--controlnet": True, "--vae_cache_ondemand": True, "--optimizer": "bnb-lion8bit", "--learning_rate": 3e-5},
        [
            {**IMAGES, "conditioning_data": "edges"},
            {"id": "edges", "type": "local", "instance_data_dir": "e", "dataset_type": "conditioning", "conditioning_type": "controlnet"},
        ],
    ),
    (FLUX, [{**IMAGES, "vae_cache_ondemand": True, "max_workers": 4, "read_batch_size": 2, "disable_validation": True}]),
    (
        FLUX,
        [
            {
                **HUB,
                "caption_strategy": "huggingface",
                "image_column": "Image",
                "caption_column": "Caption",
                "huggingface": {
                    "dataset_name": HUB["dataset_name"],
                    "image_column": "Image",
                    "caption_column": "Caption",
                    "file_extension": "jpg",
                },
            }
        ],
    ),
    (
        FLUX,
        [
            {
                **HUB,
                "caption_strategy": "huggingface",
                "huggingface": {
                    "caption_column": ["title", "tags"],
                    "fallback_caption_column": "filename",
                    "description_column": "description",
                    "width_column": "original_width",
                    "height_column": "original_height",
                    "filter_func": {"quality_thresholds": {"aesthetic_score": 6.0}, "collection": "one", "min_width": 768},
                    "composite_image_config": {"enabled": True, "image_count": 2, "select_index": 1},
                },
            }
        ],
    ),
    (FLUX, [{"id": "hub", "type": "huggingface", "dataset_name": "owner/pictures", "probability": 0.7, "streaming": True, "num_proc": 16}]),
    (WAN, [{**HUB, "dataset_type": "video", "huggingface": {"num_frames_column": "frames", "fps_column": "fps"}}]),
    (
        WAN,
        [
            {
                **HUB,
                "dataset_type": "video",
                "crop": True,
                "crop_style": "random",
                "crop_aspect": "closest",
                "crop_aspect_buckets": [1.5],
                "resolution": 512,
                "resolution_type": "pixel",
                "max_num_samples": 4,
                "cache_file_suffix": "clips",
                "video": {"num_frames": 49, "min_frames": 49, "is_i2v": True, "frame_rate": 25},
            }
        ],
    ),
    (
        WAN,
        [
            {
                **IMAGES,
                "dataset_type": "video",
                "video": {"bucket_strategy": "resolution_frames", "frame_interval": 25, "min_frames": 25, "max_frames": 250},
            }
        ],
    ),
    (
        {**FLUX, "--model_flavour": "kontext", "--conditioning_multidataset_sampling": "random"},
        [{**HUB, "conditioning": {"type": "canny", "conditioning_type": "controlnet", "captions": ["a picture"]}}],
    ),
    (
        {**FLUX, "--model_flavour": "kontext"},
        [
            {**IMAGES, "conditioning_data": "references"},
            {
                "id": "references",
                "type": "local",
                "instance_data_dir": "others",
                "conditioning_type": "reference_loose",
                "caption_strategy": "textfile",
            },
        ],
    ),
    (
        {**SDXL, **STEERED},
        [
            {**IMAGES, "conditioning_data": "edges", "cache_file_suffix": "controlnet"},
            {
                "id": "edges",
                "type": "local",
                "dataset_type": "conditioning",
                "instance_data_dir": "edges",
                "caption_strategy": "instanceprompt",
                "instance_prompt": "a picture",
                "cache_file_suffix": "controlnet",
            },
        ],
    ),
    (
        FLUX,
        [
            {**IMAGES, "image_embeds": "latents", "skip_file_discovery": "", "preserve_data_backend_cache": False},
            {"id": "latents", "type": "local", "dataset_type": "image_embeds", "disabled": False},
        ],
    ),
    (FLUX, [{**IMAGES, "delete_problematic_images": True, "delete_unwanted_images": True, "ignore_epochs": True}]),
    (FLUX, [{**IMAGES, "end_step": 300}, {**IMAGES, "id": "late", "instance_data_dir": "others", "start_step": 300}]),
    (
        FLUX,
        [
            {
                **HUB,
                "resolution": 0.262144,
                "resolution_type": "area",
                "minimum_image_size": 0.016384,
                "crop_aspect": "preserve",
                "repeats": 99,
                "train_batch_size": 20,
                "probability": 0.08333333333333333,
                "is_regularisation_data": False,
            }
        ],
    ),
]
ELSEWHERE: list[tuple[str, list[dict[str, Any]]]] = [
    ("ace_step", [{**HUB, "dataset_type": "audio", "audio": {"bucket_strategy": "duration", "duration_interval": 3.0}}]),
    ("heartmula", [{**HUB, "dataset_type": "audio"}]),
    ("cosmos3", [{**IMAGES, "dataset_type": "video", "audio": {"auto_split": True, "sample_rate": 16000, "allow_zero_audio": False}}]),
    ("wan_s2v", [{**IMAGES, "dataset_type": "video", "s2v_datasets": ["sound"]}, {**IMAGES, "id": "sound", "dataset_type": "audio"}]),
    ("omnigen", [{**HUB, "conditioning": {"type": "canny", "conditioning_type": "controlnet", "captions": ["a picture"]}}]),
    ("omnigen", [{**HUB, "conditioning": {"type": "canny", "conditioning_type": "reference_strict", "params": {"low_threshold": 100}}}]),
    (
        "hunyuanvideo",
        [
            {**IMAGES, "conditioning_data": ["references"], "conditioning_image_embeds": "seen"},
            {"id": "references", "instance_data_dir": "others", "conditioning_type": "reference_strict"},
            {"id": "seen", "type": "local", "dataset_type": "conditioning_image_embeds", "cache_dir": "cache/seen"},
        ],
    ),
]
"""Families that are not here, with what their datasets have of their own."""


@pytest.mark.parametrize(("given", "asked"), OPTIONS, ids=lambda value: "+".join(value) if isinstance(value, dict) else None)
def test_a_value_of_shipped_configurations_is_no_obstacle(given: dict[str, Any], asked: dict[str, Any]) -> None:
    report = check_compatibility({**given, **{f"--{name}": value for name, value in asked.items()}}, [HUB, TEXT])
    assert [str(one.problem) for one in report.obstacles] == []


@pytest.mark.parametrize(("given", "datasets"), DATASETS)
def test_a_datasets_file_of_shipped_configurations_is_no_obstacle(given: dict[str, Any], datasets: list[dict[str, Any]]) -> None:
    assert [str(one.problem) for one in check_compatibility(given, [*datasets, TEXT]).obstacles] == []


@pytest.mark.parametrize(("family", "datasets"), ELSEWHERE, ids=lambda value: value if isinstance(value, str) else None)
def test_what_datasets_of_other_families_have_of_their_own_is_no_obstacle_beside_the_family(
    family: str, datasets: list[dict[str, Any]]
) -> None:
    report = check_compatibility({**FLUX, "--model_family": family, "--controlnet": False}, [*datasets, TEXT])
    assert [one.problem.option for one in report.obstacles] == ["model_family"]


@pytest.mark.parametrize("family", ["ltxvideo2", "hunyuanvideo", "omnigen", "ace_step", "cosmos", "kandinsky5-video"])
def test_a_family_that_is_not_here_is_all_that_is_named(family: str) -> None:
    given = {**FLUX, "--model_family": family, "--model_flavour": "own-flavour", "--vae_enable_tiling": True, "--musubi_blocks_to_swap": 4}
    assert [one.problem.option for one in check_compatibility(given, [HUB, TEXT]).obstacles] == ["model_family"]
