"""Adapters under the keys of other programs. The change that an adapter makes stays the same; only its spelling does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from trainer_engine.config.adapters.keys import RESHAPED
from trainer_engine.config.adapters.other_names import ModuleKeys
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.export.adapter_file import AdapterTensors, kind_of
from trainer_engine.export.joined_layers import joined_layers

DORA = ("dora_scale", "lora_magnitude_vector")
DOWN, UP = ("lora_A.weight", "lora_down.weight"), ("lora_B.weight", "lora_up.weight")
Tensors = Mapping[str, Tensor]
NO_SIZES: Mapping[str, int] = MappingProxyType({})


def to_diffusers(adapter: AdapterTensors, prefixes: Mapping[str, str]) -> list[dict[str, Tensor]]:
    """State dicts for ``load_lora_adapter(file, prefix=component)``; a LoRA's also for ``load_lora_weights``.

    ``prefixes`` are the ``diffusers_prefixes`` of the family.

    The scale alpha / rank is worked into the weights. LoHa becomes a LoRA. diffusers takes one Kronecker factor a file, so that a LoKr
    with several becomes several files, to be loaded side by side. Raises ModelUnavailable for what diffusers cannot hold.
    """
    keys = {component: ModuleKeys(prefix) for component, prefix in prefixes.items()}
    if any(part in tensors for tensors in adapter.modules.values() for part in DORA):
        raise _cannot("weight-decomposed adapters (DoRA)", "diffusers leaves their magnitudes out")
    if adapter.kind == "lokr":
        return [
            _named(keys, group) for group in by_factor({name: scaled_lokr(t, adapter.multiplier) for name, t in adapter.modules.items()})
        ]
    if adapter.kind not in ("lora", "loha"):
        raise _cannot("adapters of this algorithm", "diffusers has no code for them")
    make = _lora_of_loha if adapter.kind == "loha" else _scaled_lora
    return [_named(keys, {name: make(adapter, name, tensors) for name, tensors in adapter.modules.items()})]


def to_comfyui(
    adapter: AdapterTensors, keys: Mapping[str, ModuleKeys], *, widened: str = "", outputs: Mapping[str, int] = NO_SIZES
) -> dict[str, Tensor]:
    """One state dict with an ``alpha`` for each module that takes one. ``keys`` are the ``comfyui_keys`` of the family.

    ``widened``: the layer that ``control`` widened, of which ComfyUI is given the new shape. ``outputs``: module -> number of its outputs,
    for layers that ComfyUI has as one with others and that the adapter may leave out. Raises ModelUnavailable for an algorithm that
    ComfyUI has no code for.
    """
    modules = {name: _for_comfyui(adapter, name, tensors, keys[_component(name, keys)]) for name, tensors in adapter.modules.items()}
    if widened in modules:
        down, up = (modules[widened][part] for part in ("lora_A.weight", "lora_B.weight"))
        modules[widened][RESHAPED] = torch.tensor([up.shape[0], down.shape[1]])
    return _named(keys, joined_layers(modules, keys, outputs))


def _for_comfyui(adapter: AdapterTensors, name: str, tensors: Tensors, keys: ModuleKeys) -> dict[str, Tensor]:
    """Each module by its own algorithm: one file may hold several."""
    kind = kind_of(tensors)
    if kind == "other":
        raise _cannot(f"the algorithm of {name}", "ComfyUI has no code for it")
    if kind != "lora":
        return _times(tensors, adapter.multiplier)
    down, up, alpha = lora_parts(adapter, name, tensors)
    module = {"lora_A.weight": down, "lora_B.weight": up, "alpha": torch.tensor(alpha)}
    if not keys.takes_alpha:
        module = _scaled_lora(adapter, name, tensors)
    for magnitudes in (tensors[part] for part in DORA if part in tensors):
        module["dora_scale"] = magnitudes.reshape(-1, 1)
    return module


def _times(tensors: Tensors, multiplier: float) -> dict[str, Tensor]:
    """A module whose change is ``multiplier`` times as large."""
    linear = ("lokr_w1", "lokr_w1_a", "hada_w1_a", "diff", "diff_b")
    return {part: tensor * multiplier if part in linear else tensor for part, tensor in tensors.items()}


def lora_parts(adapter: AdapterTensors, name: str, tensors: Tensors) -> tuple[Tensor, Tensor, float]:
    """(down (r, in), up (out, r), alpha): the change is up @ down * alpha / r (Hu et al., 2021, section 4.1)."""
    down = next(tensors[part] for part in DOWN if part in tensors)
    up = next(tensors[part] for part in UP if part in tensors)
    return down, up, alpha_of(adapter, name, tensors, len(down))


def alpha_of(adapter: AdapterTensors, name: str, tensors: Tensors, rank: int) -> float:
    """The module's own, the one in the metadata that diffusers writes, or the rank: no scale at all."""
    if "alpha" in tensors:
        return float(tensors["alpha"]) * adapter.multiplier
    config, local_name = adapter.peft_config(name)
    return float((config.get("alpha_pattern") or {}).get(local_name, config.get("lora_alpha", rank)))


