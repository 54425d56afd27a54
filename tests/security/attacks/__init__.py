"""One module a subject. Every function whose name begins with ``attack_`` is an attack: it takes a ``Target`` and returns what got through,
a sentence each; an empty list means that the server held."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from tests.security.target import Target

Attack = Callable[[Target], list[str]]


def collect() -> dict[str, Attack]:
    """``module.attack`` -> the function, in the order of modules and names."""
    found: dict[str, Attack] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name in sorted(vars(module)):
            if name.startswith("attack_"):
                found[f"{info.name}.{name.removeprefix('attack_')}"] = getattr(module, name)
    return found
