"""Secrets inside JSON options: how they are shown, and how what is shown finds back to what is stored.

Which fields of an option are secret is said where the option is declared, by ``secret=``, ``addresses=`` and ``places=``. Everything
that is kept in a row, a file or an answer holds ``***`` in their place; the values themselves lie in a store of the server, or with
the engine in the memory of its process. A document that comes back with ``***`` in it means what is stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from trainer_engine.config.option import OptionSpec, holds_json
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import read_document
from trainer_engine.contract.messages import HIDDEN as HIDDEN

VARIABLE = "SIMPLETUNER_SECRETS"
"""Names the variable in which an engine is given the secrets that it needs: a JSON object of option -> text."""
PASSWORD_HOSTS = ("discord.com", "ptb.discord.com", "canary.discord.com", "discordapp.com", "hooks.slack.com")
"""Where the path of an address is the password."""


def hidden_address(url: object, *, path_is_password: bool = False) -> str:
    """An address without the parts of it that are passwords; ``***`` for what is no address."""
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
    """Whether no part of an address is a password."""
    return isinstance(url, str) and hidden_address(url, path_is_password=path_is_password).lower() == url.lower()


def hide(spec: OptionSpec, value: object) -> str:
    """The text of an option with its secrets hidden; the same text where it holds none."""
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
    """The text of an option with each ``***`` replaced by what is stored for it; those that nothing is stored for stay."""
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
    """Where ``***`` stands in an option's text: ``[0].auth_token``."""
    if HIDDEN not in text or not holds_json(text):
        return []
    try:
        return list(_places(spec, read_document(text), ""))
    except (ValueError, RecursionError):
        return []


def hidden_problems(specs: Mapping[str, OptionSpec], values: Mapping[str, Any]) -> list[Problem]:
    """A problem for each ``***`` in these values, by canonical name, that stands for nothing."""
    message = f"{HIDDEN} stands for a value that is stored, and none is stored here for this entry and this place."
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
    return str(key).strip().lower().replace("-", "_") in names


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
    """Whether an address is one that was hidden before, which hides the same again."""
    return isinstance(value, str) and HIDDEN in value and value in (HIDDEN, hidden_address(value, path_is_password=path_is_password))


def _places(spec: OptionSpec, value: Any, where: str) -> Iterator[str]:
    if isinstance(value, list):
        for place, item in enumerate(value):
            yield from _places(spec, item, f"{where}[{place}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if _stands_for_something(spec, key, item):
                yield f"{where}.{key}"
            else:
                yield from _places(spec, item, f"{where}.{key}")


def _stands_for_something(spec: OptionSpec, key: str, value: Any) -> bool:
    if _is_named(spec.secret, key):
        return bool(value == HIDDEN)
    return _is_named(spec.addresses, key) and isinstance(value, str) and HIDDEN in value


def _revealed(spec: OptionSpec, entries: Sequence[Any], donors: Sequence[Any]) -> list[Any]:
    """Entries with what is stored for them: of the stored entry that is most alike, on the same machine.

    Where several are equally alike, entries that look the same keep their order; where that says nothing, because there are more of
    one than of the other, the ``***`` stay: nobody is posted to by mistake.
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
    """Number of a stored entry -> the entry with its secrets, for those that are most alike; a secret stays with its machine."""
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
    if not _stands_for_something(spec, key, sent):
        return _merged(spec, sent, stored)
    # The second is how older versions showed an address, which clients and rows may still have.
    return stored if stored and sent in (_hidden_field(spec, key, stored), hidden_address(stored)) else sent


def _machine(spec: OptionSpec, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What decides who is sent the secrets of an entry."""
    hosts = [(key, _host(value)) for key, value in entry.items() if _is_named(spec.addresses, key) and value]
    places = [(key, str(value).strip().lower()) for key, value in entry.items() if _is_named(spec.places, key) and value not in (None, "")]
    return sorted(hosts + places)


def _host(url: object) -> str:
    try:
        parts = urlsplit(str(url))
        return f"{parts.scheme}://{parts.hostname}:{parts.port}".lower()
    except ValueError:
        return ""
