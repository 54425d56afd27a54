"""The header of a safetensors file is read and written as the library does it, and what is none is refused."""

from __future__ import annotations

import json
from io import BytesIO

import pytest
import torch
from safetensors.torch import load, save

from trainer_engine.contract.safetensors_header import LENGTH, LONGEST_HEADER_BYTES, METADATA, header_bytes, read_header

TENSORS = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}


def test_the_header_of_the_library_is_read_with_the_offset_of_the_data() -> None:
    content = save(TENSORS, {"kind": "test"})
    header, data = read_header(BytesIO(content).read)
    assert header[METADATA] == {"kind": "test"} and set(header) == {METADATA, "a", "b"}
    begin, end = header["b"]["data_offsets"]
    assert content[data + begin : data + end] == TENSORS["b"].numpy().tobytes()


def test_a_written_header_is_read_by_the_library_and_does_not_depend_on_the_order() -> None:
    content = save(TENSORS)
    header, data = read_header(BytesIO(content).read)
    written = header_bytes({**header, METADATA: {"kind": "é"}})
    assert written == header_bytes({METADATA: {"kind": "é"}, **dict(reversed(header.items()))})
    assert len(written) % 8 == 0
    loaded = load(written + content[data:])
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        LENGTH.pack(100) + b"{",
        LENGTH.pack(2) + b"[]",
        LENGTH.pack(LONGEST_HEADER_BYTES + 1) + b"{}",
        LENGTH.pack(200_000) + b"[" * 200_000,
        LENGTH.pack(len(twice := b'{"a": {}, "a": {}}')) + twice,
    ],
    ids=["empty", "short", "cut-off", "list", "too-long", "nested", "twice"],
)
def test_what_is_no_header_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        read_header(BytesIO(content).read)


def test_a_header_is_an_object_in_json() -> None:
    written = header_bytes({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})
    assert json.loads(written[LENGTH.size :])["a"]["shape"] == [0]
