"""The small base model, made in a process of its own: only that one loads torch."""

from __future__ import annotations

import subprocess
import sys

from simpletuner_site.demo.place import REPOSITORY, Place

TINY_MODEL = "trainer_engine.families.pixart_sigma.tiny"


class ModelNotMade(Exception):
    """The subprocess failed; the message is the end of what it printed."""


def make_base_model(place: Place) -> None:
    """A PixArt Sigma of some million parameters in the real layout, in the demo's cache under the real repository's id.

    Raises ModelNotMade.
    """
    command = [sys.executable, "-m", TINY_MODEL, "--size", "demo", "--repo-id", REPOSITORY, "--hf-home", str(place.hub), str(place.model)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise ModelNotMade(made.stderr[-2000:])
