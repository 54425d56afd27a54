"""Warns about runs that train distilled weights, which lose their few sampler steps; the engine and the preflight both ask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.adapters.assistant import PATH, assistant_of
from trainer_engine.config.components import BASE, component_source
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import Problem

CODE = "distilled_weights"


def distillation_problems(
    options: TrainingOptions, spec: FamilySpec, scheduler: Mapping[str, Any], network: Mapping[str, Any]
) -> Iterator[Problem]:
    """``scheduler`` and ``network``: the contents of the base model's ``scheduler_config.json`` and of the network's ``config.json``."""
    facts = spec.distillation
    if facts is None or assistant_of(options.as_values()) is not None:
        return
    model = options.model
    source = component_source(model, spec, next(iter(spec.trained.values())).folder)
    is_base = source.option == BASE
    reason = facts.reason(
        flavour=(model.model_flavour or spec.default_flavour) if is_base else None,
        name=source.name,
        scheduler=scheduler if is_base else {},
        network=network,
    )
    if not reason:
        return
    option = source.option if not is_base or model.pretrained_model_name_or_path else "model_flavour"
    message = f"These weights seem to be distilled to few sampler steps ({reason}). Training destroys that: images get blurred."
    hint = f"train {facts.base}; an adapter that is trained there can be used with distilled weights too"
    if facts.assistant:
        hint += f". Or set model_type=lora and {PATH}={facts.assistant}, which keeps the distillation out of what is learned"
    yield Problem.warning(option, CODE, message, got=source.name, expected=f"weights that are not distilled: {facts.base}", hint=hint)
