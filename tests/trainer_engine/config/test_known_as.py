"""The words by which configurations of other trainers name a family."""

from __future__ import annotations

import re

from trainer_engine.config.families import specs


def test_a_word_means_one_family_and_one_of_its_flavours() -> None:
    words = [word for spec in specs().values() for word in spec.known_as]
    assert len(words) == len(set(words)) and words
    for spec in specs().values():
        assert {flavour for flavour in spec.known_as.values() if flavour} <= set(spec.flavours), spec.name
        assert all(re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", word) for word in spec.known_as), spec.name
