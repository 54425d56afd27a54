"""Fills in the template of a hook, checks that it may run, and starts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.hooks import DISK_LOW, EXTERNAL_SCRIPT, POST_CHECKPOINT, POST_UPLOAD
from trainer_engine.config.options.placeholders import known_placeholders, values_of
from trainer_engine.contract.errors import EngineError
from trainer_engine.contract.hooks import HookRule, Template, start_of_command
from trainer_engine.hooks.process import RunningHook


class NotStarted(EngineError):
    """A hook is not allowed to start, or cannot be started. ``reason`` is a stable code."""

    code = "script_not_started"

    def __init__(self, reason: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


@dataclass(frozen=True)
class HookCall:
    """One execution of one hook."""

    option: str
    """The option that holds the hook's template."""
    step: int
    local: str = ""
    """Path of the checkpoint or result that the hook is about."""
    remote: str = ""
    """Address that ``local`` was uploaded to."""

    @property
    def title(self) -> str:
        """Names the call in messages, for example ``post_checkpoint_script of checkpoint-100``."""
        about = Path(self.local).name if self.local and self.option != DISK_LOW else f"step {self.step}"
        return f"{self.option} of {about}"


@dataclass(frozen=True)
class HookLauncher:
    """Starts the hooks of one run."""

    options: TrainingOptions
    rule: HookRule
    environment: Mapping[str, str]
    """Environment variables that every hook gets; ``start`` adds those of its call."""

    def template(self, option: str) -> Template | None:
        """The template that an option holds; None if the option is empty."""
        hooks = self.options.hooks
        texts = {
            EXTERNAL_SCRIPT: hooks.validation_external_script,
            POST_CHECKPOINT: hooks.post_checkpoint_script,
            POST_UPLOAD: hooks.post_upload_script,
            DISK_LOW: self.options.checkpointing.disk_low_script,
        }
        text = texts[option].strip()
        return Template.parse(text, known_placeholders()) if text else None

    def start(self, call: HookCall, *, outlives: bool = False) -> RunningHook:
        """Start the hook of a call in the output folder. With ``outlives`` it may run longer than the engine. Raises NotStarted."""
        template = self.template(call.option)
        assert template is not None
        program = Path(template.program)
        refusal = self.rule.refusal(program)  # checked again: the file may have changed since the run was validated
        if refusal is not None:
            raise NotStarted(refusal.code, refusal.message, hint=refusal.hint)
        values = values_of(self.options, step=call.step, local=call.local, remote=call.remote)
        folder = Path(self.options.run.output_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return RunningHook(
                [*start_of_command(program), *template.fill(values)[1:]],
                prefix=call.option,
                seconds=self.options.hooks.script_timeout,
                environment={**self.environment, **_call_variables(call, folder)},
                folder=folder,
                outlives=outlives,
            )
        except OSError as error:
            raise NotStarted(NotStarted.code, f"it could not be started: {error.strerror or error}", hint="check its arguments") from error


def _call_variables(call: HookCall, folder: Path) -> dict[str, str]:
    return {
        "SIMPLETUNER_HOOK": call.option,
        "SIMPLETUNER_GLOBAL_STEP": str(call.step),
        "SIMPLETUNER_CHECKPOINT": call.local,
        "SIMPLETUNER_OUTPUT_DIR": str(folder),
    }
