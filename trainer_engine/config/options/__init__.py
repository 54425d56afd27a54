"""The option registry: one declaration an option, and everything that follows from it."""

from trainer_engine.config.option import OptionSpec
from trainer_engine.config.options.registry import GROUPS, REGISTRY, TrainingOptions, canonical_name, not_available

__all__ = ["GROUPS", "REGISTRY", "OptionSpec", "TrainingOptions", "canonical_name", "not_available"]
