"""init_lora: adapters as other programs write them are begun from exactly; what does not fit is refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.helpers.checked_runs import checked, refusal
from tests.helpers.models import tiny_family
from tests.helpers.params import first_fast
from tests.helpers.tiny_run import train_here
from trainer_engine.adapters.adapter import AddedAdapter
from trainer_engine.adapters.base import ADAPTER_FILE
from trainer_engine.adapters.build import make_trainable
from trainer_engine.config.lycoris.fit import kronecker_split
from trainer_engine.contract.errors import InvalidOptions

Tensors = dict[str, torch.Tensor]
LORA: dict[str, Any] = {"model_type": "lora", "lora_rank": 4}
PRESET = {"apply_preset": {"target_module": ["Attention", "FeedForward"]}}


def trained(place: Path, **options: Any) -> Path:
    """The folder of a result that does something."""
    return train_here(place / "first", **{**LORA, "max_train_steps": 2, **options}).output_dir


def begun(place: Path, init_lora: Path, **options: Any) -> Tensors:
    """The weights that a run begins with, once validate has found nothing wrong."""
    chosen = {**LORA, **options, "init_lora": str(init_lora)}
    assert checked(place, **chosen).errors == []
    adapter = make_trainable(tiny_family(**chosen), None)
    assert isinstance(adapter, AddedAdapter)
    return adapter.tensors()


def refused(place: Path, init_lora: Path, **options: Any) -> tuple[str, str]:
    """(message, hint) of validate and engine alike."""
    chosen = {**LORA, **options, "init_lora": str(init_lora)}
    problem = refusal(checked(place, **chosen))
    assert problem.option == "init_lora" and len(problem.message) < 400
    with pytest.raises(InvalidOptions) as raised:
        make_trainable(tiny_family(**chosen), None)
    (same,) = raised.value.problems
    assert (same.message, same.hint) == (problem.message, problem.hint)
    return problem.message, problem.hint


def lycoris(place: Path, name: str = "adapter", **document: Any) -> dict[str, Any]:
    path = place / f"{name}.json"
    path.write_text(json.dumps({**PRESET, "multiplier": 1.0, "linear_dim": 4, "linear_alpha": 2, **document}))
    return {"lora_type": "lycoris", "lycoris_config": str(path)}


def renamed(tensors: Tensors, rule: Callable[[str], str]) -> Tensors:
    return {rule(key): tensor.contiguous() for key, tensor in tensors.items()}


def kohya(tensors: Tensors, prefix: str = "lora_transformer_") -> Tensors:
    def rule(key: str) -> str:
        layer, _, part = key.removeprefix("transformer.").partition(".lora_")
        return f"{prefix}{layer.replace('.', '_')}.lora_{'down' if part == 'A.weight' else 'up'}.weight"

    found = renamed(tensors, rule)
    return found | {f"{key.partition('.')[0]}.alpha": torch.tensor(4.0) for key in found}


def with_alphas(tensors: Tensors, alpha: float = 4.0) -> Tensors:
    return tensors | {f"{key.rpartition('.lora_')[0]}.alpha": torch.tensor(alpha) for key in tensors}


SPELLINGS: dict[str, Callable[[Tensors], Tensors]] = {
    "plain": lambda tensors: tensors,
    "comfyui": lambda tensors: renamed(tensors, lambda key: key.replace("transformer.", "diffusion_model.", 1)),
    "peft": lambda tensors: renamed(tensors, lambda key: key.replace("transformer.", "base_model.model.", 1)),
    "bare": lambda tensors: renamed(tensors, lambda key: key.removeprefix("transformer.")),
    "older diffusers": lambda tensors: renamed(
        tensors, lambda key: key.replace("lora_A.weight", "lora.down.weight").replace("lora_B.weight", "lora.up.weight")
    ),
    "alphas": with_alphas,
    "kohya": kohya,
    "kohya unet": lambda tensors: kohya(tensors, "lora_unet_"),
}


def test_every_spelling_of_the_same_adapter_begins_with_the_same_weights(tmp_path: Path) -> None:
    folder = trained(tmp_path)
    tensors = load_file(folder / ADAPTER_FILE)
    for name, spelt in SPELLINGS.items():
        save_file(spelt(tensors), tmp_path / "made.safetensors")
        found = begun(tmp_path, tmp_path / "made.safetensors")
        assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors), name
        drawing = {"validation_disable": False, "validation_adapter_path": str(tmp_path / "made.safetensors")}
        assert checked(tmp_path, **LORA, **drawing).errors == [], name
    assert all(torch.equal(one, tensors[key]) for key, one in begun(tmp_path, folder).items())


@pytest.mark.parametrize(
    "how",
    first_fast(
        [
            {"use_dora": True},
            {"lora_alpha": 8.0},
            {"algo": "lokr", "factor": 4, "multiplier": 0.5},
            {"algo": "full"},
            {},
            *({"algo": algo} for algo in ("lora", "loha", "lokr", "dylora")),
            {"algo": "lora", "multiplier": 0.5},
        ],
        4,
    ),
    ids=str,
)
def test_a_run_starts_from_a_result_with_comfyui_keys(tmp_path: Path, how: dict[str, Any]) -> None:
    options = lycoris(tmp_path, **how, **({"block_size": 2} if how["algo"] == "dylora" else {})) if "algo" in how else how
    place = tmp_path / "first"
    plain = train_here(place, **{**LORA, **options, "max_train_steps": 2, "output_dir": str(place / "plain")}).output_dir
    comfy = train_here(place, **{**LORA, **options, "max_train_steps": 2, "lora_format": "comfyui"}).output_dir
    wanted = begun(tmp_path, plain, **options)
    found = begun(tmp_path, comfy / ADAPTER_FILE, **options)
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=0)


BROKEN_HEADERS = (
    b"[]", b"null", b'{"a": []}', b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
    b'{"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}', b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
    b'{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}', b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": "ab"}}',
    b'{"__metadata__": 3, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"[" * 100_000, b"\xff\xfe",
)  # fmt: skip


def framed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(64)


def change(tensors: Tensors, place: Path) -> dict[str, tuple[Callable[[Path], Any], str, str]]:
    layers = sorted({key.rsplit(".lora_", 1)[0] for key in tensors})
    halved = {key: (value[:2] if "lora_A" in key else value[:, :2]).contiguous() for key, value in tensors.items()}
    whole = (place / "first/output" / ADAPTER_FILE).read_bytes()
    return {
        "rank 2": (lambda path: save_file(halved, path), "has rank 2, and the run has 4", "lora_rank=2"),
        "alpha": (lambda path: save_file(with_alphas(tensors, 8.0), path), "another alpha: 8 instead of 4", "lora_alpha=8"),
        "one layer": (
            lambda path: save_file({key: value for key, value in tensors.items() if key.startswith(f"{layers[0]}.")}, path),
            "lacks 15 of the 16 layers",
            'peft_lora_target_modules=["transformer_blocks.0.attn1.to_k"]',
        ),
        "other names": (
            lambda path: save_file(renamed(tensors, lambda key: key.replace("attn1", "self_attention")), path),
            "belong to no layer of the base model",
            "of this base model",
        ),
        "text encoder": (
            lambda path: save_file(tensors | {"text_encoder.layers.0.q.lora_A.weight": torch.zeros(4, 8)}, path),
            "1 of the 33 keys",
            "only for its network",
        ),
        "dora": (
            lambda path: save_file(tensors | {f"{layer}.lora_magnitude_vector": torch.ones(32) for layer in layers}, path),
            "decomposes weights (DoRA), but the run does not",
            "use_dora=true",
        ),
        "not finite": (
            lambda path: save_file(tensors | {f"{layers[0]}.lora_A.weight": tensors[f"{layers[0]}.lora_A.weight"] * torch.nan}, path),
            "not finite (NaN or infinite): 1 of its 32 tensors",
            "earlier checkpoint",
        ),
        "half infinite": (
            lambda path: save_file({key: value.bfloat16() / (0 if "lora_A" in key else 1) for key, value in tensors.items()}, path),
            "not finite",
            "earlier checkpoint",
        ),
        "cut off in the header": (lambda path: path.write_bytes(whole[:2000]), "is cut off: it has 2,000 bytes", "again"),
        "cut off in the data": (lambda path: path.write_bytes(whole[:-100]), "is cut off", "again"),
        "pickle": (lambda path: path.write_bytes(b"\x80\x02}q\x00."), "is a pickle", ".safetensors"),
        "long pickle": (lambda path: path.write_bytes(b"\x80\x02" + bytes(200)), "is a pickle", ".safetensors"),
        "zip": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "is a pickle", ".safetensors"),
        "page": (lambda path: path.write_bytes(b"<!DOCTYPE html><html>" + bytes(100)), "is not a safetensors file", ".safetensors"),
        "empty": (lambda path: path.write_bytes(b""), "it has 0 bytes", "copy it again"),
        "json": (lambda path: path.write_bytes(b'\x08\0\0\0\0\0\0\0{"a": 1}'), "header cannot be understood", ".safetensors"),
        **{
            f"header {number}": (
                lambda path, header=header: path.write_bytes(framed(header)),
                "header cannot be understood",
                ".safetensors",
            )
            for number, header in enumerate(BROKEN_HEADERS)
        },
        "no tensors": (lambda path: save_file({}, path), "has no tensors", "adapter"),
        "folder": (lambda path: path.mkdir(), f"has no {ADAPTER_FILE}", "use the file"),
    }


def test_a_file_that_does_not_fit_is_refused_with_a_reason_and_a_hint(tmp_path: Path) -> None:
    tensors = load_file(trained(tmp_path) / ADAPTER_FILE)
    for name, (make, said, hint) in change(tensors, tmp_path).items():
        path = tmp_path / f"{name}.safetensors"
        make(path)
        message, what_to_do = refused(tmp_path, path)
        assert said in message and hint in what_to_do, (name, message, what_to_do)


def test_the_hint_for_other_targets_fixes_the_run(tmp_path: Path) -> None:
    targets = json.dumps(["attn1.to_q", "ff.net.2"])
    folder = trained(tmp_path, peft_lora_target_modules=targets)
    message, hint = refused(tmp_path, folder)
    assert "lacks 14 of the 16 layers" in message and "adapts 2 layers that the run does not" in message
    assert hint == f"peft_lora_target_modules={targets}"
    begun(tmp_path, folder, peft_lora_target_modules=targets)


@pytest.mark.parametrize("algo", ["lora", "loha", "lokr"])
def test_an_adapter_of_another_algorithm_or_rank_is_refused(tmp_path: Path, algo: str) -> None:
    first, other = lycoris(tmp_path, algo=algo), lycoris(tmp_path, "other", algo="loha" if algo == "lokr" else "lokr")
    folder = trained(tmp_path, **first)
    assert "of the algorithm" in refused(tmp_path, folder, **other)[0]
    if algo != "lora":
        assert "and the run trains LoRA" in refused(tmp_path, folder)[0]
    small = lycoris(tmp_path, "small", algo=algo, linear_dim=2)
    message, hint = refused(tmp_path, folder, **small)
    assert hint == "linear_dim=4" if algo == "lora" else hint.startswith("use an adapter of")
    assert "alpha" in refused(tmp_path, folder, **lycoris(tmp_path, "alpha", algo=algo, linear_alpha=4))[0]


@pytest.mark.parametrize("algo", ["lora", "lokr"])
def test_an_adapter_of_a_controlnet_is_refused_by_its_metadata(tmp_path: Path, algo: str) -> None:
    """The first layers of a network and those of its ControlNet have one name in the keys of LyCORIS, and one shape."""
    how = lycoris(tmp_path, algo=algo)
    folder = trained(tmp_path, **how)
    with safe_open(folder / ADAPTER_FILE, framework="pt") as file:
        metadata = file.metadata()
    begun(tmp_path, folder, **how)
    path = tmp_path / "controlnet.safetensors"
    save_file(load_file(folder / ADAPTER_FILE), path, {**metadata, "controlnet": "controlnet"})
    message, hint = refused(tmp_path, path, **how)
    assert message.endswith("is an adapter of a ControlNet, and this run trains none.") and hint == "set controlnet=true"


def test_kronecker_split_equals_the_factorization_of_the_library() -> None:
    from lycoris.functional.general import factorization

    for size in (1, 7, 12, 64, 96, 127, 128, 250, 360, 512, 1152, 3072, 4608):
        for factor in (-1, 1, 2, 4, 8, 16):
            assert kronecker_split(size, factor) == tuple(factorization(size, factor)), (size, factor)


def test_a_checkpoint_takes_precedence_over_init_lora(tmp_path: Path) -> None:
    trained(tmp_path)
    made = tmp_path / "made.safetensors"
    made.write_bytes(b"no longer an adapter")
    report = checked(tmp_path / "first", **LORA, max_train_steps=5, init_lora=str(made))
    assert not report.errors and ("init_lora", "no_effect") in {(one.option, one.code) for one in report.notes}
