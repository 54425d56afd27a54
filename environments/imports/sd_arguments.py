"""The arguments that sd-scripts and musubi-tuner share: length, optimizer, adapter, checkpoints, logging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from environments.imports import vocabulary
from environments.imports.draft import Draft
from environments.imports.source import Source

SAVED_BY_EPOCH_ONLY = 1_000_000
"""``checkpoint_step_interval`` of a run that saves at the end of epochs: further than any run of these formats."""
DEFAULT_STEPS = 1600
DEFAULT_SHIFT = 3.0
TIMESTEPS: Mapping[str, Mapping[str, Any]] = {
    "uniform": {"flow_use_uniform_schedule": True, "flow_schedule_shift": 1.0},
    "sigmoid": {"flow_schedule_shift": 1.0},
    "shift": {},
    "flux_shift": {"flow_schedule_shift": 0.0, "flow_schedule_auto_shift": True},
}
ATTENTION: Mapping[str, str] = {
    "xformers": "xformers",
    "sdpa": "diffusers",
    "flash_attn": "flash-attn",
    "flash3": "flash-attn-3",
    "sage_attn": "sageattention",
}
UPLOADS = {
    "huggingface_repo_id": "set push_to_hub and hub_model_id to upload the results",
    "huggingface_repo_type": "results are uploaded to a repository of models",
    "huggingface_path_in_repo": "the files of a run keep their own layout in a repository",
}
REASONS: Mapping[str, str] = {
    **dict.fromkeys(("cache_latents", "cache_latents_to_disk", "vae_batch_size"), "latents are always cached on disk"),
    **dict.fromkeys(("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk"), "embeddings of captions are always cached"),
    **dict.fromkeys(("max_data_loader_n_workers", "persistent_data_loader_workers"), "files are read ahead by threads; see max_workers"),
    **dict.fromkeys(("lowram", "highvram", "split_attn", "mem_eff_attn"), "see the options of memory"),
    **dict.fromkeys(("save_state", "save_state_on_train_end"), "every checkpoint can be resumed"),
    **dict.fromkeys(("save_model_as", "save_precision"), "results are safetensors files of the trained precision"),
    **dict.fromkeys(("full_bf16", "full_fp16"), "see mixed_precision and the optimizer adamw_bf16"),
    "sample_prompts": "the import opens no file; put prompts into validation_prompt or user_prompt_library",
    "sample_sampler": "see validation_noise_scheduler",
    **dict.fromkeys(("dataset_config", "config_file"), "the import opens no file; import it together with this one"),
    **UPLOADS,
    "save_last_n_steps": "see checkpoints_total_limit, a number of checkpoints",
    "resume": "checkpoints of other trainers cannot be resumed; init_lora starts from an adapter",
    "max_token_length": "prompts have the length that the family's text encoders take",
    "prior_loss_weight": "sets with is_regularisation_data train with their own weight, their probability",
    "multires_noise_iterations": "this trainer has offset_noise instead",
    "network_train_unet_only": "see train_text_encoder",
}


def flattened(values: list[Any]) -> dict[str, Any]:
    """The arguments of all documents. Sections of a file only order its arguments; datasets are not arguments."""
    found: dict[str, Any] = {}
    for document in values:
        for key, value in document.items():
            if key not in ("general", "datasets"):
                found |= value if isinstance(value, Mapping) else {key: value}
    return found


def translate_run(draft: Draft, source: Source) -> None:
    """Length, batches, rates, optimizer, precision, checkpoints, trackers."""
    epochs, steps = source.whole("max_train_epochs"), source.whole("max_train_steps")
    draft.put("num_train_epochs", epochs or 0, source.name("max_train_epochs"))
    draft.put("max_train_steps", 0 if epochs else steps or DEFAULT_STEPS, source.name("max_train_steps"))
    if epochs and steps:
        draft.ledger.leave(source.name("max_train_steps"), steps, "max_train_epochs wins over it")
    general, network = source.number("learning_rate"), source.number("unet_lr")
    draft.put("learning_rate", network or general or 2e-6, source.name("unet_lr" if network else "learning_rate"))
    draft.put("gradient_accumulation_steps", source.whole("gradient_accumulation_steps") or 1, source.name("gradient_accumulation_steps"))
    draft.put("gradient_checkpointing", bool(source.flag("gradient_checkpointing")), source.name("gradient_checkpointing"))
    limit = source.number("max_grad_norm")
    draft.put("max_grad_norm", 1.0 if limit is None else limit, source.name("max_grad_norm"))
    draft.put("grad_clip_method", "norm", source.name("max_grad_norm"))
    draft.copy(source, {"seed": ("seed", "whole"), "blocks_to_swap": ("musubi_blocks_to_swap", "whole")})
    arguments = vocabulary.key_values(source.texts("optimizer_args"), source, "optimizer_args")
    vocabulary.use_optimizer(draft, source, "optimizer_type", arguments, source.name("optimizer_args"))
    vocabulary.use_scheduler(
        draft, source.text("lr_scheduler"), source.number("lr_warmup_steps"), source.name("lr_scheduler"), source.name("lr_warmup_steps")
    )
    draft.copy(source, {"lr_scheduler_num_cycles": ("lr_num_cycles", "whole"), "lr_scheduler_power": ("lr_power", "number")})
    vocabulary.use_precision(draft, source.text("mixed_precision") or "no", source.name("mixed_precision"))
    for key, mechanism in ATTENTION.items():
        if source.flag(key):
            draft.put("attention_mechanism", mechanism, source.name(key))
    _files(draft, source)
    _validations(draft, source)


def _files(draft: Draft, source: Source) -> None:
    folder, name = source.text("output_dir") or "output", source.text("output_name")
    draft.put("output_dir", f"{folder.rstrip('/')}/{name or draft.name}", source.name("output_dir"))
    draft.copy(source, {"save_every_n_steps": ("checkpoint_step_interval", "whole")})
    by_epoch = source.whole("save_every_n_epochs")
    if by_epoch:
        draft.put("checkpoint_epoch_interval", by_epoch, source.name("save_every_n_epochs"))
        if "checkpoint_step_interval" not in draft.options:
            draft.put("checkpoint_step_interval", SAVED_BY_EPOCH_ONLY, source.name("save_every_n_epochs"))
    draft.copy(source, {"save_last_n_epochs": ("checkpoints_total_limit", "whole")})
    tracker = source.text("log_with")
    draft.put("report_to", "tensorboard,wandb" if tracker == "all" else tracker, source.name("log_with"))
    draft.copy(source, {"logging_dir": ("logging_dir", "text"), "wandb_run_name": ("tracker_run_name", "text")})
    draft.copy(source, {"log_tracker_name": ("tracker_project_name", "text")})


def _validations(draft: Draft, source: Source) -> None:
    draft.copy(source, {"sample_every_n_epochs": ("validation_epoch_interval", "whole")})
    draft.copy(source, {"sample_at_first": ("validation_on_startup", "flag")})
    by_step = source.whole("sample_every_n_steps")
    draft.put("validation_step_interval", by_step or 0, source.name("sample_every_n_steps"))


def translate_timesteps(draft: Draft, source: Source, default_shift: float) -> None:
    """The timesteps of flow matching: how they are sampled, and how far they are shifted towards noise."""
    if not draft.is_flow_matching:
        return
    shift = source.number("discrete_flow_shift")
    kind, scheme = (source.text("timestep_sampling") or "sigma").lower(), (source.text("weighting_scheme") or "none").lower()
    chosen = dict(TIMESTEPS.get(kind, {"flow_use_uniform_schedule": True}))
    if kind == "sigma" and scheme == "logit_normal":
        chosen = {"flow_sigmoid_scale": source.number("logit_std") or 1.0}
        if source.number("logit_mean"):
            draft.ledger.leave(source.name("logit_mean"), source.take("logit_mean"), "the normal distribution has the mean 0")
    elif kind == "sigma" and scheme not in ("none", "uniform"):
        draft.ledger.leave(source.name("weighting_scheme"), scheme, "the loss has the same weight at every timestep of flow matching")
    elif kind != "sigma" and kind not in TIMESTEPS:
        draft.ledger.leave(source.name("timestep_sampling"), kind, "timesteps are uniform instead")
    if kind in ("sigmoid", "shift", "flux_shift"):
        chosen["flow_sigmoid_scale"] = source.number("sigmoid_scale") or 1.0
    chosen.setdefault("flow_schedule_shift", default_shift if shift is None else shift)
    for option, value in chosen.items():
        draft.put(option, value, source.name("timestep_sampling"))
    if "flow_use_uniform_schedule" not in chosen:
        draft.use_sigmoid(source.name("timestep_sampling"))
