"""A component of a base model is known by what it holds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from trainer_engine.config.resuming import weight_digests
from trainer_engine.config.resuming.base_weights import BasePart, base_differences, component_digest, moved_sources
from trainer_engine.config.resuming.weight_digests import weight_digest


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is too large to be hashed whole."""
    monkeypatch.setattr(weight_digests, "WHOLE_BYTES", 1000)
    path = tmp_path / "large.safetensors"
    save_file({"a": np.arange(50_000, dtype=np.float32), "b": np.ones((100, 100), np.float32)}, path, {"by": "one"})
    return path


def test_a_large_file_is_the_same_wherever_it_lies_and_whoever_wrote_it(large: Path) -> None:
    digest = weight_digest(large)
    again = large.with_name("again.safetensors")
    save_file({"a": np.arange(50_000, dtype=np.float32), "b": np.ones((100, 100), np.float32)}, again, {"by": "two"})
    assert large.stat().st_size == again.stat().st_size and weight_digest(again) == digest


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("how", ["first", "middle", "last", "trained"])
def test_a_change_of_any_tensor_of_a_large_file_is_noticed(large: Path, name: str, how: str) -> None:
    digest, status = weight_digest(large), large.stat()
    tensors = {"a": np.arange(50_000, dtype=np.float32), "b": np.ones((100, 100), np.float32)}
    flat = tensors[name].reshape(-1)
    where = {"first": slice(0, 1), "middle": slice(len(flat) // 2, len(flat) // 2 + 1), "last": slice(-1, None), "trained": slice(None)}
    flat[where[how]] += 1
    save_file(tensors, large, {"by": "one"})
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert large.stat().st_size == status.st_size and weight_digest(large) != digest


def test_a_large_file_of_another_format_is_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_digests, "WHOLE_BYTES", 1000)
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(100_000))
    digest = weight_digest(path)
    path.write_bytes(bytes(50_000) + b"\1" * 50_000)
    assert weight_digest(path) != digest


def component(folder: Path, **weights: float) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"size": 1, "_diffusers_version": "0.1", "dtype": "float32"}')
    for name, value in weights.items():
        save_file({"w": np.full(4, value, np.float32)}, folder / f"{name.replace('__', '.')}.safetensors")
    return folder


def test_only_the_files_of_the_variant_that_is_loaded_count(tmp_path: Path) -> None:
    plain, both = component(tmp_path / "plain", model=1), component(tmp_path / "both", model=1, model__fp16=2)
    other = component(tmp_path / "other", model=3, model__fp16=2)
    assert component_digest(plain) == component_digest(both) != component_digest(other)
    assert component_digest(both, "fp16") == component_digest(other, "fp16") != component_digest(both)
    assert component_digest(plain, "fp16") == component_digest(plain)  # a part without weights of the variant


def test_a_configuration_is_identified_by_its_values(tmp_path: Path) -> None:
    one = component(tmp_path / "one", model=1)
    two = Path(shutil.copytree(one, tmp_path / "two"))
    (two / "config.json").write_text(json.dumps({"_name_or_path": "/x", "dtype": "bfloat16", "size": 1}, indent=4))
    assert component_digest(one) == component_digest(two)
    (two / "config.json").write_text('{"size": 2}')
    assert component_digest(one) != component_digest(two)


def test_components_differ_by_content_or_else_by_source() -> None:
    theirs = {"transformer": BasePart("a/one", "11"), "vae": BasePart("a/one", "22"), "scheduler": BasePart("a/one", "33")}
    same = {"transformer": BasePart("b/two", "11"), "vae": BasePart("b/two", "22")}
    assert base_differences(theirs, same) == [] and moved_sources(theirs, same) == ["b/two holds the same weights as a/one"]
    other = {"transformer": BasePart("b/two", "99"), "vae": BasePart("b/two", ""), "scheduler": BasePart("a/one", "44")}
    assert base_differences(theirs, other) == [
        "base model (transformer, vae) was a/one and is b/two",
        "base model a/one has changed: the files of scheduler were replaced",
    ]
    assert base_differences(theirs, {"transformer": BasePart("a/one", "")}) == []


def with_header(path: Path, header: object) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(5000))
    return path


@pytest.mark.parametrize(
    "offsets",
    [[0], [0, 4, 8], [-8, 4], [4, 0], [0, 10**30], [10**400, 10**401], ["0", "4"], None, 5, {"0": 1}],
    ids=lambda one: str(one)[:20],
)
def test_a_large_file_with_a_damaged_header_still_has_a_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offsets: object) -> None:
    monkeypatch.setattr(weight_digests, "WHOLE_BYTES", 1000)
    entry = {"dtype": "F32", "shape": [1], "data_offsets": offsets}
    digest = weight_digest(with_header(tmp_path / "a.safetensors", {"a": {**entry, "data_offsets": [0, 4]}, "b": entry}))
    assert len(digest) == 64
    other = weight_digest(with_header(tmp_path / "b.safetensors", {"c": {**entry, "data_offsets": [0, 4]}, "b": entry}))
    assert other != digest, "the header is part of what is compared"


@pytest.mark.parametrize("header", [b"[" * 5000, b"[]", b"5", b"{", b'{"a": 5}', b"\xff"], ids=lambda text: text[:5].hex())
def test_a_large_file_with_a_header_of_something_else_has_a_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: bytes) -> None:
    monkeypatch.setattr(weight_digests, "WHOLE_BYTES", 1000)
    assert len(weight_digest(with_header(tmp_path / "a.safetensors", header))) == 64


def test_a_pipe_among_the_weights_gives_no_digest_and_blocks_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    assert component_digest(tmp_path) == ""
