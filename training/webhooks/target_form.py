"""The form of stored webhook targets: one for each target, and an empty one for a further target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django import forms

from trainer_engine.config.webhooks import ADDRESS, KINDS, LOG_LEVELS, MOST_TARGETS
from trainer_engine.contract.errors import Problem
from training.webhooks.stored import names_target

WIDE = {"class": "vTextField", "autocomplete": "off"}
COUNT = "targets"
"""Name of the hidden field with the number of targets that a form has."""
NEW = "new"
"""Ends the name of the hidden field of the target that a form offers in addition to those that there are."""
EXACT = ("message_prefix", "template")
"""Fields whose spaces are kept."""


class TargetForm(forms.Form):
    """The fields of one target. What it lacks is found by the check of the whole list."""

    webhook_type = forms.ChoiceField(
        label="Type",
        choices=[(kind, kind) for kind in KINDS],
        help_text="raw: the event as JSON. discord, slack: a message. template: a text of your own.",
    )
    address = forms.CharField(
        label="Address",
        widget=forms.TextInput(attrs=WIDE),
        help_text="Where to post, from https:// or http:// on. *** stands for the stored one.",
    )
    log_level = forms.ChoiceField(
        label="Least severity", choices=[(level, level) for level in LOG_LEVELS], help_text="Events of at least this severity are posted."
    )
    auth_token = forms.CharField(
        label="Token", widget=forms.TextInput(attrs=WIDE), help_text="Sent as X-API-Key. *** keeps the stored one."
    )
    secret = forms.CharField(
        label="Key of the signature", widget=forms.TextInput(attrs=WIDE), help_text="Signs each post. *** keeps the stored one."
    )
    message_prefix = forms.CharField(label="Prefix", widget=forms.TextInput(attrs=WIDE), help_text="Text before the message.")
    template = forms.CharField(
        label="Template",
        widget=forms.Textarea(attrs={"rows": 4, "class": "vLargeTextField", "spellcheck": "false"}),
        help_text="The body, for the type template: {title}, {message} and others are filled in. docs/webhooks.md names them.",
    )
    ssl_no_verify = forms.BooleanField(
        label="Accept any certificate", help_text="Anyone between this server and the address can then read and answer the posts."
    )

    use_required_attribute = False


@dataclass(frozen=True)
class ShownTarget:
    """A target on the page."""

    place: int
    form: TargetForm
    problems: list[Problem]
    is_new: bool = False


def shown_targets(entries: Iterable[Mapping[str, Any]], problems: Sequence[Problem] = ()) -> list[ShownTarget]:
    """A form for each entry, whose secrets are hidden, and an empty one for another target."""
    shown = [
        ShownTarget(place, _form(place, _values(entry)), [one for one in problems if names_target(one) == place])
        for place, entry in enumerate(entries)
    ]
    place = len(shown)
    return [*shown, ShownTarget(place, _form(place, {"log_level": "info"}), [], is_new=True)] if place < MOST_TARGETS else shown


def _form(place: int, values: Mapping[str, Any]) -> TargetForm:
    return TargetForm(prefix=str(place), initial=dict(values))


def _values(entry: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(entry.get("webhook_type", "")).strip().lower()
    is_open = str(entry.get("ssl_no_verify") or "").lower() in ("true", "1", "yes", "on")
    level = str(entry.get("log_level") or "info").lower()
    return {
        **entry,
        "webhook_type": kind,
        "address": entry.get(ADDRESS.get(kind, "callback_url"), ""),
        "log_level": level,
        "ssl_no_verify": is_open,
    }


def entries_of(sent: Mapping[str, str]) -> list[dict[str, Any]]:
    """The targets of a form that was sent, without those that are to be removed.

    The additional one counts if something is typed into it. Another that was emptied is kept: the check of the list says what it lacks.
    """
    count = sent.get(COUNT, "")
    places = range(min(int(count), MOST_TARGETS) if count.isascii() and count.isdecimal() and len(count) < 9 else 0)
    found = (_entry(sent, place) for place in places if f"{place}-remove" not in sent)
    return [entry for entry in found if entry is not None]


def _entry(sent: Mapping[str, str], place: int) -> dict[str, Any] | None:
    """None for the additional target of a form if nothing was typed into it."""
    texts = {name: sent.get(f"{place}-{name}", "").replace("\r\n", "\n") for name in TargetForm.base_fields}
    typed = {name: text if name in EXACT else text.strip() for name, text in texts.items()}
    kind, address = typed.pop("webhook_type"), typed.pop("address")
    level, is_open = typed.pop("log_level"), typed.pop("ssl_no_verify")
    if f"{place}-{NEW}" in sent and not address and not any(text.strip() for text in typed.values()):
        return None
    entry: dict[str, Any] = {"webhook_type": kind, **({ADDRESS.get(kind, "callback_url"): address} if address else {})}
    entry |= {name: value for name, value in typed.items() if value}
    return entry | ({"log_level": level} if level else {}) | ({"ssl_no_verify": True} if is_open else {})
