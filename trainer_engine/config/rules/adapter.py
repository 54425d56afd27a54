"""Rules of adapters: the trained one, and those that only validations use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainer_engine.config.adapters.assistant import DISABLE, assistant_problems
from trainer_engine.config.adapters.validation_adapter import (
    COMPARISON,
    CONFIG,
    MODE,
    NAME,
    NONE,
    OPTION,
    STRENGTH,
    address_problems,
    label_of,
    label_problems,
    parse_validation_adapter,
    strength_problems,
)
from trainer_engine.config.families import find_spec
from trainer_engine.config.lycoris.algorithms import DECOMPOSED_APART
from trainer_engine.config.options.adapter import LYCORIS_ALONE, STANDARD_ALONE, AdapterOptions, parse_targets
from trainer_engine.config.options.hooks import EXTERNAL
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.contract.errors import Problem

NAMED_TARGETS = ("unet_lora_target", "flux_lora_target")
"""Options that choose layers by a name, each for the families whose ``AdapterSpec`` names it."""
STEP, AVERAGE = "init_lora_step", "init_lora_ema"
SLIDER_TARGET = "slider_lora_target"
TARGETS_HINT = "name the layers in apply_preset.target_name of the LyCORIS file instead"
ADAPTER_OPTIONS = tuple(AdapterOptions.model_fields)


def adapter_options_fit_together(values: Values) -> Iterator[Problem]:
    """Notes options of an adapter that the run does not train, and refuses target modules that are not a list."""
    if values.get("model_type") != "lora":
        usual = {name: REGISTRY[name].default for name in ADAPTER_OPTIONS} | _defaults_of_flavour(values)
        changed = [name for name in ADAPTER_OPTIONS if name != DISABLE and values[name] != usual[name]]
        for name in changed:
            yield Problem.note(name, "no_adapter", f"model_type=full trains no adapter: {name} has no effect.", got=values[name])
        return
    other = LYCORIS_ALONE if values["lora_type"] == "standard" else STANDARD_ALONE
    for name in other:
        if values[name] != REGISTRY[name].default:
            message = f"{name} has no effect with lora_type={values['lora_type']}."
            hint = {"lora_rank": "set linear_dim in the LyCORIS file instead", SLIDER_TARGET: TARGETS_HINT}.get(name, "")
            yield Problem.note(name, "no_effect", message, got=values[name], hint=hint)
    yield from assistant_problems(values, {name: REGISTRY[name].default for name in ADAPTER_OPTIONS})
    try:
        parse_targets(values["peft_lora_target_modules"])
    except ValueError as error:
        got = values["peft_lora_target_modules"]
        yield Problem.error("peft_lora_target_modules", "not_a_list", f"{error}.", got=got, expected='a JSON list: ["to_q", "to_v"]')


def comfyui_has_the_layers_apart(values: Values) -> Iterator[Problem]:
    """Refuses a weight-decomposed adapter with ComfyUI's keys if ComfyUI has some of its layers as one."""
    spec = find_spec(str(values.get("model_family", "")))
    is_standard = values.get("model_type") == "lora" and values["lora_type"] == "standard"
    if spec is not None and spec.joins_for_comfyui and is_standard and values["use_dora"] and values["lora_format"] == "comfyui":
        hint = "use_dora=false saves a LoRA, which can be joined"
        yield Problem.error("lora_format", "not_with_joined_layers", DECOMPOSED_APART, got="comfyui", expected="diffusers", hint=hint)


def a_start_has_what_it_needs(values: Values) -> Iterator[Problem]:
    """Refuses a step or an average to begin with that has no adapter, and a step at which the run is over."""
    if values.get("model_type") != "lora":
        return
    step, total = values[STEP], values["max_train_steps"]
    for name in (name for name in (STEP, AVERAGE) if values[name] and not values["init_lora"]):
        message = f"{name} belongs to the adapter of init_lora, and none is named."
        yield Problem.error(name, "needs_init_lora", message, got=values[name], expected="init_lora as well")
    if step and total and step >= total:
        message = f"The run ends after {total} steps, and {STEP}={step} leaves none of them."
        yield Problem.error(STEP, "nothing_to_train", message, got=step, expected=f"less than max_train_steps={total}")
    if values[AVERAGE] and not values["use_ema"]:
        message = f"{AVERAGE} is the average to begin with, and the run keeps none."
        yield Problem.error(AVERAGE, "needs_use_ema", message, got=values[AVERAGE], expected="use_ema=true")
    elif values[AVERAGE] and values["ema_warmup_steps"] > (step or 0):
        message = f"ema_warmup_steps={values['ema_warmup_steps']} replaces the average by the weights: {AVERAGE} has no effect."
        yield Problem.note(AVERAGE, "no_effect", message, got=values[AVERAGE], hint=f"use at most {step or 0}")


