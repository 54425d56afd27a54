"""Reads one entry of the dataloader file field by field, and collects its problems."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer_engine.config.dataset_tables import FOLDER_FIELD, SourceSpec, caption_specs, fields_of, source_specs
from trainer_engine.config.datasets.fields import FileSet, option_name
from trainer_engine.config.datasets.hints import GONE, HINTS, OF_REFERENCES
from trainer_engine.config.datasets.names import (
    KIND,
    OF_IMAGES,
    PATHS,
    SETS,
    SWITCH,
    allowed,
    known_names,
    later,
    listed,
    specs,
    table_entries,
)
from trainer_engine.config.datasets.refused import KINDS, refusal_of_field
from trainer_engine.config.json_fields import WrongValue, folded
from trainer_engine.config.option import OptionSpec
from trainer_engine.config.options.values import parse_float, parse_text, parse_value
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.messages import HIDDEN, Suggestions

Locate = Callable[[str, str, str], "str | Problem"]
"""(path as written, name for problems, field) -> its absolute path, or the problem with it."""

PLACEHOLDER = re.compile(r"\{(\w+)(:[^{}]*)?\}")
SECRET = re.compile(r"key|token|secret|password")
LONGEST_ID = 120


@dataclass
class EntryDraft:
    """An entry while it is being read: the typed values and problems so far."""

    position: int
    raw: Mapping[str, Any]
    placeholders: Mapping[str, str]
    locate: Locate | None
    id: str = ""
    kind: str = ""
    """``image``, ``eval``, ``conditioning`` or ``text_embeds``; empty if unknown or not available."""
    values: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)
    """Fields that have an error already."""
    suggestions: Suggestions = field(default_factory=Suggestions)
    """Shared by all entries of a file."""

    @property
    def title(self) -> str:
        return f"dataset {self.id}" if self.id else f"entry {self.position} of the dataloader file"

    def error(self, name: str, code: str, what: str, *, got: object = None, expected: str = "", hint: str = "") -> None:
        """Adds the first error of a field. ``what`` continues a message that starts with "dataset <id>: "."""
        if name in self.reported:
            return
        self.reported.add(name)
        shown = "(hidden)" if got is not None and SECRET.search(name) else got
        option = option_name(self.position, name)
        self.problems.append(Problem.error(option, code, f"{self.title}: {what}", got=shown, expected=expected, hint=hint))

    def warning(self, name: str, code: str, what: str, *, got: object = None) -> None:
        self.problems.append(Problem.warning(option_name(self.position, name), code, f"{self.title}: {what}", got=got))

    def note(self, name: str, code: str, what: str, *, got: object = None) -> None:
        self.problems.append(Problem.note(option_name(self.position, name), code, f"{self.title}: {what}", got=got))


def read_id(draft: EntryDraft) -> None:
    """Reads the id of the entry, which names it in its other problems."""
    value = draft.raw.get("id")
    try:
        text = parse_text(value).strip() if value is not None else ""
    except WrongValue as wrong:
        draft.error("id", wrong.code, f"its id {wrong}.", got=value, expected="a name")
        return
    if not text:
        draft.error("id", "missing", "it has no id.", got=value, expected="a name that no other dataset has")
        return
    draft.id = draft.values["id"] = text
    if "/" in text or "\\" in text or text.startswith(".") or len(text.encode()) > LONGEST_ID or not text.isprintable():
        expected = f"at most {LONGEST_ID} letters, digits, dashes and similar characters"
        draft.error(
            "id", "not_a_name", "the id names the folders of caches, but this one cannot name a folder.", got=text, expected=expected
        )


def is_disabled(draft: EntryDraft) -> bool:
    """Whether the entry is skipped. A switch with an invalid value is an error, and the entry is not skipped."""
    for name in ("disabled", "disable"):
        value = _plain(draft, SWITCH, name)
        if value:
            return True
    return False


def read_kind(draft: EntryDraft) -> None:
    """Reads the kind of the entry. ``kind`` remains empty if it is unknown or not available."""
    kind = None if _is_refused(draft) else _plain(draft, KIND, "dataset_type")
    if kind in OF_IMAGES and draft.raw.get("conditioning_type"):
        kind = "conditioning"
    storage = _plain(draft, specs(kind or "image")["type"], "type")
    draft.kind = kind if kind and storage else ""


def _is_refused(draft: EntryDraft) -> bool:
    """Whether the entry is of a kind that is refused for a reason, which is reported."""
    given = draft.raw.get("dataset_type")
    word = folded(given) if isinstance(given, str) else ""
    if word not in KINDS:
        return False
    what, expected = f"dataset_type={word} is not available: {KINDS[word].about}.", f"one of {', '.join(KIND.choices)}"
    draft.error("dataset_type", "not_available", what, got=word, expected=expected, hint="leave the entry out")
    return True


def read_names(draft: EntryDraft) -> None:
    """Reports fields that the format does not have, that are not implemented, or that belong to other kinds of datasets."""
    names = allowed(draft.kind) | _without_effect(draft).keys() if draft.kind else known_names()
    for key, value in draft.raw.items():
        name = str(key)
        if name in names:
            continue
        if name not in known_names():
            hint = draft.suggestions.nearest(name, sorted(known_names()), otherwise="docs/datasets.md lists every field")
            what = f"a dataset has no field {name[:100]!r}."
            # A value whose name resembles no field may belong to another file, so it is not repeated.
            draft.error(name[:100], "unknown_field", what, got=value if hint else None, expected="the name of a field", hint=hint)
        elif name in HINTS or name in GONE:
            _note_hint(draft, name, value)
        elif name in later():
            if not _is_default(value, later()[name]):
                what = f"{name} is not available: {refusal_of_field(name).about}."
                draft.error(name, "not_available", what, got=value, hint="leave it out")
        elif not _is_default(value, _default_elsewhere(name)):
            owner = next(kind for kind in SETS if name in allowed(kind))
            what = f"{name} has no effect on a set of type {draft.kind}."
            draft.error(name, "not_for_type", what, got=value, hint=f"it belongs to sets of type {owner}: remove it here")


def _note_hint(draft: EntryDraft, name: str, value: object) -> None:
    """Adds a note about a field that needs nothing, unless it has its default, or an error if it cannot have the value."""
    if name in GONE:
        draft.note(name, "gone", f"{name} is no longer part of the format, and has no effect: {GONE[name]}.", got=value)
    elif not _is_default(value, listed()[name]):
        try:
            HINTS[name].check(value)
            draft.note(name, "not_needed", f"{name} has no effect: {HINTS[name].reason}.", got=value)
        except WrongValue as wrong:
            draft.error(name, wrong.code, f"{name} {wrong}.", got=value, hint=wrong.hint)


def _default_elsewhere(name: str) -> object:
    """Returns the default of a field of other kinds of datasets; None if it has none, or a parser of its own."""
    return next((specs(kind)[name].default for kind in SETS if name in specs(kind)), None)


def _is_default(value: object, default: object) -> bool:
    word = value.strip().lower() if isinstance(value, str) else value
    if word is None or word in ("", "none", "null") or word in ([], {}):
        return True
    if default is None or default is False:
        return word is False or word in ("false", "no", "off", "0")
    try:
        return parse_float(word) == parse_float(default)
    except WrongValue:
        return str(word).lower() == str(default).lower()


def read_values(draft: EntryDraft, inherited: Mapping[str, Any]) -> None:
    """Reads every field. A missing one takes the option of the same name, or else the default of the field."""
    has_source = issubclass(SETS[draft.kind], FileSet)
    has_folder = has_source and _source_of(draft).place_field == FOLDER_FIELD
    for name, spec in specs(draft.kind).items():
        if name == FOLDER_FIELD and not has_folder:
            draft.values[name] = ""
        elif name != "id":
            draft.values[name] = _value(draft, spec, inherited.get(name, spec.default))
    if has_source:
        own = _own_fields(draft)
        draft.values["own_fields"] = {name: _value(draft, spec, inherited.get(name, spec.default)) for name, spec in own.items()}
        _refuse_hidden(draft)
        _refuse_others(draft, own.keys() | _note_without_effect(draft) | ({FOLDER_FIELD} if has_folder else set()))


def usual_captions(draft: EntryDraft, chosen: str) -> str:
    """Returns the caption strategy of an entry that names none: that of the options, or the first that suits its source."""
    fitting = _source_of(draft).captions
    return chosen if not fitting or chosen in fitting else fitting[0]


def check_tables(draft: EntryDraft) -> None:
    """Runs the checks that the source and the caption strategy of an entry declare."""
    for entry in (_source_of(draft), caption_specs().get(draft.values.get("caption_strategy", ""))):
        if entry and entry.check:
            entry.check(draft)


def _without_effect(draft: EntryDraft) -> Mapping[str, str]:
    """Returns the fields that the source of an entry does not need, or its kind, each with the reason."""
    own = _source_of(draft).without_effect if issubclass(SETS[draft.kind], FileSet) else {}
    return {**own, **OF_REFERENCES} if draft.kind == "conditioning" else own


def _note_without_effect(draft: EntryDraft) -> set[str]:
    """Adds a note for each given field that the source does not need, and returns the names of these fields."""
    aliases = {alias: spec.name for spec in specs(draft.kind).values() for alias in spec.aliases}
    reasons = _without_effect(draft)
    for name, value in draft.raw.items():
        reason = reasons.get(aliases.get(str(name), str(name)))
        if reason and not _is_default(value, None):
            draft.note(str(name), "no_effect", f"{name} has no effect: {reason}.", got=value)
    return set(reasons)


def _value(draft: EntryDraft, spec: OptionSpec, default: Any) -> Any:
    """Returns the value of a field with a single value, or its default if it is missing or has an error, which is reported."""
    name, spelled = spec.name, _spelling(draft, spec)
    given = draft.raw.get(spelled) if spelled else None
    value = _plain(draft, spec, spelled) if spelled else None
    silent = given is None or (isinstance(given, str) and not given.strip())
    if name == "caption_strategy" and spelled and given is None and draft.kind in OF_IMAGES:
        what = "training without captions is not available yet."
        draft.error(name, "not_available", what, got="null", hint="leave caption_strategy out, or choose one")
    if spec.required and silent:
        draft.error(name, "missing", f"{name} is missing.", got=given, expected=spec.help)
    return default if silent or value is None else value


def _source_of(draft: EntryDraft) -> SourceSpec:
    name = _plain(draft, specs(draft.kind)["type"], "type")
    return source_specs()[name or specs(draft.kind)["type"].default]


def _own_fields(draft: EntryDraft) -> Mapping[str, OptionSpec]:
    """Returns the fields that the source and the caption strategy of an entry declare."""
    strategy = caption_specs().get(draft.values.get("caption_strategy", ""))
    return {**fields_of(_source_of(draft)), **(fields_of(strategy) if strategy else {})}


def _refuse_hidden(draft: EntryDraft) -> None:
    """Reports a ``***`` for which no secret is stored."""
    for name in _source_of(draft).secrets:
        if draft.raw.get(name) == HIDDEN:
            what = f"{HIDDEN} stands for a stored secret, but none is stored for {name} at this address."
            draft.error(name, "hidden_value", what, hint="send the value itself")


def _refuse_others(draft: EntryDraft, own: Container[str]) -> None:
    """Reports fields of sources and caption strategies that the entry does not choose."""
    others = {name: spec for entry in table_entries(draft.kind) for name, spec in fields_of(entry).items()}
    others[FOLDER_FIELD] = specs(draft.kind)[FOLDER_FIELD]
    for name, spec in others.items():
        used = [spelled for spelled in (name, *spec.aliases) if not _is_default(draft.raw.get(spelled), spec.default)]
        if used and name not in own:
            chosen = [f"{choice}={draft.values[choice]}" for choice in ("type", "caption_strategy") if choice in draft.values]
            draft.error(
                used[0], "not_for_type", f"{used[0]} has no effect with {' and '.join(chosen)}.", got=draft.raw[used[0]], hint="remove it"
            )


def _spelling(draft: EntryDraft, spec: OptionSpec) -> str:
    """Returns the name that the entry uses for a field, or an empty string if it does not have it."""
    used = [name for name in (spec.name, *spec.aliases) if name in draft.raw]
    if len(used) > 1 and draft.raw[used[0]] != draft.raw[used[1]]:
        what = f"{used[0]} and {used[1]} are the same field, with different values."
        draft.error(used[0], "conflicting_values", what, got=draft.raw[used[1]], hint="keep one of them")
    return used[0] if used else ""


def _plain(draft: EntryDraft, spec: OptionSpec, name: str) -> Any:
    """Returns the typed value of a field with a single value, or None if it is missing or has an error, which is reported."""
    value = draft.raw.get(name)
    if spec.required and (value is None or (isinstance(value, str) and not value.strip())):
        return None
    if isinstance(value, str) and spec.kind == "str":
        value = fill(draft, name, value)
        if value is None:
            return None
    try:
        parsed = parse_value(spec, value)
    except WrongValue as wrong:
        draft.error(name, wrong.code, f"{name} {_sentence(name, str(wrong))}.", got=value, expected=spec.expected, hint=wrong.hint)
        return None
    return located(draft, name, parsed, spec.name) if spec.name in PATHS and isinstance(parsed, str) else parsed


def located(draft: EntryDraft, name: str, path: str, field: str) -> str | None:
    """Returns the absolute path of a file or folder, or None if it may not be used, which is reported.

    ``name`` is the field as the entry spells it, ``field`` its canonical name.
    """
    found = draft.locate(path, option_name(draft.position, name), field) if draft.locate else path
    if isinstance(found, Problem):
        draft.reported.add(name)
        draft.problems.append(found)
        return None
    return found


def _sentence(name: str, reason: str) -> str:
    return reason if reason.startswith("is ") else f"cannot be used: {reason}"


def fill(draft: EntryDraft, name: str, text: str) -> str | None:
    """Returns the text with its placeholders filled in, or None if it has an unknown one, or one of a secret, which is reported."""
    for match in PLACEHOLDER.finditer(text):
        word = match.group(1)
        if word == "env":
            what = f"{name} uses an environment variable. These may hold secrets and are never copied into a configuration."
            draft.error(name, "secret_placeholder", what, got=text, hint="write the value itself")
            return None
        if word not in draft.placeholders and name in PATHS:
            known = ", ".join(f"{{{known}}}" for known in draft.placeholders)
            draft.error(name, "unknown_placeholder", f"{name} contains the unknown placeholder {match.group()}.", got=text, expected=known)
            return None
    return PLACEHOLDER.sub(lambda match: draft.placeholders.get(match.group(1), match.group()), text)
