"""Rules of the model: its family and flavour, its objective, and the number types of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from trainer_engine.config.components import BASE, CONFIG, NETWORKS, T5
from trainer_engine.config.families import find_spec, known_but_missing, specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.one_file.layout import is_one_file
from trainer_engine.config.options.registry import FAMILY_GROUPS, REGISTRY, Rule, Values
from trainer_engine.config.precisions import LOADED, QUANTISED
from trainer_engine.config.published_quantised import exact_base
from trainer_engine.config.rules.noise_schedule import zero_snr_problem
from trainer_engine.config.rules.timesteps import BIAS, FLOW, PART, idle_bias, idle_timesteps
from trainer_engine.contract.errors import Problem

SUBFOLDER = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*\Z", re.ASCII)
SNR = ("snr_gamma", "use_soft_min_snr", "snr_weight", "soft_min_snr_sigma_data")
OFFSET = ("noise_offset", "noise_offset_probability")
DIFFUSION = (*SNR, *BIAS, *PART[1:], "rescale_betas_zero_snr", "offset_noise", *OFFSET)
HUBER = ("huber_c", "huber_schedule")


def family_problems(values: dict[str, Any]) -> Iterator[Problem]:
    name = values["model_family"]
    family_spec = find_spec(name)
    if family_spec is None:
        available = ", ".join(sorted(specs()))
        if known_but_missing(name):
            message = f"The model family {name} is not available yet."
            yield Problem.error("model_family", "not_available", message, got=name, expected=f"one of {available}")
        else:
            message = f"There is no model family {name!r}."
            yield Problem.error("model_family", "unknown_family", message, got=name, expected=f"one of {available}")
        return
    values["model_family"] = family_spec.name
    yield from _flavour(values, family_spec)
    model_type = values.get("model_type")
    if model_type is not None and model_type not in family_spec.model_types:
        message = f"model_type={model_type} is not available yet for {family_spec.title}."
        yield Problem.error("model_type", "not_available", message, got=model_type, expected=f"one of {', '.join(family_spec.model_types)}")
    target = values.get("prediction_type")
    if target is not None and target not in family_spec.prediction_types:
        message = f"{family_spec.title} cannot be trained on {target}."
        expected = f"one of {', '.join(family_spec.prediction_types)}"
        yield Problem.error("prediction_type", "not_for_family", message, got=target, expected=expected)


def _flavour(values: dict[str, Any], family_spec: FamilySpec) -> Iterator[Problem]:
    flavour = values.get("model_flavour")
    if flavour in family_spec.other_flavours:
        message = f"{family_spec.title} {flavour} is another model, which is not available yet."
        expected = f"one of {', '.join(family_spec.flavours)}"
        yield Problem.error("model_flavour", "not_available", message, got=flavour, expected=expected)
    elif flavour is not None and flavour not in family_spec.flavours:
        message = f"{family_spec.title} has no flavour {flavour!r}."
        hint = "leave it out to use your own weights by path" if values.get("pretrained_model_name_or_path") else ""
        expected = f"one of {', '.join(family_spec.flavours)}"
        yield Problem.error("model_flavour", "unknown_flavour", message, got=flavour, expected=expected, hint=hint)


def options_of_other_families_do_nothing(values: Values) -> Iterator[Problem]:
    for family, group in FAMILY_GROUPS.items():
        changed = [name for name in group.model_fields if values[name] != REGISTRY[name].default]
        for name in changed if family != values.get("model_family") else ():
            message = f"{name} has an effect only for the family {family}."
            yield Problem.note(name, "other_family", message, got=values[name])


def quantised_weights_are_frozen(values: Values) -> Iterator[Problem]:
    """Quantised weights cannot be trained, and each family supports only some quantised types."""
    chosen, family_spec = values["base_model_precision"], find_spec(str(values.get("model_family", "")))
    if chosen not in QUANTISED:
        return
    if values.get("model_type") == "full" and not values["controlnet"]:
        message = f"{chosen} weights cannot be trained, and model_type=full trains all of them."
        expected = ", ".join(("no_change", *LOADED))
        hint = "train an adapter with model_type=lora, or use base_model_precision=no_change"
        yield Problem.error("base_model_precision", "cannot_be_trained", message, got=chosen, expected=expected, hint=hint)
    elif family_spec is not None and chosen not in family_spec.adapters.base_precisions:
        message, expected = (
            f"{family_spec.title} does not support {chosen}.",
            ", ".join(("no_change", *family_spec.adapters.base_precisions)),
        )
        yield Problem.error("base_model_precision", "not_for_family", message, got=chosen, expected=expected)
    elif values["use_dora"] and values["lora_type"] == "standard":
        message = "DoRA needs the exact norms of the base weights, but they are quantised."
        yield Problem.error("use_dora", "needs_exact_weights", message, got=True, expected="false", hint=f"or set {exact_base(values)}")


def objective_options_have_an_effect(values: Values) -> Iterator[Problem]:
    """Reports options of flow matching in a run of diffusion and vice versa, and options that another one makes ineffective."""
    family_spec = find_spec(str(values.get("model_family", "")))
    if family_spec is None:
        return
    is_flow = (values["prediction_type"] or family_spec.objective) == "flow_matching"
    idle = dict.fromkeys(DIFFUSION if is_flow else FLOW, f"{family_spec.title} is trained by {'flow matching' if is_flow else 'diffusion'}")
    if values["loss_type"] == "l2":
        idle |= dict.fromkeys(HUBER, "loss_type is l2")
    for name in () if values["snr_gamma"] else ("use_soft_min_snr", "snr_weight"):
        idle.setdefault(name, "snr_gamma is not set")
    if not values["use_soft_min_snr"]:
        idle.setdefault("soft_min_snr_sigma_data", "use_soft_min_snr is off")
    for name, reason in idle_bias(values):
        idle.setdefault(name, reason)
    if not values["offset_noise"]:
        idle = dict.fromkeys(OFFSET, "offset_noise is off") | idle
    if not values["input_perturbation"]:
        idle["input_perturbation_steps"] = "input_perturbation is 0"
    for name, reason in idle_timesteps(values):
        idle.setdefault(name, reason)
    usual = family_spec.defaults_of(values.get("model_flavour"))
    for name, reason in idle.items():
        if values[name] != usual.get(name, REGISTRY[name].default):
            yield Problem.note(name, "no_effect", f"{reason}: {name} has no effect.", got=values[name])


def zero_snr_needs_a_velocity(values: Values) -> Iterator[Problem]:
    """At a signal-to-noise ratio of zero the input is the noise itself: a network that predicts the noise learns nothing there."""
    family_spec = find_spec(str(values.get("model_family", "")))
    own_weights = values.get("pretrained_model_name_or_path") and not values["prediction_type"]
    if family_spec is None or not values["rescale_betas_zero_snr"] or own_weights:
        return  # the scheduler of somebody's own weights says what they predict; the engine and the preflight read it
    if (values["prediction_type"] or family_spec.objective) == "epsilon":
        yield zero_snr_problem()


def replaced_components_exist(values: Values) -> Iterator[Problem]:
    """Refuses subfolders that leave their source, and notes sources of components that the family's pipelines do not have."""
    family_spec = find_spec(str(values.get("model_family", "")))
    folders = {component.folder for component in family_spec.trained.values()} if family_spec else set()
    for folder, (option, subfolder) in NETWORKS.items():
        if not SUBFOLDER.match(values[subfolder]):
            message = f"{subfolder} is not the name of a subfolder."
            yield Problem.error(subfolder, "not_a_subfolder", message, got=values[subfolder], expected=f"a name such as {folder}")
        if family_spec and values[option] and folder not in folders:
            message = f"The network of {family_spec.title} is no {folder}: {option} has no effect."
            yield Problem.note(option, "no_effect", message, got=values[option])
        elif values[subfolder] != REGISTRY[subfolder].default and not values[option]:
            yield Problem.note(subfolder, "no_effect", f"{option} is empty: {subfolder} has no effect.", got=values[subfolder])
    if values[CONFIG] and not is_one_file(values[BASE]):
        message = f"The base model is not one file: {CONFIG} has no effect."
        yield Problem.note(CONFIG, "no_effect", message, got=values[CONFIG])
    if family_spec and values[T5] and not family_spec.prompts.t5_folder:
        yield Problem.note(T5, "no_effect", f"{family_spec.title} has no T5 text encoder: {T5} has no effect.", got=values[T5])