def _defaults_of_flavour(values: Values) -> dict[str, Any]:
    family_spec = find_spec(str(values.get("model_family", "")))
    return dict(family_spec.defaults_of(values.get("model_flavour"))) if family_spec else {}


def named_targets_exist(values: Values) -> Iterator[Problem]:
    """Refuses named sets of layers that a family lacks, and notes the names where another option or another family decides."""
    family_spec = find_spec(str(values.get("model_family", "")))
    if values.get("model_type") != "lora" or family_spec is None:
        return
    adapters = family_spec.adapters
    for name in (name for name in NAMED_TARGETS if values[name] != REGISTRY[name].default):
        got = values[name]
        if adapters.lora_target_option != name:
            message = f"{name} names no layers of {family_spec.title}: it has no effect."
            yield Problem.note(name, "no_effect", message, got=got)
        elif got not in adapters.lora_targets:
            message = f"{family_spec.title} has no layers that {name}={got} names."
            yield Problem.error(name, "not_for_family", message, got=got, expected=f"one of {', '.join(adapters.lora_targets)}")
        elif values["peft_lora_target_modules"] and values["lora_type"] == "standard":
            yield Problem.note(name, "no_effect", f"peft_lora_target_modules overrides it: {name} has no effect.", got=got)


def slider_targets_are_used(values: Values) -> Iterator[Problem]:
    """Notes which option decides if ``slider_lora_target`` is one of several that choose layers."""
    if values.get("model_type") != "lora" or not values[SLIDER_TARGET] or values["lora_type"] != "standard":
        return
    family_spec = find_spec(str(values.get("model_family", "")))
    other = family_spec.adapters.lora_target_option if family_spec else ""
    if values["peft_lora_target_modules"]:
        message = f"peft_lora_target_modules overrides it: {SLIDER_TARGET} has no effect."
        yield Problem.note(SLIDER_TARGET, "no_effect", message, got=True)
    elif other and values[other] != REGISTRY[other].default:
        yield Problem.note(other, "no_effect", f"{SLIDER_TARGET} overrides it: {other} has no effect.", got=values[other])


def options_have_a_validation_adapter(values: Values) -> Iterator[Problem]:
    yield from strength_problems(values[STRENGTH], STRENGTH)
    if values[OPTION] and values[CONFIG]:
        message = f"{CONFIG} and {OPTION} both name adapters."
        yield Problem.error(CONFIG, "one_of_two", message, expected=f"{CONFIG} or {OPTION}")
    if values[OPTION]:
        return
    if values[MODE] == COMPARISON and not values[CONFIG]:
        message = f"{MODE}=comparison needs an adapter, but none is named."
        yield Problem.error(MODE, "missing_path", message, got=COMPARISON, expected=f"{OPTION} or {CONFIG} as well")
    for name in (NAME, STRENGTH):
        if values[name] != REGISTRY[name].default:
            yield Problem.note(name, "no_effect", f"{OPTION} is empty: {name} has no effect.", got=values[name])


def validation_adapter_is_shown(values: Values) -> Iterator[Problem]:
    given = OPTION if values[OPTION] else CONFIG
    if not values[given]:
        return
    reasons = {
        f"{MODE}=none uses no validation adapter": values[MODE] == NONE,
        "validation_disable generates no images": values["validation_disable"],
        f"validation_method={EXTERNAL} does not use the network in this run": values["validation_method"] == EXTERNAL,
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        yield Problem.note(given, "no_effect", f"{reason}: {given} has no effect.", got=values[given])


def validation_adapters_are_valid(values: Values) -> Iterator[Problem]:
    path = values[OPTION]
    if path:
        yield from address_problems(path, OPTION)
    if path and values[MODE] != NONE:
        named = bool(values[NAME])
        yield from label_problems(label_of(path, values[NAME]), NAME if named else OPTION, "" if named else f"set {NAME}")
    if values[CONFIG]:
        yield from parse_validation_adapter(values[CONFIG])[1]


RULES: tuple[Rule, ...] = (
    adapter_options_fit_together,
    a_start_has_what_it_needs,
    comfyui_has_the_layers_apart,
    named_targets_exist,
    slider_targets_are_used,
    options_have_a_validation_adapter,
    validation_adapter_is_shown,
    validation_adapters_are_valid,
)
