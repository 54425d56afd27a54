"""How many positions a network has along an edge, and which sizes have longer edges."""

from __future__ import annotations

from typing import Any

import pytest

from trainer_engine.config.positions import PositionSpec, long_edges
from trainer_engine.config.token_splitting import SizeInUse
from trainer_engine.contract.errors import Level

SPEC = PositionSpec(key="positions", published=9216, flavours={"early": 4096})


@pytest.mark.parametrize(
    ("flavour", "config", "tokens"),
    [
        ("late", {}, 96),
        ("early", {}, 64),
        ("early", {"positions": 9216}, 96),
        ("late", {"positions": 1024}, 32),
        ("late", {"positions": 1030}, 32),
        ("late", {"positions": "many"}, 96),
        ("early", {"positions": 0}, 64),
        ("late", {"positions": True}, 96),
    ],
)
def test_the_configuration_of_a_network_says_how_many_positions_it_has(flavour: str, config: dict[str, Any], tokens: int) -> None:
    assert SPEC.along_an_edge(flavour, config) == tokens


def test_all_networks_of_a_class_may_have_as_many() -> None:
    assert PositionSpec(published=128, counts_an_edge=True).along_an_edge("any", {"": 4, "positions": 4}) == 128


def test_a_configuration_may_count_the_tokens_along_an_edge() -> None:
    spec = PositionSpec(key="positions", published=384, flavours={"large": 192}, counts_an_edge=True)
    assert [spec.along_an_edge(flavour, {}) for flavour in ("medium", "large")] == [384, 192]
    assert spec.along_an_edge("large", {"positions": 96}) == 96


def test_each_option_with_longer_edges_is_refused_once() -> None:
    sizes = [SizeInUse("one.resolution", str(width), (width, 640)) for width in (1024, 1088, 1152, 1216, 1280)]
    sizes += [SizeInUse("two.resolution", "", (1024, 1024)), SizeInUse("validation_resolution", "", (64, 2048))]
    one, validation = long_edges("A model", 1024, sizes)
    assert (one.level, one.option, one.code, one.got) == (Level.ERROR, "one.resolution", "beyond_positions", "1088x640")
    assert "1024 pixels at most" in one.message and "1088x640, 1152x640, 1216x640 and 1 more" in one.message
    assert (validation.option, validation.got) == ("validation_resolution", "64x2048")
    assert "1024 pixels" in validation.expected


def test_edges_that_are_as_long_as_the_square_have_positions() -> None:
    assert list(long_edges("A model", 1024, [SizeInUse("one.resolution", "", (1024, 64))])) == []
