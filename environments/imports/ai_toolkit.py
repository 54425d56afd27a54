"""Translates a job of ai-toolkit: YAML or JSON with ``config.process``, of the trainer of diffusion models (``sd_trainer``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from environments.imports import ai_toolkit_datasets as datasets
from environments.imports import vocabulary
from environments.imports.ai_toolkit_outputs import REASONS, translate_sample, translate_save
from environments.imports.draft import NO_CONVOLUTIONS, WIDE, Draft
from environments.imports.source import Source

FORMAT = "ai-toolkit"
TRAINERS = ("sd_trainer", "diffusion_trainer", "ui_trainer")
"""Types of processes that train on images."""
QUANTISED: Mapping[str, str] = {
    "qfloat8": "fp8-quanto",
    "qint8": "int8-quanto",
    "qint4": "int4-quanto",
    "qint2": "int2-quanto",
    "float8": "fp8wo-torchao",
    "int8": "int8-torchao",
    "uint8": "int8-torchao",
    "int4": "int4-torchao",
}
TIMESTEPS: Mapping[str, Mapping[str, Any]] = {
    "sigmoid": {"flow_schedule_shift": 1.0},
    "linear": {"flow_use_uniform_schedule": True, "flow_schedule_shift": 1.0},
    "shift": {"flow_use_uniform_schedule": True, "flow_schedule_shift": 0.0, "flow_schedule_auto_shift": True},
}
LOSSES: Mapping[str, str] = {"mse": "l2", "l2": "l2", "huber": "huber", "smooth_l1": "smooth_l1"}


def recognises(value: Any) -> bool:
    """Whether a parsed document is a job of ai-toolkit."""
    config = value.get("config") if isinstance(value, Mapping) else None
    return isinstance(config, Mapping) and "process" in config


def translate(values: list[Any], draft: Draft) -> None:
    """Fills the draft from one document."""
    document = Source(values[0], "", draft.ledger)
    job = document.text("job")
    if job not in (None, "extension", "train"):
        draft.ledger.wrong("job", job, "a job that trains: extension or train")
    config = document.section("config")
    name = config.text("name")
    processes = config.sections("process")
    if not processes:
        draft.ledger.wrong(config.name("process"), config.values.get("process"), "a list with a process")
        return
    for further in processes[1:]:
        draft.ledger.leave(further.path, further.values, "an environment is one run; import this process by itself")
    process = processes[0]
    kind = process.text("type")
    if kind is not None and kind not in TRAINERS:
        draft.ledger.leave(process.name("type"), kind, "only jobs that train a network or an adapter on images are taken")
    folder = process.text("training_folder") or "output"
    draft.put("output_dir", f"{folder.rstrip('/')}/{name or draft.name}", process.name("training_folder"))
    _model(draft, process.section("model"))
    _network(draft, process)
    train = process.section("train")
    _train(draft, train)
    _noise(draft, train)
    trigger = process.text("trigger_word")
    datasets.translate_sets(draft, process, trigger)
    translate_save(draft, process.section("save"))
    translate_sample(draft, process.section("sample"), train, trigger)
    logging = process.section("logging")
    if logging.flag("use_wandb"):
        draft.put("report_to", "wandb", logging.name("use_wandb"))
        draft.copy(logging, {"project_name": ("tracker_project_name", "text"), "run_name": ("tracker_run_name", "text")})
    for source in (train, logging, process, config, document):
        source.finish(REASONS)


def _model(draft: Draft, model: Source) -> None:
    architecture = model.text("arch")
    flags = [key for key in ("is_flux", "is_xl", "is_v2", "is_v3", "is_pixart") if model.flag(key)]
    words = [architecture] if architecture else [{"is_flux": "flux", "is_xl": "sdxl", "is_v2": "sd2"}.get(key, key[3:]) for key in flags]
    vocabulary.use_model(draft, words, model.text("name_or_path"), model.name("name_or_path"))
    if model.flag("is_v_pred"):
        draft.put("prediction_type", "v_prediction", model.name("is_v_pred"))
    model.take("dtype")
    draft.copy(model, {"vae_path": ("pretrained_vae_model_name_or_path", "text")})
    for flag, kind, options in (
        ("quantize", "qtype", ("base_model_precision",)),
        ("quantize_te", "qtype_te", ("text_encoder_1_precision", "text_encoder_2_precision")),
    ):
        is_on, word = model.flag(flag), model.text(kind) or "qfloat8"
        if is_on and word in QUANTISED:
            count = 1 if flag == "quantize" else len(draft.spec.prompts.text_encoder_folders) if draft.spec else 1
            for option in options[:count]:
                draft.put(option, QUANTISED[word], model.name(flag))
        elif is_on:
            draft.ledger.leave(model.name(kind), word, "see base_model_precision for the number formats that this trainer has")
    model.finish(REASONS)


def _network(draft: Draft, process: Source) -> None:
    network = process.section("network")
    if not network.values:
        draft.put("model_type", "full", process.name("network"))
        return
    draft.put("model_type", "lora", network.path)
    kind = (network.text("type") or "lora").lower()
    rank = network.whole("linear") or network.whole("rank") or 4
    alpha = network.number("linear_alpha") or network.number("alpha") or 1.0
    conv, conv_alpha, dropout = network.whole("conv"), network.number("conv_alpha"), network.number("dropout")
    sizes = {"linear_dim": rank, "linear_alpha": alpha, "conv_dim": conv, "conv_alpha": conv_alpha if conv else None, "dropout": dropout}
    if kind == "lokr":
        is_full, factor = network.flag("lokr_full_rank"), network.whole("lokr_factor")
        full = {"full_matrix": True, "linear_dim": 10000} if is_full else {}
        draft.use_lycoris(network.name("type"), "lokr", {**sizes, **full, "factor": factor})
    elif kind == "loha" or (conv and draft.has_convolutions and kind in ("lora", "locon")):
        draft.use_lycoris(network.name("conv"), "loha" if kind == "loha" else "locon", sizes)
    else:
        draft.put("lora_rank", rank, network.name("linear"))
        draft.put("lora_alpha", alpha, network.name("linear_alpha"))
        draft.put("lora_dropout", dropout or 0.0, network.name("dropout"))
        draft.put("use_dora", True if kind == "dora" else None, network.name("type"))
        if conv:
            draft.ledger.leave(network.name("conv"), conv, NO_CONVOLUTIONS)
        if kind not in ("lora", "locon", "dora"):
            draft.ledger.leave(network.name("type"), kind, "a standard LoRA takes its place")
    arguments = network.section("network_kwargs")
    only = arguments.texts("only_if_contains")
    if only and draft.adapter is None:
        draft.put("peft_lora_target_modules", vocabulary.as_json(only), arguments.name("only_if_contains"))
    elif only:
        draft.ledger.leave(arguments.name("only_if_contains"), only, "name the layers in apply_preset of lycoris_config.json")
    if draft.adapter is None:
        draft.use_layers((FORMAT, *WIDE), network.name("type"))
    arguments.finish(REASONS)
    network.finish(REASONS)


def _train(draft: Draft, train: Source) -> None:
    draft.put("max_train_steps", train.whole("steps") or 1000, train.name("steps"))
    draft.put("num_train_epochs", 0, train.name("steps"))
    draft.put("train_batch_size", train.whole("batch_size") or 1, train.name("batch_size"))
    accumulation = train.whole("gradient_accumulation_steps") or train.whole("gradient_accumulation") or 1
    draft.put("gradient_accumulation_steps", accumulation, train.name("gradient_accumulation_steps"))
    general, unet = train.number("lr"), train.number("unet_lr")
    draft.put("learning_rate", unet or general or 1e-6, train.name("unet_lr" if unet else "lr"))
    draft.copy(train, {"train_text_encoder": ("train_text_encoder", "flag"), "min_snr_gamma": ("snr_gamma", "number")})
    rate = train.number("text_encoder_lr")
    draft.put("text_encoder_lr", rate if draft.options.get("train_text_encoder") else None, train.name("text_encoder_lr"))
    checkpointing = train.flag("gradient_checkpointing")
    draft.put("gradient_checkpointing", True if checkpointing is None else checkpointing, train.name("gradient_checkpointing"))
    limit = train.number("max_grad_norm")
    draft.put("max_grad_norm", 1.0 if limit is None else limit, train.name("max_grad_norm"))
    draft.put("grad_clip_method", "norm", train.name("max_grad_norm"))
    vocabulary.use_optimizer(draft, train, "optimizer", train.section("optimizer_params").values, train.name("optimizer_params"))
    schedule = train.section("lr_scheduler_params")
    warmup = schedule.number("num_warmup_steps") or schedule.number("warmup_steps")
    vocabulary.use_scheduler(draft, train.text("lr_scheduler"), warmup, train.name("lr_scheduler"), schedule.name("num_warmup_steps"))
    schedule.finish(REASONS)
    vocabulary.use_precision(draft, train.text("dtype"), train.name("dtype"))
    average = train.section("ema_config")
    draft.copy(average, {"use_ema": ("use_ema", "flag"), "ema_decay": ("ema_decay", "number")})
    average.finish(REASONS)
    if train.flag("train_unet") is False:
        draft.ledger.leave(train.name("train_unet"), False, "the network is always trained")


def _noise(draft: Draft, train: Source) -> None:
    offset = train.number("noise_offset")
    if offset:
        for option, value in (("offset_noise", True), ("noise_offset", offset), ("noise_offset_probability", 1.0)):
            draft.put(option, value, train.name("noise_offset"))
    loss = (train.text("loss_type") or "mse").lower()
    draft.put("loss_type", LOSSES.get(loss), train.name("loss_type"))
    if loss not in LOSSES:
        draft.ledger.leave(train.name("loss_type"), loss, "the loss is one of l2, huber and smooth_l1; l2 takes its place")
    kind = (train.text("timestep_type") or "sigmoid").lower()
    if draft.is_flow_matching:
        for option, value in TIMESTEPS.get(kind, TIMESTEPS["sigmoid"]).items():
            draft.put(option, value, train.name("timestep_type"))
        if kind not in ("linear", "shift"):
            draft.use_sigmoid(train.name("timestep_type"))
        if kind not in TIMESTEPS:
            draft.ledger.leave(train.name("timestep_type"), kind, "timesteps are those of a sigmoid of the normal distribution")
