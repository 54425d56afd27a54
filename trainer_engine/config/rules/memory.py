"""Rules of the options that trade time for memory."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.options.memory import MemoryOptions
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.contract.errors import Problem

STREAMS = ("musubi_blocks_to_swap", "enable_group_offload", "ramtorch")
"""Options that keep frozen weights of the network on the host. Each has its own order of copies, so a run has one of them."""
CHECKPOINTING = ("gradient_checkpointing_interval", "gradient_checkpointing_segment_stride", "gradient_checkpointing_backend")
GROUPS, TEXT_GROUPS = "enable_group_offload", "group_offload_text_encoder"
DETAILS = {
    "group_offload_type": (GROUPS,),
    "group_offload_blocks_per_group": (GROUPS,),
    "group_offload_to_disk_path": (GROUPS,),
    "group_offload_use_stream": (GROUPS, TEXT_GROUPS),
    "ramtorch_target_modules": ("ramtorch",),
    "ramtorch_transformer_percent": ("ramtorch",),
    "ramtorch_text_encoder_percent": ("ramtorch_text_encoder",),
    "ramtorch_disable_extensions": ("ramtorch", "ramtorch_text_encoder"),
}
"""Option -> the options of which one has to be on."""


def _options(values: Values) -> MemoryOptions:
    return MemoryOptions(**{name: values[name] for name in MemoryOptions.model_fields})


def stride_is_not_below_interval(values: Values) -> Iterator[Problem]:
    interval, stride = max(1, values["gradient_checkpointing_interval"] or 1), values["gradient_checkpointing_segment_stride"]
    if stride is not None and stride < interval:
        message = (
            f"gradient_checkpointing_segment_stride={stride} is below gradient_checkpointing_interval={interval}: segments would overlap."
        )
        yield Problem.error("gradient_checkpointing_segment_stride", "overlapping", message, got=stride, expected=f"at least {interval}")


def checkpointing_options_have_an_effect(values: Values) -> Iterator[Problem]:
    options = _options(values)
    if not values["gradient_checkpointing"]:
        for name in CHECKPOINTING:
            if values[name] not in (None, 0, 1, REGISTRY[name].default):
                yield Problem.note(name, "no_effect", f"{name} has no effect without gradient_checkpointing.", got=values[name])
    elif options.gradient_checkpointing_offload_attention and not (options.leaves_blocks_out or options.recomputes_parts):
        message = "Every block is recomputed as a whole, so that attention saves nothing that could wait in the memory of the host."
        hint = "use gradient_checkpointing_backend=torch-ffn or unsloth-ffn, or an interval above 1"
        yield Problem.note("gradient_checkpointing_offload_attention", "no_effect", message, got=True, hint=hint)
    offloads = options.gradient_checkpointing_offload_attention or (values["gradient_checkpointing"] and options.offloads_inputs)
    if options.gradient_checkpointing_offload_prefetch and not offloads:
        name = "gradient_checkpointing_offload_prefetch"
        yield Problem.note(name, "no_effect", f"{name} has no effect: nothing that is saved waits in the memory of the host.", got=True)


def weights_are_streamed_in_one_way(values: Values) -> Iterator[Problem]:
    chosen = [name for name in STREAMS if values[name]]
    for name in chosen[1:]:
        message = f"{name} and {chosen[0]} both keep the weights of the network on the host, each in its own order."
        yield Problem.error(name, "two_ways", message, got=values[name], expected=f"one of {', '.join(STREAMS)}")
    if values["group_offload_text_encoder"] and values["ramtorch_text_encoder"]:
        message = "ramtorch_text_encoder and group_offload_text_encoder both keep the weights of text encoders on the host."
        yield Problem.error("ramtorch_text_encoder", "two_ways", message, got=True, expected="one of the two")


def streamed_weights_are_frozen(values: Values) -> Iterator[Problem]:
    for name in (name for name in STREAMS if values[name]):
        if values.get("model_type") == "full":
            message = f"{name} keeps frozen weights on the host and copies them in one direction only. Here every weight is trained."
            hint = "train an adapter with model_type=lora; for a full fine-tune, optimizer_cpu_offload_method and use_ema=false save memory"
            yield Problem.error(name, "needs_frozen_weights", message, got=values[name], expected=f"{REGISTRY[name].default}", hint=hint)
        if values["dynamo_backend"] != "no":
            message = f"{name} binds the weights anew in every step, which a compiled network does not see: the network is not compiled."
            hint = f"set dynamo_backend=no, or compile without {name}"
            yield Problem.warning("dynamo_backend", "not_compiled", message, got=values["dynamo_backend"], hint=hint)


def details_belong_to_their_option(values: Values) -> Iterator[Problem]:
    for name, owners in DETAILS.items():
        if values[name] != REGISTRY[name].default and not any(values[owner] for owner in owners):
            yield Problem.note(name, "no_effect", f"{name} has no effect without {' or '.join(owners)}.", got=values[name])


def average_has_one_place(values: Values) -> Iterator[Problem]:
    if values["ema_cpu_only"] and values["ema_device"] == "accelerator":
        message = "ema_cpu_only keeps the average in the memory of the host, so that ema_device=accelerator has no effect."
        yield Problem.note("ema_device", "no_effect", message, got="accelerator", hint="use ema_cpu_only=false")
    if values["use_ema"] and values["max_train_steps"] and values["ema_warmup_steps"] >= values["max_train_steps"]:
        message = f"The average is a copy of the weights for all {values['max_train_steps']} steps of the run."
        yield Problem.note("ema_warmup_steps", "longer_than_run", message, got=values["ema_warmup_steps"], hint="use fewer steps")


RULES: tuple[Rule, ...] = (
    stride_is_not_below_interval,
    checkpointing_options_have_an_effect,
    weights_are_streamed_in_one_way,
    streamed_weights_are_frozen,
    details_belong_to_their_option,
    average_has_one_place,
)
