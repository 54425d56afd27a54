"""Options of evaluation: the loss on eval sets, early stopping, and CLIP scores of validation images."""

from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option

CLIP = "clip"


class EvaluationOptions(OptionGroup):
    """The loss on eval sets (datasets of dataset_type eval): docs/evaluation.md. Without an eval set these options have no effect.

    It is measured before the first step, at the intervals, and whenever a checkpoint is saved.
    """

    eval_steps_interval: int | None = option(
        None, "Measure the evaluation loss every this many optimizer steps. Empty: not by steps.", ge=1
    )
    eval_epoch_interval: float | None = option(
        None,
        "Measure the evaluation loss every this many epochs; 0.5 is twice an epoch. Empty: not by epochs. If both intervals are set, both "
        "apply.",
        gt=0,
    )
    eval_timesteps: int = option(
        28, "Number of timesteps at which the loss of each image is measured, evenly spaced over the noise schedule.", ge=1, le=1000
    )
    eval_dataset_pooling: bool = option(False, "Report one loss over all eval sets instead of one for each.")
    eval_loss_disable: bool = option(
        False, "Do not measure the evaluation loss. The captions of eval sets are still used as validation prompts."
    )
    early_stop_patience: int = option(
        0,
        "End the run after this many evaluations in a row without a lower loss. Only evaluations at the intervals count. The results are "
        "saved as for a finished run. 0: never end early.",
        ge=0,
    )
    early_stop_min_delta: float = option(0.0, "Smallest decrease of the loss that counts as an improvement, for early_stop_patience.", ge=0)


class ScoringOptions(OptionGroup):
    """How well validation images match their prompts: docs/evaluation.md, "CLIP scores"."""

    evaluation_type: Literal["none", "clip"] = option(
        "none",
        "Score of each validation image. none: no score. clip: 100 times the cosine similarity between the CLIP embeddings of the image "
        "and of its prompt, and 0 if it is negative.",
    )
    pretrained_evaluation_model_name_or_path: str = option(
        "openai/clip-vit-large-patch14-336",
        "CLIP model for evaluation_type=clip: a repository on the Hugging Face hub, or a folder with config.json, weights and processor.",
    )
