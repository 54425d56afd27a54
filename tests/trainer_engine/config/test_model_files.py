"""What a folder of weights may ask the libraries for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from trainer_engine.config.model_files import LARGEST_READ_WHOLE, unsafe_files


def write_part(folder: Path, **files: Any) -> Path:
    """A component with safe weights; ``files``: name, with ``__`` for a dot, -> JSON or bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    usual: dict[str, Any] = {"config__json": {"hidden_size": 4}, "model__safetensors": b""}
    for name, content in {**usual, **files}.items():
        if content is not None:
            path = folder / name.replace("__", ".")
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def index(*shards: Any) -> dict[str, Any]:
    return {"metadata": {}, "weight_map": {f"layer.{place}": shard for place, shard in enumerate(shards)}}


SAFE: list[dict[str, Any]] = [
    {},
    {"model__safetensors__index__json": index("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")},
    {"pytorch_model__bin__index__json": index("pytorch_model-00001-of-00001.bin"), "pytorch_model__bin": b"beside safetensors"},
    {"config__json": {"_attn_implementation": "sdpa", "quantization_config": None, "auto_map": {"AutoModel": "code.Model"}}},
    {"config__json": {"_attn_implementation": {"text_config": "eager", "": None}, "_attn_implementation_autoset": True}},
    {"tokenizer_config__json": {"tokenizer_class": "T5Tokenizer"}, "model__safetensors": None},
]
UNSAFE: list[tuple[dict[str, Any], str]] = [
    ({"model__safetensors": None, "pytorch_model__bin": b"x"}, "pytorch_model.bin holds the only weights"),
    ({"model__safetensors": None, "diffusion_pytorch_model__fp16__bin": b"x"}, "fp16.bin holds the only weights"),
    ({"model__safetensors": None, "weights__ckpt": b"x"}, "weights.ckpt holds the only weights"),
    ({"model__safetensors__index__json": index("a.safetensors", "pytorch_model.bin")}, "names 'pytorch_model.bin'"),
    ({"model__safetensors__index__fp16__json": index("pytorch_model.bin")}, "names 'pytorch_model.bin'"),
    ({"diffusion_pytorch_model__safetensors__index__json": index("../other/model.safetensors")}, "names '../other/model.safetensors'"),
    ({"model__safetensors__index__json": index("/etc/x.safetensors")}, "names '/etc/x.safetensors'"),
    ({"model__safetensors__index__json": index(7)}, "does not say which file"),
    ({"model__safetensors__index__json": [1]}, "does not say which file"),
    ({"model__safetensors__index__json": b"{"}, "cannot be read: not valid JSON"),
    ({"config__json": {"quantization_config": {"quant_method": "bitsandbytes"}}}, "asks for a quantiser"),
    ({"config__json": {"text_config": {"quantization_config": {"quant_method": "x"}}}}, "asks for a quantiser"),
    ({"config__json": {"_attn_implementation": "kernels-community/flash-attn"}}, "asks for a kernel"),
    ({"config__json": {"vision_config": {"attn_implementation": "flash_attention_2"}}}, "asks for a kernel"),
    ({"config__json": {"_attn_implementation": {"": "someone/kernel"}}}, "asks for a kernel"),
    ({"config__json": {"_attn_implementation": ["someone/kernel"]}}, "asks for a kernel"),
    ({"config__json": {"transformers_weights": "adapter_model.bin"}}, "names another file of weights"),
    ({"config__json": [1]}, "is not a JSON object"),
    ({"config__json": b"[" * 100_000}, "cannot be read"),
    ({"adapter_config__json": {"base_model_name_or_path": "someone/else"}}, "would add an adapter to the model"),
    ({"tokenizer_config__json": {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}}, "asks for code of its own"),
    ({"processor_config__json": {"image_processor": {"auto_map": {"AutoImageProcessor": "code.P"}}}}, "asks for code of its own"),
]


@pytest.mark.parametrize("code", [["known.Tokenizer", None], "known.Tokenizer"])
def test_code_that_a_family_has_a_class_of_a_library_for_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: Any) -> None:
    monkeypatch.setattr("trainer_engine.config.model_files.replaced_code", lambda: frozenset({"known.Tokenizer"}))
    assert list(unsafe_files(write_part(tmp_path / "known", tokenizer_config__json={"auto_map": {"AutoTokenizer": code}}))) == []
    other: Any
    for other in (["known.Tokenizer", "code.Fast"], "code.Tokenizer", ["known.Tokenizer", 7], {"slow": "known.Tokenizer"}):
        folder = write_part(tmp_path / "other", tokenizer_config__json={"auto_map": {"AutoTokenizer": other}})
        assert [found.file for found in unsafe_files(folder)] == ["tokenizer_config.json"]
    folder = write_part(tmp_path / "list", tokenizer_config__json={"auto_map": ["known.Tokenizer"]})
    assert [found.file for found in unsafe_files(folder)] == ["tokenizer_config.json"]


@pytest.mark.parametrize("files", SAFE)
def test_an_everyday_component_is_loaded(tmp_path: Path, files: dict[str, Any]) -> None:
    assert list(unsafe_files(write_part(tmp_path / "part", **files))) == []


@pytest.mark.parametrize(("files", "reason"), UNSAFE)
def test_a_component_that_asks_for_more_is_not_loaded(tmp_path: Path, files: dict[str, Any], reason: str) -> None:
    (found,) = unsafe_files(write_part(tmp_path / "part", **files))
    assert reason in str(found) and found.hint


def test_pipes_and_huge_texts_are_refused(tmp_path: Path) -> None:
    folder = write_part(tmp_path / "part")
    os.mkfifo(folder / "vocab.txt")
    with (folder / "tokenizer.json").open("wb") as stream:
        stream.truncate(LARGEST_READ_WHOLE + 1)
    assert [str(found) for found in unsafe_files(folder)] == ["tokenizer.json is larger than 64 MiB", "vocab.txt is not a file"]


def test_an_index_of_many_megabytes_is_not_parsed(tmp_path: Path) -> None:
    folder = write_part(tmp_path / "part")
    with (folder / "model.safetensors.index.json").open("wb") as stream:
        stream.truncate(17 << 20)
    assert [str(found) for found in unsafe_files(folder)] == ["model.safetensors.index.json cannot be read: it is larger than 16 MiB"]


def test_a_folder_that_is_not_there_has_nothing_unsafe(tmp_path: Path) -> None:
    assert list(unsafe_files(tmp_path / "nowhere")) == []
