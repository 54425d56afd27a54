"""TOML of sd-scripts: an SDXL LoKr with its file of datasets, and a Flux LoRA with folders among the arguments."""

from __future__ import annotations

import pytest

from tests.environments.imports.conftest import Refused, Translate, reasons, sets

LOKR = """
[model_arguments]
pretrained_model_name_or_path = "/data/models/sd_xl_base_1.0.safetensors"
vae = "/data/models/sdxl_vae.safetensors"

[additional_network_arguments]
network_module = "lycoris.kohya"
network_dim = 16
network_alpha = 8
network_args = ["algo=lokr", "factor=8", "conv_dim=8", "conv_alpha=4", "preset=attn-mlp", "decompose_both=True", "verbose=1"]
network_train_unet_only = true

[optimizer_arguments]
optimizer_type = "Prodigy"
optimizer_args = ["decouple=True", "weight_decay=0.01", "d_coef=2", "betas=0.9,0.99"]
learning_rate = 1.0
lr_scheduler = "cosine"
lr_warmup_steps = 0.05

[training_arguments]
output_dir = "/workspace/out"
output_name = "style_lokr"
max_train_steps = 2000
train_batch_size = 4
mixed_precision = "bf16"
save_every_n_epochs = 1
xformers = true
gradient_checkpointing = true
seed = 7
min_snr_gamma = 5
noise_offset = 0.0357
max_token_length = 225
cache_latents = true
huggingface_token = "hf_abcdefgh"
wandb_api_key = "verysecret"
sample_prompts = "/workspace/prompts.txt"
sample_every_n_epochs = 1
clip_skip = 2
"""
DATASETS = """
[general]
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1

[[datasets]]
resolution = [1024, 1024]
batch_size = 4
enable_bucket = true
bucket_reso_steps = 64
max_bucket_reso = 2048

  [[datasets.subsets]]
  image_dir = "datasets/style"
  num_repeats = 10
  caption_dropout_rate = 0.05
  caption_prefix = "oil painting,"
  flip_aug = true

  [[datasets.subsets]]
  image_dir = "datasets/prior"
  is_reg = true
  class_tokens = "painting"

[[datasets]]
resolution = "768,512"
batch_size = 2

  [[datasets.subsets]]
  image_dir = 'C:\\small'
  shuffle_caption = false
  conditioning_data_dir = "datasets/masks"
"""
FLUX = """
pretrained_model_name_or_path = "/data/models/flux1-dev.safetensors"
clip_l = "/data/models/clip_l.safetensors"
t5xxl = "/data/models/t5xxl_fp16.safetensors"
ae = "/data/models/ae.safetensors"
train_data_dir = "datasets/person"
reg_data_dir = "datasets/people"
resolution = "1024,768"
enable_bucket = true
caption_extension = ".txt"
network_module = "networks.lora_flux"
network_dim = 32
network_alpha = 16
network_dropout = 0.1
network_args = ["train_blocks=single"]
optimizer_type = "pytorch_optimizer.CAME"
optimizer_args = ["eps=1e-30", "clip_threshold=1.0"]
learning_rate = "1e-4"
lr_scheduler = "constant"
lr_warmup_steps = 50
max_train_epochs = 8
max_train_steps = 9000
train_batch_size = 1
gradient_accumulation_steps = 4
save_every_n_steps = 500
save_last_n_epochs = 3
mixed_precision = "bf16"
sdpa = true
fp8_base = true
blocks_to_swap = 18
timestep_sampling = "shift"
discrete_flow_shift = 3.1582
model_prediction_type = "raw"
guidance_scale = 1.0
loss_type = "l2"
log_with = "wandb"
output_name = "person"
"""


