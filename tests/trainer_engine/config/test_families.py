"""Families are found by their folders, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trainer_engine.config.families import FORMAT_FAMILIES, cards, find_card, known_but_missing
from trainer_engine.config.parse import normalise


@pytest.mark.parametrize("name", ["pixart_sigma", "PixArt", " pixart "])
def test_a_family_is_found_by_name_and_alias_in_any_case(name: str) -> None:
    card = find_card(name)
    assert card is not None
    assert card.name == "pixart_sigma"


def test_a_family_of_the_format_without_a_folder_is_known_but_missing() -> None:
    assert known_but_missing("sdxl")
    assert not known_but_missing("pixart_sigma")
    assert not known_but_missing("nonsense")


@pytest.mark.parametrize("name", cards())
def test_every_card_agrees_with_the_format_and_the_registry(name: str) -> None:
    card = cards()[name]
    assert card.name == name in FORMAT_FAMILIES
    assert card.default_flavour in card.flavours
    assert card.repository(None) == card.flavours[card.default_flavour]
    assert normalise(card.defaults) == (dict(card.defaults), [])


def test_a_flavour_that_is_not_there_has_no_repository() -> None:
    with pytest.raises(KeyError):
        cards()["pixart_sigma"].repository("nonsense")


def test_the_contract_loads_neither_torch_nor_django() -> None:
    program = (
        "import sys; from trainer_engine.config.parse import check_options; check_options({'model_family': 'pixart'});"
        "import trainer_engine.contract.events, trainer_engine.contract.commands;"
        "print(sorted({'torch', 'numpy', 'django', 'diffusers', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
