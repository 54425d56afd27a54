from __future__ import annotations

from trainer_engine.config.option import OptionGroup, option


class EvaluationOptions(OptionGroup):
    """The loss on held-out images (datasets of dataset_type eval): docs/evaluation.md. Without such a set they have no effect.

    It is measured before the first step, at the intervals, and wherever a checkpoint is saved.
    """

    eval_steps_interval: int | None = option(None, "Measure the evaluation loss every so many optimizer steps.", ge=1)
    eval_epoch_interval: float | None = option(
        None, "Measure the evaluation loss every so many epochs; 0.5 is twice an epoch. Where both intervals are set, both count.", gt=0
    )
    eval_timesteps: int = option(28, "Timesteps of each image that are measured, evenly spread over the noise schedule.", ge=1, le=1000)
    eval_dataset_pooling: bool = option(False, "Tell one loss over all eval sets instead of one for each.")
    eval_loss_disable: bool = option(False, "Do not measure: eval sets only lend their captions to the validation.")
    early_stop_patience: int = option(
        0,
        "End the run after so many evaluations in a row, of those at the intervals, without a lower loss. Its results are written as "
        "those of a finished run. 0 never does.",
        ge=0,
    )
    early_stop_min_delta: float = option(0.0, "With early_stop_patience: by how much the loss must be lower to count.", ge=0)
