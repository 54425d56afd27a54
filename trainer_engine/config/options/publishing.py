"""Options of what leaves the machine: metrics to trackers, checkpoints and results to the hub and to storage providers."""

from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.config.publishing import ADDRESS_FIELDS, PLACE_FIELDS, SECRET_FIELDS


class ReportingOptions(OptionGroup):
    """Which trackers receive metrics and images, in addition to the event log."""

    report_to: str = option(
        "none",
        "Trackers that receive metrics and images: none, tensorboard, wandb, or several separated by commas. If one fails, the job gets a "
        "warning. Without a login, wandb logs offline; upload such runs with wandb sync.",
    )
    tracker_project_name: str = option("simpletuner", "Name of the project in the trackers.")
    tracker_run_name: str = option("simpletuner-testing", "Name of the run in the trackers.")
    tracker_image_layout: Literal["gallery", "table"] = option(
        "gallery",
        "How wandb shows the images of a validation. gallery: each prompt with a slider over the steps. table: a table with a row for each "
        "image. TensorBoard has no tables.",
    )
    logging_dir: str = option("logs", "Folder of the trackers' files, relative to output_dir.")


class PublishingOptions(OptionGroup):
    """Where checkpoints and results are uploaded to while training continues."""

    push_to_hub: bool = option(
        False,
        "Upload the result of a finished run to the Hugging Face hub. Needs a login: hf auth login, or the environment variable HF_TOKEN.",
    )
    push_checkpoints_to_hub: bool = option(
        False, "Also upload every checkpoint to the hub, into a subfolder checkpoint-N. Needs push_to_hub."
    )
    push_to_hub_background: bool = option(False, "Accepted for older configurations and ignored: training never waits for an upload.")
    hub_model_id: str | None = option(
        None,
        "Repository on the hub: name or owner/name. It is created if it does not exist. Empty: tracker_project_name if that was changed, "
        "else the name of output_dir. The part after the slash also names the run's folder at storage providers.",
    )
    model_card_private: bool = option(True, "Create the repository on the hub as private. An existing repository keeps its visibility.")
    model_card_note: str | None = option(None, "Text to add to the model card of the result.")
    modelspec_comment: str | None = option(
        None,
        "Comment in the header of adapter files and of the result, as modelspec.comment: a text, or a JSON list of lines. {current_step}, "
        "{current_epoch} and {timestamp} (UTC) are those of the moment at which a file is written. {env:SIMPLETUNER_COMMENT_...} is an "
        "environment variable of the server; other variables are refused.",
        json=True,
        shape="a text, or a JSON list of lines",
    )
    model_card_safe_for_work: bool = option(
        False, "Leave out the model card's notice that the model was not checked for adult content, and the matching tag on the hub."
    )
    publishing_config: str = option(
        "",
        "Storage providers that every checkpoint and the result are also uploaded to (S3 and compatible ones, Backblaze B2, Azure, "
        "Dropbox): a JSON object or a list of them, as text or in a file. docs/publishing.md lists the fields.",
        json=True,
        secret=SECRET_FIELDS,
        addresses=ADDRESS_FIELDS,
        places=PLACE_FIELDS,
    )