def test_an_sdxl_lokr_keeps_every_number(imported: Translate) -> None:
    assert imported(LOKR, DATASETS).planned.config == {
        "model_family": "sdxl",
        "model_flavour": "base-1.0",
        "pretrained_model_name_or_path": "/data/models/sd_xl_base_1.0.safetensors",
        "pretrained_vae_model_name_or_path": "/data/models/sdxl_vae.safetensors",
        "num_train_epochs": 0,
        "max_train_steps": 2000,
        "learning_rate": 1.0,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": True,
        "max_grad_norm": 1.0,
        "grad_clip_method": "norm",
        "seed": 7,
        "optimizer": "prodigy",
        "adam_weight_decay": 0.01,
        "optimizer_beta1": 0.9,
        "optimizer_beta2": 0.99,
        "optimizer_config": {"decouple": True, "d_coef": 2.0},
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 100,
        "mixed_precision": "bf16",
        "attention_mechanism": "xformers",
        "output_dir": "/workspace/out/style_lokr",
        "checkpoint_epoch_interval": 1,
        "checkpoint_step_interval": 1_000_000,
        "validation_epoch_interval": 1,
        "validation_step_interval": 0,
        "model_type": "lora",
        "lora_type": "lycoris",
        "lycoris_config": "mine/lycoris_config.json",
        "offset_noise": True,
        "noise_offset": 0.0357,
        "noise_offset_probability": 1.0,
        "snr_gamma": 5.0,
        "aspect_bucket_alignment": 64,
        "train_batch_size": 4,
        "caption_dropout_probability": 0.05,
        "data_backend_config": "mine/multidatabackend.json",
    }


def test_the_arguments_of_lycoris_become_its_file(imported: Translate) -> None:
    assert imported(LOKR, DATASETS).planned.adapter == {
        "algo": "lokr",
        "multiplier": 1.0,
        "linear_dim": 16,
        "linear_alpha": 8,
        "factor": 8,
        "decompose_both": True,
        "apply_preset": {"target_module": ["Attention", "FeedForward"]},
    }


def test_the_whole_preset_has_convolutions(imported: Translate) -> None:
    adapter = imported(LOKR.replace("preset=attn-mlp", "preset=full"), DATASETS).planned.adapter
    assert adapter is not None and (adapter["conv_dim"], adapter["conv_alpha"]) == (8, 4)
    assert adapter["apply_preset"]["target_module"][-3:] == ["ResnetBlock2D", "Downsample2D", "Upsample2D"]
    assert adapter["apply_preset"]["enable_conv"] is True


def test_subsets_take_the_values_of_their_dataset_and_of_general(imported: Translate) -> None:
    shuffled = {"enable": True, "count": 10, "position_start": 1, "include_original": False}
    same = {"dataset_type": "image", "caption_strategy": "textfile"}
    assert sets(imported(LOKR, DATASETS)) == [
        {
            "id": "style",
            **same,
            "instance_data_dir": "datasets/style",
            "repeats": 9,
            "resolution": 1024,
            "crop": False,
            "caption_shuffle": shuffled,
            "instance_prompt": "oil painting,",
            "prepend_instance_prompt": True,
        },
        {
            "id": "prior",
            **same,
            "instance_data_dir": "datasets/prior",
            "repeats": 0,
            "resolution": 1024,
            "crop": False,
            "caption_shuffle": shuffled,
            "is_regularisation_data": True,
        },
        {
            "id": "small",
            **same,
            "instance_data_dir": "C:\\small",
            "repeats": 0,
            "resolution": 627,
            "train_batch_size": 2,
            "crop": True,
            "crop_style": "center",
            "crop_aspect": "square",
            "conditioning_data": ["masks"],
        },
        {"id": "masks", "dataset_type": "conditioning", "conditioning_type": "mask", "instance_data_dir": "datasets/masks"},
        {"id": "mine-text-embeds", "dataset_type": "text_embeds", "default": True},
    ]


def test_an_sdxl_lokr_names_what_it_leaves_out(imported: Translate) -> None:
    found = imported(LOKR, DATASETS)
    assert set(reasons(found)) == {
        "network_args.verbose",
        "network_args.conv_dim",
        "network_args.conv_alpha",
        "max_token_length",
        "cache_latents",
        "huggingface_token",
        "wandb_api_key",
        "sample_prompts",
        "clip_skip",
        "datasets[0].max_bucket_reso",
        "datasets[0].subsets[0].flip_aug",
        "datasets[0].subsets[1].class_tokens",
    }
    assert "hf_abcdefgh" not in str(found) and "verysecret" not in str(found)


