"""Rules of the options that trade time for memory."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.options.memory import MemoryOptions
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.contract.errors import Problem

CHECKPOINTING = ("gradient_checkpointing_interval", "gradient_checkpointing_segment_stride", "gradient_checkpointing_backend")


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


RULES: tuple[Rule, ...] = (
    stride_is_not_below_interval,
    checkpointing_options_have_an_effect,
)
