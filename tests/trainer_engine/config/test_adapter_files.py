"""Numbers of an adapter file are read without torch or numpy."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer_engine.config.adapters.file_header import FLOATS, all_finite, not_finite, open_adapter

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 499, 999])
def test_one_number_that_is_not_finite_is_found(tmp_path: Path, name: str, value: float, place: int) -> None:
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
