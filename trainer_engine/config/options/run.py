from __future__ import annotations

from trainer_engine.config.option import OptionGroup, option


class RunOptions(OptionGroup):
    """How long a run is, and where it goes."""

    output_dir: str = option(..., "Folder for checkpoints, validation images, default caches and the result. Created if missing.")
    max_train_steps: int = option(0, "Optimizer steps to take. 0 leaves the length to num_train_epochs.", ge=0)
    num_train_epochs: int = option(
        1,
        "Passes over the datasets. 0 leaves the length to max_train_steps; exactly one of the two may be above 0. "
        "Where max_train_steps is given and this option is not, it counts as 0.",
        ge=0,
        le=1000,
    )
    train_batch_size: int = option(4, "Samples a device takes in one forward pass.", ge=1, le=128)
    gradient_accumulation_steps: int = option(1, "Forward and backward passes before one optimizer step.", ge=1)
    seed: int = option(42, "Seed of noise, timesteps, caption dropout, crops and the order of samples.", ge=0, le=2_147_483_647)
    use_ema: bool = option(False, "Keep an exponential moving average of the trained weights.")
    ema_decay: float = option(0.995, "How much of the average stays at each update.", ge=0, le=0.9999)
    ema_update_interval: int = option(1, "Optimizer steps between two updates of the average.", ge=1)
    i_know_what_i_am_doing: bool = option(
        False, "Resume although the datasets or the batch layout differ from those of the checkpoint; the order of samples starts anew."
    )
