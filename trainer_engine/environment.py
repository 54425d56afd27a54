"""What the process was told by its environment. The only reader of it in the engine; libraries read their own variables."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer_engine.contract.run import SECRETS_VARIABLE
from trainer_engine.contract.trackers import wandb_knows_us


@dataclass(frozen=True)
class Environment:
    """Set by whoever launched the process: nobody, torchrun or accelerate."""

    rank: int
    """Number of this process among all of the run, on every host."""
    processes: int
    use_cpu: bool
    """Compute on the CPU although there may be an accelerator."""
    wandb_knows_us: bool
    """Whether there is a login for Weights & Biases."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Options that hold credentials, by name, as they are with nothing hidden."""

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and saves for all."""
        return self.rank == 0


def read_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """Raises ValueError where a number is none."""
    variables = os.environ if variables is None else variables
    return Environment(
        rank=int(variables.get("RANK", "0")),
        processes=int(variables.get("WORLD_SIZE", "1")),
        wandb_knows_us=wandb_knows_us(variables),
        use_cpu=variables.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"),
        secrets=_secrets(variables.get(SECRETS_VARIABLE, "")),
    )


def _secrets(text: str) -> dict[str, str]:
    """Nothing where the variable holds nothing that can be used: a run goes on without what it was not given."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return {str(name): value for name, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}
