"""The options of an environment as rows of a form, the common ones first, with the defaults of the family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from django.forms import BoundField

from environments.admin.forms import PREFIX, EnvironmentFormBase
from trainer_engine.config.options import GROUPS, REGISTRY

COMMON = (
    *("model_family", "model_flavour", "pretrained_model_name_or_path", "model_type", "lora_type", "lora_rank", "base_model_precision"),
    *("max_train_steps", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler"),
    *("lr_warmup_steps", "optimizer", "resolution", "mixed_precision", "gradient_checkpointing", "seed", "output_dir"),
    *("checkpoint_step_interval", "checkpoints_total_limit", "resume_from_checkpoint"),
    *("validation_prompt", "validation_step_interval", "validation_resolution", "validation_num_inference_steps", "validation_guidance"),
)
"""The options that people change most often, in the order in which they think of them."""


@dataclass(frozen=True)
class OptionRow:
    """One option of the form."""

    name: str
    field: BoundField
    bounds: str
    """A valid value in words."""
    is_set: bool
    words: str
    """What a search looks in."""


@dataclass(frozen=True)
class OptionGroup:
    """Options under one heading."""

    name: str
    help: str
    rows: list[OptionRow]
    is_open: bool

    @property
    def set_count(self) -> int:
        return sum(row.is_set for row in self.rows)


def option_groups(form: EnvironmentFormBase) -> Iterator[OptionGroup]:
    """Every option once: those of ``COMMON``, then the others in the groups of the registry. A group with errors is open."""
    yield OptionGroup("Common", "What people change most often.", [_row(form, name) for name in COMMON], is_open=True)
    for group, cls in GROUPS.items():
        rows = [_row(form, name) for name in cls.model_fields if name not in COMMON]
        has_errors = any(row.field.errors for row in rows)
        yield OptionGroup(group.capitalize(), (cls.__doc__ or "").strip(), rows, is_open=has_errors)


def _row(form: EnvironmentFormBase, name: str) -> OptionRow:
    field = form[f"{PREFIX}{name}"]
    spec = REGISTRY[name]
    return OptionRow(
        name,
        field,
        "" if spec.choices or spec.kind in ("str", "bool") else spec.expected,
        bool(field.value()),
        f"{name} {spec.help}".lower(),
    )
