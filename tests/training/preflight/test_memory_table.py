"""``docs/memory.md`` is what its command prints, for every family, type of the base and offload."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainer_engine.config.families import specs
from training.preflight.memory_table import OFFLOADS, TYPES, document

PAGE = Path(__file__).resolve().parents[3] / "docs" / "memory.md"
ROW = re.compile(
    r"^\| (?P<family>.+?) `(?P<flavour>[^`]+)` \| [\d.]+ billion \| \d+ \| (?P<kind>full|LoRA) \| (?P<type>[^|]+) \| (?P<cells>.+) \|$"
)


def lines() -> list[str]:
    return PAGE.read_text(encoding="utf-8").splitlines()


def rows() -> list[re.Match[str]]:
    return [found for line in lines() if (found := ROW.match(line))]


@pytest.mark.slow
def test_the_page_is_what_its_command_prints() -> None:
    """``make lint`` compares them too."""
    assert PAGE.read_text(encoding="utf-8") == "\n".join(document()) + "\n"


def test_every_family_has_a_row_for_each_type_of_its_base() -> None:
    for spec in specs().values():
        own = {row["type"].strip("`") for row in rows() if row["family"] == spec.title and row["kind"] == "LoRA"}
        assert own == {"bfloat16", *(name for name in TYPES if name in spec.adapters.base_precisions)}


def test_what_waits_on_the_host_leaves_the_device() -> None:
    for row in rows():
        if row["kind"] == "LoRA":
            sizes = [float(cell) for cell in row["cells"].split(" | ")]
            assert len(sizes) == len(OFFLOADS) and sizes == sorted(sizes, reverse=True), row[0]


@pytest.mark.parametrize(("smaller", "larger"), [("`nf4-bnb`", "`int8-torchao`"), ("`int8-torchao`", "bfloat16")])
def test_shorter_types_take_less_memory(smaller: str, larger: str) -> None:
    sizes = {(row["flavour"], row["type"]): float(row["cells"].split(" | ")[0]) for row in rows() if row["kind"] == "LoRA"}
    for flavour in {flavour for flavour, _ in sizes}:
        assert sizes[flavour, smaller] < sizes[flavour, larger]


def test_flux_in_4_bits_fits_where_bfloat16_does_not() -> None:
    sizes = {row["type"]: float(row["cells"].split(" | ")[0]) for row in rows() if row["family"] == "Flux.1" and row["kind"] == "LoRA"}
    assert sizes["`nf4-bnb`"] < 16 < 24 < sizes["bfloat16"]


def test_the_phase_that_needs_the_most_decides() -> None:
    phases = [
        line.strip("| ").split(" | ")
        for line in lines()
        if line.endswith(("| captions |", "| latents |", "| training |", "| validation |"))
    ]
    assert len(phases) >= 2 * len(specs())
    names = ("captions", "latents", "training", "validation")
    for title, base, *cells, decides in phases:
        sizes = dict(zip(names, map(float, cells), strict=True))
        assert sizes[decides] == max(sizes.values()), f"{title} {base}"


def test_each_flavour_of_flux2_has_its_own_text_encoder() -> None:
    encoders = [line for line in lines() if line.startswith("| Flux.2 | ") and "| bfloat16 |" in line]
    assert [line.split(" | ")[1] for line in encoders] == ["Qwen3 8B", "Mistral Small 3", "Qwen3 4B"]
