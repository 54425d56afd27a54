"""Checks of the adapter options: the LyCORIS file, and targets and ranks against the layers of the base model."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer_engine.config.family_parts import FEED_FORWARD as FEED_FORWARD_CLASSES
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.lycoris.algorithms import LIMITED_BY_LAYER, OPTION, unfit
from trainer_engine.config.lycoris.config_file import LycorisConfig, parse_lycoris
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.adapter import parse_targets
from trainer_engine.config.precisions import QUANTISED
from trainer_engine.config.published_quantised import exact_base
from trainer_engine.config.resuming.identity import adapter_targets
from trainer_engine.contract.errors import Problem, errors_in
from trainer_engine.contract.files import read_small_json
from training.preflight.network import Shapes, adaptable_layers, module_names
from training.preflight.recomputed import ATTENTION, FEED_FORWARD

CLASS_MARKS = {"Attention": ATTENTION, **dict.fromkeys(FEED_FORWARD_CLASSES, FEED_FORWARD)}
"""Suffix of a class name -> what the names of its layers in diffusers have."""
STANDARD_OPTIONS = ("lora_rank", "lora_dropout")


def adapter_problems(options: TrainingOptions, spec: FamilySpec, tensors: Shapes | None, given: Mapping[str, Any]) -> Iterator[Problem]:
    """``tensors`` are those of the trained network; None skips the checks of its weights. ``given`` holds the submitted options."""
    if options.model.model_type != "lora":
        return
    shapes = adaptable_layers(tensors) if tensors else None
    modules = module_names(tensors) if tensors else None
    if options.adapter.lora_type == "standard":
        yield from _standard(options, spec, shapes)
        return
    for name in STANDARD_OPTIONS:
        if name in given:
            message = f"{name} has no effect on a LyCORIS adapter, which {Path(options.adapter.lycoris_config).name} describes."
            yield Problem.note(
                name, "no_effect", message, got=given[name], hint="linear_dim in that file is the rank" if name == "lora_rank" else ""
            )
    yield from _lycoris(options, spec, shapes, modules)


def _standard(options: TrainingOptions, spec: FamilySpec, shapes: Mapping[str, tuple[int, ...]] | None) -> Iterator[Problem]:
    own = parse_targets(options.adapter.peft_lora_target_modules)
    chosen = spec.adapters.lora_target(options.as_values())
    option = "peft_lora_target_modules" if own else spec.adapters.lora_target_option or "model_family"
    option = "slider_lora_target" if options.adapter.slider_lora_target and not own else option
    if shapes is None:
        return
    matched = adapted_layers(options, spec, shapes)
    if not _of_the_network(matched, spec):
        endings = sorted({".".join(name.split(".")[-2:]) for name in _of_the_network(shapes, spec)})
        message = "No module of the base model has such a name, so nothing would be trained."
        yield Problem.error(option, "nothing_matched", message, got=own or chosen, expected=f"endings such as {', '.join(endings[:12])}")
    yield from _ranks("lora_rank", options.adapter.lora_rank, matched)


def adapted_layers(options: TrainingOptions, spec: FamilySpec, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The layers of the trained components that a standard adapter changes. ``shapes``: full module name -> shape."""
    found: dict[str, tuple[int, ...]] = {}
    for name, component in spec.trained.items():
        prefix, targets = spec.module_prefix(name), component.lora_targets or adapter_targets(options, spec)
        wanted = {*(f"{prefix}{target}" for target in targets)}
        endings = tuple(f".{target}" for target in targets)
        found |= {one: shape for one, shape in shapes.items() if one.startswith(prefix) and (one in wanted or one.endswith(endings))}
    return found


def _of_the_network(names: Iterable[str], spec: FamilySpec) -> list[str]:
    """The names that belong to components whose targets the options choose."""
    prefixes = tuple(spec.module_prefix(name) for name, component in spec.trained.items() if not component.lora_targets)
    return [name for name in names if name.startswith(prefixes)]


def _ranks(option: str, rank: int, layers: Mapping[str, tuple[int, ...]]) -> Iterator[Problem]:
    limits = {name: min(shape[0], math.prod(shape[1:])) for name, shape in layers.items()}
    small = {name: limit for name, limit in limits.items() if rank > limit}
    if small:
        name, most = min(small.items(), key=lambda item: item[1])
        message = f"The rank {rank} is larger than that of {len(small)} layers; the smallest is {name} with {most}."
        yield Problem.error(option, "rank_too_large", message, got=rank, expected=f"at most {most}")


def _lycoris(
    options: TrainingOptions, spec: FamilySpec, shapes: Mapping[str, tuple[int, ...]] | None, modules: Collection[str] | None
) -> Iterator[Problem]:
    path = Path(options.adapter.lycoris_config)
    try:
        document = read_small_json(path)
    except OSError as error:
        message = f"The adapter file {path} cannot be read: {error}."
        yield Problem.error(OPTION, "unreadable_file", message, got=str(path), expected="a JSON file")
        return
    config, problems = parse_lycoris(document, spec, modules)
    yield from problems
    if config is None or errors_in(problems):
        return
    is_quantised = options.precision.base_model_precision in QUANTISED
    how = {"comfyui": options.adapter.lora_format == "comfyui", "received": options.distributed.reads_weights_once}
    yield from unfit(document, quantised=is_quantised, joined=spec.joins_for_comfyui, exact=exact_base(options.as_values()), **how)
    if shapes is not None:
        yield from _ranks_of_classes(config, shapes)


def _ranks_of_classes(config: LycorisConfig, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Problem]:
    """Check the rank of each class with the algorithm that it uses."""
    overrides = config.preset["module_algo_map"]
    by_rank: dict[int, dict[str, tuple[int, ...]]] = {}
    for cls in dict.fromkeys([*config.preset["target_module"], *overrides]):
        how = overrides.get(cls, {})
        if how.get("algo", config.algo) in LIMITED_BY_LAYER:
            by_rank.setdefault(how.get("dim", config.linear_dim), {}).update(of_class(cls, shapes))
    for rank, layers in by_rank.items():
        yield from _ranks(f"{OPTION}.linear_dim", rank, layers)


def of_class(cls: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The layers in modules of a class, judged by their names."""
    marks = [mark for ending, mark in CLASS_MARKS.items() if cls.endswith(ending)]
    return {name: shape for name, shape in shapes.items() if len(shape) == 2 and any(mark.search(f"{name}.") for mark in marks)}
