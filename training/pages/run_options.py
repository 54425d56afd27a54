"""The options of a run as its environment would hold them, for a form that starts the run again with changes."""

from __future__ import annotations

from dataclasses import dataclass

from environments.admin.forms import text_of
from environments.home import current_home
from environments.models import Environment
from environments.resolve.changes import CONSENT
from environments.resolve.checks import effective_defaults
from environments.resolve.run import resolve_run
from environments.secrets.store import with_secrets
from trainer_engine.config.options import REGISTRY
from trainer_engine.contract.messages import HIDDEN
from training.models import Job


@dataclass(frozen=True)
class RunOptions:
    """What a run had otherwise than its environment has now."""

    number: int
    differing: dict[str, str]
    """Option -> its text in a form."""


def options_of_run(job: Job, environment: Environment) -> RunOptions:
    """Compare a run with its environment. Secrets are left as they are stored, and consent is given anew."""
    run = resolve_run(current_home(), with_secrets(current_home(), environment.name, environment.config), {})
    now = run.values if run.options else {**effective_defaults(run.given), **run.values}
    then = {name: value for name, value in job.options.items() if name in REGISTRY and name not in CONSENT}
    differing = {name: value for name, value in then.items() if now.get(name) != value and HIDDEN not in str(value)}
    return RunOptions(job.number, {name: "" if value is None else text_of(value) for name, value in differing.items()})
