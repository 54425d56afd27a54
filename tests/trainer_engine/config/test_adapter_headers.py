"""Adapter files come from strangers: whatever their header holds, a run that starts from one is refused with a reason."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.damage import places, with_value
from trainer_engine.config.adapters.file_header import UnusableAdapter, find_adapter, not_finite, open_adapter
from trainer_engine.config.adapters.fit import fit, wanted_lora
from trainer_engine.config.adapters.keys import MANGLED_PREFIXES, PEFT_PREFIX, keys_by_module, split_key

LAYERS = {"blocks.0.to_q": (8, 8), "blocks.0.to_v": (8, 8), "blocks.1.to_q": (8, 8)}
ADAPTED = ("blocks.0.to_q", "blocks.1.to_q")
RANK = 2
WRONG: tuple[Any, ...] = (None, True, -1, 1.5, "x", [], {}, [1], [-1, 2], [10**30, 10**30], {"a": 1}, 10**400, ["x"], "F4", [[1]])


def header_of(**metadata: Any) -> dict[str, Any]:
    """The header of a LoRA of rank 2 on two layers."""
    header: dict[str, Any] = {"__metadata__": {key: json.dumps(value) for key, value in metadata.items()}}
    place = 0
    for layer in ADAPTED:
        for part, shape in (("lora_A", [RANK, 8]), ("lora_B", [8, RANK])):
            end = place + 4 * shape[0] * shape[1]
            header[f"transformer.{layer}.{part}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [place, end]}
            place = end
    return header


def write(path: Path, header: Any, *, data: bytes = b"\0" * 256) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def examine(path: Path, alpha: float = RANK) -> None:
    """What validate does with a file. Raises UnusableAdapter."""
    header = open_adapter(path)
    list(not_finite(header))
    fit(header, wanted_lora(LAYERS, ADAPTED, RANK, alpha, use_dora=False), LAYERS)


def test_a_file_of_the_right_form_fits(tmp_path: Path) -> None:
    examine(write(tmp_path / "a.safetensors", header_of()))
    examine(write(tmp_path / "a.safetensors", header_of(lora_adapter_metadata={"transformer.lora_alpha": 16})), alpha=16)


def test_a_wrong_value_anywhere_in_the_header_is_refused_or_harmless(tmp_path: Path) -> None:
    header, path = header_of(lora_adapter_metadata={"lora_alpha": RANK}), tmp_path / "a.safetensors"
    everywhere = list(places(header))
    for place in [(), *random.Random(2).sample(everywhere[1:], 20)]:
        for wrong in WRONG:
            try:
                examine(write(path, with_value(header, place, wrong)))
            except UnusableAdapter as refusal:
                assert refusal.code and refusal.message


@pytest.mark.parametrize(
    "stated",
    [
        "[" * 100_000,
        '{"transformer.lora_alpha": ' + "9" * 400 + "}",
        "not json",
        "[]",
        '{"lora_alpha": NaN}',
        '{"alpha_pattern": 5}',
        "\\ud800",
    ],
    ids=lambda text: text[:25],
)
def test_metadata_that_nothing_can_be_made_of_counts_as_none(tmp_path: Path, stated: str) -> None:
    """The alpha of a file that states none is its rank."""
    header = header_of()
    header["__metadata__"] = {"lora_adapter_metadata": stated}
    examine(write(tmp_path / "a.safetensors", header), alpha=RANK)


def test_no_flipped_byte_of_a_file_raises_anything_but_a_refusal(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", header_of(lora_adapter_metadata={"lora_alpha": RANK}))
    content = path.read_bytes()
    for position in random.Random(1).sample(range(len(content)), 200):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1 << position % 8]) + content[position + 1 :])
        try:
            examine(path)
        except UnusableAdapter:
            pass


@pytest.mark.parametrize("kept", [0, 7, 8, 40, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "a.safetensors", header_of())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UnusableAdapter) as refused:
        examine(path)
    assert refused.value.code in ("cut_off", "not_safetensors")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_pipe_a_folder_and_a_device_are_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    with pytest.raises(UnusableAdapter, match="it is not a file"):
        open_adapter(path)


def test_a_folder_without_the_usual_file_names_those_it_has(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.safetensors", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UnusableAdapter) as refused:
        find_adapter(tmp_path)
    assert refused.value.hint == "use one of the files in it: a.safetensors, b.safetensors"


KEYS = st.lists(
    st.sampled_from(["transformer", "blocks", "0", "to_q", "lora_A", "weight", "alpha", "", "lora", "down", "default", "é"]), max_size=7
).map(".".join)


@given(st.sampled_from(["", PEFT_PREFIX, *MANGLED_PREFIXES]), KEYS | st.text(max_size=12))
def test_every_key_belongs_to_one_layer_or_to_none(prefix: str, key: str) -> None:
    text = prefix + key
    split_key(text)
    modules, strangers = keys_by_module([text], LAYERS)
    assert (strangers == [text]) is (modules == {})
    assert set(modules) <= set(LAYERS)
