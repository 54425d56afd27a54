from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option

EXTERNAL = "external-script"
EXTERNAL_SCRIPT = "validation_external_script"
POST_CHECKPOINT = "post_checkpoint_script"
POST_UPLOAD = "post_upload_script"
DISK_LOW = "disk_low_script"
SCRIPT_OPTIONS = (EXTERNAL_SCRIPT, POST_CHECKPOINT, POST_UPLOAD, DISK_LOW)
"""Options that hold the template of a command."""
ONLY_WITH = {EXTERNAL_SCRIPT: ("validation_method", EXTERNAL), DISK_LOW: ("disk_low_action", "script")}
"""Those that have an effect with one value of another option alone."""
UNSET = {"none": "", "null": ""}


class HooksOptions(OptionGroup):
    """Who is told by the server, and which programs are run, while a run goes on."""

    webhook_config: str = option(
        "",
        "Targets that events are posted to: a list or one object of JSON, in a string or in a file. docs/webhooks.md has the fields.",
        json=True,
        secret=("auth_token", "secret", "webhook_url"),
        addresses=("callback_url", "webhook_url"),
        secret_paths=("callback_url",),
        places=("webhook_type",),
    )
    webhook_reporting_interval: int | None = option(
        None, "Seconds between two posts of training.progress to a target; other events are posted as they come. Empty: 10.", ge=1, le=86400
    )

    validation_method: Literal["simpletuner-local", "external-script"] = option(
        "simpletuner-local",
        "Who validates: the built-in pipeline, or the program of validation_external_script. The base model's images before the first "
        "step are always drawn by the pipeline.",
    )
    validation_external_script: str = option(
        "",
        "With validation_method=external-script: program and arguments, with placeholders such as {local_checkpoint_path}. docs/hooks.md "
        "has all of them, and says which programs may run.",
        synonyms=UNSET,
    )
    validation_external_background: bool = option(
        False, "With validation_method=external-script: go on training at once instead of waiting for the program."
    )
    post_checkpoint_script: str = option(
        "", "Program and arguments that are started after every checkpoint, before it is uploaded.", synonyms=UNSET
    )
    post_upload_script: str = option(
        "",
        "Program and arguments that are started after every upload, with {remote_checkpoint_path}; where nothing is uploaded, once a "
        "checkpoint.",
        synonyms=UNSET,
    )
    script_timeout: int = option(
        1800, "Seconds that a program of a run may take; then it is ended, with a warning, and training goes on.", ge=1, le=604800
    )
