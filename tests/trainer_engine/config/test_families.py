"""Families are found by their folders, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.models import BEYOND_THE_FORMAT
from trainer_engine.config.families import FORMAT_FAMILIES, find_spec, known_but_missing, specs
from trainer_engine.config.parse import normalise


@pytest.mark.parametrize("name", ["pixart_sigma", "PixArt", " pixart ", "PixArt-Sigma"])
def test_a_family_is_found_by_name_and_alias_in_any_case(name: str) -> None:
    spec = find_spec(name)
    assert spec is not None
    assert spec.name == "pixart_sigma"


def test_a_family_of_the_format_without_a_folder_is_known_but_missing() -> None:
    assert known_but_missing("hunyuanvideo") and known_but_missing("cosmos")
    assert known_but_missing("kandinsky5-video") and known_but_missing("kandinsky5_video")
    assert not known_but_missing("pixart_sigma")
    assert not known_but_missing("nonsense")


@pytest.mark.parametrize("name", specs())
def test_every_card_agrees_with_the_format_and_the_registry(name: str) -> None:
    spec = specs()[name]
    assert spec.name == name and name in FORMAT_FAMILIES | BEYOND_THE_FORMAT
    assert spec.default_flavour in spec.flavours
    assert spec.repository(None) == spec.flavours[spec.default_flavour]
    assert normalise(spec.defaults) == (dict(spec.defaults), [])


def test_a_flavour_that_is_not_there_has_no_repository() -> None:
    with pytest.raises(KeyError):
        specs()["pixart_sigma"].repository("nonsense")


def test_the_contract_loads_neither_torch_nor_django() -> None:
    program = (
        "import sys; from trainer_engine.config.parse import check_options; check_options({'model_family': 'pixart'});"
        "import trainer_engine.contract.events, trainer_engine.contract.commands;"
        "print(sorted({'torch', 'numpy', 'django', 'diffusers', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
