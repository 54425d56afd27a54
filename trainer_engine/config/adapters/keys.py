"""Maps the keys of an adapter file to layers, whichever program wrote it. No torch: the server uses it too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

LYCORIS_PREFIX = "lycoris_"
MANGLED_PREFIXES = (LYCORIS_PREFIX, "lora_transformer_", "lora_unet_")
"""Prefixes of LyCORIS and kohya, whose keys replace the dots in module names with underscores."""
PEFT_PREFIX = "base_model.model."
COMPONENT_PREFIXES = ("transformer.", "unet.", "diffusion_model.")
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


def split_key(key: str) -> tuple[str, str]:
    """Splits ``transformer.blocks.0.to_q.lora_A.weight`` into (``blocks.0.to_q``, ``lora_A.weight``)."""
    if key.startswith(MANGLED_PREFIXES):
        name, _, part = key.partition(".")
        return name, SPELLINGS.get(part, part)
    part = next((part for part in WITH_DOTS if key.endswith(f".{part}")), key.rpartition(".")[2])
    name = key[: -len(part) - 1].removeprefix(PEFT_PREFIX)
    prefix = next((prefix for prefix in COMPONENT_PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix), SPELLINGS.get(part, part)


def keys_by_module(keys: Iterable[str], module_names: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Returns (module -> tensor name -> key, keys that belong to no module).

    The dots in keys of LyCORIS and kohya are restored from the names of the network's modules. An ambiguous name belongs to no module.
    """
    known = set(module_names)
    counted = Counter(name.replace(".", "_") for name in known)
    mangled = {flat: name for name in known if counted[flat := name.replace(".", "_")] == 1}
    modules: dict[str, dict[str, str]] = {}
    strangers: list[str] = []
    for key in keys:
        name, part = split_key(key)
        prefix = next((prefix for prefix in MANGLED_PREFIXES if name.startswith(prefix)), None)
        module = name if prefix is None else mangled.get(name.removeprefix(prefix))
        if module in known and part not in modules.get(module, {}):
            modules.setdefault(module, {})[part] = key
        else:
            strangers.append(key)
    return modules, strangers
