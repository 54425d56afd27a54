"""What a job says of its programs, before there is anything to run them for."""

from __future__ import annotations

from dataclasses import dataclass

from trainer_engine.config.families import find_spec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.hooks import NOTHING, ScriptRule
from trainer_engine.hooks.runner import Scripts, Setting
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.environment import script_environment
from trainer_engine.runtime.events import EventSink


@dataclass(frozen=True)
class ScriptContext:
    """Part of a job."""

    rule: ScriptRule = NOTHING
    job_id: str = ""

    def open(self, options: TrainingOptions, sink: EventSink, requests: ControlRequests) -> Scripts:
        """To be closed when the run ends, however it ends."""
        spec = find_spec(options.model.model_family)
        base = options.model.pretrained_model_name_or_path or (spec.repository(options.model.model_flavour) if spec else "")
        facts = {"SIMPLETUNER_JOB_ID": self.job_id, "SIMPLETUNER_BASE_MODEL": base}
        return Scripts(Setting(options, self.rule, {**script_environment(self.rule.variables), **facts}), sink, requests)
