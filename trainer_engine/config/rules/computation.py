"""Rules of how networks are computed: what an option changes in a family's autoencoder and network."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.families import find_spec
from trainer_engine.config.options.computation import AutoencoderOptions
from trainer_engine.config.options.registry import Rule, Values
from trainer_engine.contract.errors import Problem

ROLL = "vae_enable_temporal_roll"


def autoencoder_options_have_an_effect(values: Values) -> Iterator[Problem]:
    """Notes the options of the autoencoder's memory that change nothing for the family."""
    family_spec = find_spec(str(values.get("model_family", "")))
    if family_spec is None:
        return
    for name in AutoencoderOptions.model_fields:
        if not values[name] or name in family_spec.latents.memory_options:
            continue
        reason = f"the autoencoder of {family_spec.title} has nothing of the kind"
        if name == ROLL:
            takes_clips = family_spec.sampling.clips is not None
            reason = f"{family_spec.title} always takes clips through its autoencoder some frames at a time" if takes_clips else ""
            reason = reason or f"{family_spec.title} has images, which are single frames"
        yield Problem.note(name, "no_effect", f"{name} has no effect: {reason}.", got=True, hint="it may stay in the configuration")


RULES: tuple[Rule, ...] = (autoencoder_options_have_an_effect,)
