"""Buttons on an environment's admin page. Each saves the page and then does something.

Other apps add theirs when Django is ready; this app imports none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from django.http import HttpRequest

from environments.models import Environment


@dataclass(frozen=True)
class Onward:
    """What an action did, and the page to show next."""

    message: str
    address: str


@dataclass(frozen=True)
class ObjectAction:
    """One button."""

    slug: str
    """Part of the address of the action."""
    label: str
    run: Callable[[HttpRequest, Environment], str | Onward]
    """Performs the action and returns a sentence about it, or one with the page to show next.

    Raises a DRF APIException, whose ``problems`` are shown one by one.
    """
    applies: Callable[[Environment], bool] = lambda environment: True
    """Whether the button is shown for an environment."""
    is_primary: bool = False


_ACTIONS: dict[str, ObjectAction] = {}


def add_object_action(action: ObjectAction) -> None:
    """Show a button on every environment's page; one with the same slug replaces it."""
    _ACTIONS[action.slug] = action


def object_actions() -> list[ObjectAction]:
    """Every button, in the order in which they were added."""
    return list(_ACTIONS.values())


def find_object_action(slug: str) -> ObjectAction | None:
    """The button with this slug, or None."""
    return _ACTIONS.get(slug)
