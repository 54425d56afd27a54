"""The hidden fields of a form of options, which hold what the form was opened with."""

from __future__ import annotations

from typing import Any

from django import forms
from django.http import QueryDict

from environments.home import current_home
from environments.models import Environment
from environments.seen import datasets_version, options_version


class SeenField(forms.CharField):
    """A version of what is stored. It is sent back as it came, and never counts as a change."""

    def __init__(self) -> None:
        super().__init__(required=False, widget=forms.HiddenInput())

    def has_changed(self, initial: Any, data: Any) -> bool:
        return False


def versions_of(environment: Environment) -> dict[str, str]:
    """The values of the hidden fields for what is stored now."""
    return {"version": options_version(environment), "datasets_version": datasets_version(environment, current_home())}


def newly_seen(sent: QueryDict, environment: Environment) -> Any:
    """A form that was refused because something changed, with what was typed and with what is stored now as seen."""
    renewed = sent.copy()
    for name, value in versions_of(environment).items():
        if name in sent:
            renewed[name] = value
    return renewed
