"""How an option is declared: one field of one group, with everything that the rest of the system derives from it."""

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
    """Whether the text of a JSON option is JSON itself, and not the path of a file."""
    return text.lstrip()[:1] in ("[", "{")


class OptionGroup(BaseModel):
    """Options that belong together. The docstring of each group is its heading in ``docs/options.md``."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class _Extra:
    """What pydantic has no word for."""

    aliases: tuple[str, ...] = ()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    later: tuple[str, ...] = ()
    json: bool = False
    secret: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    secret_paths: tuple[str, ...] = ()


def option(
    default: Any,
    help: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    aliases: tuple[str, ...] = (),
    synonyms: Mapping[str, str] | None = None,
    later: tuple[str, ...] = (),
    json: bool = False,
    secret: tuple[str, ...] = (),
    addresses: tuple[str, ...] = (),
    places: tuple[str, ...] = (),
    secret_paths: tuple[str, ...] = (),
) -> Any:
    """Declare an option. ``default`` is ``...`` for one that must be given.

    ``aliases`` are other names of the option, ``synonyms`` other spellings of its choices, ``later`` the choices of the
    format that have no code behind them yet: they are refused by name instead of as a typing error. ``json`` marks text that holds
    JSON or the path of a JSON file; lists and objects are taken too, and kept as text. ``secret`` names the fields of that JSON
    that nobody is shown, ``addresses`` those that are addresses: passwords in them are hidden too. The secrets beside them are kept
    for the same machine alone, which ``places`` decide besides the addresses (``config/secrets.py``). ``secret_paths`` names the
    addresses of which nothing but the host may be seen.
    """
    extra: Any = _Extra(aliases, dict(synonyms or {}), later, json, secret, addresses, places, secret_paths)  # pydantic expects JSON
    return Field(default, description=help, gt=gt, ge=ge, lt=lt, le=le, json_schema_extra={EXTRA_KEY: extra})


@dataclass(frozen=True)
class OptionSpec:
    """One option as everything outside the engine sees it."""

    name: str
    group: str
    kind: str
    """``bool``, ``int``, ``float``, ``str``, ``mapping`` or ``json``."""
    default: Any
    """None also for an option that must be given; see ``required``."""
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
    secret: tuple[str, ...] = ()
    """Fields of its JSON that are hidden from everybody."""
    addresses: tuple[str, ...] = ()
    """Fields of its JSON that are addresses."""
    places: tuple[str, ...] = ()
    """Fields of its JSON that decide, besides the addresses, which machine is spoken to."""
    secret_paths: tuple[str, ...] = ()
    """Addresses in its JSON of which nothing but the host may be seen: services keep their keys in the path."""

    @property
    def expected(self) -> str:
        """What a right value looks like, for people."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = WORDS_OF_KINDS
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
    """(kind, choices, optional) of a field's annotation."""
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
    """Read an option's declaration back from its field."""
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
        choices=choices,
        later=extra.later,
        synonyms=extra.synonyms,
        aliases=extra.aliases,
        bounds=bounds,
        help=info.description or "",
        secret=extra.secret,
        addresses=extra.addresses,
        places=extra.places,
        secret_paths=extra.secret_paths,
    )
