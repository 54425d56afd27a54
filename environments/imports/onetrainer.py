"""Translates the JSON files of OneTrainer: a configuration or preset, with its concepts and samples inside or in files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from environments.imports import onetrainer_concepts as concepts
from environments.imports import vocabulary
from environments.imports.draft import TRANSFORMER, WIDE, Draft
from environments.imports.onetrainer_run import translate_objective, translate_run
from environments.imports.sd_network import LAYERS
from environments.imports.source import Source

FORMAT = "onetrainer"
QUANTISED: Mapping[str, str] = {
    "FLOAT_8": "fp8-native",
    "FLOAT_W8A8": "fp8-torchao",
    "NFLOAT_4": "nf4-bnb",
    "INT_8": "int8-torchao",
    "INT_W8A8": "int8dq-torchao",
}
METHODS: Mapping[str, str] = {"LORA": "lora", "FINE_TUNE": "full"}
ALGORITHMS: Mapping[str, str] = {"LOHA": "loha", "LOKR": "lokr"}
MACHINE = "it belongs to the machine or to the window of the other program"
REASONS: Mapping[str, str] = {
    **dict.fromkeys(("train_device", "temp_device", "multi_gpu", "device_indexes", "dataloader_threads", "caching_threads"), MACHINE),
    **dict.fromkeys(("debug_mode", "tensorboard_expose", "tensorboard_port", "tensorboard_always_on", "only_cache", "cloud"), MACHINE),
    **dict.fromkeys(("concept_file_name", "sample_definition_file_name"), "the import opens no file; import it together with this one"),
    **dict.fromkeys(("latent_caching", "image_caching", "text_caching", "cache_dir"), "latents and embeddings are always cached"),
    **dict.fromkeys(("output_dtype", "output_model_format"), "results are safetensors files of the trained precision"),
    **dict.fromkeys(("layer_filter", "layer_filter_regex"), "name the layers in peft_lora_target_modules or in lycoris_config.json"),
    **dict.fromkeys(("noising_weight", "noising_bias", "min_noising_strength", "max_noising_strength"), "see timestep_bias_* and flow_*"),
    **dict.fromkeys(("backup_after", "backup_after_unit", "rolling_backup", "rolling_backup_count"), "checkpoints are complete backups"),
    **dict.fromkeys(("unmasked_weight", "normalize_masked_area_loss"), "what a mask hides has no weight; its area is always normalised"),
    "clear_cache_before_training": "caches are checked and kept",
    "continue_last_backup": "checkpoints of other trainers cannot be resumed",
    "secrets": "secrets are not copied",
}
DEFAULTS: Mapping[str, Any] = {
    "async_gradient_reduce": True,
    "async_gradient_reduce_buffer": 100,
    "fused_gradient_reduce": True,
    "async_offloading": True,
    "gradient_reduce_precision": "FLOAT_32_STOCHASTIC",
    "enable_autocast_cache": True,
    "prefetch_next_batch": True,
    "debug_dir": "debug",
    "train_device": "cuda",
    "temp_device": "cpu",
    "tensorboard_port": 6006,
    "validate_after": 1,
    "validate_after_unit": "EPOCH",
    "include_train_config": "NONE",
    "non_ema_sampling": True,
    "samples_to_tensorboard": True,
    "backup_before_save": True,
    "learning_rate_scaler": "NONE",
    "loss_scaler": "NONE",
    "save_every_unit": "NEVER",
    "vb_loss_strength": 1.0,
    "huber_delta": 1.0,
    "max_noising_strength": 1.0,
    "layer_filter_preset": "full",
    "lora_decompose_norm_epsilon": True,
    "bundle_additional_embeddings": True,
    "lora_weight_dtype": "FLOAT_32",
    "embedding_weight_dtype": "FLOAT_32",
    "fallback_train_dtype": "BFLOAT_16",
    "frames": "25",
    "sample_image_format": "JPG",
    "sample_video_format": "MP4",
    "sample_audio_format": "MP3",
    "loss_weight_strength": 5.0,
    "image_caching": True,
    "text_caching": True,
    "latent_caching": True,
    "rolling_backup_count": 3,
    "dataloader_threads": 2,
    "unmasked_probability": 0.1,
    "unmasked_weight": 0.1,
    "learning_rate_cycles": 1.0,
    "optimizer_defaults": {},
}
"""Values that every file of the format holds, because it writes out its defaults; they say nothing about the run."""
UNUSED_PARTS = ("prior", "text_encoder_3", "text_encoder_4", "effnet_encoder", "decoder", "decoder_text_encoder", "decoder_vqgan")
UNUSED = (*UNUSED_PARTS, "embedding", "additional_embeddings", "unconditional_transformer", "quantization", "vae")


def recognises(value: Any) -> bool:
    """Whether a parsed document is a configuration of OneTrainer, or a list of its concepts."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, Mapping) and "path" in one and ("image" in one or "text" in one) for one in value)
    return isinstance(value, Mapping) and "training_method" in value and ("base_model_name" in value or "model_type" in value)


