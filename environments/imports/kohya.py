"""Translates the TOML files of sd-scripts: the arguments of a training script, and the file of its datasets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from environments.imports import kohya_datasets, vocabulary
from environments.imports.draft import Draft
from environments.imports.sd_arguments import (
    DEFAULT_SHIFT,
    REASONS,
    flattened,
    translate_run,
    translate_timesteps,
)
from environments.imports.sd_network import translate_network
from environments.imports.source import Source
from trainer_engine.config.family_parts import Role

FORMAT = "kohya"
ARGUMENTS = frozenset(
    ["pretrained_model_name_or_path", "network_module", "network_dim", "network_alpha", "train_data_dir", "output_name"]
    + ["optimizer_type", "lr_scheduler", "dataset_config", "train_batch_size", "max_train_epochs", "max_train_steps", "enable_bucket"]
)
RECOGNISED_BY = 3
"""Number of known arguments that make a file one of this format."""
SHARED_NAMES = frozenset(["--model_family", "model_family", "data_backend_config", "--data_backend_config"])
"""Names of this trainer's own format, which shares many of the arguments above."""
FLUX_PARTS = {
    "clip_l": "the text encoders are those of the base model's repository",
    "t5xxl": "the text encoders are those of the base model's repository; see pretrained_t5_model_name_or_path",
    "t5xxl_max_token_length": "prompts have the length that the family's text encoders take",
    "model_prediction_type": "the family decides how its prediction is used",
    "apply_t5_attn_mask": "see the family's option for masked attention",
}


def recognises(value: Any) -> bool:
    """Whether a parsed document holds arguments or datasets of sd-scripts."""
    if not isinstance(value, Mapping) or not SHARED_NAMES.isdisjoint(value):
        return False
    datasets = value.get("datasets")
    if isinstance(datasets, list) and any(isinstance(one, Mapping) and "subsets" in one for one in datasets):
        return True
    return len(ARGUMENTS & flattened([value]).keys()) >= RECOGNISED_BY


def translate(values: list[Any], draft: Draft) -> None:
    """Fills the draft from a file of arguments, a file of datasets, or both."""
    source = Source(flattened(values), "", draft.ledger)
    _model(draft, source)
    translate_run(draft, source)
    translate_network(draft, source, full=bool(source.values))
    _text_encoders(draft, source)
    _objective(draft, source)
    translate_timesteps(draft, source, DEFAULT_SHIFT)
    kohya_datasets.translate_sets(draft, values, source)
    if draft.has_images:
        source.take("dataset_config")
    source.finish({**REASONS, **FLUX_PARTS})


def _model(draft: Draft, source: Source) -> None:
    weights, module = source.text("pretrained_model_name_or_path"), source.text("network_module") or ""
    architecture = module.rsplit(".", 1)[-1].partition("_")[2]
    words = [word for word in ("sdxl" if source.flag("sdxl") else "", architecture, "sd2" if source.flag("v2") else "") if word]
    known = [word for word in words if vocabulary.find_model([word], None)]
    vocabulary.use_model(draft, known, weights, source.name("pretrained_model_name_or_path"))
    parts = source.text("ae"), source.text("vae")
    draft.put("pretrained_vae_model_name_or_path", parts[0] or parts[1], source.name("ae" if parts[0] else "vae"))
    if parts[0] and weights:
        del draft.options["pretrained_model_name_or_path"]  # the file holds the transformer alone
        draft.put("pretrained_transformer_model_name_or_path", weights, source.name("pretrained_model_name_or_path"))
    if source.flag("v_parameterization"):
        draft.put("prediction_type", "v_prediction", source.name("v_parameterization"))
    draft.put("base_model_precision", "fp8-native" if source.flag("fp8_base") else None, source.name("fp8_base"))


def _text_encoders(draft: Draft, source: Source) -> None:
    """The scripts for adapters train the text encoders unless they are asked not to; those for networks only if they are."""
    only_network = bool(source.flag("network_train_unet_only")) or bool(source.flag("cache_text_encoder_outputs"))
    is_asked, rates = bool(source.flag("train_text_encoder")), source.take("text_encoder_lr")
    can = draft.spec is not None and any(part.role is Role.ON_REQUEST for part in draft.spec.components.values())
    is_chosen = can and (is_asked or (draft.options["model_type"] == "lora" and not only_network))
    if is_chosen and draft.adapter is not None:
        draft.ledger.leave("network_train_unet_only", False, "text encoders are not trained with adapters of LyCORIS")
        return
    if is_chosen:
        draft.put("train_text_encoder", True, source.name("train_text_encoder" if is_asked else "network_train_unet_only"))
    if is_chosen and rates:
        first = rates[0] if isinstance(rates, list) else rates
        draft.put("text_encoder_lr", first, source.name("text_encoder_lr"))
        if isinstance(rates, list) and any(rate != first for rate in rates):
            draft.ledger.leave(source.name("text_encoder_lr"), rates, "all text encoders have one learning rate, the first of these")
    elif rates:
        draft.ledger.leave(source.name("text_encoder_lr"), rates, "the text encoders are not trained")
    _skipped_layers(draft, source)


def _skipped_layers(draft: Draft, source: Source) -> None:
    skip = source.whole("clip_skip")
    has_several = draft.spec is not None and len(draft.spec.prompts.text_encoder_folders) > 1
    if skip is not None and skip > 1 and has_several:
        draft.ledger.leave(source.name("clip_skip"), skip, "models with several text encoders use the layers that they were trained with")
    elif skip is not None and skip > 1:
        draft.put("clip_skip", skip - 1, source.name("clip_skip"))


def _objective(draft: Draft, source: Source) -> None:
    offset = source.number("noise_offset")
    if offset:
        for option, value in (("offset_noise", True), ("noise_offset", offset), ("noise_offset_probability", 1.0)):
            draft.put(option, value, source.name("noise_offset"))
    kinds = {"min_snr_gamma": ("snr_gamma", "number"), "zero_terminal_snr": ("rescale_betas_zero_snr", "flag")}
    draft.copy(source, {**kinds, "ip_noise_gamma": ("input_perturbation", "number"), "loss_type": ("loss_type", "text")})
    draft.copy(source, {"huber_c": ("huber_c", "number"), "huber_schedule": ("huber_schedule", "text")})
    draft.copy(source, {"guidance_scale": ("flux_guidance_value", "number")})
