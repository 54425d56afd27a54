"""``docs/http.md`` is what its command prints."""

from __future__ import annotations

from pathlib import Path

from simpletuner_site.management.commands.api_page import page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "http.md"


def test_the_page_of_calls_is_up_to_date() -> None:
    assert PAGE.read_text() == "\n".join(page()).rstrip() + "\n", "run make docs"


def test_every_call_of_the_tutorial_is_on_the_page() -> None:
    text = PAGE.read_text()
    for call in (
        "POST /api/configs/environments",
        "PUT /api/configs/{name}",
        "POST /api/training/start",
        "GET /api/training/events/stream",
    ):
        assert f"| `{call}` |" in text
