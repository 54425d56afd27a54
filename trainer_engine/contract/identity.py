"""What a checkpoint of an adapter must agree on with the run that goes on from it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from trainer_engine.contract.options import TrainingOptions
from trainer_engine.contract.small_files import read_small_json


def adapter_identity(options: TrainingOptions) -> dict[str, Any]:
    """By name, as ``training_state.json`` keeps it; empty where every weight is trained."""
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
    }


def _digest(path: Path) -> str:
    """Of what the file says, whatever its spelling; empty where it cannot be read, which is told elsewhere."""
    try:
        document = read_small_json(path)
    except OSError:
        return ""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
