"""What a checkpoint and the run that resumes from it must agree on, as far as the options decide it. No torch: ``validate`` uses it too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer_engine.config.adapters.assistant import PATH, STRENGTH, assistant_of
from trainer_engine.config.adapters.validation_adapter import USUAL_FILE
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.adapter import parse_targets
from trainer_engine.config.precisions import trained_precision
from trainer_engine.config.resuming.weight_digests import weight_digest
from trainer_engine.config.sdnq_settings import weights_identity
from trainer_engine.contract.errors import shown
from trainer_engine.contract.files import read_small_json

NOT_RECORDED: Mapping[str, Any] = {"train_text_encoder": False, "controlnet": False, "control": False}
"""Settings that the first checkpoints do not record, with the only value that they had."""
TARGETS = "lora_targets"
MAX_LISTED = 5


def run_identity(options: TrainingOptions, spec: FamilySpec, prediction_type: str | None) -> dict[str, Any]:
    """Returns the settings that a checkpoint must have in common with a run, by name, as ``training_state.json`` records them.

    ``prediction_type`` is what the network learns, or None if it is not known yet.
    """
    return {
        "model_family": spec.name,
        "model_type": options.model.model_type,
        "model_flavour": options.model.model_flavour or spec.default_flavour,
        "optimizer": options.optimizer.optimizer,
        "weights": trained_precision(options.optimizer.optimizer, options.precision.mixed_precision).library_name,
        **({"prediction_type": prediction_type} if prediction_type else {}),
        "clip_skip": options.model.clip_skip,
        "use_ema": options.run.use_ema,
        "train_text_encoder": options.model.train_text_encoder,
        "controlnet": options.model.controlnet,
        "control": options.model.control,
        **beside_identity(options),
        **adapter_identity(options, spec),
    }


def beside_identity(options: TrainingOptions) -> dict[str, Any]:
    """Returns the settings of the frozen network beside a ControlNet, or nothing without one."""
    if not options.model.controlnet:
        return {}
    return {
        "base_model_precision": weights_identity(options.precision.base_model_precision, options),
        "controlnet_custom_config": options.model.controlnet_custom_config or "",
    }


def adapter_identity(options: TrainingOptions, spec: FamilySpec) -> dict[str, Any]:
    """Returns the settings of the adapter, or nothing if every weight is trained."""
    adapter = options.adapter
    if options.model.model_type == "full":
        return {}
    precision = weights_identity(options.precision.base_model_precision, options)
    base = {"base_model_precision": precision, **_assistant(options.as_values())}
    if adapter.lora_type == "lycoris":
        return {**base, "lora_type": "lycoris", "adapter file": _digest(Path(adapter.lycoris_config))}
    return {
        **base,
        "lora_type": "standard",
        "lora_rank": adapter.lora_rank,
        "lora_alpha": adapter.lora_rank if adapter.lora_alpha is None else adapter.lora_alpha,
        "use_dora": adapter.use_dora,
        TARGETS: sorted(adapter_targets(options, spec)),
    }


def _assistant(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the assistant adapter that the run is trained beside, and its strength. A local file is identified by its content."""
    source = assistant_of(values)
    if source is None:
        return {PATH: ""}
    path = Path(source.path)
    try:
        file = path / USUAL_FILE if path.is_dir() else path
        name = f"file {weight_digest(file)[:16]}" if path.is_absolute() else source.path
    except OSError:
        name = source.path  # other checks report it
    return {PATH: name, STRENGTH: source.strength}


def adapter_targets(options: TrainingOptions, spec: FamilySpec) -> tuple[str, ...]:
    """Returns the endings of the names of the modules that get a standard adapter.

    A layer that ``control`` widens is always one of them: nothing else of an adapter could carry its new weights.
    """
    chosen, control = _chosen_targets(options, spec), spec.control if options.model.control else None
    return chosen if control is None or control.input_layer in chosen else (*chosen, control.input_layer)


def _chosen_targets(options: TrainingOptions, spec: FamilySpec) -> tuple[str, ...]:
    own = parse_targets(options.adapter.peft_lora_target_modules)
    if own:
        return own
    if options.adapter.slider_lora_target:
        return spec.adapters.slider_targets
    return spec.adapters.lora_targets[spec.adapters.lora_target(options.as_values())]


def layout_of(options: TrainingOptions, processes: int) -> dict[str, Any]:
    """Returns the settings that, with the samples, determine the order of samples and every random number."""
    return {
        "seed": options.run.seed,
        "samples in a pass": options.run.train_batch_size * processes,
        "gradient_accumulation_steps": options.run.gradient_accumulation_steps,
        "data_backend_sampling": options.data.data_backend_sampling,
    }


def identity_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Returns a text for each setting that differs. Other settings that an older checkpoint does not record are not compared."""
    theirs = {**NOT_RECORDED, **theirs}
    differing = [name for name, value in ours.items() if name in theirs and theirs[name] != value]
    return [
        _targets_difference(theirs[name], ours[name]) if name == TARGETS else f"{name} was {shown(theirs[name])} and is {shown(ours[name])}"
        for name in differing
    ]


def _targets_difference(theirs: Any, ours: Any) -> str:
    old, new = (set(map(str, one)) if isinstance(one, (list, tuple)) else {str(one)} for one in (theirs, ours))
    changes = {"added": sorted(new - old), "removed": sorted(old - new)}
    return "the adapted layers differ: " + ", ".join(f"{len(names)} {word} ({named(names)})" for word, names in changes.items() if names)


def named(names: list[str]) -> str:
    """Returns the first few names, and the number of the others."""
    rest = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f", and {rest} more" if rest > 0 else "")


def _digest(path: Path) -> str:
    """Hashes the values in a JSON file. Returns an empty string if it cannot be read, which another check reports."""
    try:
        document = read_small_json(path)
    except OSError:
        return ""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


ORDER_KEY = "sample_order"
"""Key in ``training_state.json``. Checkpoints of version 1 do not have it."""
ORDER_VERSION = 2
"""Version of the order of samples. 1: consecutive batches came from different buckets while possible. 2: each batch is chosen at random
from those that are left in the epoch."""


def order_change(state: Mapping[str, Any]) -> str:
    """Returns the warning about a checkpoint with another version of the order, or an empty string if the version is the same."""
    theirs = state.get(ORDER_KEY, 1)
    if theirs == ORDER_VERSION:
        return ""
    return (
        f"The checkpoint was saved by a version that ordered samples by another rule ({theirs}, now {ORDER_VERSION}). In the rest of its "
        "epoch, some samples are seen twice and others not at all; every later epoch is complete."
    )
