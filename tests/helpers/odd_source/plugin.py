"""A pytest plugin that puts the files of this folder beside the shipped ones, before anything reads the tables."""

from __future__ import annotations

from pathlib import Path

import tests.helpers.odd_family.plugin  # noqa: F401 - the family of clips is built on it
import trainer_engine.datasets.captions
import trainer_engine.datasets.media
import trainer_engine.datasets.sources
import trainer_engine.families

FOLDER = Path(__file__).parent
for package in (trainer_engine.datasets.sources, trainer_engine.datasets.captions, trainer_engine.datasets.media, trainer_engine.families):
    package.__path__.append(str(FOLDER / package.__name__.rpartition(".")[2]))
