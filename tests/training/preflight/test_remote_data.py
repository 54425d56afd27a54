"""What validate says of a data set that is not on this machine: the hub is asked, nothing is downloaded, nothing waits for long."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.dataset_hub import TOKEN, DatasetHub, dataset_hub, png, rows, shard, shards, write
from tests.helpers.hub_server import OTHER_ANSWERS, broken_hub, silent_hub
from tests.helpers.tiny_run import tiny_options
from trainer_engine.contract.errors import Level, Problem
from training.preflight.run import examine_run
from training.preflight.summary import PreflightReport

REPO = "owner/pictures"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatasetHub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with dataset_hub() as running:
        running.repo(REPO, {"README.md": b"# Pictures", **shards(2, rows(4), rows(4, first=4))})
        yield running


def validated(
    place: Path, address: str, *, roots: tuple[str, ...] | None = None, token: str = "", offline: bool = False, **fields: Any
) -> PreflightReport:
    """The report of a set of this repository, with what is in the cache below ``place``."""
    entry = {
        "id": "pictures",
        "type": "huggingface",
        "dataset_name": REPO,
        "metadata_backend": "huggingface",
        "caption_strategy": "huggingface",
        "cache_dir_vae": str(place / "cache/vae"),
        **fields,
    }
    home = Home(place) if roots is None else Home(place, roots=roots)
    home.config.mkdir(exist_ok=True)
    options = tiny_options(place, num_train_epochs=1, max_train_steps=0)
    Path(options["data_backend_config"]).write_text(json.dumps([entry]))
    variables = {"CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(place / "hf"), "HF_ENDPOINT": address, "HF_TOKEN": token}
    variables |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    return examine_run(resolve_run(home, {}, {f"--{name}": value for name, value in options.items()}), home, variables)


def about_data(report: PreflightReport) -> list[tuple[str, str, Level]]:
    return [
        (problem.option.removeprefix("dataloader[0]."), problem.code, problem.level)
        for problem in report.problems
        if problem.option.startswith("dataloader[0]")
    ]


def refusal(report: PreflightReport) -> Problem:
    [problem] = [problem for problem in report.errors if problem.option.startswith("dataloader")]
    return problem


def test_a_set_on_the_hub_is_a_note_and_nothing_is_downloaded(hub: DatasetHub, tmp_path: Path) -> None:
    report = validated(tmp_path, hub.url)
    assert report.errors == [] and about_data(report) == [("dataset_name", "fetched_at_start", Level.NOTE)]
    assert report.understood["datasets"][0]["usable"] == 0
    assert not (tmp_path / "hf").exists()
    assert hub.sent_bytes < 20_000 and len(hub.asked) == 3, "the files, the card and the end of one shard"


@pytest.mark.parametrize(
    ("fields", "field", "code"),
    [
        ({"dataset_name": "nobody/nothing"}, "dataset_name", "dataset_not_found"),
        ({"revision": "v9"}, "revision", "revision_not_found"),
        ({"split": "test"}, "split", "split_not_found"),
        ({"image_column": "picture"}, "image_column", "column_not_found"),
        ({"image_column": "caption", "caption_column": "image"}, "image_column", None),
        ({"caption_column": "text"}, "caption_column", "column_not_found"),
        ({"huggingface": {"filter_func": {"min_width": 5}}}, "huggingface", "column_not_found"),
        ({"huggingface": {"config_name": "big"}}, "huggingface", "configuration_not_found"),
    ],
)
def test_what_the_run_would_refuse_is_refused_before(
    hub: DatasetHub, tmp_path: Path, fields: dict[str, Any], field: str, code: str | None
) -> None:
    report = validated(tmp_path, hub.url, **fields)
    if code is None:
        assert not report.errors, "a column of texts may hold paths"
        return
    problem = refusal(report)
    assert (problem.option, problem.code) == (f"dataloader[0].{field}", code)
    if code == "column_not_found":
        assert problem.expected == "one of caption, image"


@pytest.mark.parametrize("damage", [b"\xff" * 12, b"\0" * 12, b"\x15\x04\x19\xff\xff\xff\xff"])
def test_a_table_with_a_broken_end_is_left_to_the_run(hub: DatasetHub, tmp_path: Path, damage: bytes) -> None:
    """The hub has answered: that its file is damaged must not be taken for a hub that does not answer."""
    whole = shard(rows(4))
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    hub.repo(REPO, {"data/train-00000-of-00001.parquet": whole[:start] + damage + whole[start + len(damage) :]})
    assert about_data(validated(tmp_path, hub.url)) == [("dataset_name", "fetched_at_start", Level.NOTE)]


def test_gated_and_private_sets_need_the_token(hub: DatasetHub, tmp_path: Path) -> None:
    hub.repos[REPO].is_gated = True
    gated = refusal(validated(tmp_path, hub.url))
    assert gated.code == "dataset_gated" and "HF_TOKEN" in gated.hint
    hub.repos[REPO].is_private = True
    assert refusal(validated(tmp_path, hub.url)).code == "dataset_not_found"
    assert validated(tmp_path, hub.url, token=TOKEN).errors == []


def test_other_formats_are_refused_unless_the_hub_has_a_copy(hub: DatasetHub, tmp_path: Path) -> None:
    repo = hub.repo(REPO, {"pictures.py": b"raise SystemExit"})
    assert refusal(validated(tmp_path, hub.url)).code == "loading_script"
    repo.commit({"default/train/0000.parquet": shard(rows(2))}, "refs/convert/parquet")
    assert validated(tmp_path, hub.url).errors == []
    hub.repo(REPO, {"train-0000.tar": b"x"})
    assert refusal(validated(tmp_path, hub.url)).code == "other_format"


def test_without_the_hub_it_is_unknown_and_a_note(hub: DatasetHub, tmp_path: Path) -> None:
    assert about_data(validated(tmp_path, "http://127.0.0.1:9")) == [
        ("dataset_name", "hub_not_reached", Level.NOTE),
        ("dataset_name", "fetched_at_start", Level.NOTE),
    ]


@pytest.mark.parametrize("behaviour", OTHER_ANSWERS)
def test_what_is_no_hub_is_a_note(behaviour: str, hub: DatasetHub, tmp_path: Path) -> None:
    with broken_hub(OTHER_ANSWERS[behaviour]) as broken:
        report = validated(tmp_path, broken.url)
    assert about_data(report)[0] == ("dataset_name", "hub_not_reached", Level.NOTE)


def test_a_silent_hub_does_not_hold_validate_up(hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer_engine.datasets.sources.hub.questions.ANSWER_SECONDS", 0.3)
    with silent_hub() as silent:
        began = time.monotonic()
        report = validated(tmp_path, silent.url)
        assert time.monotonic() - began < 20
    assert ("dataset_name", "hub_not_reached", Level.NOTE) in about_data(report)


def test_no_server_is_asked_after_the_time_is_over(hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.preflight.remote_data.ASKING_SECONDS", 0.0)
    assert about_data(validated(tmp_path, hub.url)) == [("dataset_name", "fetched_at_start", Level.NOTE)]
    assert hub.asked == []


def test_offline_is_an_error_as_in_the_run(hub: DatasetHub, tmp_path: Path) -> None:
    assert refusal(validated(tmp_path, hub.url, offline=True)).code == "dataset_not_cached" and hub.asked == []


def test_a_folder_in_the_layout_of_the_hub_is_scanned_at_once(hub: DatasetHub, tmp_path: Path) -> None:
    write(tmp_path / "mine", {"README.md": b"# Mine", **shards(1, rows(4))})
    for place in ("mine", str(tmp_path / "mine"), "./mine", "mine/data/train-00000-of-00001.parquet"):
        report = validated(tmp_path, hub.url, dataset_name=place)
        assert report.errors == [] and report.understood["datasets"][0]["usable"] == 4
    assert hub.asked == []


def test_a_large_set_is_measured_when_the_run_starts(hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer_engine.datasets.examine.MOST_MEASURED_BYTES", 1_000)
    write(tmp_path / "mine", shards(1, rows(8)))
    write(tmp_path / "sized", shards(1, rows(8, width=[96] * 8, height=[96] * 8)))
    report = validated(tmp_path, hub.url, dataset_name="mine")
    assert report.errors == [] and ("dataset_name", "measured_at_start", Level.NOTE) in about_data(report)
    assert refusal(validated(tmp_path, hub.url, dataset_name="mine", image_column="x")).code == "column_not_found"
    sized = validated(tmp_path, hub.url, dataset_name="sized")
    assert sized.understood["datasets"][0]["usable"] == 8


def test_results_of_a_run_may_not_lie_in_its_data_set(hub: DatasetHub, tmp_path: Path) -> None:
    write(tmp_path, {"data.parquet": shard(rows(4))})
    report = validated(tmp_path, hub.url, dataset_name=str(tmp_path))
    assert ("output_dir", "among_images") in [(problem.option, problem.code) for problem in report.errors]


def test_a_path_must_exist_and_lie_in_the_roots(hub: DatasetHub, tmp_path: Path) -> None:
    place, outside = tmp_path / "home", tmp_path / "outside"
    place.mkdir()
    write(outside, shards(1, rows(4)))
    assert refusal(validated(place, hub.url, roots=(), dataset_name=str(outside))).code == "outside_roots"
    assert refusal(validated(place, hub.url, dataset_name="./gone")).code == "not_found"
    assert refusal(validated(place, hub.url, dataset_name="a/b/c")).code == "not_found"


def test_a_path_in_a_row_leads_to_no_foreign_file(hub: DatasetHub, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(1))
    cells = [
        {"image": path, "caption": "x"} for path in ("../secret.png", str(tmp_path / "secret.png"), "linked.png", "good.png", "gone.png")
    ]
    folder = write(tmp_path / "mine", {"rows.parquet": shard(cells), "good.png": png(2)})
    (folder / "linked.png").symlink_to(tmp_path / "secret.png")
    report = validated(tmp_path, hub.url, dataset_name=str(folder))
    [found] = report.understood["datasets"]
    assert found["usable"] == 1
    reasons = {entry["path"]: entry["reason"] for entry in found["left_out"]}
    assert [reasons[f"rows/00000{row}.png"] for row in range(3)] == ["it cannot be read: it leads out of the dataset"] * 3
    assert reasons["rows/000004.png"] == "it cannot be read: no such file or directory"


def downloads(report: PreflightReport) -> int:
    """The bytes of downloaded files in the estimate of the disks."""
    systems = report.understood["disk"]["file_systems"]
    return sum(one["bytes"] for one in systems if "the downloaded files" in one["what"])


def test_what_a_run_downloads_is_part_of_the_disk_that_it_needs(hub: DatasetHub, tmp_path: Path) -> None:
    content = shards(2, rows(4), rows(4, first=4))
    report = validated(tmp_path, hub.url)
    padded = {name: data + bytes(1 << 20) for name, data in content.items()}
    hub.repo(REPO, {"README.md": b"# Pictures", **padded, "other.bin": bytes(1 << 22)})
    larger = validated(tmp_path, hub.url)
    assert downloads(larger) - downloads(report) == 2 << 20, "the shards of the split, and no other file"
    folder = tmp_path / "hf/hub/datasets--owner--pictures/snapshots" / hub.repos[REPO].branches["main"]
    name = sorted(content)[0]
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(content[name])
    again = validated(tmp_path, hub.url)
    assert downloads(larger) - downloads(again) == len(content[name]) + (1 << 20), "what is in the cache is there"


def test_a_download_that_no_disk_has_room_for_is_named(hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.preflight import disk

    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 10})())
    named = [problem for problem in validated(tmp_path, hub.url).problems if problem.code == "disk_too_small"]
    assert named and f"the downloaded files of {REPO}" in named[0].message
