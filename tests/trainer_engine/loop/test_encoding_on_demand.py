"""Runs that encode while they train learn what a run with full caches learns, and are resumed to the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.caches import entries_of
from tests.helpers.models import tiny_model
from tests.helpers.tiny_run import HereRun, tiny_datasets, train_here
from trainer_engine.caches.store import CacheStore
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.events import Notification

ALONE = {"vae_batch_size": 1, "text_encoder_batch_size": 1, "max_train_steps": 5}
"""On demand, samples are encoded one by one; the encoders' rounding depends on the batch."""
ON_DEMAND = {"vae_cache_ondemand": True, "text_cache_ondemand": True}
DISABLED = {"vae_cache_disable": True, "text_cache_disable": True}


def trained(place: Path, name: str, **options: Any) -> HereRun:
    """A run with caches of its own."""
    images, texts = tiny_datasets(place)
    own = [images | {"cache_dir_vae": str(place / name / "vae")}, texts | {"cache_dir": str(place / name / "text")}]
    return train_here(place, datasets=own, **({"output_dir": str(place / name / "out")} | ALONE | options))


@pytest.mark.parametrize("chosen", [ON_DEMAND, DISABLED, {"vae_cache_ondemand": True, "text_cache_disable": True}])
def test_weights_equal_those_of_a_run_with_full_caches(tmp_path: Path, chosen: dict[str, bool]) -> None:
    cached, encoding = trained(tmp_path, "cached"), trained(tmp_path, "encoding", **chosen)
    assert cached.code is encoding.code is ExitCode.COMPLETED
    assert encoding.weights() == cached.weights()
    for kind, option in (("vae", "vae_cache_disable"), ("text", "text_cache_disable")):
        made, there = (set(entries_of(tmp_path / name / kind)) for name in ("encoding", "cached"))
        assert made <= there and bool(made) is not chosen.get(option, False)


@pytest.mark.parametrize("chosen", [ON_DEMAND, DISABLED])
def test_a_run_that_encodes_is_resumed_to_the_same_bytes(tmp_path: Path, chosen: dict[str, bool]) -> None:
    straight = trained(tmp_path, "straight", dataloader_prefetch=False, **chosen)
    first = trained(tmp_path, "resumed", stop_after=2, **chosen)
    second = trained(tmp_path, "resumed", **chosen)
    assert (first.code, second.code) == (ExitCode.STOPPED, ExitCode.COMPLETED)
    assert second.weights() == straight.weights()


def test_fields_of_datasets_turn_it_on_for_one_set(tmp_path: Path) -> None:
    images, texts = tiny_datasets(tmp_path)
    run = train_here(tmp_path, datasets=[images | {"vae_cache_disable": True}, texts], **ALONE)
    assert run.code is ExitCode.COMPLETED
    assert not entries_of(tmp_path / "cache/vae") and entries_of(tmp_path / "cache/text")


@pytest.mark.parametrize("of_the_run", [False, True])
def test_a_set_decides_whether_its_cache_is_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_the_run: bool) -> None:
    chosen: dict[str, bool] = {}

    class Watched(CacheStore):
        def __init__(self, folder: Path, *, compress: bool = False) -> None:
            chosen[folder.name] = compress
            super().__init__(folder, compress=compress)

    monkeypatch.setattr("trainer_engine.loop.datasets.CacheStore", Watched)
    images, texts = tiny_datasets(tmp_path)
    own = [images | {"cache_dir_vae": str(tmp_path / "vae"), "compress_cache": True}, texts | {"cache_dir": str(tmp_path / "text")}]
    assert train_here(tmp_path, datasets=own, max_train_steps=1, compress_disk_cache=of_the_run).code is ExitCode.COMPLETED
    assert chosen == {"vae": True, "text": of_the_run}


def test_entries_of_an_earlier_run_are_read_though_nothing_is_stored(tmp_path: Path) -> None:
    cached = trained(tmp_path, "same")
    before = entries_of(tmp_path / "same/vae").keys()
    again = trained(tmp_path, "same", output_dir=str(tmp_path / "other"), resume_from_checkpoint="", **DISABLED)
    assert again.code is ExitCode.COMPLETED and again.weights() == cached.weights()
    assert entries_of(tmp_path / "same/vae").keys() == before


def test_broken_files_are_left_out_at_the_start_as_they_are_with_caches(tmp_path: Path) -> None:
    images, _ = tiny_datasets(tmp_path)
    broken = sorted(Path(images["instance_data_dir"]).rglob("*.png"))[0]
    broken.write_bytes(broken.read_bytes()[:-40])
    cached, encoding = trained(tmp_path, "cached"), trained(tmp_path, "encoding", **DISABLED)
    for run in (cached, encoding):
        [left_out] = [note for note in run.heard.of(Notification) if note.code == "files_left_out"]
        assert broken.name in left_out.message and "1 files" in left_out.message
    assert encoding.code is ExitCode.COMPLETED and encoding.weights() == cached.weights()


def test_trained_text_encoders_read_tokens_that_are_made_on_demand(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"model_family": "sd1x", "model": str(tiny_model("sd1x")), "train_text_encoder": True}
    cached, encoding = trained(tmp_path, "cached", **shape), trained(tmp_path, "encoding", **shape, **DISABLED)
    assert cached.code is encoding.code is ExitCode.COMPLETED
    ours, theirs = (
        {str(path.relative_to(run.output_dir)): path.read_bytes() for path in run.output_dir.rglob("checkpoint-5/*/*.safetensors")}
        for run in (encoding, cached)
    )
    assert ours == theirs and any(name.startswith("checkpoint-5/text_encoder/") for name in ours)
