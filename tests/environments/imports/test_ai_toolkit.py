"""Jobs of ai-toolkit: a Flux LoRA, and edit pairs for Kontext."""

from __future__ import annotations

import json

import pytest

from tests.environments.imports.conftest import Refused, Translate, reasons, sets
from trainer_engine.config.parse import check_options

FLUX_LORA = """---
job: extension
config:
  name: "watercolour_v1"
  process:
    - type: 'sd_trainer'
      training_folder: "output"
      device: cuda:0
      trigger_word: "w4ter/c"
      network: {type: "lora", linear: 16, linear_alpha: 8}
      save: {dtype: float16, save_every: 250, max_step_saves_to_keep: 4, push_to_hub: true, hf_repo_id: me/model, hf_private: true,
             hf_token: hf_very_secret}
      datasets:
        - folder_path: "datasets/watercolour"
          caption_ext: "txt"
          caption_dropout_rate: 0.05
          shuffle_tokens: true
          num_repeats: 3
          cache_latents_to_disk: true
          resolution: [512, 1024]
        - {folder_path: "datasets/photos", is_reg: true, caption_ext: ".caption", resolution: 512, flip_x: true}
      train:
        batch_size: 2
        steps: 2000
        gradient_accumulation_steps: 1
        train_unet: true
        train_text_encoder: false
        gradient_checkpointing: true
        noise_scheduler: "flowmatch"
        optimizer: "adamw8bit"
        lr: 1e-4
        ema_config: {use_ema: true, ema_decay: 0.99}
        dtype: bf16
        skip_first_sample: true
      model: {name_or_path: "black-forest-labs/FLUX.1-dev", is_flux: true, quantize: true, low_vram: true}
      sample:
        sampler: "flowmatch"
        sample_every: 250
        width: 1024
        height: 768
        prompts: ["[trigger] a fox in the snow", "a harbour, [trigger] --width 512"]
        neg: ""
        seed: 42
        walk_seed: true
        guidance_scale: 4
        sample_steps: 20
meta: {name: "[name]", version: '1.0'}
"""

KONTEXT_PAIRS = """
job: extension
config:
  name: smile
  process:
  - type: sd_trainer
    training_folder: output
    network: {type: lokr, linear: 32, linear_alpha: 32, lokr_full_rank: true, lokr_factor: 8}
    save: {save_every: 250}
    datasets:
    - {folder_path: datasets/after, control_path: datasets/before, mask_path: datasets/masks, caption_ext: txt, resolution: [512, 768]}
    train: {batch_size: 1, steps: 3000, optimizer: adamw8bit, optimizer_params: {weight_decay: 1e-4, betas: [0.9, 0.95]}, lr: 1e-4,
            timestep_type: weighted, dtype: bf16, skip_first_sample: true, noise_offset: 0.05}
    model: {name_or_path: black-forest-labs/FLUX.1-Kontext-dev, arch: flux_kontext, quantize: true, qtype: qint8}
    sample: {sample_every: 250, width: 1024, height: 1024, seed: 42, guidance_scale: 4, sample_steps: 20,
             prompts: ["make the person smile  --ctrl_img datasets/before/1.jpg", "a harbour at night"]}
"""


def test_a_flux_lora_keeps_every_number(imported: Translate) -> None:
    library = json.dumps({"prompt-01": "w4ter/c a fox in the snow", "prompt-02": "a harbour, w4ter/c"})
    assert imported(FLUX_LORA).planned.config == {
        "output_dir": "output/watercolour_v1",
        "model_family": "flux",
        "model_flavour": "dev",
        "pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev",
        "base_model_precision": "fp8-quanto",
        "model_type": "lora",
        "lora_rank": 16,
        "lora_alpha": 8.0,
        "lora_dropout": 0.0,
        "flux_lora_target": "ai-toolkit",
        "max_train_steps": 2000,
        "num_train_epochs": 0,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "train_text_encoder": False,
        "gradient_checkpointing": True,
        "max_grad_norm": 1.0,
        "grad_clip_method": "norm",
        "optimizer": "bnb-adamw8bit",
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "mixed_precision": "bf16",
        "use_ema": True,
        "ema_decay": 0.99,
        "loss_type": "l2",
        "flow_schedule_shift": 1.0,
        "caption_dropout_probability": 0.05,
        "checkpoint_step_interval": 250,
        "checkpoints_total_limit": 4,
        "push_to_hub": True,
        "hub_model_id": "me/model",
        "model_card_private": True,
        "validation_step_interval": 250,
        "validation_resolution": "1024x768",
        "validation_guidance": 4.0,
        "validation_num_inference_steps": 20,
        "validation_seed": 42,
        "user_prompt_library": library,
        "data_backend_config": "mine/multidatabackend.json",
    }


