"""The option registry: one declaration an option, and everything that follows from it."""

from trainer_engine.contract.option import OptionSpec
from trainer_engine.contract.options.parse import check_options, missing_options, normalise, parse_options, unknown_option
from trainer_engine.contract.options.registry import GROUPS, REGISTRY, TrainingOptions, canonical_name, not_available

__all__ = [
    "GROUPS",
    "REGISTRY",
    "OptionSpec",
    "TrainingOptions",
    "canonical_name",
    "check_options",
    "missing_options",
    "normalise",
    "not_available",
    "parse_options",
    "unknown_option",
]
