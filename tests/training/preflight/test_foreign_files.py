"""Files that others made, models, adapters and checkpoints from the hub, may hold anything: ``validate`` answers, and reads no further."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.helpers.jobs import make_job
from tests.training.conftest import Training, write_model
from training.models import Job

WORD = st.text(max_size=6) | st.sampled_from(["weight", "F32", "BF16", "__metadata__", "lora_A.weight", "\0", "é", "../x"])
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | WORD,
    lambda part: st.lists(part, max_size=4) | st.dictionaries(WORD, part, max_size=4),
    max_leaves=6,
)
TENSOR = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "BF16", "U8", "X9"]) | JSON, "shape": st.lists(st.integers(-4, 2**40), max_size=3) | JSON},
    optional={"data_offsets": st.tuples(st.integers(-9, 99), st.integers(-9, 99)).map(list) | JSON},
)
NAMES = st.sampled_from(["blocks.0.attn.to_q.weight", "unet.mid.lora_A.weight", "unet.mid.lora_B.weight", "__metadata__"])
HEADER = st.dictionaries(NAMES | WORD, TENSOR | JSON, max_size=4)
CHECKED = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], derandomize=True
)
FORMS: dict[str, dict[str, str]] = {
    "base": {},
    "adapter": {"--model_type": "lora", "--lora_type": "standard", "--init_lora": "foreign.safetensors"},
    "validation": {"--validation_adapter_path": "foreign.safetensors"},
}


def safetensors(header: Any) -> bytes:
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + bytes(64)


def answers(training: Training, form: dict[str, str] | None = None) -> dict[str, Any]:
    """The answer of ``validate``, which is never an error of the server."""
    answer = training.post("/validate", {**training.form, **(form or {})})
    assert answer.status_code in (200, 422), answer.content
    found: dict[str, Any] = json.loads(answer.content, parse_constant=pytest.fail)
    return found


@pytest.mark.parametrize("place", FORMS)
@CHECKED
@given(header=HEADER | JSON)
@example(header={"a.weight": {"dtype": "F32", "shape": [None, 2], "data_offsets": [0, 64]}})
@example(header={"a.weight": {"dtype": "F32", "shape": "22", "data_offsets": [0, 64]}})
def test_any_header_of_a_weights_file_is_answered(training: Training, place: str, header: Any) -> None:
    base = place == "base"
    path = training.home / ("model/transformer/diffusion_pytorch_model.safetensors" if base else "foreign.safetensors")
    path.write_bytes(safetensors(header))
    answers(training, FORMS[place])


@CHECKED
@given(content=st.binary(max_size=24), length=st.integers(0, 2**64 - 1))
def test_any_beginning_of_a_weights_file_is_answered(training: Training, content: bytes, length: int) -> None:
    (training.home / "model/transformer/diffusion_pytorch_model.safetensors").write_bytes(struct.pack("<Q", length) + content)
    answers(training)
    answers(training, {"--validation_adapter_path": "model/transformer/diffusion_pytorch_model.safetensors"})


SCHEDULE = ("_class_name", "prediction_type", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "shift")


@CHECKED
@given(schedule=st.dictionaries(st.sampled_from(SCHEDULE), JSON) | JSON, index=JSON)
def test_any_configuration_in_a_model_is_answered(training: Training, schedule: Any, index: Any) -> None:
    folder = training.home / "model" / "scheduler"
    folder.mkdir(exist_ok=True)
    (folder / "scheduler_config.json").write_text(json.dumps(schedule))
    for name in ("model_index.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json"):
        (training.home / "model" / name).write_text(json.dumps(index))
    answers(training)


MANIFEST = ("version", "step", "epoch", "loss", "learning_rate", "model_family", "model_type", "created_at", "files", "eval_loss", "kind")
PLACES = st.sampled_from(["weights", "../../outside", "/etc/passwd", ""]) | WORD
FILES = st.dictionaries(PLACES, st.fixed_dictionaries({"size": JSON, "sha256": JSON}) | JSON)


@CHECKED
@given(manifest=st.dictionaries(st.sampled_from(MANIFEST), JSON) | JSON, files=FILES, state=JSON)
def test_any_manifest_of_a_checkpoint_is_answered(training: Training, manifest: Any, files: Any, state: Any) -> None:
    folder = training.home / "output/run/checkpoint-3"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_bytes(b"numbers")
    document = {**manifest, "files": files} if isinstance(manifest, dict) else manifest
    (folder / "manifest.json").write_text(json.dumps(document))
    (folder / "training_state.json").write_text(json.dumps(state))
    for wanted in ("latest", "checkpoint-3", "output/run/checkpoint-3"):
        answers(training, {"--resume_from_checkpoint": wanted})
    if not Job.objects.exists():
        make_job(training.home, output_dir=str(folder.parent))
    listed = json.loads(training.get("/checkpoints").content, parse_constant=pytest.fail)["checkpoints"]
    for row in listed:
        assert row["name"] == "checkpoint-3"
        assert training.get(f"/checkpoints/validate/{row['name']}").json()["valid"] is False


def test_weights_that_are_a_link_to_a_closed_file_are_not_read(training: Training) -> None:
    """The first bytes of a key would stand in the message about a broken header."""
    key = training.home / "state" / "secret_key"
    key.parent.mkdir(exist_ok=True)
    key.write_bytes(b"topsecret" * 9)
    path = training.home / "model/transformer/diffusion_pytorch_model.safetensors"
    path.unlink()
    path.symlink_to(key)
    assert "topsecret" not in json.dumps(answers(training))


def test_a_model_of_many_empty_shards_is_answered_soon(training: Training) -> None:
    folder = write_model(training.home / "shards") / "transformer"
    for number in range(600):
        (folder / f"diffusion_pytorch_model-{number:05}-of-00600.safetensors").write_bytes(safetensors({}))
    assert answers(training, {"--pretrained_model_name_or_path": "shards"})["understood"]["model"]["parameters"] >= 0


def test_a_header_of_a_gigabyte_is_not_read(training: Training) -> None:
    path: Path = training.home / "model/transformer/diffusion_pytorch_model.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 1 << 30))
        stream.truncate(1 << 31)  # holes take no room
    assert answers(training)["understood"]["model"]["parameters"] >= 0
