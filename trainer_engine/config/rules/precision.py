"""Rules of number types: those that a family trains badly in, quantised ones, and the options that change how weights are quantised."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.families import find_spec
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.config.options.sdnq import SdnqOptions
from trainer_engine.config.precisions import EXTRAS, PRECISIONS, QUANTISED, Precision, activated
from trainer_engine.config.quantization_config import OPTION as COMPONENTS
from trainer_engine.config.quantization_config import foreign_components, quantised_components
from trainer_engine.config.rules.device import WEIGHT_OPTIONS
from trainer_engine.config.sdnq_settings import parse_sdnq
from trainer_engine.contract.errors import Problem

ACTIVATIONS, VIA = "quantize_activations", "quantize_via"
PIPELINES = ("quanto", "torchao", "bnb", "sdnq")
"""Libraries for which diffusers has a quantizer of its own."""
MATMUL, STATIC = "sdnq_use_quantized_matmul", "sdnq_use_static_quantization"


def _chosen(values: Values) -> dict[str, Precision]:
    """Option -> its quantised type, for each option that names one."""
    names = {name: activated(values[name], quantize_activations=values[ACTIVATIONS]) for name in WEIGHT_OPTIONS}
    return {option: PRECISIONS[name] for option, name in names.items() if name in QUANTISED}


def components_have_types(values: Values) -> Iterator[Problem]:
    """Checks ``quantization_config``, and that the options for which it stands say nothing else."""
    types, problems = quantised_components(values[COMPONENTS])
    yield from problems
    for option, name in types.items():
        if values[option] != name:
            message = f"{COMPONENTS} says {name}, and {option} says {values[option]}."
            yield Problem.error(option, "conflicting_values", message, got=values[option], expected=f"{name}, or one of the two options")
    family_spec = find_spec(str(values.get("model_family", "")))
    if family_spec is not None:
        yield from foreign_components(values[COMPONENTS], frozenset(family_spec.components), family_spec.title)


def families_have_poor_precisions(values: Values) -> Iterator[Problem]:
    family_spec, chosen = find_spec(str(values.get("model_family", ""))), values["mixed_precision"]
    if family_spec is not None and chosen in family_spec.poor_precisions:
        message = f"With {chosen}, {family_spec.poor_precisions[chosen]} for {family_spec.title}."
        yield Problem.warning("mixed_precision", "poor_for_family", message, got=chosen, expected="bf16 or no")


def quantised_types_are_installed(values: Values) -> Iterator[Problem]:
    for option, row in _chosen(values).items():
        missing = row.missing_packages
        if missing:
            named = f"library {missing[0]}, which is" if len(missing) == 1 else f"libraries {' and '.join(missing)}, which are"
            message = f"{row.name} needs the {named} not installed here."
            commands = [f"pip install '.[{EXTRAS[package]}]'" if package in EXTRAS else f"install {package}" for package in missing]
            others = ", ".join(name for name in QUANTISED if not PRECISIONS[name].missing_packages)
            yield Problem.error(option, "not_installed", message, got=row.name, expected=f"one of {others}", hint=" and ".join(commands))


def activations_are_rounded_by_the_library(values: Values) -> Iterator[Problem]:
    """Refuses ``quantize_activations`` for types whose library does not multiply rounded numbers."""
    if not values[ACTIVATIONS]:
        return
    chosen = _chosen(values)
    for option, row in chosen.items():
        if not row.with_activations:
            message = f"{ACTIVATIONS} rounds the inputs of layers, and the library of {row.name} cannot."
            able = ", ".join(name for name in QUANTISED if PRECISIONS[name].with_activations)
            hint = f"use {MATMUL}" if row.library == "sdnq" else f"types that can: {able}"
            yield Problem.error(ACTIVATIONS, "not_for_type", message, got=f"{option}={row.name}", expected="false", hint=hint)
    if not chosen:
        yield Problem.note(ACTIVATIONS, "no_effect", f"Nothing is quantised: {ACTIVATIONS} has no effect.", got=True)


def pipelines_quantise_some_types(values: Values) -> Iterator[Problem]:
    for option, row in _chosen(values).items():
        if values[VIA] == "pipeline" and row.library not in PIPELINES:
            message = f"The pipelines of diffusers cannot quantise to {row.name}."
            yield Problem.error(VIA, "not_for_type", message, got=f"{option}={row.name}", expected="accelerator or cpu")


def sdnq_options_are_valid(values: Values) -> Iterator[Problem]:
    """Checks the JSON of these options, and notes those that nothing reads."""
    _, problems = parse_sdnq(values)
    yield from problems
    if values[STATIC] is False and not values[MATMUL]:
        message = f"{STATIC}=false quantises weights for each product of {MATMUL}, which is off: nothing would be quantised."
        yield Problem.error(STATIC, "nothing_quantised", message, got=False, expected="true", hint=f"or set {MATMUL}=true")
    idle = {}
    if not any(row.library == "sdnq" for row in _chosen(values).values()):
        idle = dict.fromkeys(SdnqOptions.model_fields, "No weights are quantised by SDNQ")
    elif not values[MATMUL]:
        idle = dict.fromkeys(("sdnq_quantized_matmul_dtype", "sdnq_modules_to_not_use_matmul"), f"{MATMUL} is off")
    if not values["sdnq_use_svd"]:
        idle |= {name: "sdnq_use_svd is off" for name in ("sdnq_svd_rank", "sdnq_svd_steps") if name not in idle}
    if not values["sdnq_use_hadamard"]:
        idle.setdefault("sdnq_hadamard_group_size", "sdnq_use_hadamard is off")
    for name, reason in idle.items():
        if values[name] != REGISTRY[name].default:
            yield Problem.note(name, "no_effect", f"{reason}: {name} has no effect.", got=values[name])


RULES: tuple[Rule, ...] = (
    components_have_types,
    families_have_poor_precisions,
    quantised_types_are_installed,
    activations_are_rounded_by_the_library,
    pipelines_quantise_some_types,
    sdnq_options_are_valid,
)
