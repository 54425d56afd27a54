"""Hides secrets inside JSON options, and restores them when a hidden document comes back.

An option declares its secret fields with ``secret=``, ``addresses=`` and ``places=``. Rows, files and responses hold ``***`` instead. The
server keeps the secrets in its secret store; the engine keeps them in memory. ``***`` in a document that comes back is the stored value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from trainer_engine.config.json_fields import folded
from trainer_engine.config.option import OptionSpec, holds_json
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import read_document
from trainer_engine.contract.messages import HIDDEN as HIDDEN

VARIABLE = "SIMPLETUNER_SECRETS"
"""Environment variable with the secrets that an engine needs: a JSON object of option -> text."""
PASSWORD_HOSTS = ("discord.com", "ptb.discord.com", "canary.discord.com", "discordapp.com", "hooks.slack.com")
"""Hosts that use the path of a URL as its password."""


def hidden_address(url: object, *, path_is_password: bool = False) -> str:
    """Returns a URL with ``***`` for its passwords, or ``***`` for text that is not a URL."""
    try:
        parts = urlsplit(str(url))
        host, port = parts.hostname, parts.port
    except ValueError:
        return HIDDEN
    if not parts.scheme or not host:
        return HIDDEN
    shown = f"[{host}]" if ":" in host else host
    place = f"{parts.scheme}://{HIDDEN + '@' if parts.username or parts.password else ''}{shown}{f':{port}' if port else ''}"
    if (path_is_password or host in PASSWORD_HOSTS) and (parts.path.strip("/") or parts.query or parts.fragment):
        return f"{place}/{HIDDEN}"
    return place + parts.path + (f"?{HIDDEN}" if parts.query or parts.fragment else "")


def is_open(url: object, *, path_is_password: bool = False) -> bool:
    """Whether no part of a URL is a password."""
    return isinstance(url, str) and hidden_address(url, path_is_password=path_is_password).lower() == url.lower()


def hide(spec: OptionSpec, value: object) -> str:
    """Returns the text of an option with its secrets hidden, or the same text if it has none."""
    text = _as_text(value)
    if not spec.secret:
        return text
    if not holds_json(text):
        return HIDDEN if "://" in text else text
    try:
        document = read_document(text)
        hidden = _hidden(spec, document)
        return text if hidden == document else _dumped(hidden)
    except (ValueError, RecursionError):
        return HIDDEN


def reveal(spec: OptionSpec, value: object, stored: str) -> str:
    """Returns the text of an option with each ``***`` replaced by its stored secret. A ``***`` without one remains."""
    text = _as_text(value)
    if HIDDEN not in text or not holds_json(text) or not stored:
        return text
    try:
        document, known = read_document(text), read_document(stored)
        donors = known if isinstance(known, list) else [known]
        entries = document if isinstance(document, list) else [document]
        found = _revealed(spec, entries, donors)
        return _dumped(found if isinstance(document, list) else found[0])
    except (ValueError, RecursionError):
        return text


def still_hidden(spec: OptionSpec, text: str) -> list[str]:
    """Returns the places of ``***`` in an option's text: ``[0].auth_token``."""
    if HIDDEN not in text or not holds_json(text):
        return []
    try:
        return list(_places(spec, read_document(text), ""))
    except (ValueError, RecursionError):
        return []


def hidden_problems(specs: Mapping[str, OptionSpec], values: Mapping[str, Any]) -> list[Problem]:
    """Returns a problem for each ``***`` that remains in these values, which are by canonical name."""
    message = f"{HIDDEN} stands for a stored secret, but none is stored for this field of this entry."
    return [
        Problem.error(f"{name}{place}", "hidden_value", message, got=HIDDEN, hint="send the value itself")
        for name, spec in specs.items()
        if spec.secret
        for place in still_hidden(spec, str(values.get(name) or ""))
    ]


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else _dumped(value)


