"""What a checkpoint must agree on with the run that goes on from it, as far as the options say it. No torch: ``validate`` asks too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer_engine.config.families import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.adapter import parse_targets
from trainer_engine.contract.errors import shown
from trainer_engine.contract.small_files import read_small_json

TARGETS = "lora_targets"
MAX_LISTED = 5


def run_identity(options: TrainingOptions, spec: FamilySpec, prediction_type: str | None) -> dict[str, Any]:
    """By name, as ``training_state.json`` keeps it. ``prediction_type``: what the network learns; None where it is not known yet."""
    short = options.precision.mixed_precision == "bf16" and options.optimizer.optimizer == "adamw_bf16"
    return {
        "model_family": spec.name,
        "model_type": options.model.model_type,
        "model_flavour": options.model.model_flavour or spec.default_flavour,
        "optimizer": options.optimizer.optimizer,
        "weights": "bfloat16" if short else "float32",
        **({"prediction_type": prediction_type} if prediction_type else {}),
        "clip_skip": options.model.clip_skip,
        "use_ema": options.run.use_ema,
        **adapter_identity(options, spec),
    }


def adapter_identity(options: TrainingOptions, spec: FamilySpec) -> dict[str, Any]:
    """Empty where every weight is trained."""
    adapter = options.adapter
    if options.model.model_type == "full":
        return {}
    below = {"base_model_precision": options.precision.base_model_precision}
    if adapter.lora_type == "lycoris":
        return {**below, "lora_type": "lycoris", "adapter file": _digest(Path(adapter.lycoris_config))}
    return {
        **below,
        "lora_type": "standard",
        "lora_rank": adapter.lora_rank,
        "lora_alpha": adapter.lora_rank if adapter.lora_alpha is None else adapter.lora_alpha,
        "use_dora": adapter.use_dora,
        TARGETS: sorted(adapter_targets(options, spec)),
    }


def adapter_targets(options: TrainingOptions, spec: FamilySpec) -> tuple[str, ...]:
    """Endings of the names of the modules that a standard adapter is put on."""
    own = parse_targets(options.adapter.peft_lora_target_modules)
    if own:
        return own
    chosen = spec.adapters.lora_target(options.as_values())
    return spec.adapters.lora_targets[chosen]


def layout_of(options: TrainingOptions, processes: int) -> dict[str, Any]:
    """What the order of samples and every random number follow from, besides the samples."""
    return {
        "seed": options.run.seed,
        "samples in a pass": options.run.train_batch_size * processes,
        "gradient_accumulation_steps": options.run.gradient_accumulation_steps,
        "data_backend_sampling": options.data.data_backend_sampling,
    }


def identity_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Sentences of what was something else. What a checkpoint of an older version does not say is not compared."""
    differing = [name for name, value in ours.items() if name in theirs and theirs[name] != value]
    return [
        _targets_difference(theirs[name], ours[name]) if name == TARGETS else f"{name} was {shown(theirs[name])} and is {shown(ours[name])}"
        for name in differing
    ]


def _targets_difference(theirs: Any, ours: Any) -> str:
    old, new = (set(map(str, one)) if isinstance(one, (list, tuple)) else {str(one)} for one in (theirs, ours))
    changes = {"added": sorted(new - old), "removed": sorted(old - new)}
    return "the layers that are adapted were others: " + ", ".join(
        f"{len(names)} {word} ({named(names)})" for word, names in changes.items() if names
    )


def named(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f", and {rest} more" if rest > 0 else "")


def _digest(path: Path) -> str:
    """Of what the file says, whatever its spelling; empty where it cannot be read, which is told elsewhere."""
    try:
        document = read_small_json(path)
    except OSError:
        return ""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
