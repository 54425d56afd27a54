"""The algorithms of LyCORIS: which keys of a LyCORIS file each one reads, and where each one can be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer_engine.config.published_quantised import NOT_QUANTISED
from trainer_engine.contract.errors import Problem

OPTION = "lycoris_config"
ALGORITHMS = ("lora", "locon", "loha", "lokr", "full", "ia3", "dylora", "glora", "diag-oft", "boft", "tlora")
WITHOUT_RANK = ("full", "ia3")
"""Algorithms without a rank."""
LIMITED_BY_LAYER = ("lora", "locon", "dylora", "glora", "tlora")
"""Algorithms whose rank is limited by that of the layer."""
BESIDE_WEIGHTS = ("lora", "locon", "loha", "lokr", "glora", "tlora")
"""Algorithms that support ``bypass_mode``, which computes them next to a layer. The others fail or learn something else."""
ON_QUANTISED = ("lora", "locon", "loha", "lokr", "glora")
"""Algorithms that work on quantised layers. tlora needs the singular vectors of the exact weights."""
KEEPS_WEIGHTS = ("full",)
"""Algorithms that keep a copy of the weights of the base model."""
IN_COMFYUI = ("lora", "locon", "loha", "lokr", "full", "dylora")
"""Algorithms whose adapters can be saved with ComfyUI's keys."""
DECOMPOSED_APART = (
    "ComfyUI has query, key and value of this model as one layer: a weight-decomposed adapter (DoRA) of each cannot be saved for it."
)
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
"""Key -> the algorithms that read it. All algorithms read keys that are not listed."""
DEFAULT_BLOCK = 4
"""Default of ``block_size`` in the library."""
MAPS = ("module_algo_map", "name_algo_map")
SPELLINGS = {"dim": "linear_dim", "alpha": "linear_alpha", "dora_wd": "weight_decompose"}


def algorithms_in(document: object) -> set[str]:
    """Returns every algorithm in a LyCORIS file, including those of overrides."""
    if not isinstance(document, Mapping):
        return set()
    own = {document["algo"].lower()} if isinstance(document.get("algo"), str) else set()
    return own.union(*(algorithms_in(value) for value in document.values()))


@dataclass(frozen=True)
class Variant:
    """One set of settings for layers: the file's own, or those of an override."""

    where: str
    """Path in the file: empty, or ``apply_preset.module_algo_map.FeedForward.``"""
    own: Mapping[str, Any]
    """The keys at this path."""
    effective: Mapping[str, Any]
    """The keys that apply: those of the file, replaced by those of the override."""

    @property
    def algo(self) -> str:
        return str(self.effective.get("algo", "")).lower()

    def problem(self, key: str, code: str, message: str, *, expected: str = "", hint: str = "") -> Problem:
        return Problem.error(f"{OPTION}.{self.where}{key}", code, message, got=self.effective.get(key), expected=expected, hint=hint)


def variants(document: Mapping[str, Any]) -> list[Variant]:
    """Returns the settings of the file, then those of each override. Values that are not objects are skipped; other checks report them."""
    own = _canonical(document)
    preset = document.get("apply_preset")
    found = [Variant("", own, own)]
    for name in MAPS:
        overrides = preset.get(name) if isinstance(preset, Mapping) else None
        for target, changes in overrides.items() if isinstance(overrides, Mapping) else ():
            if isinstance(changes, Mapping):
                found.append(Variant(f"apply_preset.{name}.{target}.", _canonical(changes), {**own, **_canonical(changes)}))
    return found


def _canonical(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {SPELLINGS.get(key, key): value for key, value in keys.items() if value is not None}


def contradictions(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields a problem for valid keys that contradict each other, and a note for keys that no algorithm in use reads."""
    found = variants(document)
    for variant in found:
        yield from _bypass_problems(variant)
        yield from _block_problems(variant)
        readers = {one.algo for one in found} if variant is found[0] else {variant.algo}
        for key in variant.own:
            if key in READ_BY and readers.isdisjoint(READ_BY[key]) and readers <= set(ALGORITHMS):
                message = f"The algorithm {variant.algo} does not read {key}; it has no effect."
                yield Problem.note(f"{OPTION}.{variant.where}{key}", "no_effect", message, got=variant.own[key])


def _bypass_problems(variant: Variant) -> Iterator[Problem]:
    if variant.effective.get("bypass_mode") is not True:
        return
    if variant.algo in ALGORITHMS and variant.algo not in BESIDE_WEIGHTS:
        message = f"{variant.algo} does not support bypass_mode."
        yield variant.problem("bypass_mode", "not_for_algorithm", message, expected=f"false, or one of {', '.join(BESIDE_WEIGHTS)}")
    elif variant.algo in PRODUCTS and variant.effective.get("weight_decompose") is True:
        message = "bypass_mode and weight_decompose exclude each other: the decomposed weight would not be trained."
        yield variant.problem("weight_decompose", "contradiction", message, expected="one of the two")


def _block_problems(variant: Variant) -> Iterator[Problem]:
    rank, block = variant.effective.get("linear_dim"), variant.effective.get("block_size", DEFAULT_BLOCK)
    countable = all(isinstance(value, (int, float)) and value > 0 for value in (rank, block))
    if variant.algo == "dylora" and countable and rank % block:
        message = f"dylora trains linear_dim in blocks of block_size={block}."
        yield variant.problem("linear_dim", "not_a_multiple", message, expected=f"a multiple of {block}")


def unfit(
    document: Mapping[str, Any],
    *,
    quantised: bool,
    comfyui: bool,
    received: bool = False,
    joined: bool = False,
    exact: str = NOT_QUANTISED,
) -> Iterator[Problem]:
    """Yields a problem for each setting that does not work with a quantised base, or with ComfyUI's keys in the result.

    ``received``: most processes get the weights of the base model from another one, after the adapter was made. ``joined``: ComfyUI has
    layers of the network as one. ``exact``: the setting with which the base is not quantised.
    """
    for variant in variants(document):
        if quantised and variant.algo not in ON_QUANTISED:
            message = f"The algorithm {variant.algo} needs the exact weights of the base model."
            hint = f"set {exact}, or use another algorithm"
            yield variant.problem("algo", "needs_exact_weights", message, expected=f"one of {', '.join(ON_QUANTISED)}", hint=hint)
        elif quantised and variant.effective.get("weight_decompose") is True:
            message = "DoRA needs the exact norms of the base weights, but they are quantised."
            yield variant.problem("weight_decompose", "needs_exact_weights", message, expected="false", hint=f"or set {exact}")
        if received and variant.algo in KEEPS_WEIGHTS:
            message = f"The algorithm {variant.algo} copies the weights of the base model, which only the first process reads."
            hint = "set fsdp_cpu_ram_efficient_loading=false, or use another algorithm"
            expected = f"one of {', '.join(sorted({*ALGORITHMS} - {*KEEPS_WEIGHTS}))}"
            yield variant.problem("algo", "needs_own_weights", message, expected=expected, hint=hint)
        if comfyui and variant.algo not in IN_COMFYUI:
            message = f"Adapters of the algorithm {variant.algo} cannot be saved with ComfyUI's keys."
            expected = f"diffusers, or one of the algorithms {', '.join(IN_COMFYUI)}"
            yield Problem.error("lora_format", "not_for_algorithm", message, got="comfyui", expected=expected)
        elif comfyui and joined and variant.effective.get("weight_decompose") is True:
            yield variant.problem(
                "weight_decompose", "not_with_joined_layers", DECOMPOSED_APART, expected="false, or lora_format=diffusers"
            )