def test_a_flux_lora_with_folders_among_its_arguments(imported: Translate) -> None:
    found = imported(FLUX)
    config = found.planned.config
    assert {
        name: config[name] for name in config if name.startswith(("model", "pretrained", "lora", "flow", "flux", "base", "musubi"))
    } == {
        "model_family": "flux",
        "model_flavour": "dev",
        "pretrained_transformer_model_name_or_path": "/data/models/flux1-dev.safetensors",
        "pretrained_vae_model_name_or_path": "/data/models/ae.safetensors",
        "base_model_precision": "fp8-native",
        "musubi_blocks_to_swap": 18,
        "model_type": "lora",
        "lora_rank": 32,
        "lora_alpha": 16.0,
        "lora_dropout": 0.1,
        "flux_guidance_value": 1.0,
        "flux_lora_target": "all+ffs",
        "flow_sigmoid_scale": 1.0,
        "flow_schedule_shift": 3.1582,
    }
    assert (config["num_train_epochs"], config["max_train_steps"], config["gradient_accumulation_steps"]) == (8, 0, 4)
    assert (config["lr_scheduler"], config["lr_warmup_steps"], config["learning_rate"]) == ("constant_with_warmup", 50, 1e-4)
    assert (config["checkpoint_step_interval"], config["checkpoints_total_limit"], config["report_to"]) == (500, 3, "wandb")
    assert [(one["id"], one.get("is_regularisation_data"), one.get("resolution")) for one in sets(found)] == [
        ("person", None, 887),
        ("people", True, 887),
        ("mine-text-embeds", None, None),
    ]


def test_an_unknown_optimizer_gives_way_to_adamw_by_name(imported: Translate) -> None:
    found = imported(FLUX)
    assert found.planned.config["optimizer"] == "torch-adamw" and "optimizer_config" not in found.planned.config
    assert set(reasons(found)) == {
        "optimizer_type",
        "optimizer_args.clip_threshold",
        "max_train_steps",
        "network_args.train_blocks",
        "train_data_dir",
        "reg_data_dir",
        "clip_l",
        "t5xxl",
        "model_prediction_type",
    }


def test_arguments_without_datasets_get_those_of_a_new_environment(imported: Translate) -> None:
    found = imported(LOKR)
    assert [one["id"] for one in sets(found)] == ["mine-images", "mine-text-embeds"]
    assert "datasets/mine" in reasons(found)["datasets"]


def test_a_file_that_names_no_model_is_refused_until_the_family_is_named(imported: Translate, refused: Refused) -> None:
    text = LOKR.replace("sd_xl_base_1.0", "unnamed")
    assert refused(text, DATASETS) == [("model_family", "missing")]
    assert imported(text, DATASETS, family="sdxl").planned.config["model_family"] == "sdxl"


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ("max_train_steps = 2000", 'max_train_steps = "soon"', "max_train_steps"),
        ('network_args = ["algo=lokr",', 'network_args = ["algo",', "network_args"),
        ("gradient_checkpointing = true", "gradient_checkpointing = 3.5", "gradient_checkpointing"),
        ('optimizer_args = ["decouple=True",', "optimizer_args = 3 #", "optimizer_args"),
    ],
)
def test_a_wrong_type_is_named(refused: Refused, before: str, after: str, name: str) -> None:
    assert before in LOKR
    assert (name, "wrong_type") in refused(LOKR.replace(before, after), DATASETS)


def test_text_encoders_are_trained_unless_the_file_says_no(imported: Translate) -> None:
    plain = LOKR.replace('network_module = "lycoris.kohya"', 'network_module = "networks.lora"').replace("network_args", "unused_args")
    only_network = imported(plain, DATASETS).planned.config
    assert "train_text_encoder" not in only_network and only_network["lora_rank"] == 16
    both = plain.replace("network_train_unet_only = true", "text_encoder_lr = [5e-5, 1e-5]").replace("Prodigy", "AdamW")
    config = imported(both, DATASETS).planned.config
    assert (config["train_text_encoder"], config["text_encoder_lr"]) == (True, 5e-5)
    found = imported(LOKR.replace("network_train_unet_only = true", ""), DATASETS)
    assert "train_text_encoder" not in found.planned.config and "network_train_unet_only" in reasons(found)


def test_skipped_layers_count_from_the_last(imported: Translate) -> None:
    text = LOKR.replace("sd_xl_base_1.0", "v1-5-pruned-emaonly").replace("lycoris.kohya", "networks.lora").replace("network_args", "unused")
    config = imported(text, DATASETS).planned.config
    assert (config["model_family"], config["clip_skip"]) == ("sd1x", 1)


def test_a_file_without_a_network_trains_all_weights(imported: Translate) -> None:
    lines = [line for line in LOKR.splitlines() if not line.startswith("network_")]
    found = imported("\n".join(lines), DATASETS)
    assert found.planned.config["model_type"] == "full" and found.planned.adapter is None
