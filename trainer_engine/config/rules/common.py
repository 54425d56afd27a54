"""What several options must keep together: between one another, and with the family."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from trainer_engine.config.families import FamilySpec, find_spec, known_but_missing, specs
from trainer_engine.config.options.adapter import LYCORIS_ALONE, STANDARD_ALONE, AdapterOptions, parse_targets
from trainer_engine.config.options.objective import ObjectiveOptions
from trainer_engine.config.options.optimizer import ARGUMENTS, READS_EVERY_TENSOR, SCHEDULE_FREE, WITHOUT_BETAS
from trainer_engine.config.options.precision import QUANTISED
from trainer_engine.config.options.registry import FAMILY_GROUPS, FAMILY_RULES, REGISTRY, Rule
from trainer_engine.config.options.validation import parse_resolutions
from trainer_engine.config.rules.checkpointing import SAVING_RULES
from trainer_engine.config.rules.evaluation import early_stop_has_evaluations, evaluations_fit_the_run
from trainer_engine.config.rules.hooks import SCRIPT_RULES
from trainer_engine.config.rules.publishing import publishing_fits_together, stores_are_right
from trainer_engine.config.rules.scoring import scoring_has_images
from trainer_engine.config.rules.validation import VALIDATION_RULES
from trainer_engine.config.rules.validation_adapters import VISITING_RULES
from trainer_engine.config.rules.webhooks import webhooks_are_right
from trainer_engine.config.trackers import KNOWN as TRACKERS
from trainer_engine.config.trackers import parse_trackers
from trainer_engine.contract.errors import Problem

Values = Mapping[str, Any]
LARGEST_MEGAPIXELS = 5
SMALLEST_PIXEL_EDGE = 64
SMALLEST_PRODIGY_RATE = 0.1
ADAPTER_OPTIONS = tuple(AdapterOptions.model_fields)
SNR = ("snr_gamma", "use_soft_min_snr")
HUBER = ("huber_c", "huber_schedule")
BETA = ("flow_beta_schedule_alpha", "flow_beta_schedule_beta")
FLOW = tuple(name for name in ObjectiveOptions.model_fields if name.startswith("flow_"))


@dataclass(frozen=True)
class Checked:
    """Values with the family's defaults in their place, and what is wrong with them together."""

    values: dict[str, Any]
    problems: list[Problem]


def broken_rules(given: Values, told: Collection[str]) -> Checked:
    """Check the values given. Rules about an option that is already ``told`` to be wrong are left out."""
    values = dict(given)
    problems = list(_family(values)) if "model_family" in values else []
    for name, value in resolved_defaults(values).items():
        values.setdefault(name, value)
    values.setdefault("num_train_epochs", 0 if values.get("max_train_steps") else REGISTRY["num_train_epochs"].default)
    for name, spec in REGISTRY.items():
        if not spec.required:
            values.setdefault(name, spec.default)
    for rule in (*RULES, *FAMILY_RULES.get(str(values.get("model_family", "")), ())):
        problems += rule(values)
    return Checked(values, [problem for problem in problems if problem.option not in told])


def resolved_defaults(values: Values) -> Mapping[str, Any]:
    """The option defaults of the family that the values name."""
    family_spec = find_spec(str(values.get("model_family", "")))
    return family_spec.defaults_of(values.get("model_flavour")) if family_spec else {}


