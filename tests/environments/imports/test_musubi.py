"""TOML of musubi-tuner: clips and stills for Wan, and edit pairs for Kontext."""

from __future__ import annotations

from typing import Any

import pytest

from environments.imports import musubi
from environments.imports.documents import parse_document
from environments.imports.draft import Draft
from environments.imports.vocabulary import find_model
from tests.environments.imports.conftest import Refused, Translate, reasons, sets

WAN = """
dit = "/data/models/wan2.1_t2v_1.3B_bf16.safetensors"
vae = "/data/models/Wan2.1_VAE.pth"
t5 = "/data/models/umt5.pth"
task = "t2v-1.3B"
dataset_config = "clips.toml"
sdpa = true
mixed_precision = "bf16"
fp8_base = true
optimizer_type = "adamw8bit"
learning_rate = 2e-4
gradient_checkpointing = true
max_data_loader_n_workers = 2
network_module = "networks.lora_wan"
network_dim = 32
timestep_sampling = "shift"
discrete_flow_shift = 3.0
max_train_epochs = 16
save_every_n_epochs = 1
seed = 42
output_dir = "out"
output_name = "wan_clips"
blocks_to_swap = 10
"""
CLIPS = """
[general]
resolution = [832, 480]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
bucket_no_upscale = false

[[datasets]]
video_directory = "datasets/clips"
cache_directory = "/data/cache"
target_frames = [1, 25, 45]
frame_extraction = "head"

[[datasets]]
image_directory = "datasets/stills"
num_repeats = 2
"""
KONTEXT = """
dit = "/data/models/flux1-kontext-dev.safetensors"
network_module = "networks.lora_flux"
network_dim = 16
network_alpha = 16
network_args = ["loraplus_lr_ratio=4"]
sage_attn = true
optimizer_type = "AdamW"
learning_rate = 1e-4
max_train_steps = 1000
timestep_sampling = "flux_shift"
weighting_scheme = "none"
mixed_precision = "bf16"
gradient_checkpointing = true
output_name = "edit"
"""
PAIRS = """
[[datasets]]
image_directory = "datasets/after"
control_directory = "datasets/before"
resolution = [1024, 1024]
batch_size = 2

[[datasets]]
image_jsonl_file = "/data/pairs.jsonl"
cache_directory = "/data/cache2"
"""


def drafted(*texts: str) -> Draft:
    """The translation before this trainer's own checks."""
    draft = Draft("mine")
    musubi.translate([parse_document(text, "text.toml").value for text in texts], draft)
    return draft


def test_a_wan_lora_keeps_every_number(imported: Translate) -> None:
    assert imported(WAN, CLIPS).planned.config == {
        "model_family": "wan",
        "model_flavour": "t2v-480p-1.3b-2.1",
        "pretrained_transformer_model_name_or_path": "/data/models/wan2.1_t2v_1.3B_bf16.safetensors",
        "base_model_precision": "fp8-native",
        "num_train_epochs": 16,
        "max_train_steps": 0,
        "learning_rate": 2e-4,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": True,
        "max_grad_norm": 1.0,
        "grad_clip_method": "norm",
        "seed": 42,
        "musubi_blocks_to_swap": 10,
        "optimizer": "bnb-adamw8bit",
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "mixed_precision": "bf16",
        "attention_mechanism": "diffusers",
        "output_dir": "out/wan_clips",
        "checkpoint_epoch_interval": 1,
        "checkpoint_step_interval": 1_000_000,
        "validation_step_interval": 0,
        "model_type": "lora",
        "lora_rank": 32,
        "lora_alpha": 1.0,
        "lora_dropout": 0.0,
        "flow_sigmoid_scale": 1.0,
        "flow_schedule_shift": 3.0,
        "train_batch_size": 1,
        "caption_dropout_probability": 0.0,
        "data_backend_config": "mine/multidatabackend.json",
    }


def test_each_number_of_frames_becomes_a_set_of_clips() -> None:
    entries = drafted(WAN, CLIPS).datasets
    shown: list[Any] = [(one["id"], one["dataset_type"], one.get("video"), one.get("resolution"), one.get("repeats")) for one in entries]
    assert shown == [
        ("clips", "video", {"num_frames": 25, "min_frames": 25}, 632, 0),
        ("clips-2", "video", {"num_frames": 45, "min_frames": 45}, 632, 0),
        ("stills", "image", None, 632, 1),
        ("mine-text-embeds", "text_embeds", None, None, None),
    ]