def _scaled_lora(adapter: AdapterTensors, name: str, tensors: Tensors) -> dict[str, Tensor]:
    down, up, alpha = lora_parts(adapter, name, tensors)
    return {"lora_A.weight": down, "lora_B.weight": up * (alpha / len(down))}


def _lora_of_loha(adapter: AdapterTensors, name: str, tensors: Tensors) -> dict[str, Tensor]:
    """(A B) * (C D) of rank r each, taken element by element, is a product of rank r^2: of the row-wise Kronecker products of A and C
    and the column-wise ones of B and D (Hyeon-Woo et al., 2022, proposition 1; Slyusar, 1999). Exact."""
    if "hada_t1" in tensors:
        raise _cannot("convolutions in Tucker form", "diffusers has no code for them")
    up_1, down_1, up_2, down_2 = (tensors[f"hada_{part}"] for part in ("w1_a", "w1_b", "w2_a", "w2_b"))
    rank = len(down_1)
    up = (up_1[:, :, None] * up_2[:, None, :]).flatten(1)
    down = (down_1[:, None] * down_2[None, :]).flatten(0, 1)
    return {"lora_A.weight": down, "lora_B.weight": up * (alpha_of(adapter, name, tensors, rank) / rank)}


def scaled_lokr(tensors: Tensors, multiplier: float) -> dict[str, Tensor]:
    """Without ``alpha``: alpha / rank counts only where a factor is a product itself."""
    found = {part: tensor for part, tensor in tensors.items() if part != "alpha"}
    left = "lokr_w1" if "lokr_w1" in found else "lokr_w1_a"
    found[left] = found[left] * multiplier
    decomposed = next((found[part] for part in ("lokr_w2_b", "lokr_w1_b") if part in found), None)
    if decomposed is not None and "alpha" in tensors:
        found[left] = found[left] * (tensors["alpha"] / len(decomposed))
    return found


def by_factor(modules: Mapping[str, Tensors]) -> list[dict[str, Tensors]]:
    """The modules of a LoKr in as few groups as share a Kronecker factor: PEFT splits every layer of an adapter with the same one."""
    left = dict(modules)
    groups: list[dict[str, Tensors]] = []
    while left:
        candidates = sorted({_split_of(tensors)[0][0] for tensors in left.values()}) + [-1]
        fitting = [{name: tensors for name, tensors in left.items() if _fits(tensors, factor)} for factor in candidates]
        largest = max(fitting, key=len)
        if not largest:
            raise _cannot(f"the Kronecker split of {next(iter(left))}", "PEFT splits layers in another way")
        groups.append(largest)
        left = {name: tensors for name, tensors in left.items() if name not in largest}
    return groups


def _split_of(tensors: Tensors) -> tuple[tuple[int, int], tuple[int, int]]:
    """((out_1, out_2), (in_1, in_2)) of a layer (out_1 out_2, in_1 in_2)."""
    sizes = []
    for factor in ("lokr_w1", "lokr_w2"):
        whole = tensors.get(factor)
        sizes.append(whole.shape[:2] if whole is not None else (len(tensors[f"{factor}_a"]), tensors[f"{factor}_b"].shape[1]))
    return (sizes[0][0], sizes[1][0]), (sizes[0][1], sizes[1][1])


def _fits(tensors: Tensors, factor: int) -> bool:
    from peft.tuners.lokr.layer import factorization  # half a second, which most runs do not need

    return all(tuple(factorization(pair[0] * pair[1], factor)) == pair for pair in _split_of(tensors))


def _component(name: str, prefixes: Iterable[str]) -> str:
    """The one of the ``prefixes`` of components that a module's name begins with."""
    return max((prefix for prefix in prefixes if name.startswith(prefix)), key=len)


def _named(keys: Mapping[str, ModuleKeys], modules: Mapping[str, Tensors]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensors in modules.items():
        component = _component(name, keys)
        local_name = name.removeprefix(component)
        found |= {keys[component].key(local_name, part): tensor.contiguous() for part, tensor in tensors.items()}
    return found


def _cannot(what: str, why: str) -> ModelUnavailable:
    return ModelUnavailable(f"The file cannot hold {what}: {why}.", hint="use --to merged, or load the adapter with LyCORIS itself")
