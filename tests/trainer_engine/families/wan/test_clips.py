"""Wan trains on clips: its latents beside those of diffusers, and whole runs from video files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan

from tests.helpers.caches import entries_of, state_of
from tests.helpers.checked_runs import checked, memory_of_training
from tests.helpers.clips import moving_square, needs_pyav
from tests.helpers.models import tiny_model
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import HereRun, train_here
from tests.helpers.video_files import cut, write_video
from tests.trainer_engine.families.wan.test_wan import tiny_wan
from trainer_engine.contract.errors import CheckpointUnusable
from trainer_engine.contract.events import Notification
from trainer_engine.media import encode_gif


def clip_datasets(place: Path, folder: str = "clips", **fields: Any) -> list[dict[str, Any]]:
    """Three clips of their own and one animation, beside their caches under ``place``."""
    clips = place / folder
    if not clips.exists():
        for number, suffix in enumerate((".mp4", ".webm", ".mkv")):
            shown = moving_square(9 + number)
            write_video(clips / f"a_square_{number}{suffix}", shown[number:] + shown[:number])
        (clips / "a_gif.gif").write_bytes(encode_gif(moving_square(6), 10))
    entry = {"id": "clips", "dataset_type": "video", "instance_data_dir": str(clips), "cache_dir_vae": str(place / "cache/vae")}
    texts = {"id": "texts", "dataset_type": "text_embeds", "default": True, "cache_dir": str(place / "cache/text")}
    return [{**entry, "video": {"num_frames": 5}, **fields}, texts]


def run_of_clips(place: Path, datasets: list[dict[str, Any]] | None = None, **options: Any) -> HereRun:
    usual = {"model_family": "wan", "model": str(tiny_model("wan")), "resolution": 64}
    return train_here(place, datasets=datasets or clip_datasets(place), **{**usual, **options})


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_latents_of_clips_equal_those_of_diffusers(frames: int) -> None:
    vae = AutoencoderKLWan.from_pretrained(tiny_model("wan"), subfolder="vae")
    pixels = torch.rand(2, 3, frames, 32, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, deviation = (torch.tensor(values).view(1, 16, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        wanted = (vae.encode(pixels).latent_dist.mode() - mean) / deviation
    latents = tiny_wan().encode_images(pixels)
    assert latents.shape == (2, 16, (frames - 1) // 4 + 1, 4, 8)
    assert torch.allclose(latents, wanted, atol=1e-5)


@needs_pyav
def test_a_run_trains_on_clips_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    assert assert_resumes_exactly(tmp_path, run_of_clips).step == 4
    stored = entries_of(tmp_path / "cache/vae")
    assert len(stored) == 4
    for entry in stored.values():
        assert entry["latents"].shape[:2] == (16, 2) and torch.isfinite(entry["latents"]).all()


@needs_pyav
def test_a_set_that_moves_keeps_its_entries_and_one_of_other_lengths_does_not(tmp_path: Path) -> None:
    run_of_clips(tmp_path, max_train_steps=1)
    before = state_of(tmp_path / "cache")
    shutil.move(tmp_path / "clips", tmp_path / "elsewhere")
    run_of_clips(tmp_path, clip_datasets(tmp_path, "elsewhere"), max_train_steps=1, output_dir=str(tmp_path / "moved"))
    assert before and state_of(tmp_path / "cache") == before
    longer = clip_datasets(tmp_path, "elsewhere", video={"num_frames": 9})
    run_of_clips(tmp_path, longer, max_train_steps=1, output_dir=str(tmp_path / "longer"))
    assert len(entries_of(tmp_path / "cache/vae")) == 7, "the animation is too short"


@needs_pyav
def test_a_clip_whose_pixels_are_damaged_is_left_out_by_the_run_and_named(tmp_path: Path) -> None:
    datasets = clip_datasets(tmp_path)
    write_video(tmp_path / "clips" / "b_damaged.mp4", 9)
    content = bytearray((tmp_path / "clips" / "b_damaged.mp4").read_bytes())
    start = content.index(b"\x65\x88", content.index(b"mdat"))  # the first frame
    content[start + 8 : start + 208] = b"\xff" * 200
    (tmp_path / "clips" / "b_damaged.mp4").write_bytes(content)
    cut(write_video(tmp_path / "clips" / "c_cut.mp4", 9), 0.5)
    run = run_of_clips(tmp_path, datasets, max_train_steps=1)
    assert run.code == 0 and len(entries_of(tmp_path / "cache/vae")) == 4
    named = [event.message for event in run.heard.of(Notification) if event.code == "files_left_out"]
    assert len([message for message in named if "b_damaged.mp4" in message]) == 1


@needs_pyav
def test_images_and_clips_train_in_one_run(tmp_path: Path) -> None:
    [clips, texts] = clip_datasets(tmp_path)
    (tmp_path / "stills").mkdir()
    for number, frame in enumerate(moving_square(3)):
        frame.save(tmp_path / "stills" / f"a_still_{number}.png")
    stills = {"id": "stills", "instance_data_dir": str(tmp_path / "stills"), "cache_dir_vae": str(tmp_path / "cache/stills")}
    run = run_of_clips(tmp_path, [clips, stills, texts], max_train_steps=4, train_batch_size=1)
    assert run.code == 0
    assert {entry["latents"].shape[1] for entry in entries_of(tmp_path / "cache/stills").values()} == {1}


@needs_pyav
@pytest.mark.parametrize("how", [{"vae_cache_ondemand": True}, {"vae_cache_disable": True}])
def test_clips_that_are_encoded_when_needed_train_the_same_weights(tmp_path: Path, how: dict[str, bool]) -> None:
    ahead = run_of_clips(tmp_path / "ahead", max_train_steps=2)
    needed = run_of_clips(tmp_path / "needed", max_train_steps=2, **how)
    assert needed.weights() == ahead.weights()


@needs_pyav
def test_a_checkpoint_of_clips_of_another_length_is_not_resumed(tmp_path: Path) -> None:
    run_of_clips(tmp_path, stop_after=2)
    longer = clip_datasets(tmp_path, video={"num_frames": 9})
    with pytest.raises(CheckpointUnusable, match="dataset clips: video was .*'num_frames': 5"):
        run_of_clips(tmp_path, longer, resume_from_checkpoint="latest")


@needs_pyav
def test_an_eval_set_of_clips_is_measured(tmp_path: Path) -> None:
    [clips, texts] = clip_datasets(tmp_path)
    write_video(tmp_path / "held" / "a_square.mp4", 7)
    held = {
        **clips,
        "id": "held",
        "dataset_type": "eval",
        "instance_data_dir": str(tmp_path / "held"),
        "cache_dir_vae": str(tmp_path / "c"),
    }
    run = run_of_clips(tmp_path, [clips, held, texts], max_train_steps=2, eval_steps_interval=2)
    assert run.code == 0
    [entry] = entries_of(tmp_path / "c").values()
    assert entry["latents"].shape[1] == 2
    assert json.loads(next((tmp_path / "output").glob("checkpoint-2/evaluations.json")).read_text())


@needs_pyav
def test_validate_counts_clips_and_its_estimates_grow_with_their_frames(tmp_path: Path) -> None:
    def report(frames: int) -> Any:
        datasets = clip_datasets(tmp_path, video={"num_frames": frames})
        for number in range(2):
            path = tmp_path / "clips" / f"long_{number}.mp4"
            if not path.exists():
                write_video(path, 45)
        return checked(tmp_path, datasets=datasets, model_family="wan", model=str(tiny_model("wan")), resolution=64)

    few, many = report(5), report(45)
    assert few.errors == [] and many.errors == []
    assert few.understood["datasets"][0]["frames"] == {"fewest": 5, "most": 5, "total": 30}
    assert many.understood["datasets"][0]["frames"] == {"fewest": 45, "most": 45, "total": 90}
    assert memory_of_training(many.understood)["bytes"] > memory_of_training(few.understood)["bytes"]


@needs_pyav
def test_validate_refuses_clips_for_a_model_of_images(tmp_path: Path) -> None:
    report = checked(tmp_path, datasets=clip_datasets(tmp_path))
    assert ("dataloader[0].dataset_type", "not_for_family") in [(problem.option, problem.code) for problem in report.errors]
