"""What every card begins with: the metadata that the hub reads, and the notices that the options ask for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions

NOT_FOR_ALL = "not-for-all-audiences"
"""The hub's own tag."""
UNCHECKED = "The images of this model have not been reviewed: they may be unfit for some audiences. Look at some before you share it."


def named_base(options: TrainingOptions, base_model: str) -> str:
    """The base model as the card calls it: of a folder of this machine, what is published holds the name alone."""
    return Path(base_model).name if options.publishing.push_to_hub and Path(base_model).is_absolute() else base_model


def model_card_head(
    options: TrainingOptions, spec: FamilySpec, base_model: str, tags: Sequence[str], *, is_adapter: bool = False
) -> list[str]:
    """The lines between, and with, the two ``---``."""
    wanted = options.publishing
    marked = [NOT_FOR_ALL] if wanted.push_to_hub and not wanted.model_card_safe_for_work else []
    # The hub refuses a base model that is a folder of some machine.
    has_base = not (wanted.push_to_hub and Path(base_model).is_absolute())
    base = [f"base_model: {json.dumps(base_model, ensure_ascii=False)}"] if has_base else []
    relation = ["base_model_relation: adapter"] if is_adapter and has_base else []
    flavour = options.model.model_flavour or spec.default_flavour
    terms = spec.licenses.get(flavour, {}) if base_model == spec.repository(flavour) else {}
    return [
        "---",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        *base,
        *relation,
        *(f"{name}: {value}" for name, value in terms.items()),
        f"tags: [{', '.join(['text-to-image', 'diffusers', *tags, *marked])}]",
        "---",
    ]


def model_card_notices(options: TrainingOptions) -> list[str]:
    """Markdown after the first paragraph: the user's own note, and a warning if the content is not declared safe."""
    wanted = options.publishing
    note = [wanted.model_card_note, ""] if wanted.model_card_note else []
    return note + ([f"> {UNCHECKED}", ""] if wanted.push_to_hub and not wanted.model_card_safe_for_work else [])
