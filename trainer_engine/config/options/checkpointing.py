from __future__ import annotations

import re
from typing import Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.config.options.hooks import UNSET

SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
KEEPS_ALL = {"null": "0", "none": "0"}
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of ``500M``, ``1.5G`` or ``1000000``; K, M, G and T are powers of 1024. Raises ValueError."""
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size")
    return int(float(found[1]) * UNITS[found[2].upper()])


class CheckpointingOptions(OptionGroup):
    """What is saved, how often, and what a run starts from."""

    checkpoint_step_interval: int = option(500, "Save a checkpoint every so many optimizer steps.", ge=1, aliases=("checkpointing_steps",))
    checkpoint_epoch_interval: int | None = option(None, "Save a checkpoint at the end of every so many epochs.", ge=1)
    checkpoints_total_limit: int = option(
        5,
        "Checkpoints to keep, rolling ones aside; the oldest go first, the last verified one never. 0, less or null keeps all.",
        synonyms=KEEPS_ALL,
    )
    checkpointing_rolling_steps: int = option(
        0,
        "Save a rolling checkpoint, checkpoint-<step>-rolling, every so many optimizer steps, where no other is due: one to go on from "
        "after a crash, that pushes none of the others out. 0: none.",
        ge=0,
    )
    checkpoints_rolling_total_limit: int = option(
        1, "Rolling checkpoints to keep; the oldest go first. 0, less or null keeps all.", synonyms=KEEPS_ALL
    )
    checkpointing_use_tempdir: bool = option(
        False, "Write a checkpoint beside and rename it once it is whole. It is always done so here, whatever is asked for."
    )
    resume_from_checkpoint: str = option(
        "latest",
        "Checkpoint to go on from: latest (the newest in output_dir that verifies; a fresh start where there is none), the name of one in "
        "output_dir such as checkpoint-500, the path of one anywhere else, an address (docs/publishing.md), or empty for a fresh start.",
        synonyms={"none": "", "null": ""},
    )
    delete_invalid_checkpoints: bool = option(
        False, "Remove checkpoints in output_dir that do not verify when a run looks for one to go on from, while another one verifies."
    )
    disk_low_threshold: str | None = option(
        None,
        "Space that must be free before a checkpoint is saved: bytes, or a number with K, M, G or T. What the checkpoint itself takes must "
        "be free in any case.",
    )
    disk_low_action: Literal["stop", "wait", "script"] = option(
        "stop",
        "Where less space is free: stop ends the run with the error disk_full; wait pauses it until there is space, or until it is asked "
        "to stop; script runs the program of disk_low_script, and ends the run like stop where there is too little space even then. "
        "The same is done when the disk of the run's journal takes no more; the run saves a checkpoint in output_dir before it ends.",
    )
    disk_low_script: str = option(
        "",
        "With disk_low_action=script: program and arguments that free some space while training waits. docs/hooks.md has the "
        "placeholders, and says which programs may run.",
        synonyms=UNSET,
    )
    save_text_encoder: bool = option(
        True,
        "Put the text encoder and its tokenizer into the final pipeline, so that it can draw as it is. Without: the pipeline has none.",
    )

    @property
    def disk_low_bytes(self) -> int:
        """``disk_low_threshold``, 0 where there is none."""
        return parse_size(self.disk_low_threshold) if self.disk_low_threshold else 0