def test_a_set_of_clips_is_taken_or_named(imported: Translate) -> None:
    found = imported(WAN, CLIPS)
    ids = [one["id"] for one in sets(found)]
    for clips in ("clips", "clips-2"):
        assert (clips in ids) != (f"multidatabackend.json: {clips}" in reasons(found))
    assert "stills" in ids


def test_a_wan_lora_names_what_it_leaves_out(imported: Translate) -> None:
    found = {name: reason for name, reason in reasons(imported(WAN, CLIPS)).items() if not name.startswith("multidatabackend")}
    assert set(found) == {"vae", "datasets[0].target_frames", "datasets[0].cache_directory", "t5", "max_data_loader_n_workers"}
    assert "pickle" in found["vae"]


def test_edit_pairs_become_references(imported: Translate) -> None:
    found = imported(KONTEXT, PAIRS)
    config = found.planned.config
    assert (config["model_family"], config["model_flavour"], config["train_batch_size"]) == ("flux", "kontext", 2)
    assert (config["flow_schedule_shift"], config["flow_schedule_auto_shift"], config["max_train_steps"]) == (0.0, True, 1000)
    assert [(one["id"], one.get("conditioning_data"), one.get("conditioning_type")) for one in sets(found)] == [
        ("after", ["before"], None),
        ("before", None, "reference_strict"),
        ("mine-text-embeds", None, None),
    ]
    assert {"network_args.loraplus_lr_ratio", "datasets[1]"} <= set(reasons(found))


def test_uniform_timesteps_of_a_shifted_schedule_are_kept() -> None:
    options = drafted(KONTEXT.replace("flux_shift", "sigma") + "discrete_flow_shift = 5.0", PAIRS).options
    assert (options["flow_use_uniform_schedule"], options["flow_schedule_shift"]) == (True, 5.0)


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ("resolution = [832, 480]", 'resolution = ["a", "b"]', "general.resolution"),
        ("num_repeats = 2", 'num_repeats = "often"', "datasets[1].num_repeats"),
        ("num_repeats = 2", "num_repeats = true", "datasets[1].num_repeats"),
        ('video_directory = "datasets/clips"', "video_directory = 3.5", ""),
    ],
)
def test_a_wrong_type_is_named(refused: Refused, imported: Translate, before: str, after: str, name: str) -> None:
    assert before in CLIPS
    if name:
        assert (name, "wrong_type") in refused(WAN, CLIPS.replace(before, after))
    else:
        assert imported(WAN, CLIPS.replace(before, after)).planned.datasets


def test_a_lycoris_module_of_musubi_becomes_a_file(imported: Translate) -> None:
    text = WAN.replace("networks.lora_wan", "networks.lokr").replace("blocks_to_swap = 10", 'network_args = ["factor=4"]')
    adapter = imported(text, CLIPS).planned.adapter
    assert adapter is not None and (adapter["algo"], adapter["linear_dim"], adapter["factor"]) == ("lokr", 32, 4)
    assert adapter["apply_preset"] == {"target_module": ["WanAttention", "FeedForward"]}


@pytest.mark.parametrize(
    ("words", "weights", "flavour"),
    [
        (["i2v-14B"], None, "i2v-14b-2.1"),
        (["wan21_i2v:14b480p"], None, "i2v-14b-2.1"),
        (["wan21_i2v:14b"], None, "i2v-14b-2.1-720p"),
        ([], "/models/wan2.1_i2v_480p_14B_bf16.safetensors", "i2v-14b-2.1"),
        ([], "/models/wan2.1_i2v_720p_14B_fp16.safetensors", "i2v-14b-2.1-720p"),
        ([], "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", "i2v-14b-2.1-720p"),
        (["t2v-14B"], None, "t2v-480p-14b-2.1"),
    ],
)
def test_words_and_files_of_image_to_video_name_their_flavour(words: list[str], weights: str | None, flavour: str) -> None:
    assert find_model(words, weights) == ("wan", flavour)
