"""The run of a configuration of OneTrainer: its length, optimizer and checkpoints, and what it learns."""

from __future__ import annotations

from collections.abc import Mapping

from environments.imports import vocabulary
from environments.imports.draft import Draft
from environments.imports.sd_arguments import SAVED_BY_EPOCH_ONLY
from environments.imports.source import Source

ATTENTION: Mapping[str, str] = {"SDP": "diffusers", "XFORMERS": "xformers", "FLASH": "flash-attn", "DEFAULT": "diffusers"}


def translate_run(draft: Draft, source: Source) -> None:
    """Length, batches, optimizer, schedule, precision, average and checkpoints."""
    draft.put("num_train_epochs", source.whole("epochs") or 100, source.name("epochs"))
    draft.put("max_train_steps", 0, source.name("epochs"))
    draft.put("train_batch_size", source.whole("batch_size") or 1, source.name("batch_size"))
    accumulation = source.whole("gradient_accumulation_steps") or 1
    draft.put("gradient_accumulation_steps", accumulation, source.name("gradient_accumulation_steps"))
    draft.put("learning_rate", source.number("learning_rate") or 3e-6, source.name("learning_rate"))
    limit = source.number("clip_grad_norm")
    draft.put("max_grad_norm", 1.0 if limit is None else limit, source.name("clip_grad_norm"))
    draft.put("grad_clip_method", "norm", source.name("clip_grad_norm"))
    checkpointing = source.take("gradient_checkpointing")
    draft.put("gradient_checkpointing", checkpointing not in (False, "OFF"), source.name("gradient_checkpointing"))
    optimizer = source.section("optimizer")
    values = {key: value for key, value in optimizer.values.items() if key not in ("optimizer", "__version") and value not in (None, False)}
    first, second = values.pop("beta1", None), values.pop("beta2", None)
    betas = {"betas": [first, second]} if first is not None and second is not None else {}
    known = {key: value for key, value in values.items() if key in vocabulary.ARGUMENTS}
    vocabulary.use_optimizer(draft, optimizer, "optimizer", {**known, **betas}, optimizer.path)
    for key in values.keys() - known.keys():
        draft.ledger.leave(optimizer.name(key), values[key], "see optimizer_config for further arguments")
    warmup = source.number("learning_rate_warmup_steps")
    warmup = 200.0 if warmup is None else warmup
    scheduler = (source.text("learning_rate_scheduler") or "CONSTANT").lower()
    origin = source.name("learning_rate_warmup_steps")
    vocabulary.use_scheduler(draft, scheduler, warmup, source.name("learning_rate_scheduler"), origin)
    vocabulary.use_precision(draft, source.text("train_dtype") or "FLOAT_16", source.name("train_dtype"))
    average = (source.text("ema") or "OFF").upper()
    if average != "OFF":
        draft.put("use_ema", True, source.name("ema"))
        draft.put("ema_device", "accelerator" if average == "GPU" else "cpu", source.name("ema"))
        draft.put("ema_decay", source.number("ema_decay") or 0.999, source.name("ema_decay"))
        draft.put("ema_update_interval", source.whole("ema_update_step_interval") or 5, source.name("ema_update_step_interval"))
    attention = source.text("attention_mechanism") or "SDP"
    draft.put("attention_mechanism", ATTENTION.get(attention, "diffusers"), source.name("attention_mechanism"))
    for key in ("ema_decay", "ema_update_step_interval"):
        source.take(key)
    _saving(draft, source)


def _saving(draft: Draft, source: Source) -> None:
    draft.put("output_dir", source.text("workspace_dir") or f"output/{draft.name}", source.name("workspace_dir"))
    destination = source.text("output_model_destination")
    draft.ledger.leave(source.name("output_model_destination"), destination, "results lie in output_dir") if destination else None
    draft.put("report_to", "tensorboard" if source.flag("tensorboard") else None, source.name("tensorboard"))
    every, unit = source.whole("save_every"), (source.text("save_every_unit") or "NEVER").upper()
    if every and unit == "STEP":
        draft.put("checkpoint_step_interval", every, source.name("save_every"))
    elif every and unit == "EPOCH":
        draft.put("checkpoint_epoch_interval", every, source.name("save_every"))
        draft.put("checkpoint_step_interval", SAVED_BY_EPOCH_ONLY, source.name("save_every"))
    elif every and unit != "NEVER":
        draft.ledger.leave(source.name("save_every"), f"{every} {unit}", "checkpoints are saved every so many steps or epochs")


def translate_objective(draft: Draft, source: Source) -> None:
    """Noise, loss and timesteps."""
    offset = source.number("offset_noise_weight")
    if offset:
        for option, value in (("offset_noise", True), ("noise_offset", offset), ("noise_offset_probability", 1.0)):
            draft.put(option, value, source.name("offset_noise_weight"))
    weighting, strength = (source.text("loss_weight_fn") or "CONSTANT").upper(), source.number("loss_weight_strength")
    if weighting == "MIN_SNR_GAMMA":
        draft.put("snr_gamma", strength or 5.0, source.name("loss_weight_strength"))
    elif weighting != "CONSTANT":
        draft.ledger.leave(source.name("loss_weight_fn"), weighting, "see snr_gamma")
    squared, robust = source.number("mse_strength"), source.number("huber_strength")
    if robust and not squared:
        draft.put("loss_type", "huber", source.name("huber_strength"))
    source.take("mse_strength")
    if squared not in (None, 0, 1.0):
        draft.ledger.leave(source.name("mse_strength"), squared, "the loss has the weight 1")
    perturbation, rescaled = source.number("perturbation_noise_weight"), source.flag("rescale_noise_scheduler_to_zero_terminal_snr")
    draft.put("input_perturbation", perturbation or None, source.name("perturbation_noise_weight"))
    draft.put("rescale_betas_zero_snr", rescaled or None, source.name("rescale_noise_scheduler_to_zero_terminal_snr"))
    if source.flag("force_v_prediction"):
        draft.put("prediction_type", "v_prediction", source.name("force_v_prediction"))
    if source.flag("masked_training"):
        draft.put("masked_loss_probability", 1 - (source.number("unmasked_probability") or 0.0), source.name("unmasked_probability"))
        draft.ledger.leave(source.name("masked_training"), True, "masks are files of a set of their own; see docs/datasets.md")
    _timesteps(draft, source)


def _timesteps(draft: Draft, source: Source) -> None:
    kind, shift = (source.text("timestep_distribution") or "UNIFORM").upper(), source.number("timestep_shift")
    origin = source.name("timestep_distribution")
    if not draft.is_flow_matching:
        if kind != "UNIFORM":
            draft.ledger.leave(origin, kind, "timesteps of diffusion are uniform; see timestep_bias_*")
        return
    is_dynamic = source.flag("dynamic_timestep_shifting")
    draft.put("flow_schedule_shift", 0.0 if is_dynamic else shift or 1.0, source.name("timestep_shift"))
    draft.put("flow_schedule_auto_shift", is_dynamic or None, source.name("dynamic_timestep_shifting"))
    if kind == "LOGIT_NORMAL":
        draft.put("flow_sigmoid_scale", (source.number("noising_weight") or 0.0) + 1.0, source.name("noising_weight"))
        draft.use_sigmoid(origin)
    else:
        draft.put("flow_use_uniform_schedule", True, origin)
    if kind not in ("UNIFORM", "LOGIT_NORMAL"):
        draft.ledger.leave(origin, kind, "timesteps are uniform instead")
