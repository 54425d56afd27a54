"""Problems of validation adapters before a start."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import tiny_pixart
from tests.training.conftest import Training
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache

LAYER = "transformer.transformer_blocks.0.attn1.to_q"


def write_header(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A safetensors file of zeros."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4
        for edge in shape:
            size *= edge
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return path


def reported(training: Training, path: Path | str, **changes: Any) -> list[tuple[str, str]]:
    """(code, message) of what is said of the adapter."""
    form = {**training.form, "--validation_adapter_path": str(path), "--validation_disable": "false"}
    answer = training.post("/validate", {**form, **{f"--{name}": value for name, value in changes.items()}}).json()
    problems = [one for key in ("problems", "warnings", "notes") for one in answer.get(key) or [] if isinstance(one, dict)]
    return [(one["code"], one["message"]) for one in problems if one["option"].startswith("validation_adapter")]


def lora(training: Training, **sizes: int) -> Path:
    width, rank = sizes.get("width", 32), 2
    shapes = {f"{sizes.get('layer', LAYER)}.lora_A.weight": (rank, width), f"{LAYER}.lora_B.weight": (32, rank)}
    return write_header(training.home / "style" / "pytorch_lora_weights.safetensors", shapes)


def test_a_fitting_validation_adapter_is_accepted_without_a_problem(training: Training) -> None:
    path = lora(training)
    beside = {"pretrained_model_name_or_path": str(tiny_pixart())}
    assert reported(training, path, **beside) == [] and reported(training, path.parent, **beside) == []
    assert reported(training, "style") == []  # from the server's home


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({f"{LAYER}.lora_A.weight": (2, 48), f"{LAYER}.lora_B.weight": (32, 2)}, "2x48"),
        ({"transformer.single_blocks.0.attn.to_q.lora_A.weight": (2, 32)}, "belong to no linear layer"),
        ({}, "no key"),
    ],
)
def test_an_adapter_of_another_model_is_refused(training: Training, shapes: dict[str, tuple[int, ...]], words: str) -> None:
    path = write_header(training.home / "other.safetensors", shapes)
    ((code, message),) = reported(training, path, pretrained_model_name_or_path=str(tiny_pixart()))
    assert code == "does_not_fit" and words in message


def test_each_of_several_is_looked_at_in_its_place(training: Training) -> None:
    good, other = lora(training), write_header(training.home / "other.safetensors", {"unet.proj_in.lora_A.weight": (2, 32)})
    nowhere = training.home / "nowhere.safetensors"
    runs = [{"path": str(good)}, {"path": "other.safetensors"}, {"name": "two", "adapters": [{"path": str(good)}, {"path": str(other)}]}]
    form = {**training.form, "--validation_disable": "false"}
    for text in (json.dumps(runs), "runs.json"):
        (training.home / "runs.json").write_text(json.dumps({"runs": runs}))
        problems = training.post("/validate", {**form, "--validation_adapter_config": text}).json()["problems"]
        assert {one["option"]: one["code"] for one in problems} == {
            "validation_adapter_config[1].path": "does_not_fit",
            "validation_adapter_config[2].adapters[1].path": "does_not_fit",
        }
    runs = [{"path": str(nowhere)}, {"path": "/etc/passwd"}]
    problems = training.post("/validate", {**form, "--validation_adapter_config": json.dumps(runs)}).json()["problems"]
    assert {one["option"]: one["code"] for one in problems} == {
        "validation_adapter_config[0].path": "not_found",
        "validation_adapter_config[1].path": "outside_roots",
    }


def test_names_of_another_family_are_known_without_the_base_model(training: Training) -> None:
    path = write_header(training.home / "other.safetensors", {"unet.down_blocks.0.proj_in.lora_A.weight": (2, 32)})
    ((code, message),) = reported(training, path)
    assert code == "does_not_fit" and "PixArt Sigma" in message


def test_broken_and_missing_adapters_are_refused(training: Training) -> None:
    (training.home / "empty").mkdir()
    (training.home / "text.safetensors").write_text("not an adapter")
    assert [code for code, _ in reported(training, training.home / "nowhere.safetensors")] == ["not_found"]
    assert [code for code, _ in reported(training, training.home / "empty")] == ["not_found"]
    assert [code for code, _ in reported(training, training.home / "text.safetensors")] == ["not_safetensors"]
    assert [code for code, _ in reported(training, "/etc/passwd")] == ["outside_roots"]


def test_an_adapter_that_validation_leaves_out_is_not_read(training: Training) -> None:
    path = training.home / "text.safetensors"
    path.write_text("not an adapter")
    assert [code for code, _ in reported(training, path, validation_adapter_mode="none")] == ["no_effect"]


def test_a_repository_that_cannot_be_asked_is_reported(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ((code, message),) = reported(training, "owner/name:style.safetensors")
    assert code == "model_not_cached" and "owner/name:style.safetensors" in message


def test_the_header_of_a_cached_file_is_read(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_header(training.home / "other" / "style.safetensors", {"unet.proj_in.lora_A.weight": (2, 32)})
    place_in_hub_cache(other.parent, "owner/name", training.home / "hf")
    monkeypatch.setenv("HF_HOME", str(training.home / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert [code for code, _ in reported(training, "owner/name:style.safetensors")] == ["does_not_fit"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has every repository, gated where it says so, and in each one file: style.safetensors."""

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            gated, there = "gated" in self.path, self.path.endswith("/style.safetensors")
            self.send_response(403 if gated else 200 if there else 404)
            self.send_header("X-Error-Code", "GatedRepo" if gated else "EntryNotFound")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    yield
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_for_the_file(training: Training, hub: None) -> None:
    assert reported(training, "owner/name:style.safetensors") == []
    assert [code for code, _ in reported(training, "owner/name:other.safetensors")] == ["not_found"]
    assert [code for code, _ in reported(training, "owner/name")] == ["not_found"]
    assert [code for code, _ in reported(training, "owner/gated:style.safetensors")] == ["model_gated"]


