"""The odd family, trained on clips as well as on images."""

from __future__ import annotations

from dataclasses import replace

from trainer_engine.families.odd.spec import SPEC as ODD

SPEC = replace(ODD, name="odd_clips", title="Odd clips", latents=replace(ODD.latents, media=("image", "animation")))