def translate(values: list[Any], draft: Draft) -> None:
    """Fills the draft from a configuration, and from lists of concepts or samples next to it."""
    main = next((value for value in values if isinstance(value, Mapping)), {})
    source = Source(main, "", draft.ledger)
    _model(draft, source)
    _adapter(draft, source)
    translate_run(draft, source)
    translate_objective(draft, source)
    lists = [value for value in values if isinstance(value, list)]
    concepts.translate_concepts(draft, source, [value for value in lists if recognises(value)])
    concepts.translate_samples(draft, source, [value for value in lists if not recognises(value)])
    for key in UNUSED:
        source.take(key)
    source.take("__version")
    for key in [key for key in source.values if key.startswith(("oft_", "lokr_", "lora_"))]:
        source.take(key)  # sizes of kinds of adapters; those of the chosen kind were taken
    source.finish(REASONS, DEFAULTS)


def _model(draft: Draft, source: Source) -> None:
    word, weights = source.text("model_type"), source.text("base_model_name")
    vocabulary.use_model(draft, [word] if word else [], weights, source.name("base_model_name"))
    method = source.text("training_method") or "FINE_TUNE"
    draft.put("model_type", METHODS.get(method, "lora"), source.name("training_method"))
    if method not in METHODS:
        draft.ledger.leave(source.name("training_method"), method, "this trainer trains networks and adapters; lora takes its place")
    for part in ("unet", "transformer"):
        network = source.section(part)
        name, precision = network.text("model_name"), network.text("weight_dtype")
        if name:
            draft.put("pretrained_transformer_model_name_or_path", name, network.name("model_name"))
        draft.put("base_model_precision", QUANTISED.get(precision or ""), network.name("weight_dtype"))
    vae = source.section("vae")
    draft.put("pretrained_vae_model_name_or_path", vae.text("model_name"), vae.name("model_name"))
    _text_encoders(draft, source)


def _text_encoders(draft: Draft, source: Source) -> None:
    encoder = source.section("text_encoder")
    count = len(draft.spec.prompts.text_encoder_folders) if draft.spec else 1
    trained = bool(encoder.flag("train")) and draft.spec is not None and not draft.is_flow_matching
    draft.put("train_text_encoder", True if trained else None, encoder.name("train"))
    draft.put("text_encoder_lr", encoder.number("learning_rate") if trained else None, encoder.name("learning_rate"))
    second = source.section("text_encoder_2")
    for number, part in ((1, encoder), (2, second)):
        precision = QUANTISED.get(part.text("weight_dtype") or "") if number <= count else None
        draft.put(f"text_encoder_{number}_precision", precision, part.name("weight_dtype"))
    skip = source.whole("text_encoder_layer_skip")
    draft.put("clip_skip", skip or None, source.name("text_encoder_layer_skip"))


def _adapter(draft: Draft, source: Source) -> None:
    if draft.options["model_type"] != "lora":
        return
    kind = (source.text("peft_type") or "LORA").upper()
    rank, alpha = source.whole("lora_rank") or 16, source.number("lora_alpha") or 1.0
    draft.put("init_lora", source.text("lora_model_name"), source.name("lora_model_name"))
    preset = (source.text("layer_filter_preset") or "full").lower()
    if kind in ALGORITHMS:
        full = bool(source.flag("lokr_full_matrix")) and kind == "LOKR"
        size = {"linear_dim": source.whole("lokr_dim") or rank} if kind == "LOKR" else {"linear_dim": rank}
        more = {"full_matrix": True, "linear_dim": 10000} if full else {}
        factor = source.whole("lokr_decompose_factor") if kind == "LOKR" else None
        arguments = {**size, "linear_alpha": alpha, "factor": factor, **more}
        draft.use_lycoris(source.name("peft_type"), ALGORITHMS[kind], arguments, LAYERS.get(preset, TRANSFORMER))
        return
    draft.put("lora_rank", rank, source.name("lora_rank"))
    draft.put("lora_alpha", alpha, source.name("lora_alpha"))
    draft.put("lora_dropout", source.number("dropout_probability") or 0.0, source.name("dropout_probability"))
    draft.put("use_dora", source.flag("lora_decompose") or None, source.name("lora_decompose"))
    if kind != "LORA":
        draft.ledger.leave(source.name("peft_type"), kind, "a standard LoRA takes its place")
    layers = [part.strip() for part in (source.text("layer_filter") or "").split(",") if part.strip()]
    if layers and preset != "full":
        draft.put("peft_lora_target_modules", vocabulary.as_json(layers), source.name("layer_filter"))
    if preset != "attn-only":
        draft.use_layers(WIDE, source.name("layer_filter_preset"))