def test_a_dataset_becomes_a_set_for_each_resolution(imported: Translate) -> None:
    shuffled = {"enable": True, "count": 10, "position_start": 0, "include_original": False}
    style = {"dataset_type": "image", "instance_data_dir": "datasets/watercolour", "caption_strategy": "textfile", "repeats": 2}
    prior = {"dataset_type": "image", "instance_data_dir": "datasets/photos", "caption_strategy": "textfile", "repeats": 0}
    assert sets(imported(FLUX_LORA)) == [
        {"id": "watercolour", **style, "resolution": 512, "crop": False, "caption_shuffle": shuffled},
        {"id": "watercolour-2", **style, "resolution": 1024, "crop": False, "caption_shuffle": shuffled},
        {"id": "photos", **prior, "resolution": 512, "crop": False, "is_regularisation_data": True},
        {"id": "mine-text-embeds", "dataset_type": "text_embeds", "default": True, "caption_filter_list": [r"s/\[trigger\]/w4ter\/c/"]},
    ]


def test_a_flux_lora_names_what_it_leaves_out(imported: Translate) -> None:
    found = imported(FLUX_LORA)
    base = "config.process[0]"
    assert set(reasons(found)) == {
        f"{base}.device",
        f"{base}.trigger_word",
        f"{base}.model.low_vram",
        f"{base}.datasets[0].cache_latents_to_disk",
        f"{base}.datasets[1].caption_ext",
        f"{base}.datasets[1].flip_x",
        f"{base}.train.noise_scheduler",
        f"{base}.save.hf_token",
        f"{base}.sample.sampler",
        f"{base}.sample.walk_seed",
        f"{base}.sample.prompts[1]",
        "meta",
    }
    assert "hf_very_secret" not in str(found)
    assert next(one.value for one in found.left_out if one.name.endswith("hf_token")) == "***"


def test_edit_pairs_become_references_and_masks(imported: Translate) -> None:
    found = imported(KONTEXT_PAIRS)
    images = [one for one in sets(found) if one["dataset_type"] == "image"]
    partners = {one["id"]: (one["conditioning_type"], one["instance_data_dir"]) for one in sets(found) if "conditioning_type" in one}
    assert [(one["resolution"], one["conditioning_data"]) for one in images] == [
        (512, ["before", "masks"]),
        (768, ["before-2", "masks-2"]),
    ]
    assert partners == {
        "before": ("reference_strict", "datasets/before"),
        "masks": ("mask", "datasets/masks"),
        "before-2": ("reference_strict", "datasets/before"),
        "masks-2": ("mask", "datasets/masks"),
    }


def test_edit_pairs_keep_their_lokr_and_the_images_that_prompts_edit(imported: Translate) -> None:
    found = imported(KONTEXT_PAIRS)
    config = found.planned.config
    assert (config["model_family"], config["model_flavour"], config["base_model_precision"]) == ("flux", "kontext", "int8-quanto")
    assert json.loads(config["validation_input"]) == [
        {"path": "datasets/before/1.jpg", "prompt": "make the person smile", "shortname": "prompt-01"}
    ]
    assert config["validation_prompt"] == "a harbour at night"
    assert (config["adam_weight_decay"], config["optimizer_beta1"], config["optimizer_beta2"]) == (1e-4, 0.9, 0.95)
    assert (config["lora_type"], config["lycoris_config"]) == ("lycoris", "mine/lycoris_config.json") and "lora_rank" not in config
    assert found.planned.adapter == {
        "algo": "lokr",
        "multiplier": 1.0,
        "linear_dim": 10000,
        "linear_alpha": 32,
        "full_matrix": True,
        "factor": 8,
        "apply_preset": {"target_module": ["FluxAttention", "FeedForward"]},
    }


