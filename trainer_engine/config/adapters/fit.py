"""Checks that an adapter file fits the adapter that a run trains, and says how it differs. No torch: ``validate`` uses it too."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from trainer_engine.config.adapters.file_header import AdapterHeader, UnusableAdapter
from trainer_engine.config.adapters.joint_layers import taken_apart
from trainer_engine.config.adapters.keys import LYCORIS_PREFIX, METADATA_KEY, RESHAPED, adapter_config, keys_by_module
from trainer_engine.config.controlnet import NAME as CONTROLNET

Shape = tuple[int, ...]
CANONICAL: Mapping[str, str] = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "lora_magnitude_vector": "dora_scale",
}
"""Name of a tensor -> its canonical name, which is that of PEFT, or of ComfyUI for DoRA."""
KINDS: Mapping[str, tuple[str, ...]] = {
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a"),
    "LoHa": ("hada_w1_a",),
    "GLoRA": ("a1.weight",),
    "LoRA": ("lora_A.weight",),
    "full": ("diff",),
    "OFT": ("oft_blocks",),
}
"""Algorithm -> names of tensors that only it has."""
BEFORE_LAST_NUMBER, BEFORE_FIRST_NUMBER = re.compile(r"^.*\.\d+\."), re.compile(r"^.*?\.\d+\.")
"""What comes before the name of a layer in its block: ``blocks.0.`` in ``blocks.0.attn.to_q``."""
MAX_LISTED = 3
SAME = 1e-3
LARGEST_ALPHA = 1e30
"""No program writes a larger one; it would not fit into float32 with its rank."""


@dataclass(frozen=True)
class WantedModule:
    """The tensors that a run trains on one layer."""

    parts: Mapping[str, Shape | None]
    """Canonical name of a tensor -> its shape, or None if only the engine knows it."""
    alpha: float | None = None
    """None if the algorithm has no alpha, or it is not known yet."""
    kind: str = ""
    """The algorithm, if ``parts`` are not known."""

    @property
    def is_kind(self) -> str:
        return self.kind or kind_of(self.parts)


@dataclass(frozen=True)
class WantedAdapter:
    """The adapter that the options of a run describe."""

    modules: Mapping[str, WantedModule]
    rank_option: str
    alpha_option: str
    dora_option: str
    is_complete: bool = True
    """Whether ``modules`` are all layers that the run adapts."""
    multiplier: float = 1.0
    """LyCORIS: its multiplier. Files with keys of other programs contain it in the tensors."""


@dataclass(frozen=True)
class FittingAdapter:
    """A file that fits. ``keys``: module -> canonical name of a tensor -> key in the file."""

    header: AdapterHeader
    keys: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    divided_by: float = 1.0
    """The multiplier that the file's tensors contain; 1 if none."""
    prefixes: Mapping[str, str] | None = None
    """``key_prefixes`` of the family; None for those that are known."""


def kind_of(parts: Collection[str]) -> str:
    """Returns the algorithm of a module with these tensors."""
    found = [kind for kind, own in KINDS.items() if not set(own).isdisjoint(parts)]
    return found[0] if found else "unknown"


def fit(header: AdapterHeader, wanted: WantedAdapter, layers: Iterable[str], prefixes: Mapping[str, str] | None = None) -> FittingAdapter:
    """Match a file with the adapter that a run makes. Raises UnusableAdapter with the first difference.

    ``layers`` are the names of all layers of the network, ``prefixes`` the ``key_prefixes`` of the family.
    """
    _refuse_controlnet(header, prefixes)
    layers = list(layers)
    header = taken_apart(header, layers, prefixes)
    found, strangers = keys_by_module(sorted(header.tensors), layers, prefixes)
    if strangers or not found:
        raise _of_another_model(header, strangers)
    keys = {module: {CANONICAL.get(part, part): key for part, key in parts.items() if part != RESHAPED} for module, parts in found.items()}
    both = [module for module in keys if module in wanted.modules]
    _same_kinds(header, wanted, keys, both)
    _same_ranks(header, wanted, keys, both)
    _same_modules(header, wanted, keys, layers)
    _same_tensors(header, wanted, keys, both)
    is_foreign = wanted.multiplier != 1 and not any(key.startswith(LYCORIS_PREFIX) for key in header.tensors)
    fitting = FittingAdapter(header, keys, wanted.multiplier if is_foreign else 1.0, prefixes)
    _same_alphas(fitting, wanted, both)
    return fitting


