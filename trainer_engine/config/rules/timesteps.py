"""Rules of the timesteps that a run trains on."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.families import find_spec
from trainer_engine.config.family_parts import FULL_PIPELINE as FULL
from trainer_engine.config.options.registry import Rule, Values
from trainer_engine.config.options.timesteps import TimestepOptions, parse_densities
from trainer_engine.config.stages import uses_both
from trainer_engine.contract.errors import Problem

BIAS = tuple(name for name in TimestepOptions.model_fields if name.startswith("timestep_bias_"))
STRENGTH = "refiner_training_strength"
PART = ("refiner_training", STRENGTH, "refiner_training_invert_schedule")
BETA = ("flow_beta_schedule_alpha", "flow_beta_schedule_beta")
CUBIC, FAST = "flow_cubic_schedule_weights", "flux_fast_schedule"
DISTRIBUTIONS = ("flow_use_uniform_schedule", "flow_use_beta_schedule", CUBIC, FAST)
"""Options of which each is a distribution of the timesteps of flow matching."""
SHIFTS = ("flow_schedule_shift", "flow_schedule_auto_shift")
FLOW = (*(name for name in TimestepOptions.model_fields if name.startswith("flow_")), FAST)


def idle_bias(values: Values) -> Iterator[tuple[str, str]]:
    """Yields (option, reason) for each option of the timestep bias that another one makes ineffective."""
    strategy = values["timestep_bias_strategy"]
    if strategy == "none":
        yield from dict.fromkeys(BIAS, "timestep_bias_strategy is none").items()
    elif strategy == "range":
        yield "timestep_bias_portion", "timestep_bias_strategy=range has a begin and an end"
    else:
        yield from dict.fromkeys(("timestep_bias_begin", "timestep_bias_end"), f"timestep_bias_strategy={strategy} has a portion").items()
    if strategy != "none" and values["timestep_bias_multiplier"] == 1:
        yield "timestep_bias_strategy", "timestep_bias_multiplier is 1"


def idle_timesteps(values: Values) -> Iterator[tuple[str, str]]:
    """Yields (option, reason) for each option of flow matching that another option overrides."""
    if values["flow_schedule_shift"]:
        yield (
            "flow_schedule_auto_shift",
            f"flow_schedule_shift={values['flow_schedule_shift']:g} overrides it; 0 lets the image size decide",
        )
    if not values["flow_use_beta_schedule"]:
        yield from dict.fromkeys(BETA, "flow_use_beta_schedule is off").items()
    if any(values[name] for name in DISTRIBUTIONS):
        yield "flow_sigmoid_scale", "another distribution is selected"
    if values[FAST]:
        yield from dict.fromkeys(SHIFTS, f"{FAST} takes the four timesteps as they are").items()


def timestep_range_is_not_empty(values: Values) -> Iterator[Problem]:
    begin, end = values["timestep_bias_begin"], values["timestep_bias_end"]
    if values["timestep_bias_strategy"] == "range" and begin >= end:
        message = f"timestep_bias_begin={begin} is not before timestep_bias_end={end}."
        yield Problem.error("timestep_bias_begin", "empty_range", message, got=begin, expected=f"less than {end}")


def range_problem(options: TimestepOptions, count: int) -> Problem | None:
    """The error of a range that ends beyond a noise schedule with ``count`` timesteps."""
    end = options.timestep_bias_end
    if options.timestep_bias_strategy != "range" or options.timestep_bias_multiplier == 1 or end <= count:
        return None
    message = f"timestep_bias_end={end} lies beyond the noise schedule of the model, which has {count} timesteps."
    return Problem.error("timestep_bias_end", "out_of_range", message, got=end, expected=f"at most {count}")


def chosen_distributions(values: Values) -> list[str]:
    """Returns the options that choose a distribution. The densities that are a family's default give way to every other one."""
    chosen = [name for name in DISTRIBUTIONS if values[name]]
    spec = find_spec(str(values.get("model_family", "")))
    usual = spec.defaults_of(values.get("model_flavour")).get(CUBIC) if spec else None
    return [name for name in chosen if name != CUBIC or values[CUBIC] != usual or len(chosen) == 1]


def distributions_exclude_each_other(values: Values) -> Iterator[Problem]:
    chosen = chosen_distributions(values)
    for name in chosen[1:]:
        message = f"{name} and {chosen[0]} are two distributions, and timesteps are sampled from one."
        yield Problem.error(name, "two_schedules", message, got=values[name], expected="one of the two")


def densities_are_numbers(values: Values) -> Iterator[Problem]:
    try:
        parse_densities(values[CUBIC])
    except ValueError as error:
        message = f"{CUBIC} holds no densities: {error}."
        expected = "a list of numbers that are not negative, such as [1, 2, 1]"
        yield Problem.error(CUBIC, "not_numbers", message, got=values[CUBIC], expected=expected)


def a_part_of_the_schedule_is_trained(values: Values) -> Iterator[Problem]:
    """Refuses parts of the schedule in flow matching and empty ones, and says what validation images of one network show."""
    both_are_used = uses_both(values)
    if not values["refiner_training"]:
        for name in PART[1:]:
            if both_are_used and name == STRENGTH:
                continue
            if values[name] != TimestepOptions.model_fields[name].default:
                yield Problem.note(name, "no_effect", f"refiner_training is off: {name} has no effect.", got=values[name])
        return
    family_spec = find_spec(str(values.get("model_family", "")))
    if family_spec is not None and (values["prediction_type"] or family_spec.objective) == "flow_matching":
        message = f"{family_spec.title} is trained by flow matching; refiner_training divides the schedule of diffusion."
        hint = "flow_cubic_schedule_weights can leave out a part of the timesteps"
        yield Problem.error("refiner_training", "not_for_family", message, got=True, expected="false", hint=hint)
        return
    inverted = values["refiner_training_invert_schedule"]
    if values[STRENGTH] == (1 if inverted else 0):
        yield empty_part_problem(values[STRENGTH])
    is_usual = family_spec is not None and family_spec.defaults_of(values.get("model_flavour")).get("refiner_training")
    if not values["validation_disable"] and not is_usual and not both_are_used:
        untrained = "end" if inverted else "begin"
        message = f"Validation images are made by this network alone, and {untrained} with timesteps that it is not trained on."
        mode = f"set {family_spec.stages.mode}={FULL} to use both networks, or " if family_spec and family_spec.stages else ""
        hint = f"{mode}compare images of one prompt and seed with each other"
        yield Problem.note("refiner_training", "trained_in_part", message, got=True, hint=hint)


def empty_part_problem(strength: float) -> Problem:
    """The error of a run that has no timestep to train on."""
    message = f"{STRENGTH}={strength:g} leaves no timestep of the schedule to this network."
    return Problem.error(STRENGTH, "empty_range", message, got=strength, expected="between 0 and 1")


RULES: tuple[Rule, ...] = (
    timestep_range_is_not_empty,
    distributions_exclude_each_other,
    densities_are_numbers,
    a_part_of_the_schedule_is_trained,
)
