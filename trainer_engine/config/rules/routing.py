"""Rules of token routing; the engine and the preflight ask about the layers of the network in addition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trainer_engine.config.families import find_spec
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.registry import Rule, Values
from trainer_engine.config.routing import OPTION, SHAPE, count_blocks, layer_problems, parse_routes
from trainer_engine.contract.errors import Problem


def routes_are_valid(values: Values) -> Iterator[Problem]:
    """Checks the routes themselves, and whether the family's network can route tokens."""
    routes, problems = parse_routes(values[OPTION])
    yield from problems
    spec = find_spec(str(values.get("model_family", "")))
    if routes and spec is not None and spec.routing is None:
        message = f"The network of {spec.title} is no sequence of blocks that all see the same tokens: tokens cannot skip a part of it."
        yield Problem.error(OPTION, "no_routing", message, got=values[OPTION], expected="nothing", hint=f"leave {OPTION} out")


def network_blocks(spec: FamilySpec, names: Iterable[str]) -> int:
    """Number of blocks in the network of a run, of a family whose blocks are known. ``names``: its modules or tensors."""
    assert spec.routing is not None, "the caller has checked it"
    prefix = spec.module_prefix(next(iter(spec.trained)))
    return count_blocks((name.removeprefix(prefix) for name in names if name.startswith(prefix)), spec.routing)


def network_route_problems(options: TrainingOptions, spec: FamilySpec, names: Iterable[str]) -> Iterator[Problem]:
    """Whether the routes fit the network of a run. ``names``: its modules or tensors."""
    routes, _ = parse_routes(options.objective.tread_config)
    if not routes or spec.routing is None:
        return
    layers = network_blocks(spec, names)
    if layers:
        yield from layer_problems(routes, layers)
    else:
        message = f"The network of this model has none of the blocks of {spec.title}."
        yield Problem.error(OPTION, "no_routing", message, expected=f"a network that {spec.title} has", hint=f"valid routes: {SHAPE}")


RULES: tuple[Rule, ...] = (routes_are_valid,)