def _family(values: dict[str, Any]) -> Iterator[Problem]:
    name = values["model_family"]
    family_spec = find_spec(name)
    if family_spec is None:
        available = ", ".join(sorted(specs()))
        if known_but_missing(name):
            message = f"The model family {name} is known, not available yet."
            yield Problem.error("model_family", "not_available", message, got=name, expected=f"one of {available}")
        else:
            message = f"There is no model family {name!r}."
            yield Problem.error("model_family", "unknown_family", message, got=name, expected=f"one of {available}")
        return
    values["model_family"] = family_spec.name
    yield from _flavour(values, family_spec)
    model_type = values.get("model_type")
    if model_type is not None and model_type not in family_spec.model_types:
        message = f"model_type={model_type} is known, not available yet for {family_spec.title}."
        yield Problem.error("model_type", "not_available", message, got=model_type, expected=f"one of {', '.join(family_spec.model_types)}")
    target = values.get("prediction_type")
    if target is not None and target not in family_spec.prediction_types:
        message = f"{family_spec.title} cannot be trained on {target}."
        expected = f"one of {', '.join(family_spec.prediction_types)}"
        yield Problem.error("prediction_type", "not_for_family", message, got=target, expected=expected)


def _flavour(values: dict[str, Any], family_spec: FamilySpec) -> Iterator[Problem]:
    flavour = values.get("model_flavour")
    if flavour is not None and flavour not in family_spec.flavours:
        message = f"{family_spec.title} has no flavour {flavour!r}."
        hint = "leave it out to use your own weights by path" if values.get("pretrained_model_name_or_path") else ""
        expected = f"one of {', '.join(family_spec.flavours)}"
        yield Problem.error("model_flavour", "unknown_flavour", message, got=flavour, expected=expected, hint=hint)


def run_has_a_length(values: Values) -> Iterator[Problem]:
    steps, epochs = values["max_train_steps"], values["num_train_epochs"]
    if not steps and not epochs:
        message = "The run has no length: max_train_steps and num_train_epochs are both 0."
        yield Problem.error("max_train_steps", "no_length", message, got=0, expected="one of the two above 0")
    if steps and epochs:
        message = f"max_train_steps={steps} and num_train_epochs={epochs} contradict each other."
        hint = "set num_train_epochs to 0 to count steps, or max_train_steps to 0 to count epochs"
        yield Problem.error("num_train_epochs", "two_lengths", message, got=epochs, expected="exactly one of the two above 0", hint=hint)


def warmup_fits(values: Values) -> Iterator[Problem]:
    warmup, total = values["lr_warmup_steps"], values["max_train_steps"]
    if total and warmup > total:
        message = f"{warmup} warm-up steps in a run of {total}: the peak learning rate is never reached."
        yield Problem.note("lr_warmup_steps", "longer_than_run", message, got=warmup, hint=f"use {total // 10} or less")


def floor_is_below_peak(values: Values) -> Iterator[Problem]:
    floor, peak = values["lr_end"], values["learning_rate"]
    if values["lr_scheduler"] == "polynomial" and floor >= peak:
        message = f"The polynomial curve falls from learning_rate={peak:g} to lr_end={floor:g}, which is not below it."
        yield Problem.error("lr_end", "not_below_peak", message, got=floor, expected=f"less than {peak:g}")


def betas_come_together(values: Values) -> Iterator[Problem]:
    for name, other in (("optimizer_beta1", "optimizer_beta2"), ("optimizer_beta2", "optimizer_beta1")):
        if values[name] is None and values[other] is not None:
            yield Problem.error(name, "incomplete", f"{other} is given without {name}.", expected="both or neither")


def optimizer_takes_its_arguments(values: Values) -> Iterator[Problem]:
    optimizer = values["optimizer"]
    allowed = ARGUMENTS.get(optimizer)
    if allowed is None:
        return
    for name, value in values["optimizer_config"].items():
        if name not in allowed:
            message, expected = f"{optimizer} has no argument {name!r}.", f"one of {', '.join(sorted(allowed))}"
            yield Problem.error("optimizer_config", "unknown_argument", message, got=name, expected=expected)
        elif value is not None and not (isinstance(value, bool) if allowed[name] is bool else _is_not_negative(value)):
            expected = "true or false" if allowed[name] is bool else "a number that is not negative"
            yield Problem.error("optimizer_config", "bad_argument", f"{name} is not {expected}.", got=value, expected=f"{name}={expected}")


