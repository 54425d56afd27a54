"""The base class of adapters: frozen base weights, and one file that holds the adapter."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from trainer_engine.adapters.base import ADAPTER_FILE, Trainable
from trainer_engine.checkpointing.snapshot import Copy, as_it_is
from trainer_engine.config.adapters.file_header import UnusableAdapter, find_adapter, open_adapter, refuse_not_finite
from trainer_engine.config.adapters.fit import FittingAdapter, WantedAdapter, fit
from trainer_engine.config.adapters.keys import METADATA_KEY
from trainer_engine.config.adapters.other_names import ModuleKeys
from trainer_engine.config.controlnet import FOLDER
from trainer_engine.contract.atomic import means_full, write_atomically
from trainer_engine.contract.checkpoint_files import EXACT_FILE
from trainer_engine.contract.errors import CheckpointUnusable, DiskFull, InvalidOptions, Problem
from trainer_engine.contract.safetensors_header import header_bytes, read_header
from trainer_engine.export.adapter_file import sort_by_module
from trainer_engine.export.conversion import to_comfyui
from trainer_engine.export.joined_layers import stated_ranks
from trainer_engine.results.comment import comment_header, write_comment

AVERAGED = "ema"
BELOW = ".base_layer."
"""In the names of parameters under an adapter of PEFT."""


class AddedAdapter(Trainable):
    """An adapter in its network, whose own weights are frozen and never written, apart from those of ``train_below``."""

    results: Mapping[str, str] = MappingProxyType({"adapter": ADAPTER_FILE, "adapter_ema": f"{AVERAGED}/{ADAPTER_FILE}"})

    def __init__(self, network: nn.Module, facts: dict[str, str]) -> None:
        """``facts`` go into the file's header."""
        super().__init__(network)
        self.facts = facts
        self.unsharded = self.parameters
        self.key_prefixes: Mapping[str, str] | None = None
        """``key_prefixes`` of the family; None for those that are known."""
        self.comfyui_keys: Mapping[str, ModuleKeys] = {}
        """``comfyui_keys`` of the family for a result with the keys of ComfyUI; else empty."""
        self.widened = ""
        """Name of the layer that ``control`` widened; empty in other runs."""
        self.describe: Callable[[int, Path], str] | None = None
        """(step, output folder) -> the README.md of a result."""
        self.write_below: Callable[[Path], None] | None = None
        """Writes the network below the adapter into a folder, if layers of it are trained too; else None."""

    def train_below(self, layers: str, write: Callable[[Path], None]) -> None:
        """Also train the layers of the network whose names begin with the pattern ``layers``, unless the adapter is on them."""
        for name, parameter in self.network.named_parameters():
            if re.match(layers, name) and BELOW not in name:
                parameter.requires_grad_(True)
        self.write_below = write
        self.results = {**self.results, FOLDER: FOLDER, f"{FOLDER}_ema": f"{AVERAGED}/{FOLDER}"}

    @property
    def multiplier(self) -> float:
        """Strength of the adapter in training, in addition to the scale in its own file."""
        return 1.0

    def perturb(self, scale: float) -> None:
        """Start with a small random change (init_lokr_norm) if the adapter's algorithm supports it."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The adapter under the keys of its file."""

    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """What a reader of the file needs in addition to the tensors."""

    @abstractmethod
    def wanted(self) -> WantedAdapter:
        """What a file must hold to be loaded."""

    @abstractmethod
    def load(self, found: FittingAdapter) -> None:
        """Load a file that fits."""

    def save(self, folder: Path) -> None:
        self.snapshot(as_it_is)(folder)

    def snapshot(self, copy: Copy) -> Callable[[Path], None]:
        """Saves the adapter file, and also the exact parameters if the file of the algorithm does not hold them exactly."""
        tensors = self.tensors()
        is_whole = self.write_below is None and self.holds_parameters(tensors)
        exact = {} if is_whole else {name: copy(parameter.detach()) for name, parameter in self.named_parameters}
        tensors = {key: copy(tensor) for key, tensor in tensors.items()}
        comment = comment_header(self.comment())

        def write(folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            self._write(folder, tensors, comment)
            if exact:
                save_file({name: tensor.cpu() for name, tensor in exact.items()}, folder / EXACT_FILE)

        return write

    def holds_parameters(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the tensors of the file are exactly the trained parameters."""
        return True

    def restore(self, folder: Path) -> None:
        self.start_from(folder / ADAPTER_FILE)

    def start_from(self, path: Path) -> None:
        """Load an adapter file, and the exact parameters if ``save`` wrote them next to it. Raises CheckpointUnusable."""
        exact_file = path.with_name(EXACT_FILE)
        try:
            header = open_adapter(find_adapter(path))
            refuse_not_finite(header)
            self.load(fit(header, self.wanted(), [name for name, _ in self.network.named_modules()], self.key_prefixes))
            if path.name == ADAPTER_FILE and exact_file.is_file():
                self._take_exactly(load_file(exact_file))
        except UnusableAdapter as error:
            raise CheckpointUnusable(error.message, hint=error.hint) from error
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise CheckpointUnusable(f"The adapter {_named(path)} does not fit this run: {_first_line(error)}") from error

    def _take_exactly(self, parameters: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.named_parameters:
                parameter.copy_(parameters[name])

    def write_result(self, output_dir: Path, step: int, *, averaged: bool = False) -> None:
        folder = output_dir / AVERAGED if averaged else output_dir
        folder.mkdir(parents=True, exist_ok=True)
        tensors, more = self.tensors(), {"global_step": str(step), **comment_header(self.comment())}
        if self.comfyui_keys:
            names = (name for name, _ in self.network.named_modules())
            adapter = sort_by_module(tensors, self.metadata(), names, folder / ADAPTER_FILE, self.key_prefixes)
            outputs = {name: layer.out_features for name, layer in self.network.named_modules() if isinstance(layer, nn.Linear)}
            tensors = to_comfyui(adapter, self.comfyui_keys, widened=self.widened, outputs=outputs)
            more |= stated_ranks(adapter.modules, self.comfyui_keys)
        self._write(folder, tensors, more, states_scale=not self.comfyui_keys)
        if self.write_below is not None:
            self.write_below(folder / FOLDER)
            write_comment(folder / FOLDER, self.comment())
        if self.describe is not None and not averaged:
            write_atomically(folder / "README.md", self.describe(step, output_dir).encode())

    def _write(self, folder: Path, tensors: dict[str, Tensor], more: dict[str, str], *, states_scale: bool = True) -> None:
        """``states_scale``: whether the header may say how much the tensors count; those for ComfyUI have it in themselves."""
        header = {"format": "pt", **self.facts, **self.metadata(), **more}
        if not states_scale or any(key.endswith(".alpha") for key in tensors):
            header.pop(METADATA_KEY, None)
        content = adapter_bytes(tensors, header)
        try:
            write_atomically(folder / ADAPTER_FILE, content)
        except OSError as error:
            if means_full(error):
                raise DiskFull(f"The disk is full: {folder / ADAPTER_FILE} was not written ({error}).", hint="free some space") from error
            raise


def adapter_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The content of a safetensors file. The header is sorted, so that the same adapter gives the same bytes."""
    content = save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, dict(metadata))
    header, data = read_header(BytesIO(content).read)
    return header_bytes(header) + content[data:]


def refuse_large_ranks(option: str, layers: Iterable[tuple[str, nn.Module, int]]) -> None:
    """Raises InvalidOptions if a rank is larger than a layer (out, in) can have."""
    shapes = [(name, cast("Tensor", layer.weight).shape, rank) for name, layer, rank in layers]
    limits = [(name, min(shape[0], math.prod(shape[1:])), rank) for name, shape, rank in shapes]
    too_large = [(name, limit) for name, limit, rank in limits if rank > limit]
    if too_large:
        name, most = min(too_large, key=lambda item: item[1])
        message = f"{option} is larger than the rank of {len(too_large)} layers; the smallest is {name} with {most}."
        raise InvalidOptions([Problem.error(option, "rank_too_large", message, expected=f"at most {most}")])


def _first_line(error: Exception) -> str:
    """The first line of a library's message, which may be pages long."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _named(path: Path) -> str:
    return f"in {path.parent.name}" if path.name == ADAPTER_FILE else path.name