def token_limit_has_an_effect(values: Values) -> Iterator[Problem]:
    """Notes a limit of prompts for a family that cannot follow it, and one above that of the family."""
    family_spec, asked = find_spec(str(values.get("model_family", ""))), values["tokenizer_max_length"]
    if family_spec is None or not asked:
        return
    limit = family_spec.tokens_of(values.get("model_flavour"))
    if family_spec.prompts.t5_folder and asked > limit:
        message = f"{family_spec.title} takes prompts of {limit} tokens: tokenizer_max_length={asked} has no effect."
        yield Problem.note("tokenizer_max_length", "above_family", message, got=asked)
    elif not family_spec.prompts.t5_folder and asked != limit:
        message = f"The text encoders of {family_spec.title} always take {limit} tokens: tokenizer_max_length has no effect."
        yield Problem.note("tokenizer_max_length", "no_effect", message, got=asked)


def padding_of_prompts_is_seen(values: Values) -> Iterator[Problem]:
    """Notes ``t5_padding=zero`` where the network sees no states of padding anyway."""
    family_spec = find_spec(str(values.get("model_family", "")))
    if family_spec is None or values["t5_padding"] == REGISTRY["t5_padding"].default:
        return
    prompts = family_spec.prompts
    if not prompts.t5_folder:
        reason = f"{family_spec.title} has no T5 text encoder"
    elif not prompts.stores_padding:
        reason = f"{family_spec.title} takes no states of padding"
    elif values.get(prompts.unpadded_option):
        reason = f"{prompts.unpadded_option} hides the padding from the network"
    else:
        return
    yield Problem.note("t5_padding", "no_effect", f"{reason}: t5_padding has no effect.", got=values["t5_padding"])


RULES: tuple[Rule, ...] = (
    token_limit_has_an_effect,
    padding_of_prompts_is_seen,
    replaced_components_exist,
    options_of_other_families_do_nothing,
    quantised_weights_are_frozen,
    objective_options_have_an_effect,
    zero_snr_needs_a_velocity,
)