def problems_of_assistant(training: Training, path: Path | str, **changes: Any) -> list[tuple[str, str]]:
    """(option, code) of what is reported of the assistant adapter."""
    form = {**training.form, "--assistant_lora_path": str(path), "--model_type": "lora", "--lora_type": "standard"}
    answer = training.post("/validate", {**form, **{f"--{name}": value for name, value in changes.items()}}).json()
    problems = [one for key in ("problems", "warnings", "notes") for one in answer.get(key) or [] if isinstance(one, dict)]
    return [(one["option"], one["code"]) for one in problems if "assistant" in one["option"]]


def test_the_assistant_adapter_is_checked_like_one_for_validation(training: Training) -> None:
    beside = {"pretrained_model_name_or_path": str(tiny_pixart())}
    assert problems_of_assistant(training, lora(training), **beside) == []
    assert problems_of_assistant(training, "style", **beside) == []  # from the server's home
    other = write_header(training.home / "other.safetensors", {"unet.proj_in.lora_A.weight": (2, 32)})
    assert problems_of_assistant(training, other, **beside) == [("assistant_lora_path", "does_not_fit")]
    assert problems_of_assistant(training, other, **beside, disable_assistant_lora="true") == []
    assert problems_of_assistant(training, training.home / "nowhere.safetensors") == [("assistant_lora_path", "not_found")]
    assert problems_of_assistant(training, "/etc/passwd") == [("assistant_lora_path", "outside_roots")]
    assert problems_of_assistant(training, other, validation_disable="true", **beside) == [("assistant_lora_path", "does_not_fit")]


def test_the_hub_is_asked_for_the_assistant(training: Training, hub: None) -> None:
    assert problems_of_assistant(training, "owner/name:style.safetensors") == []
    assert problems_of_assistant(training, "owner/name:other.safetensors") == [("assistant_lora_path", "not_found")]
    assert problems_of_assistant(training, "owner/gated:style.safetensors") == [("assistant_lora_path", "model_gated")]
