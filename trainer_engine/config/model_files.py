"""Refuses unsafe model folders before a library loads them. Standard library only.

Files in the folder decide what the libraries load: an index may name pickled shards, and a configuration may request a quantiser, a kernel
from the hub, custom code or another weights file. Only safetensors may be loaded. ``validate`` and the engine use the same functions.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_engine.config.families import replaced_code
from trainer_engine.contract.files import LARGEST_LIST_BYTES, UnreadableFile, read_small_json

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5", ".t7")
"""Suffixes of weights in formats other than safetensors."""
SAFE = ".safetensors"
READ_WHOLE = (".json", ".txt", ".model", ".jinja")
"""Suffixes of files that the libraries read into memory completely."""
EVERYDAY_ATTENTION = (None, "eager", "sdpa")
QUANTISER, CODE = "quantization_config", "auto_map"
REFUSED_KEYS = {
    QUANTISER: "asks for a quantiser",
    "transformers_weights": "names another file of weights",
    CODE: "asks for code of its own",
    "kernel_config": "asks for kernels of the hub",
}
"""Keys of a component's JSON that make a library do more than read the weights in its folder."""
ATTENTION_KEYS = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")
CODE_FILES = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
ADAPTER_CONFIG = "adapter_config.json"
HINT = "only safetensors are loaded: convert the weights, or use a copy of the model that has them"
DEEPEST = 16
MOST_LISTS = 8
"""Limit of shard indexes in one folder; usual folders have one for each variant."""
LARGEST_READ_WHOLE = 64 << 20


@dataclass(frozen=True)
class UnsafeFile:
    """One reason why a folder is not loaded."""

    file: str
    reason: str
    """Continues a sentence that starts with the file's name: ``holds pickled weights``."""
    hint: str

    def __str__(self) -> str:
        return f"{self.file} {self.reason}"


def unsafe_files(folder: Path, *, reads_quantised: bool = False) -> Iterator[UnsafeFile]:
    """Yields every reason why the folder of a component is not loaded; nothing if it is safe or does not exist.

    ``reads_quantised``: the weights are dequantised without the quantiser that ``config.json`` may name, which is ignored.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return
    for name in names:
        yield from _unfit(folder / name)
    if ADAPTER_CONFIG in names:
        yield UnsafeFile(ADAPTER_CONFIG, "would add an adapter to the model", "remove it, and set init_lora to the adapter")
    lists = [name for name in names if "index" in name and SAFE in name and name.endswith(".json")]
    if len(lists) > MOST_LISTS:
        yield UnsafeFile(lists[0], f"is one of {len(lists)} shard indexes", "remove those of other models")
    for name in lists[:MOST_LISTS]:
        yield from _foreign_shards(folder / name)
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled and not any(name.endswith(SAFE) for name in names):
        yield UnsafeFile(pickled[0], "holds the only weights here, and they are not safetensors", HINT)
    for name in ("config.json", *CODE_FILES):
        if name in names:
            yield from _foreign_wishes(folder / name, ignored=QUANTISER if reads_quantised else "")


def _unfit(path: Path) -> Iterator[UnsafeFile]:
    """Refuses pipes and devices, which block a library forever, and text files that would fill the memory."""
    try:
        status = path.stat()
    except OSError:
        return
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        yield UnsafeFile(path.name, "is not a file", "remove it from the model's folder")
    elif path.suffix in READ_WHOLE and status.st_size > LARGEST_READ_WHOLE:
        yield UnsafeFile(path.name, f"is larger than {LARGEST_READ_WHOLE >> 20} MiB", "use the model's files as they were published")


def _foreign_shards(path: Path) -> Iterator[UnsafeFile]:
    """Refuses a safetensors index that names other files. Libraries never read an index of pickled shards next to safetensors."""
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
        yield UnsafeFile(path.name, f"names {foreign[:100]!r}, which is not a safetensors file in this folder", HINT)


def _foreign_wishes(path: Path, *, ignored: str = "") -> Iterator[UnsafeFile]:
    try:
        document = read_small_json(path, LARGEST_LIST_BYTES)
    except UnreadableFile as error:
        yield UnsafeFile(path.name, f"cannot be read: {error}", "download the model again")
        return
    except OSError:
        return
    if not isinstance(document, dict):
        yield UnsafeFile(path.name, "is not a JSON object", "download the model again")
        return
    document.pop(ignored, None)
    for key, what in sorted(_wishes(document, names_code=path.name in CODE_FILES)):
        yield UnsafeFile(path.name, f"{what} ({key}), which is never loaded", "remove the key, or use the unchanged model")


def _wishes(document: Mapping[str, Any], *, names_code: bool) -> set[tuple[str, str]]:
    """Returns (key, what it requests) pairs.

    ``auto_map`` in a model's own configuration is allowed, since the family names the class. So is that of a tokenizer if all the code that
    it names is code that a family loads a class of a library for.
    """
    found: set[tuple[str, str]] = set()
    waiting: list[tuple[Any, int]] = [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEEPEST:
            found.add(("...", f"is nested deeper than {DEEPEST} levels"))
        elif isinstance(value, Mapping):
            asked = {key for key in REFUSED_KEYS if value.get(key)}
            if not names_code or _is_replaced(value.get(CODE)):
                asked.discard(CODE)
            found |= {(key, REFUSED_KEYS[key]) for key in asked}
            found |= {(key, "asks for a kernel") for key in ATTENTION_KEYS if not _is_everyday(value.get(key))}
            waiting.extend((part, depth + 1) for part in value.values())
        elif isinstance(value, list):
            waiting.extend((part, depth + 1) for part in value)
    return found


def _is_replaced(code: object) -> bool:
    """Whether all the code that an ``auto_map`` names is never loaded, because families name classes of libraries."""
    if not isinstance(code, Mapping):
        return False
    entries = [name for entry in code.values() for name in (entry if isinstance(entry, list) else [entry])]
    return all(name is None or (isinstance(name, str) and name in replaced_code()) for name in entries)


def _is_everyday(attention: object) -> bool:
    """Whether an attention setting is one of the usual ones: a name for the complete model, or an object of part -> name."""
    chosen = list(attention.values()) if isinstance(attention, Mapping) else [attention]
    return all(one is None or (isinstance(one, str) and one in EVERYDAY_ATTENTION) for one in chosen)
