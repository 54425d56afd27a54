"""Reads the header of an adapter file without torch, and refuses files that are damaged or in another format."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trainer_engine.contract.files import open_regular, read_document
from trainer_engine.contract.safetensors_header import LENGTH, LONGEST_HEADER_BYTES, METADATA, read_header

USUAL_FILE = "pytorch_lora_weights.safetensors"
SUFFIX = ".safetensors"
PICKLES = (b"\x80", b"PK\x03\x04")
"""First bytes of files that ``torch.save`` writes. The length of a header may begin with the first of them too."""
"""First byte of a header."""


@dataclass(frozen=True)
class FloatType:
    """Layout of a floating-point type in a file. A number is not finite if all bits of its exponent are set (IEEE 754, section 3.4)."""

    size: int
    """Bytes of a number, in little-endian order."""
    high: int
    """Mask of the exponent in the last byte."""
    low: int
    """Mask of the exponent in the byte before; 0 if it has no exponent bits."""


FLOATS: Mapping[str, FloatType] = {
    "F64": FloatType(8, 0x7F, 0xF0),
    "F32": FloatType(4, 0x7F, 0x80),
    "F16": FloatType(2, 0x7C, 0),
    "BF16": FloatType(2, 0x7F, 0x80),
}
STRUCTS = {"F64": "<d", "F32": "<f", "F16": "<e"}
MOST_LISTED = 5


class UnusableAdapter(ValueError):
    """An adapter file that a run cannot start from, with a message and a hint."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint


@dataclass(frozen=True)
class StoredTensor:
    """Type, shape and position of a tensor in its file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Offset in bytes from the start of the file, like ``end``."""
    end: int
    first_column: int | None = None
    """Of a part of a matrix: which of the columns that lie there is its first one. None if all of them are part of it."""
    factor: float = 1.0
    """The values are those in the file times this."""


@dataclass(frozen=True)
class AdapterHeader:
    """The header of a safetensors file."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of the file, including its folder if it has the usual file name."""
        return str(Path(self.path.parent.name, self.path.name)) if self.path.name == USUAL_FILE else self.path.name

    def number(self, key: str) -> float:
        """Reads the value of a tensor with one element, such as ``alpha``. Raises UnusableAdapter if it is not a number."""
        tensor = self.tensors[key]
        with self.path.open("rb") as stream:
            stream.seek(tensor.begin)
            content = stream.read(tensor.end - tensor.begin)
        if math.prod(tensor.shape) != 1 or tensor.dtype not in FLOATS:
            raise UnusableAdapter("does_not_fit", f"{key} in {self.name} is not one floating-point number.")
        if tensor.dtype == "BF16":
            return float(struct.unpack("<f", b"\0\0" + content)[0]) * tensor.factor
        return float(struct.unpack(STRUCTS[tensor.dtype], content)[0]) * tensor.factor

    def document(self, key: str) -> dict[str, object]:
        """Returns a metadata entry that is a JSON object, or an empty one if it is missing or invalid."""
        try:
            found = read_document(self.metadata.get(key) or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def find_adapter(path: Path) -> Path:
    """Returns the file that ``init_lora`` selects. Raises UnusableAdapter."""
    if not path.is_dir():
        return path
    if (path / USUAL_FILE).is_file():
        return path / USUAL_FILE
    others = sorted(one.name for one in path.glob(f"*{SUFFIX}"))
    hint = f"use one of the files in it: {', '.join(others[:MOST_LISTED])}" if others else "use the file of an adapter"
    raise UnusableAdapter("not_found", f"The folder {path} has no {USUAL_FILE}.", hint)


def open_adapter(path: Path) -> AdapterHeader:
    """Reads the header of a file. Raises UnusableAdapter if it is not a complete safetensors file."""
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(LENGTH.size + 1)
            wrong = _no_header(path, start, size)
            if wrong is not None:
                raise wrong
            stream.seek(0)
            header, data = read_header(stream.read)
        tensors = {name: _tensor(entry, data) for name, entry in header.items() if name != METADATA}
        metadata = {str(key): str(value) for key, value in (header.get(METADATA) or {}).items()}
    except OSError as error:
        raise UnusableAdapter("unreadable_file", f"{path} cannot be read: {error.strerror or error}.") from error
    except UnusableAdapter:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"{path.name} is not a safetensors file: its header cannot be understood."
        raise UnusableAdapter("not_safetensors", message, "give the .safetensors file of an adapter") from error
    end = max((tensor.end for tensor in tensors.values()), default=0)
    if end > size:
        message = f"{path.name} is cut off: it has {size:,} bytes, and its header names {end:,}."
        raise UnusableAdapter("cut_off", message, "copy or download it again")
    return AdapterHeader(path, tensors, metadata)


def _no_header(path: Path, start: bytes, size: int) -> UnusableAdapter | None:
    """``start``: the length of the header and its first byte. The length of one header in 32 begins like a pickle."""
    if start.startswith(PICKLES) and start[LENGTH.size :] != b"{":
        message = f"{path.name} is a pickle, PyTorch's own format, not a safetensors file. It is not opened: a pickle can run programs."
        return UnusableAdapter("not_safetensors", message, "give the .safetensors file, or convert it where you trust it")
    if len(start) < LENGTH.size:
        return UnusableAdapter("not_safetensors", f"{path.name} is not a safetensors file: it has {size} bytes.", "copy it again")
    (length,) = LENGTH.unpack(start[: LENGTH.size])
    if length > LONGEST_HEADER_BYTES:
        return UnusableAdapter("not_safetensors", f"{path.name} is not a safetensors file.", "give the .safetensors file of an adapter")
    if LENGTH.size + length > size:
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
    """Yields the keys of tensors that contain NaN or infinity. Reads the complete file."""
    with header.path.open("rb") as stream:
        for key, tensor in header.tensors.items():
            if tensor.dtype in FLOATS:
                stream.seek(tensor.begin)
                if not all_finite(stream.read(tensor.end - tensor.begin), FLOATS[tensor.dtype]):
                    yield key


def all_finite(content: bytes, kind: FloatType) -> bool:
    """Whether no number in ``content`` is NaN or infinite. All numbers are tested at once as bits of two very large integers."""
    high = content[kind.size - 1 :: kind.size].translate(_marks(kind.high))
    low = content[kind.size - 2 :: kind.size].translate(_marks(kind.low))
    return not int.from_bytes(high, "little") & int.from_bytes(low, "little")


@cache
def _marks(bits: int) -> bytes:
    """Returns a table for ``bytes.translate`` that gives 1 for bytes with all these bits set, else 0."""
    return bytes(byte & bits == bits for byte in range(256))


def refuse_not_finite(header: AdapterHeader) -> None:
    """Raises UnusableAdapter if a weight is NaN or infinite."""
    found = list(not_finite(header))
    if found:
        count = f"{len(found)} of its {len(header.tensors)} tensors, the first is {found[0]}"
        message = f"{header.name} contains weights that are not finite (NaN or infinite): {count}."
        raise UnusableAdapter("not_finite", message, "the training that saved it failed: use an earlier checkpoint of it")
