"""Finds what keeps a folder of ``trainer_engine/families`` from being a model family, without torch."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from trainer_engine import families
from trainer_engine.config.families import SHARED
from trainer_engine.config.family_spec import FamilySpec


def all_family_problems(package: ModuleType = families) -> dict[str, list[str]]:
    """Folder -> what is missing or wrong there, for each folder of the package that is no complete family."""
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg and module.name != SHARED]
    found = {name: family_problems(name, package) for name in names}
    return {name: problems for name, problems in found.items() if problems}


def family_problems(name: str, package: ModuleType = families) -> list[str]:
    """What is missing or wrong in one folder, as sentences; empty for a complete family.

    The class in ``family.py`` needs torch: the engine checks it when a run starts.
    """
    folder = Path(str(importlib.import_module(f"{package.__name__}.{name}").__file__)).parent
    problems = [] if (folder / "family.py").is_file() else ["It has no family.py, which defines FAMILY."]
    if not (folder / "spec.py").is_file():
        return ["It has no spec.py, which defines SPEC.", *problems]
    try:
        spec = getattr(importlib.import_module(f"{package.__name__}.{name}.spec"), "SPEC", None)
    except (ImportError, TypeError) as error:  # a field that is missing or unknown is a TypeError of the dataclass
        return [f"Its spec.py cannot be imported: {error}.", *problems]
    if not isinstance(spec, FamilySpec):
        return [f"Its spec.py has no SPEC of the class FamilySpec, but {type(spec).__name__}.", *problems]
    wrong = [f"SPEC.{path} is {value!r}, expected {_hint_name(hint)}." for path, value, hint in _wrong_fields(spec)]
    return [*(wrong or _contradictions(name, spec)), *problems]


def _contradictions(folder: str, spec: FamilySpec) -> Iterator[str]:
    """Problems of a spec whose fields are of the right kinds."""
    if spec.name != folder:
        yield f"SPEC.name is {spec.name!r}, expected the name of the folder."
    if spec.default_flavour not in spec.flavours:
        yield f"SPEC.default_flavour is {spec.default_flavour!r}, expected one of the flavours."
    if not spec.trained:
        yield "SPEC.components has no component with the role trained."
    if len(spec.prompts.text_encoders) != len(spec.prompts.text_encoder_folders):
        yield "SPEC.prompts has another number of text_encoders than of text_encoder_folders."


def _wrong_fields(instance: Any, before: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, value, annotation) of each field of a dataclass whose value is not of the annotated kind."""
    hints = get_type_hints(type(instance))
    for field in fields(instance):
        path, value, hint = f"{before}{field.name}", getattr(instance, field.name), hints[field.name]
        if not _is_of(value, hint):
            yield path, value, hint
        elif is_dataclass(value):
            yield from _wrong_fields(value, f"{path}.")
        elif isinstance(value, Mapping):
            for key, entry in value.items():
                if is_dataclass(entry):
                    yield from _wrong_fields(entry, f"{path}[{key!r}].")


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that an annotation of a spec names."""
    if hint is Any:
        return True
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is None:
        return isinstance(value, (int, float) if hint is float else hint) and not (isinstance(value, bool) and hint in (int, float))
    if origin is UnionType:
        return any(_is_of(value, argument) for argument in arguments)
    if not isinstance(value, origin):
        return False
    if isinstance(value, Mapping):
        return all(_is_of(key, arguments[0]) and _is_of(entry, arguments[1]) for key, entry in value.items())
    return all(_is_of(entry, arguments[0]) for entry in value)  # tuple[X, ...] and frozenset[X]


def _hint_name(hint: Any) -> str:
    """An annotation as it stands in the source."""
    if isinstance(hint, type) and not get_args(hint):
        return hint.__name__
    return str(hint).replace("collections.abc.", "").replace("typing.", "")
