from __future__ import annotations

from trainer_engine.contract.option import OptionGroup, option


class CheckpointingOptions(OptionGroup):
    """What is saved, how often, and what a run starts from."""

    checkpoint_step_interval: int = option(500, "Save a checkpoint every so many optimizer steps.", ge=1, aliases=("checkpointing_steps",))
    checkpoint_epoch_interval: int | None = option(None, "Save a checkpoint at the end of every so many epochs.", ge=1)
    checkpoints_total_limit: int = option(5, "Checkpoints to keep; the oldest go first, the last verified one never. 0 keeps all.", ge=0)
    resume_from_checkpoint: str = option(
        "latest",
        "Checkpoint in output_dir to go on from: latest (the newest that verifies; a fresh start where there is none), a name such as "
        "checkpoint-500, or empty for a fresh start.",
        synonyms={"none": "", "null": ""},
    )
    save_text_encoder: bool = option(
        True,
        "Put the text encoder and its tokenizer into the final pipeline, so that it can draw as it is. Without: the pipeline has none.",
    )
