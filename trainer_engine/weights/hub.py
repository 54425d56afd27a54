"""Finds the components of a base model: in a local folder, in the Hugging Face cache, or on the hub.

huggingface_hub reads ``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_OFFLINE`` and the token itself.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError

from trainer_engine.config.model_files import HINT, unsafe_files
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.weights.hub_client import hub_errors

DESCRIPTIONS = ("*.json", "*.model", "*.txt")
PART_FILES = ("*.safetensors", *DESCRIPTIONS)
BARE_FILES = ("config.json", "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.json")
MODEL_WEIGHTS = "model*.safetensors"
"""Weight files of a repository that holds a single transformers model."""
OTHER_VARIANTS = ("*.fp16.*", "*.fp16-*", "*.bf16.*", "*.bf16-*", "*.non_ema.*", "*.ema.*")


def hub_cache() -> Path:
    """The folder in which the hub's client keeps downloads."""
    return Path(constants.HF_HUB_CACHE)


@dataclass(frozen=True)
class Source:
    """Where weights come from: a repository or a local folder."""

    name: str
    revision: str | None = None
    variant: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the name is a path: it starts like one, or a folder of that name exists."""
        return self.name.startswith(("/", "./", "../", "~")) or self.name in (".", "..") or Path(self.name).is_dir()


@dataclass(frozen=True)
class Part:
    """One component of a pipeline, in a folder of this machine."""

    source: Source
    folder: Path
    """Its configuration, and its weights unless they are in one file."""
    file: Path | None = None
    """The file that holds its weights, perhaps with those of other components; None if they are in ``folder``."""
    prefix: str = ""
    """Prefix of its keys in ``file``."""

    @property
    def variant(self) -> str | None:
        """The requested variant if this component has weights of it, otherwise None."""
        wanted = None if self.file else self.source.variant
        return wanted if wanted and any(self.folder.glob(f"*.{wanted}[.-]*")) else None

    def weights(self) -> list[Path]:
        """The weight files of the variant in use, sorted by name."""
        if self.file:
            return [self.file]
        files = sorted(self.folder.glob("*.safetensors"))
        chosen = [path for path in files if self.variant and f".{self.variant}" in path.name]
        return chosen or files

    @property
    def is_copyable(self) -> bool:
        """Whether its folder, as it is, is this component under its plain names."""
        return self.variant is None and self.file is None

    def fingerprint(self, hashes: FileHashes) -> str:
        """Identifies configuration, weights and vocabulary by their content, independent of their location."""
        others = sorted(path for pattern in ("*.json", "*.model", "*.txt") for path in self.folder.glob(pattern))
        return json.dumps([["one file" if path == self.file else path.name, hashes.of(path)] for path in (*others, *self.weights())])


def find_part(source: Source, name: str, *, bare: bool = False, with_weights: bool = True) -> Part | None:
    """The subfolder ``name`` of a source, or None. With ``bare``, a source may also consist of this component alone.

    Downloads missing files, without ``with_weights`` only the small ones. Raises ModelUnavailable if the source does not exist or cannot be
    reached.
    """
    patterns = [f"{name}/{pattern}" for pattern in (PART_FILES if with_weights else DESCRIPTIONS)] + (list(BARE_FILES) if bare else [])
    root = _local_folder(source) if source.is_local else _download(source, patterns)
    if (root / name).is_dir():
        return Part(source, root / name)
    if bare and (root / "config.json").is_file():
        return Part(source, root)
    return None


def find_file(source: Source, file: str) -> Path:
    """One file of a repository; downloads it if it is missing. Raises ModelUnavailable."""
    with hub_errors(source.name, source.revision):
        try:
            return Path(hf_hub_download(source.name, file, revision=source.revision))
        except RemoteEntryNotFoundError as error:
            raise ModelUnavailable(f"The repository {source.name} holds no file {file}.", hint="name one of its files") from error


def find_model(source: Source) -> Part:
    """A source that is a single transformers model, with its tokenizer and processor in the same folder.

    Downloads missing files. Raises ModelUnavailable if the source cannot be reached or its weights are not in safetensors.
    """
    part = Part(source, _local_folder(source) if source.is_local else _download(source, [*DESCRIPTIONS, MODEL_WEIGHTS]))
    refuse_unsafe(part)
    if not part.weights():
        raise ModelUnavailable(f"{source.name} holds no weights in safetensors.", hint=HINT)
    return part


def refuse_unsafe(part: Part, *, reads_quantised: bool = False) -> None:
    """Check a component before a library loads it. Raises ModelUnavailable if loading would run code or unpickle a file.

    ``reads_quantised``: as ``unsafe_files`` has it.
    """
    found = next(unsafe_files(part.folder, reads_quantised=reads_quantised), None)
    if found is not None:
        raise ModelUnavailable(f"The part {part.folder.name} of {part.source.name} is not loaded: {found}.", hint=found.hint)


def _local_folder(source: Source) -> Path:
    folder = Path(source.name).expanduser()
    if not folder.is_dir():
        raise ModelUnavailable(
            f"There is no folder {source.name}.", hint="give the folder of a model, or a repository id such as organisation/name"
        )
    return folder.resolve()


def _download(source: Source, wanted: list[str]) -> Path:
    ignored = [pattern for pattern in OTHER_VARIANTS if not (source.variant and f".{source.variant}" in pattern)]
    with hub_errors(source.name, source.revision):
        return Path(snapshot_download(source.name, revision=source.revision, allow_patterns=wanted, ignore_patterns=ignored))


ONE_AT_A_TIME = threading.RLock()
"""NOTE: while transformers loads a model it replaces methods of its classes, such as the one that ties weights. Of two threads that load
at once, the later one would put the replacement back for good."""


@contextmanager
def loading(part: Part, *, reads_quantised: bool = False) -> Iterator[None]:
    """A context for ``from_pretrained``: unsafe, broken or missing files become ModelUnavailable, which names the component.

    One thread at a time is in it. ``reads_quantised``: as ``unsafe_files`` has it.
    """
    refuse_unsafe(part, reads_quantised=reads_quantised)
    try:
        with ONE_AT_A_TIME:
            yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "out of memory" in str(error).lower():
            raise
        raise ModelUnavailable(
            f"The part {part.folder.name} of {part.source.name} could not be loaded: {error}",
            hint=f"check {part.folder}: it needs a config.json and safetensors weights that fit it",
        ) from error


def refuse_gaps(part: Part, missing: list[str], mismatched: list[str]) -> None:
    """Raise ModelUnavailable for missing weights. The libraries only warn and fill them with random numbers."""
    absent = [*missing, *mismatched]
    if absent:
        shown = ", ".join(sorted(str(name) for name in absent)[:3])
        raise ModelUnavailable(
            f"The part {part.folder.name} of {part.source.name} lacks {len(absent)} weights, among them {shown}.",
            hint="the download is incomplete, or the weights are of another model",
        )
