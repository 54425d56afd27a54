"""Runs that train text encoders: what they save, resume from, evaluate and generate with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.helpers.caches import entries_of
from tests.helpers.models import tiny_model
from tests.helpers.params import first_fast, first_rows_fast, often
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import HereRun, run_of_ranks, train_here, with_held_out
from tests.trainer_engine.families.stable_diffusion.test_text_encoders import ENCODERS, LORA, PIPELINES, pipeline_of
from trainer_engine.contract.checkpoint_files import list_checkpoints
from trainer_engine.contract.errors import CheckpointUnusable
from trainer_engine.contract.events import ProgressEvent

RESULT = "pytorch_lora_weights.safetensors"
VALIDATION = {
    "validation_disable": False,
    "validation_prompt": "a red circle",
    "validation_resolution": "64x64",
    "validation_num_inference_steps": 2,
    "validation_guidance_rescale": 0,
}
KINDS = {"full": {}, "lora": LORA}
CLASSES = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}


def run(place: Path, name: str, **options: Any) -> HereRun:
    """Four steps with trained text encoders."""
    return train_here(place, model_family=name, model=str(tiny_model(name)), **{"train_text_encoder": True, **options})


def weights_of(result: HereRun) -> dict[str, bytes]:
    """Every file of weights that a run left, outside its caches."""
    root = result.output_dir
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.safetensors") if "cache" not in path.parts}


@pytest.mark.parametrize("name", often(["sd1x", "sdxl"]))
@pytest.mark.parametrize("kind", first_fast(list(KINDS)))
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, name: str, kind: str) -> None:
    chosen = {**KINDS[kind], "use_ema": True, "gradient_checkpointing": True, "text_encoder_lr": 1e-4}
    straight = assert_resumes_exactly(tmp_path, run, name=name, **chosen)
    assert any("text_encoder" in file or RESULT in file for file in weights_of(straight))


@pytest.mark.parametrize("name", often(PIPELINES))
def test_a_full_fine_tune_leaves_a_pipeline_with_its_trained_text_encoders(tmp_path: Path, name: str) -> None:
    result = run(tmp_path, name, use_ema=True, save_text_encoder=False)
    for folder in ("pipeline", "pipeline_ema"):
        pipeline = pipeline_of(name, result.output_dir / folder)
        assert pipeline("a cat", width=64, height=64, num_inference_steps=2).images[0].size == (64, 64)
    for encoder in ENCODERS[name]:
        files = [load_file(result.output_dir / folder / encoder / "model.safetensors") for folder in ("pipeline", "pipeline_ema")]
        assert all(key.startswith(("text_model.", "text_projection.")) for key in files[0]), "the names of published files"
        base = CLASSES[encoder].from_pretrained(tiny_model(name) / encoder).state_dict()
        saved = CLASSES[encoder].from_pretrained(result.output_dir / "pipeline" / encoder).state_dict()
        assert saved.keys() == base.keys()
        moved = {key for key in base if not torch.equal(saved[key], base[key])}
        assert any("layers.0" in key for key in moved) and any("token_embedding" in key for key in moved)
        assert any(not torch.equal(files[0][key], files[1][key]) for key in files[0]), "the average has other weights"


def test_the_learning_rates_apply_to_their_own_weights(tmp_path: Path) -> None:
    """At a vanishing rate the text encoders stay, and at the same rate they move as far as with one rate for all."""
    runs = {rate: run(tmp_path / str(rate), "sd1x", text_encoder_lr=rate) for rate in (None, 1e-3, 1e-30)}
    found = {rate: load_file(result.output_dir / "pipeline/text_encoder/model.safetensors") for rate, result in runs.items()}
    base = {
        f"text_model.{key}": value for key, value in CLIPTextModel.from_pretrained(tiny_model("sd1x") / "text_encoder").state_dict().items()
    }
    assert all(torch.allclose(found[1e-30][key], base[key], rtol=0, atol=1e-20) for key in base)
    assert all(torch.equal(found[None][key], found[1e-3][key]) for key in base)
    assert not all(torch.equal(found[None][key], base[key]) for key in base)
    unet = "pipeline/unet/diffusion_pytorch_model.safetensors"
    assert (runs[None].output_dir / unet).read_bytes() == (runs[1e-3].output_dir / unet).read_bytes()


def test_progress_events_have_both_learning_rates_on_the_same_schedule(tmp_path: Path) -> None:
    chosen = {"lr_scheduler": "linear", "lr_end": 0.0, "learning_rate": 1e-3, "text_encoder_lr": 1e-4}
    events = run(tmp_path, "sd1x", **chosen).heard.of(ProgressEvent)
    assert [event.learning_rate for event in events] == pytest.approx([7.5e-4, 5e-4, 2.5e-4, 0])
    assert [event.metrics["text_encoder_lr"] for event in events] == pytest.approx([7.5e-5, 5e-5, 2.5e-5, 0])


def test_the_cache_of_prompts_holds_tokens_alone(tmp_path: Path) -> None:
    """Embeddings that an earlier run with frozen encoders left in the same folder are not read."""
    frozen = run(tmp_path, "sd1x", train_text_encoder=False, max_train_steps=1)
    before = entries_of(tmp_path / "cache/text")
    trained = run(tmp_path, "sd1x", output_dir=str(tmp_path / "trained"), max_train_steps=1)
    entries = [entry for address, entry in entries_of(tmp_path / "cache/text").items() if address not in before]
    assert frozen.code == trained.code == 0 and entries
    assert all(entry.keys() == {"text_encoder.input_ids", "text_encoder.attention_mask"} for entry in entries)
    assert {tensor.dtype for entry in entries for tensor in entry.values()} == {torch.int64}


@pytest.mark.parametrize(("name", "kind"), first_rows_fast([("sdxl", "lora"), ("sdxl", "full"), ("sd1x", "lora"), ("sd1x", "full")]))
def test_evaluations_and_images_follow_the_trained_encoders(tmp_path: Path, name: str, kind: str) -> None:
    """A rate that vanishes for the network leaves the change to the text encoders."""
    chosen = {**KINDS[kind], **VALIDATION, "learning_rate": 1e-30, "text_encoder_lr": 0.05, "eval_steps_interval": 2}
    result = run(tmp_path, name, datasets=with_held_out(tmp_path), max_train_steps=4, validation_step_interval=2, **chosen)
    images = {path.name: path.read_bytes() for path in (result.output_dir / "validation_images").glob("*_a_red_circle_*.png")} or {
        path.name: path.read_bytes() for path in (result.output_dir / "validation_images").glob("step_*_validation_*.png")
    }
    assert len(images) >= 3 and len(set(images.values())) == len(images)
    events = result.heard.of(ProgressEvent)
    losses = {event.metrics["eval_loss/held-out"] for event in events if "eval_loss/held-out" in event.metrics}
    assert len(losses) >= 2


def test_a_run_with_other_text_encoders_is_not_resumed(tmp_path: Path) -> None:
    run(tmp_path, "sd1x", train_text_encoder=False, stop_after=2)
    with pytest.raises(CheckpointUnusable, match="train_text_encoder was False and is True"):
        run(tmp_path, "sd1x")
    state = list_checkpoints(tmp_path / "output")[0].path / "training_state.json"
    document = json.loads(state.read_text())
    assert document["identity"]["train_text_encoder"] is False


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_does_with_twice_the_batch(tmp_path: Path, kind: str) -> None:
    """The last layer of the first encoder is read by nothing: it is frozen, and no process waits for its gradient."""
    options = {**KINDS[kind], "model_family": "sdxl", "model": str(tiny_model("sdxl")), "train_text_encoder": True, "max_train_steps": 3}
    alone = train_here(tmp_path, output_dir=str(tmp_path / "alone"), train_batch_size=2, **options)
    together = run_of_ranks(tmp_path, **options)
    losses = [event.loss for event in alone.heard.of(ProgressEvent)]
    assert [entry.data["loss"] for entry in together.of_type("training.progress")] == pytest.approx(losses, rel=1e-5)
