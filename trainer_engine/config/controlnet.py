"""ControlNets: the facts of a family's, and ``controlnet_custom_config``, which changes how a new one is made. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import read_document, read_small_json

NAME = FOLDER = "controlnet"
"""Name of a ControlNet among the components of a run, and its subfolder in checkpoints."""
WEIGHTS, CUSTOM = "controlnet_model_name_or_path", "controlnet_custom_config"
CONTROL = "controlnet"
"""Value of ``conditioning_type`` of the images that steer it."""


@dataclass(frozen=True, kw_only=True)
class ControlNetSetting:
    """An argument with which a new ControlNet is made: whole numbers in a range, or one of some words."""

    least: int = 0
    most: int = 0
    count: int = 0
    """How many numbers there are; 0 for one that is not in a list."""
    words: tuple[str, ...] = ()
    """The allowed words; empty for numbers."""

    @property
    def expected(self) -> str:
        if self.words:
            return f"one of {', '.join(self.words)}"
        bounds = f"from {self.least} to {self.most}"
        return f"a list of {self.count} whole numbers {bounds}" if self.count else f"a whole number {bounds}"

    def holds(self, value: object) -> bool:
        """Whether a value from JSON is allowed."""
        if self.words:
            return value in self.words
        if not self.count:
            return self._is_in_range(value)
        return isinstance(value, list) and len(value) == self.count and all(map(self._is_in_range, value))

    def _is_in_range(self, value: object) -> bool:
        return type(value) is int and self.least <= value <= self.most


@dataclass(frozen=True, kw_only=True)
class ControlNetSpec:
    """The ControlNet of a family.

    Zhang et al., 2023, "Adding Conditional Control to Text-to-Image Diffusion Models".
    """

    class_name: str
    """Its class, with the layout of diffusers."""
    module: str = "diffusers"
    """Where the class is."""
    joined: str = ""
    """Class of the same module that takes the network's place in the pipeline, and is made of both; empty if the pipeline takes both."""
    pipeline: str
    """Class of the pipeline of diffusers that generates with it."""
    parameters: Mapping[str, int]
    """Flavour -> number of its weights when it is made with the default settings; a flavour that is not named has no ControlNet."""
    new_layers: str = "controlnet_"
    """Regular expression: how the names of the layers begin that it has and its network has not. All classes of diffusers agree."""
    sees_latents: bool = False
    """Whether it sees the latents of a control image, instead of its pixels (3, H, W) in [0, 1]."""
    matching: tuple[str, ...] = ()
    """Keys of ``config.json`` in which a ControlNet and its network agree."""
    fixed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Keys of its ``config.json`` -> the value that they have, if they are there, in the ControlNets that can be trained."""
    settings: Mapping[str, ControlNetSetting] = field(default_factory=lambda: MappingProxyType({}))
    """Keys of ``controlnet_custom_config``: arguments with which it is made from the frozen network."""
    unused: frozenset[str] = frozenset({"validation_guidance_rescale"})
    """Options of validation images that its pipeline does not support, although the family's plain pipeline may."""


def weights_problem(source: str, folder: Path, network: Path | None, spec: ControlNetSpec) -> Problem | None:
    """Why weights are no ControlNet of a network, or None.

    ``folder`` and ``network`` hold the ``config.json`` of each; ``network`` is None if it is not on this machine yet.
    """
    ours, theirs = _config_in(folder), _config_in(network) if network else {}
    kind = ours.get("_class_name")
    if kind != spec.class_name:
        message = f"{source} holds {f'a {str(kind)[:100]}' if kind else 'no configuration of a network'}, not a ControlNet."
        return Problem.error(WEIGHTS, "other_model", message, got=source, expected=f"a {spec.class_name}")
    other = {name: ours[name] for name, value in spec.fixed.items() if ours.get(name, value) != value}
    if other:
        message = f"The ControlNet in {source} is of a kind that is not trained here: {str(other)[:100]}."
        return Problem.error(WEIGHTS, "other_model", message, got=source, expected=f"one with {dict(spec.fixed)}")
    differing = [name for name in spec.matching if name in ours and name in theirs and ours[name] != theirs[name]]
    if not differing:
        return None
    named = ", ".join(f"{name} is {str(ours[name])[:100]} and not {str(theirs[name])[:100]}" for name in differing)
    message = f"The ControlNet in {source} belongs to another network: {named}."
    return Problem.error(WEIGHTS, "other_model", message, got=source, expected="a ControlNet of the base model")


def _config_in(folder: Path) -> Mapping[str, Any]:
    try:
        document = read_small_json(folder / "config.json")
    except OSError:
        return {}
    return document if isinstance(document, Mapping) else {}


def custom_config(text: str | None, spec: ControlNetSpec) -> tuple[dict[str, Any], list[Problem]]:
    """Returns the arguments in ``controlnet_custom_config``, and every problem with it. If there is a problem there are no arguments."""
    if not text:
        return {}, []
    expected = f"a JSON object with some of {', '.join(spec.settings)}"
    try:
        document = read_document(text)
    except ValueError as error:
        return {}, [Problem.error(CUSTOM, "not_json", f"This is not valid JSON: {error}", expected=expected)]
    if not isinstance(document, Mapping):
        return {}, [Problem.error(CUSTOM, "not_an_object", "It is no object.", got=type(document).__name__, expected=expected)]
    problems = list(_setting_problems(document, spec))
    return ({}, problems) if problems else (dict(document), [])


def _setting_problems(document: Mapping[str, Any], spec: ControlNetSpec) -> Iterator[Problem]:
    for name, value in document.items():
        setting = spec.settings.get(name)
        if setting is None:
            message, known = f"A new {spec.class_name} is made without {name[:100]!r}.", f"one of {', '.join(spec.settings)}"
            yield Problem.error(f"{CUSTOM}.{name[:100]}", "unknown_field", message, expected=known)
        elif not setting.holds(value):
            message = f"{name} cannot have this value."
            yield Problem.error(f"{CUSTOM}.{name}", "out_of_range", message, got=value, expected=setting.expected)
