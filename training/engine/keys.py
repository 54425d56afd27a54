"""Which keys of the server's environment an engine has no use for."""

from __future__ import annotations

from pathlib import Path

from trainer_engine.config.adapters.validation_adapter import validation_adapter_runs
from trainer_engine.config.destinations import parse_trackers
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.evaluation import CLIP

HUB_KEYS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
WANDB_KEYS = ("WANDB_API_KEY",)


def keys_without_use(options: TrainingOptions) -> tuple[str, ...]:
    """Names of variables that hold keys of services which a run does not speak to."""
    wandb = () if "wandb" in parse_trackers(options.reporting.report_to) else WANDB_KEYS
    return (*wandb, *(() if speaks_to_the_hub(options) else HUB_KEYS))


def speaks_to_the_hub(options: TrainingOptions) -> bool:
    """Whether a run may download from the hub or upload to it: every model that is no folder of this machine comes from there."""
    model, validation = options.model, options.validation
    sources = [model.pretrained_model_name_or_path or ""]
    sources += [one for one in (model.pretrained_vae_model_name_or_path, model.pretrained_t5_model_name_or_path) if one]
    if options.scoring.evaluation_type == CLIP:
        sources.append(options.scoring.pretrained_evaluation_model_name_or_path)
    sources += [source.path for run in validation_adapter_runs(options.as_values()) for source in run.sources]
    uploads = options.publishing.push_to_hub or options.checkpointing.resume_from_checkpoint.startswith("hf://")
    return uploads or validation.validation_preview or not all(Path(source).is_absolute() for source in sources)
