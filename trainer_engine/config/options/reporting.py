from __future__ import annotations

from trainer_engine.config.option import OptionGroup, option


class ReportingOptions(OptionGroup):
    """Who is told about the metrics besides the event log."""

    report_to: str = option(
        "none",
        "Trackers that metrics and images are sent to as well: none, tensorboard, wandb, or several with commas. One that fails is a "
        "warning on the job. wandb without a login logs offline, for wandb sync.",
    )
    tracker_project_name: str = option("simpletuner", "Project that trackers file the run under.")
    tracker_run_name: str = option("simpletuner-testing", "What trackers call the run.")
    logging_dir: str = option("logs", "Folder of the trackers' files, below output_dir.")
