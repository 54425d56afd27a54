from __future__ import annotations

from trainer_engine.contract.option import OptionGroup, option


class HooksOptions(OptionGroup):
    """Who is told by the server, and which programs are run, while a run goes on."""

    webhook_config: str = option(
        "",
        "Targets that events are posted to: a list or one object of JSON, in a string or in a file. docs/webhooks.md has the fields.",
        json=True,
        secret=("auth_token", "secret", "webhook_url"),
        addresses=("callback_url", "webhook_url"),
    )
    webhook_reporting_interval: int | None = option(
        None, "Seconds between two posts of training.progress to a target; other events are posted as they come. Empty: 10.", ge=1, le=86400
    )
