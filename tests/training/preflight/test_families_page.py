"""``docs/families.md`` is what its command prints, and says of each flavour what its specification says."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from trainer_engine.config.families import specs
from training.preflight.families_page import HEAD, document

PAGE = Path(__file__).resolve().parents[3] / "docs" / "families.md"


@cache
def printed() -> tuple[str, ...]:
    return tuple(document())


def cells_of(spec_name: str) -> dict[str, list[str]]:
    """Flavour -> the cells of its row."""
    lines = printed()
    start = next(number for number, line in enumerate(lines) if f"(`{spec_name}`)" in line)
    rows = lines[lines.index(HEAD, start) + 2 : lines.index("", start + 1)]
    return {row.split("`")[1]: [cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows}


def test_the_page_is_what_its_command_prints() -> None:
    assert PAGE.read_text(encoding="utf-8") == "\n".join(printed()).rstrip() + "\n"


def test_every_flavour_has_a_row_with_its_repository_and_its_limits() -> None:
    for spec in specs().values():
        found = cells_of(spec.name)
        assert list(found) == list(spec.flavours)
        for flavour, cells in found.items():
            assert len(cells) == HEAD.count("|") - 1
            assert cells[1] == f"`{spec.flavours[flavour]}`"
            assert cells[-3:-1] == [str(spec.tokens_of(flavour, None)), str(spec.latents.alignment_px)]


def test_distilled_flavours_and_editors_are_told_apart() -> None:
    flux = cells_of("flux")
    assert "distilled, with an assistant" in flux["schnell"][-1] and "edits by references" in flux["kontext"][-1]
    assert "train another flavour" in cells_of("flux2")["klein-4b-distilled"][-1]
    assert "distilled" not in flux["dev"][-1]