def _dumped(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    halves = any("\ud800" <= character <= "\udfff" for character in text)
    return json.dumps(value, default=str) if halves else text  # half a surrogate pair cannot be stored but as an escape


def _is_named(names: Sequence[str], key: object) -> bool:
    return folded(key) in names


def _hidden(spec: OptionSpec, value: Any) -> Any:
    if isinstance(value, list):
        return [_hidden(spec, item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _hidden_field(spec, key, item) for key, item in value.items()}


def _hidden_field(spec: OptionSpec, key: str, value: Any) -> Any:
    if _is_named(spec.secret, key):
        return HIDDEN if value not in (None, "", [], {}) else value
    if _is_named(spec.addresses, key) and value:
        alone = _is_named(spec.secret_paths, key)
        is_shown = is_open(value, path_is_password=alone) or _is_hidden_address(value, path_is_password=alone)
        return value if is_shown else hidden_address(value, path_is_password=alone)
    return _hidden(spec, value)


def _is_hidden_address(value: object, *, path_is_password: bool) -> bool:
    """Whether a URL is the hidden form of another one, which stays the same when it is hidden again."""
    return isinstance(value, str) and HIDDEN in value and value in (HIDDEN, hidden_address(value, path_is_password=path_is_password))


def _places(spec: OptionSpec, value: Any, where: str) -> Iterator[str]:
    if isinstance(value, list):
        for place, item in enumerate(value):
            yield from _places(spec, item, f"{where}[{place}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if _is_hidden(spec, key, item):
                yield f"{where}.{key}"
            else:
                yield from _places(spec, item, f"{where}.{key}")


def _is_hidden(spec: OptionSpec, key: str, value: Any) -> bool:
    """Whether a field holds ``***`` in place of a stored secret."""
    if _is_named(spec.secret, key):
        return bool(value == HIDDEN)
    return _is_named(spec.addresses, key) and isinstance(value, str) and HIDDEN in value


def _revealed(spec: OptionSpec, entries: Sequence[Any], donors: Sequence[Any]) -> list[Any]:
    """Returns the entries with the secrets of the most similar stored entry for the same machine.

    If several stored entries are equally similar, entries are matched in order. If their numbers differ, the ``***`` remain, so that no
    secret is sent to the wrong place.
    """
    found, taken = list(entries), set[int]()
    waiting = {place: _best(spec, entry, donors) for place, entry in enumerate(entries) if any(_places(spec, entry, ""))}
    for place, best in waiting.items():
        if len(best) == 1:
            taken |= best.keys()
            found[place] = next(iter(best.values()))
    for place, best in waiting.items():
        group = [other for other, theirs in waiting.items() if theirs.keys() == best.keys()]
        left = [number for number in best if number not in taken]
        same = all(revealed == next(iter(best.values())) for revealed in best.values())
        if len(best) > 1 and (same or len(left) == len(group)):
            found[place] = best[left[group.index(place)] if len(left) == len(group) else next(iter(best))]
    return found


def _best(spec: OptionSpec, entry: Any, donors: Sequence[Any]) -> dict[int, Any]:
    """Returns the entry with its secrets for each of the most similar stored entries, by their number.

    A secret is only restored for the machine that it was stored for.
    """
    candidates: dict[int, tuple[int, Any]] = {}
    for number, donor in enumerate(donors):
        revealed = _merged(spec, entry, donor)
        if isinstance(donor, dict) and not any(_places(spec, revealed, "")) and _machine(spec, revealed) == _machine(spec, donor):
            shown = _hidden(spec, donor)
            alike = sum(key in shown and shown[key] == item for key, item in entry.items()) - len(shown.keys() - entry.keys())
            candidates[number] = (alike, revealed)
    most = max((alike for alike, _ in candidates.values()), default=0)
    return {number: revealed for number, (alike, revealed) in candidates.items() if alike == most}


def _merged(spec: OptionSpec, sent: Any, stored: Any) -> Any:
    if isinstance(sent, list) and isinstance(stored, list) and len(sent) == len(stored):
        return [_merged(spec, ours, theirs) for ours, theirs in zip(sent, stored, strict=True)]
    if not isinstance(sent, dict) or not isinstance(stored, dict):
        return sent
    return {key: _merged_field(spec, key, item, stored.get(key)) for key, item in sent.items()}


def _merged_field(spec: OptionSpec, key: str, sent: Any, stored: Any) -> Any:
    if not _is_hidden(spec, key, sent):
        return _merged(spec, sent, stored)
    # The second form is that of older versions, which clients and database rows may still have.
    return stored if stored and sent in (_hidden_field(spec, key, stored), hidden_address(stored)) else sent


def _machine(spec: OptionSpec, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the fields that identify the machine that the secrets of an entry are sent to."""
    hosts = [(key, _host(value)) for key, value in entry.items() if _is_named(spec.addresses, key) and value]
    places = [(key, str(value).strip().lower()) for key, value in entry.items() if _is_named(spec.places, key) and value not in (None, "")]
    return sorted(hosts + places)


def _host(url: object) -> str:
    try:
        parts = urlsplit(str(url))
        return f"{parts.scheme}://{parts.hostname}:{parts.port}".lower()
    except ValueError:
        return ""
