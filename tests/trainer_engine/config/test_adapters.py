"""Adapter files are understood without torch: their keys, their numbers and their header."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer_engine.config.adapters.file_header import FLOATS, all_finite, not_finite, open_adapter
from trainer_engine.config.adapters.keys import keys_by_module

LAYERS = ("blocks.0.attn.to_q", "blocks.0.attn.to_out.0", "blocks.0.ff.net.0.proj")


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("transformer.blocks.0.attn.to_q.lora_A.weight", "lora_A.weight"),
        ("diffusion_model.blocks.0.attn.to_q.alpha", "alpha"),
        ("base_model.model.blocks.0.attn.to_q.lora_B.weight", "lora_B.weight"),
        ("base_model.model.transformer.blocks.0.attn.to_q.lora_B.weight", "lora_B.weight"),
        ("blocks.0.attn.to_q.lora_A.default.weight", "lora_A.weight"),
        ("transformer.blocks.0.attn.to_q.lora.down.weight", "lora_down.weight"),
        ("blocks.0.attn.to_q.lora_magnitude_vector", "lora_magnitude_vector"),
        ("lycoris_blocks_0_attn_to_q.lokr_w1", "lokr_w1"),
        ("lycoris_blocks_0_attn_to_q.a1.weight", "a1.weight"),
        ("lora_transformer_blocks_0_attn_to_q.lora_up.weight", "lora_up.weight"),
        ("lora_unet_blocks_0_attn_to_q.dora_scale", "dora_scale"),
    ],
)
def test_every_spelling_of_a_key_names_its_layer(key: str, part: str) -> None:
    assert keys_by_module([key], LAYERS) == ({"blocks.0.attn.to_q": {part: key}}, [])


def test_an_ambiguous_or_duplicate_key_belongs_to_no_layer() -> None:
    assert keys_by_module(["lycoris_a_b.alpha"], ["a.b", "a_b"]) == ({}, ["lycoris_a_b.alpha"])
    modules, strangers = keys_by_module(["transformer.a.alpha", "diffusion_model.a.alpha"], ["a"])
    assert modules == {"a": {"alpha": "transformer.a.alpha"}} and strangers == ["diffusion_model.a.alpha"]
    assert keys_by_module(["text_encoder.a.alpha", "lora_te1_a.alpha", "", "alpha"], ["a"])[0] == {}


TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 499, 999])
def test_a_single_number_that_is_not_finite_is_found(tmp_path: Path, name: str, value: float, place: int) -> None:
    numbers = torch.randn(1000, dtype=torch.float64).to(TYPES[name])
    numbers[0] = torch.finfo(TYPES[name]).max
    numbers[1] = torch.finfo(TYPES[name]).smallest_normal
    broken = numbers.clone()
    broken[place] = value
    save_file({"good": numbers, "broken": broken, "counts": torch.ones(3, dtype=torch.int64), "none": numbers[:0]}, tmp_path / "a")
    assert list(not_finite(open_adapter(tmp_path / "a"))) == ["broken"]


def test_every_half_precision_number_is_judged_as_torch_judges_it() -> None:
    every = struct.pack("<65536H", *range(65536))
    for name in ("F16", "BF16"):
        finite = torch.frombuffer(bytearray(every), dtype=TYPES[name]).isfinite()
        found = [all_finite(every[2 * number : 2 * number + 2], FLOATS[name]) for number in range(65536)]
        assert finite.tolist() == found


@pytest.mark.parametrize("length", [0x80, 0x280, 0x580])
def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / "adapter.safetensors"
    tensors = {"a.lora_A.weight": torch.ones(1)}
    save_file(tensors, path, {"note": ""})
    (shortest,) = struct.unpack("<Q", path.read_bytes()[:8])
    save_file(tensors, path, {"note": "x" * (length - shortest)})
    assert path.read_bytes()[:2] == bytes([0x80, length >> 8])
    assert list(open_adapter(path).tensors) == ["a.lora_A.weight"]


@pytest.mark.parametrize("name", TYPES)
def test_an_alpha_of_any_type_is_read(tmp_path: Path, name: str) -> None:
    save_file({"alpha": torch.tensor(1.5, dtype=TYPES[name]), "list": torch.tensor([2.5], dtype=TYPES[name])}, tmp_path / "a")
    header = open_adapter(tmp_path / "a")
    assert (header.number("alpha"), header.number("list")) == (1.5, 2.5)


def test_the_reader_needs_neither_torch_nor_numpy() -> None:
    import subprocess

    code = "import sys, training.preflight.init_lora, training.preflight.data; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