def _refuse_controlnet(header: AdapterHeader, prefixes: Mapping[str, str] | None) -> None:
    """Refuses an adapter of a ControlNet in a run of another network. Keys of LyCORIS name the same layers in both; the metadata differ."""
    if header.metadata.get(CONTROLNET) and prefixes is not None and f"{CONTROLNET}." not in prefixes:
        raise _misfit(f"{header.name} is an adapter of a ControlNet, and this run trains none.", "set controlnet=true")


def _misfit(message: str, hint: str = "") -> UnusableAdapter:
    return UnusableAdapter("does_not_fit", message, hint)


def _few(names: Collection[str], most: int = MAX_LISTED) -> str:
    rest = len(names) - most
    return ", ".join(sorted(names)[:most]) + (f", and {rest} more" if rest > 0 else "")


def _of_another_model(header: AdapterHeader, strangers: list[str]) -> UnusableAdapter:
    if not header.tensors:
        return _misfit(f"{header.name} has no tensors.", "use the file of an adapter")
    count = f"{len(strangers)} of the {len(header.tensors)} keys of {header.name}"
    message = f"{count} belong to no layer of the base model: {_few(strangers, 1)}."
    message += " Keys of diffusers, PEFT, ComfyUI, LyCORIS and kohya are supported."
    return _misfit(message, "use an adapter of this base model, only for its network, with the layer names of diffusers")


def _same_kinds(header: AdapterHeader, wanted: WantedAdapter, keys: Mapping[str, Mapping[str, str]], both: list[str]) -> None:
    others = {(kind_of(keys[one]), wanted.modules[one].is_kind) for one in both if kind_of(keys[one]) != wanted.modules[one].is_kind}
    if others:
        theirs, ours = sorted(others)[0]
        hint = "lora_type=standard" if wanted.rank_option != "lora_rank" and theirs == "LoRA" else "lora_type=lycoris, with that algorithm"
        raise _misfit(f"{header.name} is an adapter of the algorithm {theirs}, and the run trains {ours}.", hint)
    decomposed = {"dora_scale" in keys[one] for one in both if kind_of(keys[one]) == "LoRA"}
    here = {"dora_scale" in wanted.modules[one].parts for one in both if kind_of(keys[one]) == "LoRA"}
    if decomposed and decomposed != here:
        is_dora = True in decomposed
        difference = "decomposes weights (DoRA), but the run does not" if is_dora else "does not decompose weights, but the run does (DoRA)"
        raise _misfit(f"{header.name} {difference}.", f"{wanted.dora_option}={'true' if is_dora else 'false'}")


def _same_ranks(header: AdapterHeader, wanted: WantedAdapter, keys: Mapping[str, Mapping[str, str]], both: list[str]) -> None:
    """Compares the ranks of LoRA modules. The rank is the number of rows of the first matrix."""
    pairs = set()
    for module in both:
        shape, key = wanted.modules[module].parts.get("lora_A.weight"), keys[module].get("lora_A.weight")
        if shape and key and header.tensors[key].shape:
            pairs.add((header.tensors[key].shape[0], shape[0]))
    if all(theirs == ours for theirs, ours in pairs):
        return
    theirs, ours = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
    ranks = f"rank {theirs[0]}" if len(theirs) == 1 else f"ranks {theirs[0]} to {theirs[-1]}"
    hint = f"{wanted.rank_option}={theirs[0]}" if len(theirs) == len(ours) == 1 else "use an adapter with the same rank on every layer"
    raise _misfit(f"{header.name} has {ranks}, and the run has {', '.join(map(str, ours))}.", hint)


def _same_modules(header: AdapterHeader, wanted: WantedAdapter, keys: Mapping[str, Mapping[str, str]], layers: list[str]) -> None:
    missing, more = sorted(wanted.modules.keys() - keys.keys()), sorted(keys.keys() - wanted.modules.keys())
    if not wanted.is_complete or not (missing or more):
        return
    differences = []
    if missing:
        differences.append(f"lacks {len(missing)} of the {len(wanted.modules)} layers that the run adapts ({_few(missing)})")
    if more:
        differences.append(f"adapts {len(more)} layers that the run does not ({_few(more)})")
    hint = "target the layers that the file has"
    if wanted.rank_option == "lora_rank":
        targets = _targets(keys.keys(), layers)
        hint = f"peft_lora_target_modules={json.dumps(targets)}" if targets else "select the same layers with peft_lora_target_modules"
    raise _misfit(f"{header.name} {' and '.join(differences)}.", hint)


