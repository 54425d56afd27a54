"""Bytes that changed on disk, and numbers that are none."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.caches import entries_of, flip_entry
from tests.helpers.models import tiny_pixart
from tests.helpers.served_runs import JSON, ServedRuns
from trainer_engine.contract.checkpoint_files import list_checkpoints, verify


def flip_a_byte(path: Path, place: float = 0.7) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0x10
    path.write_bytes(bytes(content))


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], tensor) for name, tensor in other.items())


def messages_of(runs: ServedRuns, job_id: str, code: str) -> list[str]:
    """What the log says under a code."""
    return [event["message"] for event in runs.events(job_id) if event["data"].get("code") == code]


def test_resume_walks_back_from_a_damaged_checkpoint_names_it_and_loses_nothing_else(runs: ServedRuns) -> None:
    shape = {"checkpoint_step_interval": 4, "resume_from_checkpoint": "latest"}
    first = runs.start("flipped", max_train_steps=12, **shape)
    assert runs.wait_for_end(first)["status"] == "completed", runs.log(first)
    straight = runs.weights("flipped", 12)
    shutil.rmtree(runs.output("flipped") / "pipeline")
    flip_a_byte(runs.output("flipped") / "checkpoint-12/optimizer.safetensors")
    verdict = runs.server.get(f"/api/training/checkpoints/validate/checkpoint-12?job_id={first}").json()
    assert verdict["valid"] is False and "optimizer.safetensors" in verdict["message"]

    second = runs.start("flipped", max_train_steps=12, **shape)
    assert runs.wait_for_end(second)["status"] == "completed", runs.log(second)
    (warning,) = messages_of(runs, second, "checkpoint_broken")
    assert "checkpoint-12" in warning and "optimizer.safetensors" in warning
    assert runs.steps(second) == [9, 10, 11, 12]
    assert verify(runs.output("flipped") / "checkpoint-12") == []
    assert runs.weights("flipped", 12) == straight

    flip_a_byte(runs.output("flipped") / "checkpoint-12/transformer/diffusion_pytorch_model.safetensors")
    form = runs.form("flipped", max_train_steps=14, resume_from_checkpoint="checkpoint-12")
    refused = runs.server.post("/api/training/start", data=form, headers=JSON)
    (problem,) = refused.json()["problems"]
    assert (refused.status_code, problem["code"]) == (422, "checkpoint_unusable"), "asked for by name: nothing else will do"
    assert "checkpoint-12" in problem["message"]


def test_a_damaged_cache_entry_is_noticed_set_aside_and_made_again(runs: ServedRuns) -> None:
    first = runs.start("cache-a", max_train_steps=8, resume_from_checkpoint="")
    assert runs.wait_for_end(first)["status"] == "completed", runs.log(first)
    dice, damaged = random.Random(1), []
    for kind in ("vae", "text"):
        cache = runs.place / "cache" / kind
        whole = entries_of(cache)
        for address in dice.sample(sorted(whole), 3):
            damaged.append((cache, address, whole[address]))
            flip_entry(cache, address, dice.uniform(0, 0.99))
    second = runs.start("cache-b", max_train_steps=8, resume_from_checkpoint="")
    assert runs.wait_for_end(second)["status"] == "completed", runs.log(second)
    again = [address for cache, address, tensors in damaged if same_tensors(entries_of(cache).get(address, {}), tensors)]
    assert again, "at least those that were trained on are whole again"
    assert all(f"The cache entry {address} was damaged" in runs.log(second) for address in again)
    assert runs.weights("cache-b", 8) == runs.weights("cache-a", 8)


def model_with_nan(folder: Path, part: str) -> Path:
    shutil.copytree(tiny_pixart(), folder)
    (weights,) = (folder / part).glob("*.safetensors")
    tensors = load_file(weights)
    used = [name for name in tensors if not name.startswith("decoder")]  # training has no use for an autoencoder's decoder
    name = max(used, key=lambda name: tensors[name].numel())
    tensors[name].view(-1)[:: max(1, tensors[name].numel() // 50)] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_model_that_gives_no_numbers_never_completes_in_silence(runs: ServedRuns, tmp_path: Path, part: str) -> None:
    model = model_with_nan(tmp_path / "model", part)
    job_id = runs.start(f"nan-{part}", max_train_steps=20, model=str(model), resume_from_checkpoint="")
    job = runs.wait_for_end(job_id)
    assert job["status"] == "error", job
    assert job["job_info"]["error"], "with a reason"
    assert job["job_info"]["error_code"] in ("non_finite_loss", "dataset_unusable", "datasets_unusable", "model_unavailable"), job[
        "job_info"
    ]
    assert list_checkpoints(runs.output(f"nan-{part}")) == []
    assert not (runs.output(f"nan-{part}") / "pipeline").exists()


def test_steps_as_large_as_can_be_asked_for_end_in_numbers_or_in_an_error(runs: ServedRuns) -> None:
    wild = {"learning_rate": 1, "max_grad_norm": 0, "max_train_steps": 60, "checkpoint_step_interval": 10}
    job_id = runs.start("wild", **wild)
    job = runs.wait_for_end(job_id)
    for info in list_checkpoints(runs.output("wild")):
        for name, tensor in load_file(info.path / "transformer/diffusion_pytorch_model.safetensors").items():
            assert bool(tensor.isfinite().all()), (info.name, name)
    losses = [event["data"]["loss"] for event in runs.events(job_id) if event["type"] == "training.progress"]
    if job["status"] == "completed":
        assert None not in losses
    else:
        assert job["job_info"]["error_code"] == "non_finite_loss", job
