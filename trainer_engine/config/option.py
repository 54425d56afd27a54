"""Declares an option as one field of one group. Parsing, command line, API schema and documentation derive from it."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

EXTRA_KEY = "option"


def holds_json(text: str) -> bool:
    """Whether the text of a JSON option is JSON rather than the path of a file."""
    return text.lstrip()[:1] in ("[", "{")


class OptionGroup(BaseModel):
    """Options that belong together. The docstring of a group is the introduction of its section in ``docs/options.md``."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class _Extra:
    """Properties of an option that pydantic's Field does not have."""

    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    later: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    json: bool = False
    secret: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    secret_paths: tuple[str, ...] = ()
    shape: str = ""


def option(
    default: Any,
    help: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    aliases: tuple[str, ...] = (),
    choices: tuple[str, ...] = (),
    synonyms: Mapping[str, str] | None = None,
    later: tuple[str, ...] = (),
    refused: Mapping[str, str] | None = None,
    json: bool = False,
    secret: tuple[str, ...] = (),
    addresses: tuple[str, ...] = (),
    places: tuple[str, ...] = (),
    secret_paths: tuple[str, ...] = (),
    shape: str = "",
) -> Any:
    """Declares an option. A ``default`` of ``...`` makes it required.

    - ``aliases``: other names of the option.
    - ``choices``: the values of a text whose choices are found when the program starts; others are a ``Literal``.
    - ``synonyms``: other spellings of its choices.
    - ``later``: choices of the format that are not implemented yet. They are refused with the code ``not_available``.
    - ``refused``: choices of the format that will not be implemented -> why, and what to use instead.
    - ``json``: the text is JSON or the path of a JSON file. Lists and objects are accepted and kept as text.
    - ``secret``: fields of that JSON that are hidden.
    - ``addresses``: fields of that JSON that are URLs, in which passwords are hidden.
    - ``places``: fields that, with the addresses, identify the machine that the secrets are for (``config/secrets.py``).
    - ``secret_paths``: addresses of which only the host is shown.
    - ``shape``: describes valid JSON for people, if a file is not accepted.
    """
    extra: Any = _Extra(  # pydantic expects JSON
        aliases, choices, dict(synonyms or {}), later, dict(refused or {}), json, secret, addresses, places, secret_paths, shape
    )
    return Field(default, description=help, gt=gt, ge=ge, lt=lt, le=le, json_schema_extra={EXTRA_KEY: extra})


@dataclass(frozen=True)
class OptionSpec:
    """The declaration of one option, as everything outside the engine reads it."""

    name: str
    group: str
    kind: str
    """``bool``, ``int``, ``float``, ``str``, ``mapping`` or ``json``."""
    default: Any
    """The default. It is None for a required option too; see ``required``."""
    required: bool
    optional: bool
    """Whether "not set" is a value of its own."""
    choices: tuple[str, ...]
    later: tuple[str, ...]
    synonyms: Mapping[str, str]
    aliases: tuple[str, ...]
    bounds: Mapping[str, float]
    """``gt``, ``ge``, ``lt``, ``le`` -> number."""
    help: str
    refused: Mapping[str, str] = field(default_factory=dict)
    """Choices of the format that will not be implemented -> why, and what to use instead."""
    secret: tuple[str, ...] = ()
    """Fields of its JSON that are always hidden."""
    addresses: tuple[str, ...] = ()
    """Fields of its JSON that are URLs."""
    places: tuple[str, ...] = ()
    """Fields of its JSON that, with the addresses, identify the machine that the secrets are for."""
    secret_paths: tuple[str, ...] = ()
    """URLs in its JSON of which only the host is shown, since services put keys into the path."""
    shape: str = ""
    """A description of valid JSON, for people; empty: any, also in a file."""

    @property
    def expected(self) -> str:
        """Describes a valid value, for people."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = {**WORDS_OF_KINDS, "json": self.shape or WORDS_OF_KINDS["json"]}
        signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
        limits = " and ".join(f"{signs[sign]} {limit:g}" for sign, limit in self.bounds.items())
        return f"{words[self.kind]} {limits}".strip()


WORDS_OF_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "mapping": "key=value,key=value",
    "json": "JSON in a string, or the path of a JSON file",
}
KINDS: dict[Any, str] = {bool: "bool", int: "int", float: "float", str: "str"}


def _kind_of(annotation: Any) -> tuple[str, tuple[str, ...], bool]:
    """Returns (kind, choices, optional) for the annotation of a field."""
    optional = False
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [part for part in get_args(annotation) if part is not type(None)]
        optional = len(inner) < len(get_args(annotation))
        annotation = inner[0]
    if get_origin(annotation) is Literal:
        return "str", tuple(get_args(annotation)), optional
    if get_origin(annotation) is dict:
        return "mapping", (), optional
    return KINDS[annotation], (), optional


def spec_of(name: str, group: str, info: FieldInfo) -> OptionSpec:
    """Reads the declaration of an option from its field."""
    kind, choices, optional = _kind_of(info.annotation)
    declared = info.json_schema_extra
    extra = declared[EXTRA_KEY] if isinstance(declared, dict) else _Extra()
    assert isinstance(extra, _Extra), f"{name} is not declared with option()"
    kind = "json" if extra.json else kind
    signs: dict[type, str] = {Gt: "gt", Ge: "ge", Lt: "lt", Le: "le"}
    bounds = {signs[type(mark)]: getattr(mark, signs[type(mark)]) for mark in info.metadata if type(mark) in signs}
    required = info.is_required()
    default = None if info.default is PydanticUndefined or info.default is ... else info.default
    if info.default_factory is not None:
        default = info.default_factory()  # type: ignore[call-arg]  # ours take no data
    return OptionSpec(
        name=name,
        group=group,
        kind=kind,
        default=default,
        required=required,
        optional=optional,
        choices=choices or extra.choices,
        later=extra.later,
        refused=extra.refused,
        synonyms=extra.synonyms,
        aliases=extra.aliases,
        bounds=bounds,
        help=info.description or "",
        secret=extra.secret,
        addresses=extra.addresses,
        places=extra.places,
        secret_paths=extra.secret_paths,
        shape=extra.shape,
    )
