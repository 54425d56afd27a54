"""What a folder of weights asks the libraries for, looked at before they are called. Standard library only.

The libraries choose what they load by files of the folder itself: an index may name pickled shards, a configuration may ask for a
quantiser, a kernel of the hub, code of its own or another file of weights. Only safetensors are loaded, and only what is listed here
may be asked for; ``validate`` and the engine look with the same functions.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_engine.contract.files import LARGEST_LIST_BYTES, UnreadableFile, read_small_json

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5", ".t7")
"""Endings of weights that are no safetensors."""
SAFE = ".safetensors"
READ_WHOLE = (".json", ".txt", ".model", ".jinja")
"""Endings of files that the libraries read into memory."""
EVERYDAY_ATTENTION = (None, "eager", "sdpa")
REFUSED_KEYS = {
    "quantization_config": "asks for a quantiser",
    "transformers_weights": "names another file of weights",
    "auto_map": "asks for code of its own",
    "kernel_config": "asks for kernels of the hub",
}
"""Keys of a component's JSON that make a library do something else than read the weights beside it."""
ATTENTION_KEYS = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")
CODE_FILES = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
ADAPTER_CONFIG = "adapter_config.json"
HINT = "only safetensors are loaded: convert the weights, or use a copy of the model that has them"
DEEPEST = 16
MOST_LISTS = 8
"""Indexes of shards in one folder: one, or one a variant."""
LARGEST_READ_WHOLE = 64 << 20


@dataclass(frozen=True)
class UnsafeFile:
    """One reason why the libraries are not called for a folder."""

    file: str
    reason: str
    """Follows the file's name: ``holds pickled weights``."""
    hint: str

    def __str__(self) -> str:
        return f"{self.file} {self.reason}"


def unsafe_files(folder: Path) -> Iterator[UnsafeFile]:
    """Why no library is called for a component, each reason once; nothing where it is safe, or not there."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return
    for name in names:
        yield from _unfit(folder / name)
    if ADAPTER_CONFIG in names:
        yield UnsafeFile(ADAPTER_CONFIG, "puts an adapter of its own on the model", "remove it, and give the adapter as init_lora")
    lists = [name for name in names if "index" in name and SAFE in name and name.endswith(".json")]
    if len(lists) > MOST_LISTS:
        yield UnsafeFile(lists[0], f"is one of {len(lists)} lists of files of weights", "remove those of other models")
    for name in lists[:MOST_LISTS]:
        yield from _foreign_shards(folder / name)
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled and not any(name.endswith(SAFE) for name in names):
        yield UnsafeFile(pickled[0], "holds the only weights here, and they are not safetensors", HINT)
    for name in ("config.json", *CODE_FILES):
        if name in names:
            yield from _foreign_wishes(folder / name)


def _unfit(path: Path) -> Iterator[UnsafeFile]:
    """A pipe or a device blocks a library for ever; a text of gigabytes fills the memory."""
    try:
        status = path.stat()
    except OSError:
        return
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        yield UnsafeFile(path.name, "is not a file", "remove it from the folder of the model")
    elif path.suffix in READ_WHOLE and status.st_size > LARGEST_READ_WHOLE:
        yield UnsafeFile(path.name, f"is larger than {LARGEST_READ_WHOLE >> 20} MiB", "use the files of the model as they were published")


def _foreign_shards(path: Path) -> Iterator[UnsafeFile]:
    """Of an index of safetensors: an index of pickled shards beside safetensors is never read."""
    try:
        document = read_small_json(path, LARGEST_LIST_BYTES)
    except UnreadableFile as error:
        yield UnsafeFile(path.name, f"cannot be read: {error}", "download the model again")
        return
    except OSError:
        return
    shards = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        yield UnsafeFile(path.name, "does not say which file holds which weight", "download the model again")
        return
    foreign = next((shard for shard in shards.values() if not shard.endswith(SAFE) or Path(shard).name != shard), None)
    if foreign is not None:
        yield UnsafeFile(path.name, f"names {foreign[:100]!r}, which is no safetensors file of this folder", HINT)


def _foreign_wishes(path: Path) -> Iterator[UnsafeFile]:
    try:
        document = read_small_json(path, LARGEST_LIST_BYTES)
    except UnreadableFile as error:
        yield UnsafeFile(path.name, f"cannot be read: {error}", "download the model again")
        return
    except OSError:
        return
    if not isinstance(document, dict):
        yield UnsafeFile(path.name, "holds no object", "download the model again")
        return
    for key, what in sorted(_wishes(document, names_code=path.name in CODE_FILES)):
        yield UnsafeFile(path.name, f"{what} ({key}), which is not loaded here", "remove the key, or use the unchanged model")


def _wishes(document: Mapping[str, Any], *, names_code: bool) -> set[tuple[str, str]]:
    """(key, what it asks for). ``auto_map`` in a model's own configuration is left alone: its class is named by us."""
    found: set[tuple[str, str]] = set()
    waiting: list[tuple[Any, int]] = [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEEPEST:
            found.add(("...", f"is nested deeper than {DEEPEST} levels"))
        elif isinstance(value, Mapping):
            found |= {(key, what) for key, what in REFUSED_KEYS.items() if value.get(key) and (names_code or key != "auto_map")}
            found |= {(key, "asks for a kernel") for key in ATTENTION_KEYS if not _is_everyday(value.get(key))}
            waiting.extend((part, depth + 1) for part in value.values())
        elif isinstance(value, list):
            waiting.extend((part, depth + 1) for part in value)
    return found


def _is_everyday(attention: object) -> bool:
    """A name for all of the model, or an object of part -> name."""
    chosen = list(attention.values()) if isinstance(attention, Mapping) else [attention]
    return all(one is None or (isinstance(one, str) and one in EVERYDAY_ATTENTION) for one in chosen)
