"""An adapter as it lies in a file, sorted by the modules that it changes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from trainer_engine.config.adapters.file_header import AdapterHeader, StoredTensor, UnusableAdapter, open_adapter
from trainer_engine.config.adapters.joint_layers import taken_apart
from trainer_engine.config.adapters.keys import LYCORIS_PREFIX, METADATA_KEY, adapter_config, keys_by_module
from trainer_engine.config.lycoris.algorithms import algorithms_in
from trainer_engine.contract.errors import ModelUnavailable

KINDS: Mapping[str, tuple[str, ...]] = {
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a"),
    "loha": ("hada_w1_a",),
    "lora": ("lora_A.weight", "lora_down.weight"),
    "full": ("diff",),
}
"""Algorithm -> tensors that only it has."""


TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Type of a tensor in a file -> in torch."""


@dataclass(frozen=True)
class AdapterTensors:
    """The tensors of an adapter, ``modules["transformer_blocks.0.attn.to_q"]["lokr_w1"]``."""

    path: Path
    kind: str
    """``lora``, ``lokr``, ``loha``, ``full``, or ``other``: several, or algorithms that no other program's keys can hold."""
    is_lycoris: bool
    """Whether the file has the keys of LyCORIS."""
    modules: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, str]
    prefixes: Mapping[str, str] | None = None
    """``key_prefixes`` of the family; None for those that are known."""

    @property
    def multiplier(self) -> float:
        """Strength of a LyCORIS adapter from its configuration; the tensors do not include it."""
        return float(self.document("lycoris_config").get("multiplier") or 1.0) if self.is_lycoris else 1.0

    @property
    def algorithms(self) -> set[str]:
        """What the configuration of a LyCORIS adapter names, overrides included."""
        return algorithms_in(self.document("lycoris_config"))

    def peft_config(self, module: str) -> tuple[dict[str, Any], str]:
        """(PEFT's configuration for the component that a module belongs to, the module's name in the component)"""
        return adapter_config(self.document(METADATA_KEY), module, self.prefixes)

    def document(self, key: str) -> dict[str, Any]:
        """An entry of the metadata as JSON; empty if it is missing."""
        found: dict[str, Any] = json.loads(self.metadata.get(key) or "{}")
        return found


def read_metadata(path: Path) -> dict[str, str]:
    """The header of a safetensors file. Raises ModelUnavailable."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ModelUnavailable(f"{path} is no adapter file: {error}", hint="give a pytorch_lora_weights.safetensors") from error


def read_adapter(path: Path, module_names: Iterable[str], prefixes: Mapping[str, str] | None = None) -> AdapterTensors:
    """``module_names`` are those of the network: LyCORIS keys have lost the dots, which only the names can give back.
    ``prefixes`` are the ``key_prefixes`` of the family.

    Raises ModelUnavailable where a key belongs to no module.
    """
    metadata, names = read_metadata(path), list(module_names)
    try:
        header = taken_apart(open_adapter(path), names, prefixes)
    except UnusableAdapter as error:
        raise ModelUnavailable(error.message, hint=error.hint) from error
    return sort_by_module(read_tensors(header), metadata, names, path, prefixes)


def read_tensors(header: AdapterHeader) -> dict[str, Tensor]:
    """The tensors of a header by its keys, which may be parts of those in its file."""
    whole = load_file(header.path)
    with header.path.open("rb") as stream:
        return {key: whole[key] if key in whole else _part(stream, place) for key, place in sorted(header.tensors.items())}


def _part(stream: BinaryIO, place: StoredTensor) -> Tensor:
    stream.seek(place.begin)
    content = bytearray(stream.read(place.end - place.begin))
    values = torch.frombuffer(content, dtype=TYPES[place.dtype])
    if place.first_column is not None:
        rows, columns = place.shape
        values = values.reshape(rows, -1)[:, place.first_column : place.first_column + columns].contiguous()
    return values.reshape(place.shape) * place.factor if place.factor != 1 else values.reshape(place.shape)


def sort_by_module(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    module_names: Iterable[str],
    path: Path,
    prefixes: Mapping[str, str] | None = None,
) -> AdapterTensors:
    """As ``read_adapter``, for tensors that are not on disk yet."""
    keys, strangers = keys_by_module(tensors, module_names, prefixes)
    modules = {module: {part: tensors[key] for part, key in parts.items()} for module, parts in keys.items()}
    if strangers or not modules:
        raise ModelUnavailable(
            f"{len(strangers)} keys of {path.name} belong to no module of the network: {', '.join(strangers[:3]) or 'it is empty'}.",
            hint="the adapter is of another base model; name the right one with --base",
        )
    is_lycoris = any(key.startswith(LYCORIS_PREFIX) for key in tensors)
    return AdapterTensors(
        path=path, kind=_kind_of_all(modules), is_lycoris=is_lycoris, modules=modules, metadata=metadata, prefixes=prefixes
    )


def kind_of(tensors: Mapping[str, Tensor]) -> str:
    """The algorithm of one module, as ``AdapterTensors.kind`` states it."""
    found = [kind for kind, own in KINDS.items() if set(tensors).intersection(own)]
    return found[0] if len(found) == 1 else "other"


def _kind_of_all(modules: Mapping[str, Mapping[str, Tensor]]) -> str:
    kinds = {kind_of(tensors) for tensors in modules.values()}
    return kinds.pop() if len(kinds) == 1 else "other"
