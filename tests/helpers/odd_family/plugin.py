"""A pytest plugin that puts the family of this folder beside the shipped ones, before anything reads the registry of options."""

from __future__ import annotations

from pathlib import Path

import trainer_engine.families

trainer_engine.families.__path__.append(str(Path(__file__).parent))
