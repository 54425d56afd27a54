"""Options of hooks: webhooks that receive events, and commands that a run starts."""

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
"""Option -> the option and the value without which it has no effect."""
UNSET = {"none": "", "null": ""}


class HooksOptions(OptionGroup):
    """Which webhooks receive events, and which commands are started during a run."""

    webhook_config: str = option(
        "",
        "Webhooks that events are posted to: a JSON object or a list of them, as text or in a file. docs/webhooks.md lists the fields.",
        json=True,
        secret=("auth_token", "secret", "webhook_url"),
        addresses=("callback_url", "webhook_url"),
        secret_paths=("callback_url",),
        places=("webhook_type",),
    )
    webhook_reporting_interval: int | None = option(
        None,
        "Least number of seconds between two posts of training.progress to one webhook. Other events are posted at once. Empty: 10.",
        ge=1,
        le=86400,
    )

    validation_method: Literal["simpletuner-local", "external-script"] = option(
        "simpletuner-local",
        "What runs a validation. simpletuner-local: the built-in pipeline. external-script: the command in validation_external_script. The "
        "base model's images before the first step always come from the built-in pipeline.",
    )
    validation_external_script: str = option(
        "",
        "Command for validation_method=external-script: a program and its arguments, with placeholders such as {local_checkpoint_path}. "
        "docs/hooks.md lists the placeholders and explains which programs may run.",
        synonyms=UNSET,
    )
    validation_external_background: bool = option(
        False, "Continue training while validation_external_script runs, instead of waiting for it."
    )
    post_checkpoint_script: str = option(
        "", "Command that is started after every checkpoint, before it is uploaded: a program and its arguments.", synonyms=UNSET
    )
    post_upload_script: str = option(
        "",
        "Command that is started after every upload, with the placeholder {remote_checkpoint_path}: a program and its arguments. If "
        "nothing is uploaded, it is started once for each checkpoint.",
        synonyms=UNSET,
    )
    script_timeout: int = option(
        1800,
        "Longest time in seconds that a command may run. After it the command is ended with a warning; training continues.",
        ge=1,
        le=604800,
    )
