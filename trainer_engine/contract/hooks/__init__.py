"""Programs that a run starts: what their templates mean, and which of them may run."""

from __future__ import annotations

from trainer_engine.contract.hooks.rule import EVERYTHING, NOTHING, Refusal, ScriptRule
from trainer_engine.contract.hooks.template import BadTemplate, Template

__all__ = ["EVERYTHING", "NOTHING", "BadTemplate", "Refusal", "ScriptRule", "Template"]
