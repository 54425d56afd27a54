"""The keys of an adapter file: which layer each belongs to. No torch: a start looks at them too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

LYCORIS_PREFIX = "lycoris_"
COMPONENT_PREFIXES = ("transformer.", "unet.", "diffusion_model.")
WITH_DOTS = ("lora_A.weight", "lora_B.weight", "lora_up.weight", "lora_down.weight", "lora_mid.weight")
"""Names of tensors of a module that hold a dot themselves."""


def split_key(key: str) -> tuple[str, str]:
    """``transformer.blocks.0.to_q.lora_A.weight`` -> (``blocks.0.to_q``, ``lora_A.weight``)."""
    part = next((part for part in WITH_DOTS if key.endswith(f".{part}")), key.rpartition(".")[2])
    name = key[: -len(part) - 1]
    prefix = next((prefix for prefix in COMPONENT_PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix), part


def keys_by_module(keys: Iterable[str], module_names: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """(module -> its parts -> their keys, keys that belong to no module). LyCORIS keys have lost their dots, which only the names of the
    network's modules can give back."""
    known = set(module_names)
    mangled: Mapping[str, str] = {name.replace(".", "_"): name for name in known}
    modules: dict[str, dict[str, str]] = {}
    strangers: list[str] = []
    for key in keys:
        name, part = split_key(key)
        module = mangled.get(name.removeprefix(LYCORIS_PREFIX)) if name.startswith(LYCORIS_PREFIX) else name
        if module in known:
            modules.setdefault(module, {})[part] = key
        else:
            strangers.append(key)
    return modules, strangers
