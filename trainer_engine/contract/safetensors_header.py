"""The header of a safetensors file: its length in eight bytes, a JSON object that names the tensors, then their data.

Standard library only, so that the server can read it. https://huggingface.co/docs/safetensors describes the format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

from trainer_engine.contract.files import read_document

LENGTH = struct.Struct("<Q")
LONGEST_HEADER_BYTES = 64 << 20
METADATA = "__metadata__"
"""Key of the entry that holds texts in place of a tensor."""
ALIGNMENT = 8
"""The data begin at a multiple of this many bytes."""


def read_header(read: Callable[[int], bytes]) -> tuple[dict[str, Any], int]:
    """Returns (the JSON object, offset of the data). Raises ValueError if there is no header, and what ``read`` raises.

    ``read`` gives the next bytes of a file from its beginning, as many as asked for or all that are left.
    """
    start = read(LENGTH.size)
    if len(start) < LENGTH.size:
        raise ValueError("the file ends before its header")
    (length,) = LENGTH.unpack(start)
    if length > LONGEST_HEADER_BYTES:
        raise ValueError("the header is too long")
    header = read_document(read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is not an object")
    return header, LENGTH.size + length


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """Returns what ``read_header`` reads: the same bytes for the same entries, in whatever order they are."""
    content = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    content += b" " * (-len(content) % ALIGNMENT)
    return LENGTH.pack(len(content)) + content
