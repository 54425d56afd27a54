"""Whole runs of Wan image-to-video from video files: caches, resuming, adapters, validations and the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image
from safetensors.torch import load_file

from tests.helpers.caches import entries_of, state_of
from tests.helpers.clips import decoded_gif, moving_square, needs_pyav
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import HereRun, train_here
from tests.helpers.video_files import write_video
from tests.trainer_engine.families.wan.test_clips import clip_datasets
from tests.trainer_engine.families.wan.test_first_frame import FLAVOUR, model, pipeline
from trainer_engine.contract.errors import DatasetUnusable
from trainer_engine.families.wan.spec import SPEC

RESULT = "pytorch_lora_weights.safetensors"
SHOWN: dict[str, Any] = {
    "validation_disable": False,
    "validation_step_interval": 1,
    "validation_num_inference_steps": 1,
    "validation_resolution": "64x64",
    "validation_num_video_frames": 5,
}

pytestmark = needs_pyav


def run_of_clips(place: Path, datasets: list[dict[str, Any]] | None = None, **options: Any) -> HereRun:
    usual = {"model_family": "wan", "model_flavour": FLAVOUR, "model": model(), "resolution": 64}
    return train_here(place, datasets=datasets or clip_datasets(place), **{**usual, **options})


def test_a_full_run_resumes_to_the_same_bytes_and_its_result_animates(tmp_path: Path) -> None:
    straight = assert_resumes_exactly(tmp_path, run_of_clips)
    stored = entries_of(tmp_path / "cache/vae")
    assert len(stored) == 4
    for entry in stored.values():
        assert entry["latents"].shape == entry["first_frame_latents"].shape and entry["latents"].shape[:2] == (16, 2)
        assert entry["first_frame_embedding"].shape == (5, 16) and bool(entry["first_frame_embedding"].isfinite().all())
    folder = straight.output_dir / "pipeline"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "WanImageToVideoPipeline"
    assert index["image_encoder"] == ["transformers", "CLIPVisionModel"] and index["image_processor"][1] == "CLIPImageProcessor"
    result = WanImageToVideoPipeline.from_pretrained(folder)
    clip = result(moving_square(1)[0], "a cat", height=32, width=32, num_frames=5, num_inference_steps=2, output_type="pil").frames[0]
    assert len(clip) == 5
    trained, base = result.transformer.state_dict(), pipeline().transformer.state_dict()
    assert sorted(trained) == sorted(base) and not torch.equal(trained["patch_embedding.weight"], base["patch_embedding.weight"])


def test_a_second_run_encodes_nothing_and_text_to_video_has_entries_of_its_own(tmp_path: Path) -> None:
    run_of_clips(tmp_path, max_train_steps=1)
    before = state_of(tmp_path / "cache/vae")
    run_of_clips(tmp_path, max_train_steps=1, output_dir=str(tmp_path / "again"))
    assert before and state_of(tmp_path / "cache/vae") == before
    again = {"model_flavour": "i2v-14b-2.1-720p", "resolution": 64, "output_dir": str(tmp_path / "larger")}
    run_of_clips(tmp_path, max_train_steps=1, **again)
    assert state_of(tmp_path / "cache/vae") == before, "the flavours share an image encoder"


@pytest.mark.parametrize("how", [{"vae_cache_ondemand": True}, {"vae_cache_disable": True}])
def test_clips_that_are_encoded_when_needed_train_the_same_weights(tmp_path: Path, how: dict[str, bool]) -> None:
    ahead = run_of_clips(tmp_path / "ahead", max_train_steps=1)
    needed = run_of_clips(tmp_path / "needed", max_train_steps=1, **how)
    assert needed.weights() == ahead.weights()


def test_stills_and_an_eval_set_go_with_clips(tmp_path: Path) -> None:
    [clips, texts] = clip_datasets(tmp_path)
    (tmp_path / "stills").mkdir()
    for number, frame in enumerate(moving_square(2)):
        frame.save(tmp_path / "stills" / f"a_still_{number}.png")
    stills = {"id": "stills", "instance_data_dir": str(tmp_path / "stills"), "cache_dir_vae": str(tmp_path / "cache/stills")}
    write_video(tmp_path / "held" / "a_square.mp4", 7)
    held = {
        **clips,
        "id": "held",
        "dataset_type": "eval",
        "instance_data_dir": str(tmp_path / "held"),
        "cache_dir_vae": str(tmp_path / "c"),
    }
    run = run_of_clips(tmp_path, [clips, stills, held, texts], max_train_steps=4, train_batch_size=1, eval_steps_interval=2)
    assert run.code == 0
    for entry in entries_of(tmp_path / "cache/stills").values():
        assert torch.allclose(entry["first_frame_latents"], entry["latents"], atol=1e-6), "a still is its own first frame"
    [entry] = entries_of(tmp_path / "c").values()
    assert entry["first_frame_latents"].shape[1] == 2
    assert json.loads(next((tmp_path / "output").glob("checkpoint-4/evaluations.json")).read_text())


def test_a_lora_loads_in_diffusers_with_the_output_of_merged_weights(tmp_path: Path) -> None:
    run = run_of_clips(tmp_path, model_type="lora", lora_rank=4, lora_alpha=2, learning_rate=0.05, max_train_steps=2)
    tensors = load_file(run.output_dir / RESULT)
    assert tensors and all(key.startswith("transformer.") for key in tensors)
    generator = torch.Generator().manual_seed(1)
    given = torch.randn(2, 36, 2, 4, 6, generator=generator), torch.tensor([300.0, 700.0])
    prompt, seen = torch.randn(2, 512, 32, generator=generator), torch.randn(2, 5, 16, generator=generator)
    merged, adapted = pipeline(), pipeline()
    modules = dict(merged.transformer.named_modules())
    for key in (key for key in tensors if key.endswith(".lora_A.weight")):
        up = tensors[key.replace("lora_A", "lora_B")]
        modules[key.removeprefix("transformer.").removesuffix(".lora_A.weight")].weight.data += 0.5 * (up @ tensors[key])
    adapted.load_lora_weights(run.output_dir, weight_name=RESULT)
    with torch.no_grad():
        outputs = [one.transformer.eval()(*given, prompt, seen, return_dict=False)[0] for one in (pipeline(), merged, adapted)]
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-3) and torch.allclose(outputs[1], outputs[2], atol=1e-4)


def test_a_lycoris_adapter_trains_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    config = tmp_path / "lycoris.json"
    config.write_text(json.dumps(dict(SPEC.adapters.lycoris_start) | {"factor": 4}, default=dict))
    chosen = {"model_type": "lora", "lora_type": "lycoris", "lycoris_config": str(config)}
    straight = assert_resumes_exactly(tmp_path, run_of_clips, **chosen)
    assert (straight.output_dir / RESULT).is_file()


def test_validations_animate_the_first_frames_of_the_datasets(tmp_path: Path) -> None:
    shown = {**SHOWN, "num_eval_images": 2, "validation_prompt": "it moves", "max_train_steps": 1}
    run = run_of_clips(tmp_path, **shown, validation_guidance=1.0)
    names = sorted(path.name for path in (run.output_dir / "validation_images").glob("step_1_*.gif"))
    assert len(names) == 4, "two first frames, each with its caption and with the prompt"
    assert all("a_gif" in name or "a_square_0" in name for name in names)
    assert {len(decoded_gif(run.output_dir / "validation_images" / name).frames) for name in names} == {5}


@pytest.mark.slow
def test_validations_animate_images_that_the_options_name(tmp_path: Path) -> None:
    frames = moving_square(1, (64, 64)), moving_square(1, (128, 64))
    paths = [tmp_path / "own.png", tmp_path / "wide.png"]
    for path, [frame] in zip(paths, frames, strict=True):
        frame.save(path)
    inputs = json.dumps([{"path": str(path), "prompt": "it moves"} for path in paths])
    run = run_of_clips(tmp_path, **SHOWN, validation_input=inputs, max_train_steps=1, validation_stitch_input_location="left")
    made = sorted((run.output_dir / "validation_images").glob("step_1_*.gif"))
    assert ["own" in path.name for path in made] == [True, False] and "wide" in made[1].name
    [first, *_] = decoded_gif(made[0]).frames
    assert np.asarray(first).shape[1] > 64, "the input stands beside the clip"
    with Image.open(paths[0]) as own:
        beside = np.asarray(first.crop((0, 0, 64, 64)), dtype=int)
        assert np.abs(beside - np.asarray(own.convert("RGB"), dtype=int)).mean() < 12, "up to the colours of a GIF"


def test_stills_alone_end_the_run_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnusable, match="no set holds clips"):
        train_here(tmp_path, model_family="wan", model_flavour=FLAVOUR, model=model(), resolution=64)