def _targets(modules: Collection[str], layers: list[str]) -> list[str]:
    """Returns name endings that select exactly these modules, or else their full names if they are few, or else nothing."""
    for before in (BEFORE_LAST_NUMBER, BEFORE_FIRST_NUMBER):
        endings = sorted({before.sub("", module) for module in modules})
        chosen = {layer for layer in layers if any(layer == ending or layer.endswith(f".{ending}") for ending in endings)}
        if chosen == set(modules):
            return endings
    return sorted(modules) if len(modules) <= 2 * MAX_LISTED else []


def _same_tensors(header: AdapterHeader, wanted: WantedAdapter, keys: Mapping[str, Mapping[str, str]], both: list[str]) -> None:
    for module in both:
        parts = wanted.modules[module].parts
        if not parts:
            continue
        theirs, ours = set(keys[module]) - {"alpha"}, set(parts) - {"alpha"}
        if theirs != ours:
            differences = [f"lacks {_few(ours - theirs)}"] if ours - theirs else []
            differences += [f"also has {_few(theirs - ours)}"] if theirs - ours else []
            raise _misfit(f"{header.name} {' and '.join(differences)} on {module}.", "use an adapter of the same algorithm and settings")
        for part in sorted(ours):
            stored, shape = header.tensors[keys[module][part]], parts[part]
            same = shape is None or (math.prod(stored.shape) == math.prod(shape) if part == "dora_scale" else stored.shape == shape)
            if not same and shape is not None:
                sizes = ", but in this run ".join("x".join(map(str, one)) or "one number" for one in (stored.shape, shape))
                message = f"{keys[module][part]} in {header.name} is {sizes}."
                raise _misfit(message, "use an adapter of this base model, with the same rank and factor")


def _same_alphas(fitting: FittingAdapter, wanted: WantedAdapter, both: list[str]) -> None:
    for module in both:
        ours, theirs = wanted.modules[module].alpha, _alpha(fitting, module)
        if ours is None or theirs is None or math.isclose(ours, theirs, rel_tol=SAME):
            continue
        message = f"{fitting.header.name} has another alpha: {theirs:g} instead of {ours:g}."
        raise _misfit(message, f"{wanted.alpha_option}={theirs:g}")


def _alpha(fitting: FittingAdapter, module: str) -> float | None:
    """Returns the alpha of a module: its own, that in the metadata of diffusers, or for a LoRA without one its rank (scale 1)."""
    header, keys = fitting.header, fitting.keys[module]
    if "alpha" in keys:
        scaled = kind_of(keys) == "LoRA"  # for other algorithms a factor contains the multiplier
        return header.number(keys["alpha"]) / (fitting.divided_by if scaled else 1.0)
    if kind_of(keys) != "LoRA":
        return None
    stated, name = adapter_config(header.document(METADATA_KEY), module, fitting.prefixes)
    pattern = stated.get("alpha_pattern")
    alpha = pattern.get(name) if isinstance(pattern, dict) else None
    alpha = stated.get("lora_alpha") if alpha is None else alpha
    rank = header.tensors[keys["lora_A.weight"]].shape[:1]
    if isinstance(alpha, (int, float)) and not isinstance(alpha, bool) and abs(alpha) < LARGEST_ALPHA:
        return float(alpha)
    return float(rank[0]) if rank else None


def wanted_lora(layers: Mapping[str, Shape], modules: Iterable[str], rank: int, alpha: float, *, use_dora: bool) -> WantedAdapter:
    """Returns a standard adapter on ``modules``. ``layers``: module -> shape (out, in, ...)."""
    wanted = {}
    for module in modules:
        out_features, *rest = layers[module]
        magnitudes: Mapping[str, Shape | None] = {"dora_scale": (out_features,)} if use_dora else {}
        second = (out_features, rank, *(1 for _ in rest[1:]))  # a convolution's first matrix has its kernel
        wanted[module] = WantedModule({"lora_A.weight": (rank, *rest), "lora_B.weight": second, **magnitudes}, alpha)
    return standard_adapter(wanted)


def standard_adapter(modules: Mapping[str, WantedModule]) -> WantedAdapter:
    return WantedAdapter(modules, "lora_rank", "lora_alpha", "use_dora")
