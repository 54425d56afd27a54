"""Maps the keys of an adapter file to layers, whichever program wrote it. No torch: the server uses it too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from trainer_engine.config.adapters.other_names import modules_by_other_name
from trainer_engine.config.families import known_key_prefixes, known_original_names

LYCORIS_PREFIX = "lycoris_"
MANGLED_PREFIXES: Mapping[str, str] = dict.fromkeys((LYCORIS_PREFIX, "lora_transformer_", "lora_unet_"), "")
"""Prefix of LyCORIS or kohya, whose keys replace the dots in module names with underscores -> prefix of the module names."""
METADATA_KEY = "lora_adapter_metadata"
"""Entry of a file's header in which diffusers looks for rank and alpha. It refuses a file that has ``alpha`` tensors, too."""
RESHAPED = "reshape_weight"
"""Tensor of a module with the shape to which ComfyUI pads the weight below an adapter with zeros."""
PEFT_PREFIX = "base_model.model."
SPELLINGS: Mapping[str, str] = {
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_A.default.weight": "lora_A.weight",
    "lora_B.default.weight": "lora_B.weight",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
    "lora_magnitude_vector.default.weight": "lora_magnitude_vector",
}
"""Names of tensors in older versions of the libraries -> current names."""
WITH_DOTS = ("lora_A.weight", "lora_B.weight", "lora_up.weight", "lora_down.weight", "lora_mid.weight", *SPELLINGS)
"""Names of tensors that contain a dot themselves."""


def split_key(key: str, prefixes: Mapping[str, str] | None = None) -> tuple[str, str]:
    """``transformer.blocks.0.to_q.lora_A.weight`` -> (``blocks.0.to_q``, ``lora_A.weight``).

    ``prefixes`` are the ``key_prefixes`` of a family; None takes those that are known.
    """
    prefixes = known_key_prefixes() if prefixes is None else prefixes
    if key.startswith(tuple(_mangled(prefixes))):
        name, _, part = key.partition(".")
        return name, SPELLINGS.get(part, part)
    part = next((part for part in WITH_DOTS if key.endswith(f".{part}")), key.rpartition(".")[2])
    name = key[: -len(part) - 1].removeprefix(PEFT_PREFIX)
    prefix = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default="")
    return prefixes.get(prefix, "") + name.removeprefix(prefix), SPELLINGS.get(part, part)


def _mangled(prefixes: Mapping[str, str]) -> dict[str, str]:
    """As MANGLED_PREFIXES, for a family; longer prefixes first."""
    found = {**MANGLED_PREFIXES, **{in_file: in_network for in_file, in_network in prefixes.items() if in_file.endswith("_")}}
    return dict(sorted(found.items(), key=lambda item: len(item[0]), reverse=True))


def adapter_config(document: Mapping[str, Any], module: str, prefixes: Mapping[str, str] | None = None) -> tuple[dict[str, Any], str]:
    """(what ``lora_adapter_metadata`` states of the component that a module belongs to, the module's name in the component)"""
    prefixes = known_key_prefixes() if prefixes is None else prefixes
    component = max((prefix for prefix in prefixes.values() if module.startswith(prefix)), key=len, default="")
    own = [in_file for in_file, in_network in prefixes.items() if in_network == component]
    stated: dict[str, Any] = {}
    for key, value in document.items():
        prefix = next((prefix for prefix in own if key.startswith(prefix)), None)
        if prefix is not None or not component:
            stated[key.removeprefix(prefix or "")] = value
    return stated, module.removeprefix(component)


def keys_by_module(
    keys: Collection[str], module_names: Iterable[str], prefixes: Mapping[str, str] | None = None
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """(module -> its parts -> their keys, keys that belong to no module). Keys of LyCORIS and kohya have lost their dots, which only the
    names of the network's modules can give back; a name that could be two modules is none. The names of the original code are known too."""
    prefixes = known_key_prefixes() if prefixes is None else prefixes
    names = {name: name for name in module_names}
    modules, strangers = _sorted_by(keys, names, prefixes)
    if strangers:
        others = modules_by_other_name(names.keys(), prefixes.values(), known_original_names())
        modules, strangers = _sorted_by(keys, {**others, **names}, prefixes)
    return modules, strangers


def _sorted_by(keys: Iterable[str], names: Mapping[str, str], prefixes: Mapping[str, str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """As ``keys_by_module``. ``names``: name of a module in the file -> in the network."""
    flat_prefixes, counted = _mangled(prefixes), Counter(name.replace(".", "_") for name in names)
    mangled = {flat: module for name, module in names.items() if counted[flat := name.replace(".", "_")] == 1}
    modules: dict[str, dict[str, str]] = {}
    strangers: list[str] = []
    for key in keys:
        name, part = split_key(key, prefixes)
        prefix = next((prefix for prefix in flat_prefixes if key.startswith(prefix)), None)
        flat = flat_prefixes[prefix].replace(".", "_") + name.removeprefix(prefix) if prefix is not None else ""
        module = names.get(name) if prefix is None else mangled.get(flat)
        if module is not None and part not in modules.get(module, {}):
            modules.setdefault(module, {})[part] = key
        else:
            strangers.append(key)
    return modules, strangers
