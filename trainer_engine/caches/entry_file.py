"""The file of a cache entry: safetensors whose header holds the sha256 of the content and of its other fields, to detect damage."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

from safetensors.torch import save
from torch import Tensor

from trainer_engine.contract.files import read_document

METADATA, CONTENT, FIELDS = "__metadata__", "sha256", "fields_sha256"
DAMAGE = (ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error)
"""Raised by functions that read a damaged header."""
LENGTH_BYTES = 8
LONGEST_HEADER = 100_000_000


def encode(tensors: Mapping[str, Tensor]) -> bytes:
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    plain = save(contiguous)
    header, start = _read_header(BytesIO(plain).read)
    return save(contiguous, metadata={CONTENT: hashlib.sha256(memoryview(plain)[start:]).hexdigest(), FIELDS: _digest_of_fields(header)})


def is_sound(content: bytes) -> bool:
    """Whether content and fields are those that were written. Entries of older versions have no digest of their fields.

    Raises one of ``DAMAGE`` if the header cannot be read.
    """
    header, start = _read_header(BytesIO(content).read)
    metadata = header[METADATA]
    has_content = metadata[CONTENT] == hashlib.sha256(memoryview(content)[start:]).hexdigest()
    return bool(has_content and metadata.get(FIELDS) in (None, _digest_of_fields(header)))


def end_of(read: Callable[[int], bytes]) -> int:
    """The length in bytes that the file has according to its header. Raises one of ``DAMAGE``."""
    header, start = _read_header(read)
    return start + max((int(entry["data_offsets"][1]) for entry in _fields(header).values()), default=0)


def _fields(header: dict[str, Any]) -> dict[str, Any]:
    """Name, type, shape and place of each tensor."""
    return {name: entry for name, entry in header.items() if name != METADATA}


def _digest_of_fields(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_fields(header), sort_keys=True).encode()).hexdigest()


def _read_header(read: Callable[[int], bytes]) -> tuple[dict[str, Any], int]:
    """(header, offset of the data) of a safetensors file: 8 bytes of length, little endian, then JSON. Raises ValueError, struct.error."""
    (length,) = struct.unpack("<Q", read(LENGTH_BYTES))
    if length > LONGEST_HEADER:
        raise ValueError("no safetensors header is that long")
    header = read_document(read(length))
    if not isinstance(header, dict):
        raise ValueError("a safetensors header holds an object")
    return header, LENGTH_BYTES + length
