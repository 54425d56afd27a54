"""The shapes of the published networks, for estimates while the weights are not on this machine. Without torch and without downloading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from types import MappingProxyType

from trainer_engine.config.families import family_folder
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.contract.files import read_small_json
from training.preflight.network import Shape

FILE = "shapes.json"
"""File in the folder of a family: a list of ``{"flavours": [...], "tensors": {"3072x64": ["x_embedder.weight", ...]}}``.

A star with a number in a name stands for that many, counted from 0: ``transformer_blocks.*19.attn.to_q.weight``.
"""


def published_tensors(spec: FamilySpec, flavour: str | None) -> Mapping[str, Shape] | None:
    """Tensor -> shape of the network of a flavour, by their names in diffusers; as wide as the run trains its first layer.

    None if the family has no such file, or if the run trains another network than the one that makes the predictions.
    """
    if tuple(spec.trained) != (spec.network,) or spec.steers:
        return None
    found = _of_family(spec.name).get(flavour or spec.default_flavour)
    return spec.widened.widened(dict(found)) if found and spec.widened else found


@cache
def _of_family(name: str) -> Mapping[str, Mapping[str, Shape]]:
    """Flavour -> tensor -> shape."""
    file = family_folder(name) / FILE
    if not file.is_file():
        return {}
    groups: list[dict[str, dict[str, list[str]]]] = read_small_json(file)
    found: dict[str, Mapping[str, Shape]] = {}
    for group in groups:
        shapes = {name: _sizes(shape) for shape, names in group["tensors"].items() for star in names for name in _without_stars(star)}
        found |= dict.fromkeys(group["flavours"], MappingProxyType(dict(sorted(shapes.items()))))
    return found


def _sizes(text: str) -> Shape:
    return tuple(int(size) for size in text.split("x")) if text else ()


def _without_stars(name: str) -> Iterator[str]:
    parts = [[str(number) for number in range(int(part[1:]))] if part.startswith("*") else [part] for part in name.split(".")]
    yield from (".".join(chosen) for chosen in product(*parts))
