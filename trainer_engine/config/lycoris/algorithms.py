"""The algorithms of LyCORIS: which keys of an adapter file each of them reads, and where each of them can be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer_engine.contract.errors import Problem

OPTION = "lycoris_config"
ALGORITHMS = ("lora", "locon", "loha", "lokr", "full", "ia3", "dylora", "glora", "diag-oft", "boft", "tlora")
WITHOUT_RANK = ("full", "ia3")
"""Algorithms that have no rank to choose."""
LIMITED_BY_LAYER = ("lora", "locon", "dylora", "glora", "tlora")
"""Algorithms whose rank cannot be above that of their layer."""
BESIDE_WEIGHTS = ("lora", "locon", "loha", "lokr", "glora", "tlora")
"""Algorithms that mean the same beside a layer (``bypass_mode``) as in its weight; the others fail there or learn something else."""
ON_QUANTISED = ("lora", "locon", "loha", "lokr", "glora")
"""Algorithms for layers whose exact weights are gone; tlora starts from their singular vectors."""
IN_COMFYUI = ("lora", "locon", "loha", "lokr", "full", "dylora")
"""Algorithms whose files can be given ComfyUI's keys."""
PRODUCTS = ("lora", "locon", "loha", "lokr")
READ_BY: Mapping[str, tuple[str, ...]] = {
    "factor": ("lokr",),
    "full_matrix": ("lokr",),
    "decompose_both": ("lokr",),
    "unbalanced_factorization": ("lokr",),
    "use_tucker": (*PRODUCTS, "glora"),
    "use_scalar": (*PRODUCTS, "glora"),
    "weight_decompose": PRODUCTS,
    "wd_on_output": PRODUCTS,
    "rescaled": ("diag-oft", "boft"),
    "constraint": ("diag-oft", "boft"),
    "block_size": ("dylora",),
}
"""Key -> the algorithms that it changes; keys that are not here change all of them."""
DEFAULT_BLOCK = 4
"""The library's ``block_size``."""
MAPS = ("module_algo_map", "name_algo_map")
SPELLINGS = {"dim": "linear_dim", "alpha": "linear_alpha", "dora_wd": "weight_decompose"}


def algorithms_in(document: object) -> set[str]:
    """Every algorithm that an adapter file names, overrides included."""
    if not isinstance(document, Mapping):
        return set()
    own = {document["algo"].lower()} if isinstance(document.get("algo"), str) else set()
    return own.union(*(algorithms_in(value) for value in document.values()))


@dataclass(frozen=True)
class Variant:
    """One way in which layers are adapted: the file's own, or an override's."""

    where: str
    """Path in the file: empty, or ``apply_preset.module_algo_map.FeedForward.``"""
    own: Mapping[str, Any]
    """What is written there."""
    held: Mapping[str, Any]
    """What holds there: the file's own keys below those of the override."""

    @property
    def algo(self) -> str:
        return str(self.held.get("algo", "")).lower()

    def problem(self, key: str, code: str, message: str, *, expected: str = "", hint: str = "") -> Problem:
        return Problem.error(f"{OPTION}.{self.where}{key}", code, message, got=self.held.get(key), expected=expected, hint=hint)


def variants(document: Mapping[str, Any]) -> list[Variant]:
    """The file's own first. What is no object is left out: that is told elsewhere."""
    own = _spelt(document)
    preset = document.get("apply_preset")
    found = [Variant("", own, own)]
    for name in MAPS:
        overrides = preset.get(name) if isinstance(preset, Mapping) else None
        for target, changes in overrides.items() if isinstance(overrides, Mapping) else ():
            if isinstance(changes, Mapping):
                found.append(Variant(f"apply_preset.{name}.{target}.", _spelt(changes), {**own, **_spelt(changes)}))
    return found


def _spelt(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {SPELLINGS.get(key, key): value for key, value in keys.items() if value is not None}


def contradictions(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Keys that are right alone and wrong together, and those that nothing reads."""
    found = variants(document)
    for variant in found:
        yield from _beside_the_weight(variant)
        yield from _whole_blocks(variant)
        readers = {one.algo for one in found} if variant is found[0] else {variant.algo}
        for key in variant.own:
            if key in READ_BY and readers.isdisjoint(READ_BY[key]) and readers <= set(ALGORITHMS):
                message = f"The algorithm {variant.algo} does not read {key}; it has no effect."
                yield Problem.note(f"{OPTION}.{variant.where}{key}", "no_effect", message, got=variant.own[key])


def _beside_the_weight(variant: Variant) -> Iterator[Problem]:
    if variant.held.get("bypass_mode") is not True:
        return
    if variant.algo in ALGORITHMS and variant.algo not in BESIDE_WEIGHTS:
        message = f"{variant.algo} cannot be computed beside the weight."
        yield variant.problem("bypass_mode", "not_for_algorithm", message, expected=f"false, or one of {', '.join(BESIDE_WEIGHTS)}")
    elif variant.algo in PRODUCTS and variant.held.get("weight_decompose") is True:
        message = "Beside the weight (bypass_mode) there is no weight to decompose: weight_decompose would not be trained."
        yield variant.problem("weight_decompose", "contradiction", message, expected="one of the two")


def _whole_blocks(variant: Variant) -> Iterator[Problem]:
    rank, block = variant.held.get("linear_dim"), variant.held.get("block_size", DEFAULT_BLOCK)
    countable = all(isinstance(value, (int, float)) and value > 0 for value in (rank, block))
    if variant.algo == "dylora" and countable and rank % block:
        message = f"dylora trains linear_dim in blocks of block_size={block}."
        yield variant.problem("linear_dim", "not_a_multiple", message, expected=f"a multiple of {block}")


def unfit(document: Mapping[str, Any], *, quantised: bool, comfyui: bool) -> Iterator[Problem]:
    """What of a file that is right by itself cannot be used: on a quantised base, or for a result with ComfyUI's keys."""
    for variant in variants(document):
        if quantised and variant.algo not in ON_QUANTISED:
            message = f"The algorithm {variant.algo} needs the exact weights of the base model."
            hint = "set base_model_precision=no_change, or use another algorithm"
            yield variant.problem("algo", "needs_exact_weights", message, expected=f"one of {', '.join(ON_QUANTISED)}", hint=hint)
        elif quantised and variant.held.get("weight_decompose") is True:
            message = "DoRA needs the exact norms of the base weights, which quantised ones do not give."
            yield variant.problem(
                "weight_decompose", "needs_exact_weights", message, expected="false", hint="or leave the base unquantised"
            )
        if comfyui and variant.algo not in IN_COMFYUI:
            message = f"ComfyUI's keys cannot hold adapters of the algorithm {variant.algo}."
            expected = f"diffusers, or one of the algorithms {', '.join(IN_COMFYUI)}"
            yield Problem.error("lora_format", "not_for_algorithm", message, got="comfyui", expected=expected)
