"""Free space is looked at for every disk that a run writes to, each with what it will take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.checked_runs import memory_of_training
from tests.helpers.models import options_with
from tests.helpers.small_disk import fill_up, small_file_system
from tests.training.conftest import Training
from trainer_engine.config.families import specs
from trainer_engine.contract.errors import Level
from trainer_engine.datasets.shards.folder import SHARDS
from trainer_engine.datasets.shards.writer import Entry, ShardWriter
from training.preflight import run
from training.preflight.disk import DiskUse, FileSystem, file_systems
from training.preflight.disk_uses import run_uses, weights_use


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "full", megabytes=2) as disk:
        fill_up(disk)
        yield disk


def examine(training: Training, variables: dict[str, str] | None = None, **changes: Any) -> Any:
    form = {name.lstrip("-"): value for name, value in {**training.form, **changes}.items() if not name.startswith("__")}
    home = Home(training.home)
    return run.examine_run(resolve_run(home, {}, form), home, {"CUDA_VISIBLE_DEVICES": "", **(variables or {})})


def disk_problems(report: Any) -> dict[str, str]:
    """Code of each problem of disks -> its message."""
    return {problem.code: problem.message for problem in report.problems if problem.code.startswith("disk_")}


def test_a_disk_refuses_the_least_and_warns_of_the_rest(tmp_path: Path) -> None:
    uses = (DiskUse("output_dir", tmp_path, "checkpoints", 500, 100), DiskUse("output_dir", tmp_path, "the result", 50, 50))
    assert FileSystem(uses, 1000).problem() is None
    warning = FileSystem(uses, 300).problem()
    assert warning is not None and (warning.level, warning.code) == (Level.WARNING, "disk_is_tight")
    assert warning.message == f"checkpoints and the result need about 550 B, and {tmp_path} has 300 B free."
    refused = FileSystem(uses, 149).problem()
    assert refused is not None and (refused.level, refused.code) == (Level.ERROR, "disk_too_small")
    assert "150 B" in refused.message and "149 B" in refused.message


def test_folders_of_one_disk_are_added_up(tmp_path: Path, full_disk: Path) -> None:
    uses = [DiskUse(name, folder, name, 10) for name, folder in (("a", tmp_path), ("b", tmp_path / "not/yet"), ("c", full_disk / "x"))]
    grouped = {one.what: one.bytes for one in file_systems([*uses, DiskUse("d", full_disk, "d", 0)])}
    assert grouped == {"a and b": 20, "c": 10}


@pytest.mark.parametrize("option", ["cache_dir_vae", "cache_dir_text", "cache_dir"])
def test_caches_on_a_disk_that_is_too_small_are_named(training: Training, full_disk: Path, option: str) -> None:
    datasets = training.home / "config" / "datasets.json"
    entries = json.loads(datasets.read_text())
    del entries[1]["cache_dir"]
    datasets.write_text(json.dumps(entries))
    report = examine(training, **{option: str(full_disk / "caches")})
    assert any(str(full_disk) in message for message in disk_problems(report).values()), report.problems
    assert str(full_disk) in report.understood["disk"]["text"]


def test_weights_that_wait_on_a_disk_need_its_space(tmp_path: Path) -> None:
    tensors = {"proj_out.weight": (10, 10), "transformer_blocks.0.a.weight": (30, 10), "transformer_blocks.1.a.weight": (30, 10)}
    chosen = {"model_type": "lora", "enable_group_offload": True, "group_offload_to_disk_path": str(tmp_path)}

    def uses(**values: Any) -> list[DiskUse]:
        return list(weights_use(options_with(**(chosen | values)), specs()["pixart_sigma"], 700, tensors))

    what = "weights that wait on the disk"
    assert uses() == [DiskUse("group_offload_to_disk_path", tmp_path, what, 4 * 600, 4 * 600)]
    assert uses(group_offload_to_disk_path=None) == [] == uses(enable_group_offload=False)


@pytest.mark.parametrize("place", [0, 1])
def test_a_cache_folder_of_a_set_is_looked_at(training: Training, full_disk: Path, place: int) -> None:
    datasets = training.home / "config" / "datasets.json"
    entries = json.loads(datasets.read_text())
    option = ("cache_dir_vae", "cache_dir")[place]
    entries[place][option] = str(full_disk / "caches")
    datasets.write_text(json.dumps(entries))
    report = examine(training)
    found = [problem for problem in report.problems if problem.code.startswith("disk_")]
    assert [problem.option for problem in found] == [f"dataloader[{place}].{option}"]
    assert str(full_disk) in found[0].message


def test_the_disk_estimate_leaves_out_cached_entries(training: Training) -> None:
    """In shards, and in files of their own as older versions wrote them."""
    before = examine(training).understood["disk"]["caches_bytes"]
    text = training.home / "cache/text/ab"
    text.mkdir(parents=True)
    for number in range(2):
        (text / f"ab{number:062x}.safetensors").write_bytes(bytes(100))
    stored(training.home / "cache/text", [100] * 40)
    latents_alone = examine(training).understood["disk"]["caches_bytes"]
    assert 0 < latents_alone < before
    datasets = json.loads((training.home / "config" / "datasets.json").read_text())
    datasets[0]["cache_dir_vae"] = "cache/vae"
    (training.home / "config" / "datasets.json").write_text(json.dumps(datasets))
    images = 6
    each = latents_alone // images
    vae = training.home / "cache/vae/cd"
    vae.mkdir(parents=True)
    (vae / f"cd{0:062x}.safetensors").write_bytes(bytes(each + 200))
    stored(training.home / "cache/vae", [*[each + 80] * (images - 3), 4 * each + 80])
    assert examine(training).understood["disk"]["caches_bytes"] == 2 * each


def stored(cache: Path, sizes: list[int]) -> None:
    """Entries of these sizes in a shard."""
    writer = ShardWriter(cache / SHARDS)
    writer.append(Entry(number.to_bytes(32, "big"), bytes(size)) for number, size in enumerate(sizes))
    writer.close()


def test_caches_that_are_never_stored_need_no_disk(training: Training) -> None:
    usual = examine(training).understood["disk"]["caches_bytes"]
    texts = examine(training, vae_cache_disable=True).understood["disk"]["caches_bytes"]
    assert usual > texts > 0
    assert examine(training, vae_cache_disable=True, text_cache_disable=True).understood["disk"]["caches_bytes"] == 0


def test_text_encoders_that_stay_count_in_the_memory_estimate(training: Training) -> None:
    header = b'{"shared.weight": {"dtype": "F32", "shape": [1000, 10], "data_offsets": [0, 0]}}'
    folder = training.home / "model" / "text_encoder"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    usual, kept = (memory_of_training(examine(training, text_cache_ondemand=chosen).understood) for chosen in (False, True))
    assert 4 * 10_000 <= kept["low_bytes"] - usual["low_bytes"] < 1.02 * 4 * 10_000


def test_the_disk_of_the_state_folder_is_looked_at(training: Training, full_disk: Path) -> None:
    home = Home(training.home)
    home.state.mkdir(parents=True, exist_ok=True)
    runs = home.state
    if any(runs.iterdir()):
        pytest.skip("the state folder is in use")
    runs.rmdir()
    runs.symlink_to(full_disk)
    messages = disk_problems(examine(training))
    assert "the run's journal" in messages["disk_is_tight"]


def test_a_model_that_is_to_be_downloaded_needs_room_in_the_hubs_cache(training: Training, full_disk: Path) -> None:
    hub = {"HF_HOME": str(full_disk), "HF_ENDPOINT": "http://127.0.0.1:9"}
    report = examine(training, hub, pretrained_model_name_or_path="nobody/model")
    assert "nobody/model" in disk_problems(report)["disk_too_small"]
    offline = examine(training, {**hub, "HF_HUB_OFFLINE": "1"}, pretrained_model_name_or_path="nobody/model")
    assert "disk_too_small" not in disk_problems(offline)


def test_a_clip_needs_the_space_of_all_its_frames(tmp_path: Path) -> None:
    def bytes_of(**values: Any) -> dict[str, int]:
        family = {"model_family": "wan", "validation_prompt": "a cat", "validation_resolution": "64x64"}
        uses = run_uses(options_with(**family, **values), Home(tmp_path), {"checkpoint": 0, "checkpoints": 0, "pipeline": 0}, 10)
        return {use.what: use.bytes for use in uses}

    image, clip = bytes_of(), bytes_of(validation_num_video_frames=9)
    assert clip.pop("validation images") == 9 * image.pop("validation images") > 0
    assert clip == image
