"""Translates text as ``simpletuner import`` does, into a home of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from environments.imports.checking import Imported
from environments.imports.documents import ImportRefused, parse_document
from environments.imports.formats import translate
from environments.paths import Home

Translate = Callable[..., Imported]
Refused = Callable[..., list[tuple[str, str]]]


@pytest.fixture
def imported(tmp_path: Path) -> Translate:
    """The environment ``mine`` of one text or several."""

    def translated(*texts: str, **more: Any) -> Imported:
        documents = [parse_document(text, f"text{number}") for number, text in enumerate(texts)]
        return translate(documents, name=more.pop("name", "mine"), home=Home(tmp_path), **more)

    return translated


@pytest.fixture
def refused(imported: Translate) -> Refused:
    """[(option, code)] of texts that are refused."""

    def problems(*texts: str, **more: Any) -> list[tuple[str, str]]:
        with pytest.raises(ImportRefused) as caught:
            imported(*texts, **more)
        assert all(problem.message and problem.message[-1] == "." for problem in caught.value.problems)
        return [(problem.option, problem.code) for problem in caught.value.problems]

    return problems


def reasons(found: Imported) -> dict[str, str]:
    """Name -> reason of everything that was left out."""
    return {one.name: one.reason for one in found.left_out}


def sets(found: Imported) -> list[dict[str, Any]]:
    """The datasets without the fields that every entry of the kind has."""
    same = ("type", "metadata_backend", "cache_dir_vae", "cache_dir", "resolution_type")
    return [{key: value for key, value in entry.items() if key not in same} for entry in found.planned.datasets or []]
