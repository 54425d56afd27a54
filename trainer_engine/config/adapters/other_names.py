"""The names that the modules of a network have in the adapter files of other programs. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from trainer_engine.config.one_file.unet_names import original_names

KOHYA_PARTS: Mapping[str, str] = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
"""Names of the matrices of a LoRA in files whose keys have kohya's prefix."""
OF_NETWORK = "diffusion_model."
"""Prefix of the names that the modules have in ComfyUI's own network."""
Renaming = tuple[tuple[str, str], ...]
"""(regular expression that a whole module name matches, the name in the original code, which may refer to groups); the first one counts."""


@dataclass(frozen=True)
class JointLayer:
    """A layer of the published code that is several here. Its rows are those of its parts, one after the other."""

    name: str
    """In the published code; it may refer to groups of ``stem``."""
    stem: str
    """Regular expression that the beginning of the names of all parts matches."""
    parts: tuple[str, ...]
    """What follows in the name of each part, in the order of the rows."""
    shares: tuple[int, ...]
    """How many rows each part has, relative to the others."""

    def holding(self, module: str) -> tuple[str, tuple[str, ...]] | None:
        """(its name, the names of its parts) where ``module`` is one of these; else None."""
        for part in self.parts:
            stem = module.removesuffix(part)
            match = re.fullmatch(self.stem, stem) if stem != module else None
            if match is not None:
                return match.expand(self.name), tuple(stem + one for one in self.parts)
        return None


@dataclass(frozen=True)
class OriginalNames:
    """The names that the published code of a network gives its modules, where they differ from those of diffusers."""

    mark: str
    """A linear layer that no other network has, by its name in diffusers: two networks may have a name that means two layers."""
    names: Renaming
    joint: tuple[JointLayer, ...] = ()
    """Layers that are several here."""


def renamed(module: str, names: Renaming) -> str:
    """The name of a module in the original code of its network; empty if it is not stated."""
    for pattern, other in names:
        found = re.fullmatch(pattern, module)
        if found is not None:
            return found.expand(other)
    return ""


@dataclass(frozen=True)
class ModuleKeys:
    """The keys of one component in the adapter files of a program."""

    prefix: str
    """Before the names of diffusers. One that ends with an underscore is kohya's, whose keys have no dots in the names of modules."""
    names: Renaming = ()
    """Modules that the program knows only by the names of the original code."""
    takes_alpha: bool = True
    """Whether every program that reads such a file takes the tensor ``alpha``; otherwise the scale is worked into the weights."""
    joint: tuple[JointLayer, ...] = ()
    """Layers of the network that the program has as one."""

    def rows_of(self, module: str) -> tuple[str, ...]:
        """The layers, ``module`` among them, that the program has as one, in the order of its rows; empty for a layer of its own."""
        return self._joint(module)[1]

    def original(self, module: str) -> str:
        """The name of a module, or of the layer that it is a part of, in the original code; empty if it is not stated."""
        return self._joint(module)[0] or renamed(module, self.names)

    def _joint(self, module: str) -> tuple[str, tuple[str, ...]]:
        return next((found for layer in self.joint if (found := layer.holding(module))), ("", ()))

    def key(self, module: str, part: str) -> str:
        """``module``: its name in the component; ``part``: name of a tensor, such as ``lora_A.weight``."""
        original = self.original(module)
        if original:
            return f"{OF_NETWORK}{original}.{part}"
        if self.prefix.endswith("_"):
            return f"{self.prefix}{module.replace('.', '_')}.{KOHYA_PARTS.get(part, part)}"
        return f"{self.prefix}{module}.{part}"


def modules_by_other_name(modules: Collection[str], components: Collection[str], known: Collection[OriginalNames]) -> dict[str, str]:
    """Name of a module in the original code -> its name here. ``components``: prefixes of the components of the network.

    ``known``: the names of all networks, of which those count whose mark a component has.

    A name that is one of ``modules`` as well, or that two of them have, stands for none.
    """
    found: dict[str, str] = {}
    doubled: set[str] = set(modules)
    for prefix in sorted({"", *components}):
        own = {module.removeprefix(prefix): None for module in modules if module.startswith(prefix)}
        for module, other in _other_names(own, known):
            if prefix + other in found:
                doubled.add(prefix + other)
            found[prefix + other] = prefix + module
    return {other: module for other, module in found.items() if other not in doubled}


def _other_names(modules: Collection[str], known: Iterable[OriginalNames]) -> Iterator[tuple[str, str]]:
    yield from original_names(modules).items()
    for one in (one for one in known if one.mark in modules):
        yield from ((module, other) for module in modules if (other := renamed(module, one.names)))
