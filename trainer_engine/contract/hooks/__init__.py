"""Hooks of a run: what their templates mean, and which programs they may start."""

from __future__ import annotations

from trainer_engine.contract.hooks.rule import EVERYTHING, NOTHING, HookRule, Refusal
from trainer_engine.contract.hooks.template import BadTemplate, Template

__all__ = ["EVERYTHING", "NOTHING", "BadTemplate", "Refusal", "HookRule", "Template"]
