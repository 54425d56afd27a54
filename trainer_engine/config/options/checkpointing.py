"""Options of checkpoints: how often they are saved, how many are kept, and which one a run resumes from."""

from __future__ import annotations

import re
from typing import Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.config.options.hooks import UNSET

SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
KEEPS_ALL = {"null": "0", "none": "0"}
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Returns the bytes that ``500M``, ``1.5G`` or ``1000000`` means; K, M, G and T are powers of 1024. Raises ValueError."""
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size")
    return int(float(found[1]) * UNITS[found[2].upper()])


class CheckpointingOptions(OptionGroup):
    """What is saved, how often, and what a run starts from."""

    checkpoint_step_interval: int = option(
        500, "Save a checkpoint every this many optimizer steps.", ge=1, aliases=("checkpointing_steps",)
    )
    checkpoint_epoch_interval: int | None = option(
        None, "Save a checkpoint at the end of every this many epochs. Empty: only by checkpoint_step_interval.", ge=1
    )
    checkpoints_total_limit: int = option(
        5,
        "Number of checkpoints to keep, not counting rolling ones. The oldest are deleted first; the newest verified one is never deleted. "
        "0, a negative number or null: keep all.",
        synonyms=KEEPS_ALL,
    )
    checkpointing_rolling_steps: int = option(
        0,
        "Save a rolling checkpoint, checkpoint-<step>-rolling, every this many optimizer steps, unless a regular one is due. Rolling "
        "checkpoints are for resuming after a crash and never push out a regular one. 0: none.",
        ge=0,
    )
    checkpoints_rolling_total_limit: int = option(
        1,
        "Number of rolling checkpoints to keep. The oldest are deleted first. 0, a negative number or null: keep all.",
        synonyms=KEEPS_ALL,
    )
    checkpointing_use_tempdir: bool = option(
        False, "Write a checkpoint to a temporary folder and rename it once it is complete. This is always done, whatever the value."
    )
    resume_from_checkpoint: str = option(
        "latest",
        "Checkpoint to resume from. latest: the newest verified one in output_dir, or a fresh start if there is none. A name such as "
        "checkpoint-500: that one in output_dir. A path: a checkpoint in any folder. A URL: a checkpoint at a storage provider "
        "(docs/publishing.md). Empty: a fresh start.",
        synonyms={"none": "", "null": ""},
    )
    delete_invalid_checkpoints: bool = option(
        False, "When a run resumes, delete the checkpoints in output_dir that fail verification, as long as another one passes."
    )
    disk_low_threshold: str | None = option(
        None,
        "Free disk space required before a checkpoint is saved: bytes, or a number with K, M, G or T, such as 20G. Empty: only the size of "
        "the checkpoint itself, which is always required.",
    )
    disk_low_action: Literal["stop", "wait", "script"] = option(
        "stop",
        "What to do when too little disk space is free. stop: end the run with the error disk_full. wait: pause until there is space or "
        "the run is asked to stop. script: run disk_low_script, then act like stop if there is still too little space. The same applies "
        "when the run's journal cannot be written because its disk is full; the run then saves a checkpoint in output_dir before it ends.",
    )
    disk_low_script: str = option(
        "",
        "Command that frees disk space while training waits, for disk_low_action=script: a program and its arguments. docs/hooks.md lists "
        "the placeholders and explains which programs may run.",
        synonyms=UNSET,
    )
    save_text_encoder: bool = option(
        True,
        "Include the text encoder and its tokenizer in the final pipeline, so that it can generate images without other files. "
        "Trained text encoders are always included.",
    )

    @property
    def disk_low_bytes(self) -> int:
        """``disk_low_threshold`` in bytes; 0 if it is not set."""
        return parse_size(self.disk_low_threshold) if self.disk_low_threshold else 0
