"""A small Stable Diffusion 2 in the real Hugging Face layout: for tests, and for a try on a laptop."""

from __future__ import annotations

from pathlib import Path

from trainer_engine.tiny_models.stable_diffusion import make_tiny_stable_diffusion


def make_tiny(folder: Path, *, seed: int = 0, prediction_type: str = "v_prediction") -> Path:
    """Write the pipeline into ``folder`` and return it. The same seed gives the same bytes."""
    return make_tiny_stable_diffusion(folder, seed=seed, prediction_type=prediction_type, linear_projections=True)
