"""An adapter file by its header, without torch: what is wrong with it as a file, and the few numbers that a start has to know."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

USUAL_FILE = "pytorch_lora_weights.safetensors"
SUFFIX = ".safetensors"
LONGEST_HEADER_BYTES = 64 << 20
PICKLES = (b"\x80", b"PK\x03\x04")
"""First bytes of what ``torch.save`` writes."""


@dataclass(frozen=True)
class FloatType:
    """How numbers of a type lie in a file, and where one shows that it is not finite: its exponent is all ones (IEEE 754, section 3.4)."""

    size: int
    """Bytes of a number, the lowest first."""
    high: int
    """Bits of the exponent in the last byte."""
    low: int
    """Those in the byte before it; 0 where there are none."""


FLOATS: Mapping[str, FloatType] = {
    "F64": FloatType(8, 0x7F, 0xF0),
    "F32": FloatType(4, 0x7F, 0x80),
    "F16": FloatType(2, 0x7C, 0),
    "BF16": FloatType(2, 0x7F, 0x80),
}
STRUCTS = {"F64": "<d", "F32": "<f", "F16": "<e"}
MOST_LISTED = 5


class UnusableAdapter(ValueError):
    """A file that a run cannot begin from: one or two sentences, and what to do."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Bytes from the start of the file, like ``end``."""
    end: int


@dataclass(frozen=True)
class AdapterHeader:
    """What a file says of itself."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]

    @property
    def name(self) -> str:
        """As people know it: the file, or for the usual name the folder that it lies in."""
        return str(Path(self.path.parent.name, self.path.name)) if self.path.name == USUAL_FILE else self.path.name

    def number(self, key: str) -> float:
        """The one value of a tensor such as ``alpha``. Raises UnusableAdapter where it is no number."""
        tensor = self.tensors[key]
        with self.path.open("rb") as stream:
            stream.seek(tensor.begin)
            content = stream.read(tensor.end - tensor.begin)
        if math.prod(tensor.shape) != 1 or tensor.dtype not in FLOATS:
            raise UnusableAdapter("does_not_fit", f"{key} in {self.name} is not one floating-point number.")
        if tensor.dtype == "BF16":
            return float(struct.unpack("<f", b"\0\0" + content)[0])
        return float(struct.unpack(STRUCTS[tensor.dtype], content)[0])

    def document(self, key: str) -> dict[str, object]:
        """A piece of metadata that is JSON; empty where there is none that can be read."""
        try:
            found = json.loads(self.metadata.get(key) or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def find_adapter(path: Path) -> Path:
    """The file that ``init_lora`` means. Raises UnusableAdapter."""
    if not path.is_dir():
        return path
    if (path / USUAL_FILE).is_file():
        return path / USUAL_FILE
    others = sorted(one.name for one in path.glob(f"*{SUFFIX}"))
    hint = f"give one of the files in it: {', '.join(others[:MOST_LISTED])}" if others else "give the file of an adapter"
    raise UnusableAdapter("not_found", f"The folder {path} holds no {USUAL_FILE}.", hint)


def open_adapter(path: Path) -> AdapterHeader:
    """Raises UnusableAdapter where it is no whole safetensors file."""
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            start = stream.read(8)
            wrong = _no_header(path, start, size)
            if wrong is not None:
                raise wrong
            (length,) = struct.unpack("<Q", start)
            header = json.loads(stream.read(length))
        tensors = {name: _tensor(entry, 8 + length) for name, entry in header.items() if name != "__metadata__"}
        metadata = {str(key): str(value) for key, value in (header.get("__metadata__") or {}).items()}
    except OSError as error:
        raise UnusableAdapter("unreadable_file", f"{path} cannot be read: {error.strerror or error}.") from error
    except UnusableAdapter:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"{path.name} is not a safetensors file: its header cannot be understood."
        raise UnusableAdapter("not_safetensors", message, "give the .safetensors file of an adapter") from error
    end = max((tensor.end for tensor in tensors.values()), default=0)
    if end > size:
        message = f"{path.name} is cut off: it has {size:,} bytes, and its header names {end:,}."
        raise UnusableAdapter("cut_off", message, "copy or download it again")
    return AdapterHeader(path, tensors, metadata)


def _no_header(path: Path, start: bytes, size: int) -> UnusableAdapter | None:
    if start.startswith(PICKLES):
        message = f"{path.name} is a pickle, PyTorch's own format, and not a safetensors file. It is not opened: a pickle can run programs."
        return UnusableAdapter("not_safetensors", message, "give the .safetensors file, or convert it where you trust it")
    if len(start) < 8:
        return UnusableAdapter("not_safetensors", f"{path.name} is not a safetensors file: it has {size} bytes.", "copy it again")
    (length,) = struct.unpack("<Q", start)
    if length > LONGEST_HEADER_BYTES:
        return UnusableAdapter("not_safetensors", f"{path.name} is not a safetensors file.", "give the .safetensors file of an adapter")
    if 8 + length > size:
        message = f"{path.name} is cut off: it has {size:,} bytes, and its header alone has {length:,}."
        return UnusableAdapter("cut_off", message, "copy or download it again")
    return None


def _tensor(entry: Mapping[str, object], data: int) -> StoredTensor:
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (isinstance(shape, list) and isinstance(offsets, list) and all(isinstance(one, int) for one in (*shape, *offsets))):
        raise ValueError("a tensor has no shape or place")
    begin, end = offsets
    dtype = str(entry["dtype"])
    size = math.prod(shape) * FLOATS[dtype].size if dtype in FLOATS else end - begin
    if not 0 <= begin <= end or min(shape, default=0) < 0 or size != end - begin:
        raise ValueError("a tensor lies nowhere")
    return StoredTensor(dtype, tuple(shape), data + begin, data + end)


def not_finite(header: AdapterHeader) -> Iterator[str]:
    """The tensors in which a number is NaN or infinite. Reads the whole file."""
    with header.path.open("rb") as stream:
        for key, tensor in header.tensors.items():
            if tensor.dtype in FLOATS:
                stream.seek(tensor.begin)
                if not all_finite(stream.read(tensor.end - tensor.begin), FLOATS[tensor.dtype]):
                    yield key


def all_finite(content: bytes, kind: FloatType) -> bool:
    """Whether no number in ``content`` is NaN or infinite. Looks at all of them at once, as bits of two very large integers."""
    high = content[kind.size - 1 :: kind.size].translate(_marks(kind.high))
    low = content[kind.size - 2 :: kind.size].translate(_marks(kind.low))
    return not int.from_bytes(high, "little") & int.from_bytes(low, "little")


@cache
def _marks(bits: int) -> bytes:
    """For ``bytes.translate``: 1 for a byte in which all these bits are set."""
    return bytes(byte & bits == bits for byte in range(256))


def refuse_not_finite(header: AdapterHeader) -> None:
    """Raises UnusableAdapter where a weight is NaN or infinite."""
    found = list(not_finite(header))
    if found:
        count = f"{len(found)} of its {len(header.tensors)} tensors, the first is {found[0]}"
        message = f"{header.name} holds weights that are not finite (NaN or infinite): {count}."
        raise UnusableAdapter("not_finite", message, "the training that wrote it went wrong: use an earlier checkpoint of it")