def _is_not_negative(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def sizes_make_sense(values: Values) -> Iterator[Problem]:
    kind = values["resolution_type"]
    if (values["maximum_image_size"] is None) != (values["target_downsample_size"] is None):
        name = "target_downsample_size" if values["target_downsample_size"] is None else "maximum_image_size"
        message = "maximum_image_size and target_downsample_size go together: which images are too large, and what they are scaled to."
        yield Problem.error(name, "incomplete", message, expected="both or neither")
    for name in ("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size"):
        value = values[name]
        if not value or (name == "resolution" and value == REGISTRY[name].default):
            continue
        if kind == "area" and value > LARGEST_MEGAPIXELS:
            message = f"{name}={value:g} with resolution_type=area is {value:g} megapixels; it looks like pixels."
            yield Problem.error(name, "looks_like_pixels", message, got=value, expected="megapixels", hint="use resolution_type=pixel_area")
        if kind != "area" and value < SMALLEST_PIXEL_EDGE:
            message = f"{name}={value:g} with resolution_type={kind} is {value:g} pixels; it looks like megapixels."
            yield Problem.error(name, "looks_like_megapixels", message, got=value, expected="pixels", hint="use resolution_type=area")
    if kind == "pixel_area" and values["resolution"] != int(values["resolution"]):
        message = "resolution_type=pixel_area needs a whole number of pixels."
        yield Problem.error("resolution", "not_a_whole_number", message, got=values["resolution"], expected="a whole number")


def validation_sizes_are_sizes(values: Values) -> Iterator[Problem]:
    try:
        parse_resolutions(values["validation_resolution"])
    except ValueError as error:
        expected = "an edge, WIDTHxHEIGHT, or several with commas; multiples of 8"
        yield Problem.error("validation_resolution", "not_a_size", f"{error}.", got=values["validation_resolution"], expected=expected)


def previews_have_a_decoder(values: Values) -> Iterator[Problem]:
    family_spec = find_spec(str(values.get("model_family", "")))
    if values["validation_preview"] and family_spec is not None and not family_spec.latents.preview_decoder:
        message = f"There is no Tiny AutoEncoder for {family_spec.title}, so images cannot be shown while they are drawn."
        yield Problem.error("validation_preview", "no_decoder", message, got=True, expected="false", hint="finished images are events too")


def instance_prompt_is_given(values: Values) -> Iterator[Problem]:
    wanted_by = [
        f"caption_strategy={values['caption_strategy']}" if values["caption_strategy"] == "instanceprompt" else "",
        "prepend_instance_prompt" if values["prepend_instance_prompt"] else "",
        "only_instance_prompt" if values["only_instance_prompt"] else "",
    ]
    if any(wanted_by) and not values["instance_prompt"]:
        by = " and ".join(word for word in wanted_by if word)
        yield Problem.error("instance_prompt", "missing", f"{by} needs instance_prompt.", expected="the caption")


def adamw_keeps_float32(values: Values) -> Iterator[Problem]:
    if values["optimizer"] == "adamw_bf16" and values["mixed_precision"] != "bf16":
        message = f"With mixed_precision={values['mixed_precision']} the weights stay float32, and adamw_bf16 works on them as plain AdamW."
        yield Problem.note("optimizer", "works_as_adamw", message, got="adamw_bf16")


def clipping_is_gentle(values: Values) -> Iterator[Problem]:
    default = resolved_defaults(values).get("max_grad_norm")
    if default is not None and (values["max_grad_norm"] == 0 or values["max_grad_norm"] > default):
        message = f"max_grad_norm={values['max_grad_norm']:g} is looser than this family's {default:g}, which keeps its training stable."
        yield Problem.note("max_grad_norm", "looser_than_family", message, got=values["max_grad_norm"])


def options_of_other_families_do_nothing(values: Values) -> Iterator[Problem]:
    for family, group in FAMILY_GROUPS.items():
        changed = [name for name in group.model_fields if values[name] != REGISTRY[name].default]
        for name in changed if family != values.get("model_family") else ():
            message = f"{name} is an option of the family {family} alone; it has no effect here."
            yield Problem.note(name, "other_family", message, got=values[name])


def objective_options_have_an_effect(values: Values) -> Iterator[Problem]:
    """Options of flow matching do nothing for diffusion, and the other way round; the loss has options of its own."""
    family_spec = find_spec(str(values.get("model_family", "")))
    if family_spec is None:
        return
    is_flow = (values["prediction_type"] or family_spec.objective) == "flow_matching"
    idle = dict.fromkeys(SNR if is_flow else FLOW, f"{family_spec.title} is trained by {'flow matching' if is_flow else 'diffusion'}")
    if values["loss_type"] == "l2":
        idle |= dict.fromkeys(HUBER, "loss_type is l2")
    if values["use_soft_min_snr"] and not values["snr_gamma"]:
        idle.setdefault("use_soft_min_snr", "snr_gamma is not set")
    for name, reason in _idle_timesteps(values):
        idle.setdefault(name, reason)
    for name, reason in idle.items():
        if values[name] != REGISTRY[name].default:
            yield Problem.note(name, "no_effect", f"{reason}: {name} has no effect.", got=values[name])
    if values["flow_use_uniform_schedule"] and values["flow_use_beta_schedule"]:
        message = "Timesteps cannot be drawn both uniformly and from a beta distribution."
        yield Problem.error("flow_use_beta_schedule", "two_schedules", message, got=True, expected="one of the two")


def _idle_timesteps(values: Values) -> Iterator[tuple[str, str]]:
    """(option, reason) of those of flow matching that another one replaces."""
    if values["flow_schedule_shift"]:
        yield "flow_schedule_auto_shift", f"flow_schedule_shift={values['flow_schedule_shift']:g} comes first; 0 lets the size decide"
    if not values["flow_use_beta_schedule"]:
        yield from dict.fromkeys(BETA, "flow_use_beta_schedule is off").items()
    if values["flow_use_uniform_schedule"] or values["flow_use_beta_schedule"]:
        yield "flow_sigmoid_scale", "another distribution is chosen"


def optimizer_follows_its_options(values: Values) -> Iterator[Problem]:
    """Betas for a rule without any, and a curve for a rule that replaces it, have no effect; a rule may be slow, a library missing."""
    chosen = values["optimizer"]
    if chosen in READS_EVERY_TENSOR:
        message = f"{chosen} reads from the device for every weight tensor in every step: a GPU waits each time."
        yield Problem.note("optimizer", "reads_every_tensor", message, got=chosen, hint="torch-adamw and adamw_bf16 do not")
    if chosen in WITHOUT_BETAS and values["optimizer_beta1"] is not None:
        yield Problem.note("optimizer_beta1", "no_effect", f"{chosen} has no betas.", got=values["optimizer_beta1"])
    if chosen in SCHEDULE_FREE and values["lr_scheduler"] not in ("constant", "constant_with_warmup"):
        message = f"{chosen} needs no curve: the rate stays at its peak after the warm-up."
        yield Problem.note("lr_scheduler", "no_effect", message, got=values["lr_scheduler"])
    if chosen == "prodigy" and values["learning_rate"] < SMALLEST_PRODIGY_RATE:
        message = f"prodigy finds the rate itself and multiplies it by learning_rate={values['learning_rate']:g}."
        yield Problem.note("learning_rate", "usually_one", message, got=values["learning_rate"], hint="use learning_rate=1")
    if chosen.startswith("bnb-") and importlib.util.find_spec("bitsandbytes") is None:
        message = f"{chosen} needs the library bitsandbytes, which is not installed here."
        yield Problem.error(
            "optimizer", "not_installed", message, got=chosen, expected="another optimizer", hint="pip install bitsandbytes"
        )


def trackers_are_known(values: Values) -> Iterator[Problem]:
    try:
        names = parse_trackers(values["report_to"])
    except ValueError as error:
        expected = f"none, or some of {', '.join(TRACKERS)} with commas"
        yield Problem.error("report_to", "unknown_tracker", f"report_to: {error}.", got=values["report_to"], expected=expected)
        return
    folder = PurePosixPath(values["logging_dir"])
    if folder.is_absolute() or ".." in folder.parts:
        message = f"logging_dir={folder} leads out of output_dir."
        yield Problem.error("logging_dir", "outside_output", message, got=values["logging_dir"], expected="a folder below output_dir: logs")
    for name in names:
        if importlib.util.find_spec(name) is None:
            message = f"The tracker {name} is not installed here."
            yield Problem.error("report_to", "not_installed", message, got=name, hint=f"pip install {name}")


def quantised_weights_are_frozen(values: Values) -> Iterator[Problem]:
    """A quantised weight cannot learn, and a family names the types that it takes."""
    chosen, family_spec = values["base_model_precision"], find_spec(str(values.get("model_family", "")))
    if chosen not in QUANTISED:
        return
    if values.get("model_type") == "full":
        message, expected = f"{chosen} weights cannot be trained, and model_type=full trains all of them.", "no_change, bf16, fp16 or fp32"
        hint = "train an adapter with model_type=lora, or use base_model_precision=no_change"
        yield Problem.error("base_model_precision", "cannot_be_trained", message, got=chosen, expected=expected, hint=hint)
    elif family_spec is not None and chosen not in family_spec.adapters.base_precisions:
        message, expected = f"{family_spec.title} is not kept in {chosen}.", ", ".join(("no_change", *family_spec.adapters.base_precisions))
        yield Problem.error("base_model_precision", "not_for_family", message, got=chosen, expected=expected)
    elif values["use_dora"] and values["lora_type"] == "standard":
        message, hint = "DoRA needs the exact norms of the base weights, which quantised ones do not give.", "or leave the base unquantised"
        yield Problem.error("use_dora", "needs_exact_weights", message, got=True, expected="false", hint=hint)


def adapter_options_fit_together(values: Values) -> Iterator[Problem]:
    """An option of one kind of adapter has no effect on the other; that is worth a note."""
    if values.get("model_type") != "lora":
        changed = [name for name in ADAPTER_OPTIONS if values[name] != REGISTRY[name].default]
        for name in changed:
            yield Problem.note(name, "no_adapter", f"model_type=full trains no adapter: {name} has no effect.", got=values[name])
        return
    other = LYCORIS_ALONE if values["lora_type"] == "standard" else STANDARD_ALONE
    for name in other:
        if values[name] != REGISTRY[name].default:
            message = f"{name} has no effect with lora_type={values['lora_type']}."
            hint = "linear_dim in the adapter file is the rank" if name == "lora_rank" else ""
            yield Problem.note(name, "no_effect", message, got=values[name], hint=hint)
    try:
        parse_targets(values["peft_lora_target_modules"])
    except ValueError as error:
        got = values["peft_lora_target_modules"]
        yield Problem.error("peft_lora_target_modules", "not_a_list", f"{error}.", got=got, expected='a JSON list: ["to_q", "to_v"]')


RULES: tuple[Rule, ...] = (
    run_has_a_length,
    warmup_fits,
    floor_is_below_peak,
    betas_come_together,
    optimizer_takes_its_arguments,
    sizes_make_sense,
    validation_sizes_are_sizes,
    previews_have_a_decoder,
    instance_prompt_is_given,
    adamw_keeps_float32,
    clipping_is_gentle,
    options_of_other_families_do_nothing,
    optimizer_follows_its_options,
    trackers_are_known,
    quantised_weights_are_frozen,
    adapter_options_fit_together,
    objective_options_have_an_effect,
    evaluations_fit_the_run,
    early_stop_has_evaluations,
    *SAVING_RULES,
    *VALIDATION_RULES,
    *VISITING_RULES,
    scoring_has_images,
    *SCRIPT_RULES,
    webhooks_are_right,
    publishing_fits_together,
    stores_are_right,
)
