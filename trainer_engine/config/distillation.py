"""How a family's distilled weights are recognised: weights that were trained to need few sampler steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

WORDS = re.compile(r"[A-Z]{2,}(?![a-z])|[A-Z]?[a-z]+|[A-Z]+")
"""The words of a name: ``DreamShaperXL_Lightning`` has ``Dream``, ``Shaper``, ``XL`` and ``Lightning``."""
FEW_STEP_WORDS = frozenset({"turbo", "lightning", "lcm", "hyper", "dmd", "distill", "distilled", "schnell"})
"""Words that the published names of distilled weights have, whatever the family."""


@dataclass(frozen=True, kw_only=True)
class DistillationSpec:
    """The facts about the distilled weights of a family."""

    base: str
    """Repository or flavour to train instead."""
    bases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> what to train instead of distilled weights of it, if it is not ``base``."""
    flavours: frozenset[str] = frozenset()
    """Flavours whose published weights are distilled."""
    repositories: frozenset[str] = frozenset()
    """Repositories of distilled weights that nothing else tells apart."""
    restored: frozenset[str] = frozenset()
    """Flavours that were trained from distilled weights until they needed many steps again."""
    words: frozenset[str] = FEW_STEP_WORDS
    """Words in the name of a repository, folder or file of such weights, in lower case."""
    schedulers: tuple[Mapping[str, Any], ...] = ()
    """Each holds entries that the ``scheduler_config.json`` of such weights has."""
    networks: tuple[Mapping[str, Any], ...] = ()
    """Each holds entries that the ``config.json`` of such a network has. A type as the value stands for any value of this type."""
    pipelines: tuple[Mapping[str, Any], ...] = ()
    """Each holds entries that the ``model_index.json`` of such weights has."""
    assistant: str = ""
    """Adapter that ``assistant_lora_path`` may name, so that such weights can be trained; empty if none is published."""

    def base_of(self, flavour: str | None) -> str:
        """What to train instead of distilled weights of a flavour."""
        return self.bases.get(flavour or "", self.base)

    def reason(
        self,
        *,
        flavour: str | None,
        name: str,
        scheduler: Mapping[str, Any],
        network: Mapping[str, Any],
        pipeline: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """Why weights are taken for distilled, as the end of a sentence; empty if nothing indicates it.

        ``flavour``, ``scheduler`` and ``pipeline`` are empty for a network that does not come from the base model. ``name`` is the
        repository or path of the network.
        """
        if flavour in self.restored:
            return ""
        if flavour in self.flavours:
            return f"the flavour {flavour} is"
        if name in self.repositories:
            return f"{name} is"
        known = sorted(self.words & {word.lower() for word in WORDS.findall(PurePath(name).name)})
        if known:
            return f"their name, {PurePath(name).name}, has the word {known[0]}"
        stated = (self.schedulers, scheduler, "scheduler"), (self.networks, network, "network"), (self.pipelines, pipeline, "pipeline")
        for wanted, found, where in stated:
            mark = next((one for one in wanted if all(_has(found, key, value) for key, value in one.items())), None)
            if mark is not None:
                return f"the configuration of the {where} has " + ", ".join(f"{key}={found[key]}" for key in mark)
        return ""


def _has(found: Mapping[str, Any], key: str, wanted: Any) -> bool:
    return key in found and (type(found[key]) is wanted if isinstance(wanted, type) else found[key] == wanted)