@pytest.mark.parametrize("kind", ["sigmoid", "weighted", "linear"])
def test_a_sigmoid_takes_the_place_of_the_densities_of_a_family(imported: Translate, kind: str) -> None:
    flux = FLUX_LORA.replace("steps: 2000", f"steps: 2000\n        timestep_type: {kind}")
    chroma = flux.replace("black-forest-labs/FLUX.1-dev", "lodestones/Chroma1-HD").replace("is_flux: true", "arch: chroma")
    name = "flow_cubic_schedule_weights"
    assert name not in imported(flux).planned.config
    config = imported(chroma).planned.config
    assert config["model_family"] == "chroma" and (name in config) == (kind != "linear")
    options, problems = check_options({**config, "data_backend_config": "datasets.json"})
    assert options is not None, problems
    assert bool(options.objective.flow_cubic_schedule_weights) == options.objective.flow_use_uniform_schedule == (kind == "linear")


def test_an_import_leaves_out_what_checks_refuse_with_their_words(imported: Translate) -> None:
    found = imported(KONTEXT_PAIRS)
    name = "config.process[0].train.timestep_type"
    assert "sigmoid" in reasons(found)[name]
    large = imported(FLUX_LORA.replace("linear: 16", "linear: 4096"))
    assert reasons(large)["config.process[0].network.linear"].startswith("setting: ") and "lora_rank" not in large.planned.config


@pytest.mark.parametrize(
    ("line", "changed", "expected"),
    [
        ("steps: 2000", "steps: many", ("config.process[0].train.steps", "wrong_type")),
        ("batch_size: 2", "batch_size: [2]", ("config.process[0].train.batch_size", "wrong_type")),
        ("resolution: 512", "resolution: wide", ("config.process[0].datasets[1].resolution", "wrong_type")),
        ("job: extension", "job: generate", ("job", "wrong_type")),
        ("lr: 1e-4", "lr: {a: 1}", ("config.process[0].train.lr", "wrong_type")),
        ("seed: 42", "seed: .nan", ("config.process[0].sample.seed", "wrong_type")),
    ],
)
def test_a_wrong_type_is_named(refused: Refused, line: str, changed: str, expected: tuple[str, str]) -> None:
    assert line in FLUX_LORA
    assert expected in refused(FLUX_LORA.replace(line, changed, 1))


def test_convolutions_are_taken_where_the_network_has_them(imported: Translate) -> None:
    conv = FLUX_LORA.replace("linear_alpha: 8", "linear_alpha: 8, conv: 4, conv_alpha: 2")
    flux = imported(conv)
    assert flux.planned.adapter is None and reasons(flux)["config.process[0].network.conv"] == "the network has no blocks of convolutions"
    sdxl = imported(conv.replace("black-forest-labs/FLUX.1-dev", "stabilityai/stable-diffusion-xl-base-1.0").replace("is_flux", "is_xl"))
    assert sdxl.planned.adapter == {
        "algo": "locon",
        "multiplier": 1.0,
        "linear_dim": 16,
        "linear_alpha": 8.0,
        "conv_dim": 4,
        "conv_alpha": 2.0,
        "apply_preset": {
            "target_module": ["Attention", "FeedForward", "ResnetBlock2D", "Downsample2D", "Upsample2D"],
            "enable_conv": True,
        },
    }


def test_a_job_of_another_kind_is_named(imported: Translate) -> None:
    found = imported(FLUX_LORA.replace("type: 'sd_trainer'", "type: 'concept_slider'"))
    assert "only jobs that train" in reasons(found)["config.process[0].type"]


def test_every_wrong_type_is_named_at_once(refused: Refused) -> None:
    text = FLUX_LORA.replace("steps: 2000", "steps: many").replace("batch_size: 2", "batch_size: x")
    assert {name.rsplit(".", 1)[-1] for name, _ in refused(text)} == {"steps", "batch_size"}


def test_a_family_that_is_not_here_is_refused_by_name(refused: Refused) -> None:
    text = KONTEXT_PAIRS.replace("black-forest-labs/FLUX.1-Kontext-dev", "Shitao/OmniGen-v1-diffusers").replace("flux_kontext", "omnigen")
    assert ("model_family", "not_available") in refused(text)
