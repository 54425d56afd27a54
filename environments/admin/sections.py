"""Sections on an environment's admin page that other apps add when Django is ready; this app imports none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from django.utils.safestring import SafeString

from environments.models import Environment

Section = Callable[[Environment], SafeString]
"""What is shown of an environment. Its ``short_description``, which ``admin.display`` sets, labels it."""

_SECTIONS: dict[str, Section] = {}


def add_section(title: str, show: Section) -> None:
    """Show a section on every environment's page; one with the same title replaces it."""
    _SECTIONS[title] = show


def sections() -> Mapping[str, Section]:
    """Title -> what is shown, in the order in which they were added."""
    return MappingProxyType(_SECTIONS)
