"""Rules of skip-layer guidance; the engine and the preflight ask about the blocks of the network in addition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trainer_engine.config.families import find_spec, specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.config.rules.routing import network_blocks
from trainer_engine.config.skipped_layers import OPTION, START, STOP, outside_problems, parse_layers
from trainer_engine.contract.errors import Problem


def skipped_layers_are_valid(values: Values) -> Iterator[Problem]:
    """Checks the blocks themselves, when they are left out, and whether the family's pipeline can leave out any."""
    layers, problems = parse_layers(values[OPTION])
    yield from problems
    spec = find_spec(str(values.get("model_family", "")))
    if not layers:
        for name in (START, STOP):
            if not problems and values[name] != REGISTRY[name].default:
                yield Problem.note(name, "no_effect", f"{OPTION} names no blocks: {name} has no effect.", got=values[name])
        return
    if spec is not None and OPTION not in spec.sampling.options:
        message = f"The pipeline of {spec.title} does not support {OPTION}."
        able = ", ".join(name for name, other in specs().items() if OPTION in other.sampling.options)
        yield Problem.error(OPTION, "not_for_family", message, got=values[OPTION], expected="nothing", hint=f"families that do: {able}")
    elif values[START] >= values[STOP]:
        message = f"{START}={values[START]:g} is not below {STOP}={values[STOP]:g}: no step is between them."
        yield Problem.error(START, "above_maximum", message, got=values[START], expected=f"below {values[STOP]:g}")
    elif values["validation_guidance"] is not None and values["validation_guidance"] <= 1:
        message = f"validation_guidance is {values['validation_guidance']:g}: there is no unguided prediction that could leave out blocks."
        yield Problem.note(OPTION, "no_effect", message, got=values[OPTION])


def network_skip_problems(options: TrainingOptions, spec: FamilySpec, names: Iterable[str]) -> Iterator[Problem]:
    """Whether the network of a run has the blocks. ``names``: its modules or tensors."""
    layers, _ = parse_layers(options.validation.validation_guidance_skip_layers)
    if layers and spec.routing is not None:
        yield from outside_problems(layers, network_blocks(spec, names))


RULES: tuple[Rule, ...] = (skipped_layers_are_valid,)
