"""Datasets of the hub, against a hub on loopback in the real layout: listed, trained on, moved, resumed, broken."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.caches import state_of
from tests.helpers.checked_runs import checked, codes
from tests.helpers.dataset_hub import TOKEN, DatasetHub, dataset_hub, png, rows, shard, shards, speak_to, write
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import HereRun, fork_run, tiny_options, train_here, write_job
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import DatasetUnusable, ExitCode, Problem, errors_in
from trainer_engine.contract.events import StageEvent, StageKey
from trainer_engine.datasets.examine import examine, fetch_datasets
from trainer_engine.datasets.report import DatasetReport
from trainer_engine.datasets.sources.base import Fetching, open_source
from trainer_engine.runtime.control import Stopped

REPO = "owner/pictures"
CARD = b"---\nlicense: mit\n---\n# Pictures\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatasetHub]:
    """A hub whose data set has two shards of four rows; this process speaks to it, and caches below ``hf``."""
    with dataset_hub() as running:
        running.repo(REPO, {"README.md": CARD, **shards(2, rows(4), rows(4, first=4))})
        speak_to(running, tmp_path / "hf", monkeypatch)
        yield running


def entry(place: Path, **fields: Any) -> dict[str, Any]:
    """The image set, with captions from its column."""
    made = {
        "id": "pictures",
        "type": "huggingface",
        "dataset_name": REPO,
        "metadata_backend": "huggingface",
        "caption_strategy": "huggingface",
        "cache_dir_vae": str(place / "cache/vae"),
        **fields,
    }
    return {name: value for name, value in made.items() if value is not None}


def texts(place: Path) -> dict[str, Any]:
    return {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": str(place / "cache/text")}


def datasets(place: Path, **fields: Any) -> list[dict[str, Any]]:
    return [entry(place, **fields), texts(place)]


def examined(place: Path, *, family: str = "pixart_sigma", **fields: Any) -> DatasetReport:
    """What training would see, after everything was fetched."""
    options = parse_options(tiny_options(place, model="nobody/nothing", model_family=family, train_batch_size=1))
    dataloader, problems = parse_dataloader(datasets(place, **fields), options)
    assert errors_in(problems) == []
    spec = find_spec(family)
    assert spec is not None
    fetch_datasets(dataloader, spec, Fetching(lambda done, total: None, lambda: None))
    return examine(dataloader, options, spec)


def refused(place: Path, **fields: Any) -> Problem:
    """The only error of a set that cannot be fetched or examined."""
    try:
        problems = errors_in(examined(place, **fields).problems)
    except DatasetUnusable as error:
        problems = list(error.problems)
    [problem] = problems
    return problem


def names(report: DatasetReport) -> list[str]:
    return [sample.name for sample in report.sets[0].samples]


def cached_files(place: Path) -> dict[str, bytes]:
    return state_of(place / "cache")


def run(place: Path, *, stop_after: int | None = None, **fields: Any) -> HereRun:
    return train_here(place, datasets=datasets(place, **fields), stop_after=stop_after)


def test_rows_are_listed_by_shard_and_number_with_their_captions(hub: DatasetHub, tmp_path: Path) -> None:
    report = examined(tmp_path)
    assert names(report) == [f"train-0000{number // 4}/00000{number % 4}.png" for number in range(8)]
    assert [sample.captions for sample in report.sets[0].samples][5] == ("a picture, number 5",)
    commit = hub.repos[REPO].branches["main"]
    assert all(commit in str(sample.version) and commit in sample.location for sample in report.sets[0].samples)
    assert {(sample.width, sample.height) for sample in report.sets[0].samples} == {(96, 96)}


def test_a_run_trains_on_a_data_set_of_the_hub_and_copies_no_image(hub: DatasetHub, tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.code == 0 and done.step == 4
    stages = [event for event in done.heard.of(StageEvent) if event.key is StageKey.DATA_BACKEND]
    assert stages[-1].status.value == "completed"
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".jpg")]
    assert sorted(set(hub.fetched())) == ["README.md", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]


def test_a_second_run_downloads_nothing_and_works_without_the_hub(hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, sent = run(tmp_path), hub.sent_bytes
    shutil.rmtree(tmp_path / "output")
    before = cached_files(tmp_path)
    again = run(tmp_path)
    assert len(hub.fetched()) == 3 and hub.sent_bytes - sent < 2_000, "only the revision is asked for"
    shutil.rmtree(tmp_path / "output")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.asked)
    offline = run(tmp_path)
    shutil.rmtree(tmp_path / "output")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    away = run(tmp_path)
    assert len(hub.asked) == asked and cached_files(tmp_path) == before
    assert first.weights() == again.weights() == offline.weights() == away.weights()


def test_a_resumed_run_equals_the_straight_one(hub: DatasetHub, tmp_path: Path) -> None:
    assert assert_resumes_exactly(tmp_path, datasets=datasets(tmp_path)).step == 4


def test_a_set_that_moves_from_a_folder_to_the_hub_keeps_its_cache_entries(hub: DatasetHub, tmp_path: Path) -> None:
    folder = write(tmp_path / "images", {f"{number}.png": png(number) for number in range(8)})
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"a picture, number {number}")
    local = {"id": "pictures", "type": "local", "instance_data_dir": str(folder), "caption_strategy": "textfile", "crop": True}
    train_here(tmp_path, datasets=[{**local, "cache_dir_vae": str(tmp_path / "cache/vae")}, texts(tmp_path)])
    before = cached_files(tmp_path)
    shutil.rmtree(tmp_path / "output")
    shutil.rmtree(folder)
    moved = run(tmp_path, crop=True, crop_style="center")
    assert moved.code == 0 and before and cached_files(tmp_path) == before


def test_two_revisions_are_two_addresses_and_share_equal_images(hub: DatasetHub, tmp_path: Path) -> None:
    repo = hub.repos[REPO]
    old = repo.branches["main"]
    changed = rows(4)
    changed[0]["image"]["bytes"] = png(77)
    new = repo.commit({"README.md": CARD, **shards(2, changed, rows(4, first=4))}, branch="next")
    first, second = examined(tmp_path), examined(tmp_path, revision="next")
    assert names(first) == names(second)
    pairs = list(zip(first.sets[0].samples, second.sets[0].samples, strict=True))
    assert all(old in one.location and new in two.location and one.version != two.version for one, two in pairs)
    contents = [(one.source.sha256(one.name), two.source.sha256(two.name)) for one, two in pairs]
    assert [one == two for one, two in contents] == [False] + [True] * 7
    assert names(examined(tmp_path, revision=old)) == names(first), "a commit is a revision too"


def test_a_branch_that_moved_is_fetched_and_its_new_rows_are_seen(hub: DatasetHub, tmp_path: Path) -> None:
    assert len(names(examined(tmp_path))) == 8
    hub.repos[REPO].commit({"README.md": CARD, **shards(2, rows(4), rows(6, first=4))})
    assert len(names(examined(tmp_path))) == 10
    assert hub.fetched().count("data/train-00000-of-00002.parquet") == 1, "an unchanged shard is not sent again"


def test_the_split_of_the_entry_is_read(hub: DatasetHub, tmp_path: Path) -> None:
    hub.repo(REPO, {**shards(1, rows(3)), **shards(1, rows(2), split="holdout")})
    assert names(examined(tmp_path, split="holdout")) == ["holdout-00000/000000.png", "holdout-00000/000001.png"]
    problem = refused(tmp_path, split="test")
    assert (problem.option, problem.code) == ("dataloader[0].split", "split_not_found")
    assert problem.expected == "one of holdout, train"


def test_a_private_or_gated_data_set_needs_the_token(hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[REPO].is_private = True
    assert refused(tmp_path).code == "dataset_not_found"
    hub.repos[REPO].is_private, hub.repos[REPO].is_gated = False, True
    gated = refused(tmp_path)
    assert gated.code == "dataset_gated" and "HF_TOKEN" in gated.hint
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(names(examined(tmp_path))) == 8


@pytest.mark.parametrize(
    ("fields", "option", "code"),
    [
        ({"dataset_name": "nobody/nothing"}, "dataset_name", "dataset_not_found"),
        ({"revision": "v9"}, "revision", "revision_not_found"),
        ({"image_column": "picture"}, "image_column", "column_not_found"),
        ({"image_column": "caption_"}, "image_column", "column_not_found"),
        ({"video_column": "clip"}, "video_column", "column_not_found"),
        ({"image_column": "number"}, "image_column", "wrong_column"),
        ({"caption_column": "text"}, "caption_column", "column_not_found"),
        ({"huggingface": {"config_name": "large"}}, "huggingface", "configuration_not_found"),
        ({"huggingface": {"filter_func": {"collection": ["a"]}}}, "huggingface", "column_not_found"),
    ],
)
def test_what_is_not_there_is_named_with_the_choices(
    hub: DatasetHub, tmp_path: Path, fields: dict[str, Any], option: str, code: str
) -> None:
    hub.repo(REPO, shards(1, rows(3, number=range(3))))
    problem = refused(tmp_path, **fields)
    assert (problem.option, problem.code) == (f"dataloader[0].{option}", code)
    if code in ("column_not_found", "wrong_column"):
        assert "caption" in problem.expected and "caption" in problem.message


def test_offline_names_what_is_not_in_the_cache(hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refused(tmp_path).code == "dataset_not_cached" and hub.asked == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert refused(tmp_path).code == "hub_not_reached"


def test_an_interrupted_download_is_not_taken_for_the_whole(hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examined(tmp_path)
    [snapshot] = (tmp_path / "hf/hub/datasets--owner--pictures/snapshots").iterdir()
    (snapshot / "data/train-00001-of-00002.parquet").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refused(tmp_path).code == "dataset_not_cached"
    shutil.rmtree(snapshot.parent.parent / "trees")
    assert refused(tmp_path).code == "dataset_not_cached", "the name of the first shard says that there are two"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert len(names(examined(tmp_path))) == 8


def test_a_download_goes_on_after_errors_and_broken_connections(hub: DatasetHub, tmp_path: Path) -> None:
    hub.failures, hub.cuts = 2, 1
    assert len(names(examined(tmp_path))) == 8


def test_a_stop_ends_a_download_and_the_next_run_continues(hub: DatasetHub, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train_here(tmp_path, datasets=datasets(tmp_path), asked={0: [Command.STOP]})
    options = parse_options(tiny_options(tmp_path, model="nobody/nothing"))
    dataloader, _ = parse_dataloader(datasets(tmp_path), options)
    seen: list[tuple[int, int]] = []
    spec = find_spec("pixart_sigma")
    assert spec is not None

    def stop() -> None:
        if len(hub.fetched()) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        fetch_datasets(dataloader, spec, Fetching(lambda done, total: seen.append((done, total)), stop))
    assert len(hub.fetched()) == 2 and seen == sorted(seen)
    fetch_datasets(dataloader, spec, Fetching(lambda done, total: seen.append((done, total)), lambda: None))
    assert seen[-1][0] == seen[-1][1]
    with open_source(dataloader.image_sets[0]).open("train-00001/000003.png") as stream:
        assert stream.read() == png(7)


def test_a_data_set_that_is_gone_in_mid_run_is_named(hub: DatasetHub, tmp_path: Path) -> None:
    report = examined(tmp_path)
    [first, *_] = report.sets[0].samples
    fresh = open_source(report.sets[0].entry)
    shutil.rmtree(tmp_path / "hf")
    with pytest.raises(OSError, match="[Nn]o such file"):
        fresh.open(first.name)


def test_rows_without_image_or_caption_and_broken_images_are_left_out_and_named(hub: DatasetHub, tmp_path: Path) -> None:
    cells = rows(6)
    cells[0]["image"] = None
    cells[1]["image"]["bytes"] = None
    cells[2]["image"]["bytes"] = b"no image"
    cells[3]["caption"] = "  "
    cells[4]["image"]["bytes"] = cells[4]["image"]["bytes"][:200]
    hub.repo(REPO, shards(1, cells))
    report = examined(tmp_path)
    assert names(report) == ["train-00000/000005.png"]
    reasons = {file.name: file.reason for file in report.sets[0].left_out}
    assert len(reasons) == 5 and reasons["train-00000/000003.png"] == "its row has no caption in caption"
    assert "nothing in the column image" in reasons["train-00000/000000.jpg"]
    assert all(file.broken for file in report.sets[0].left_out)
    [problem] = [problem for problem in report.problems if problem.code == "files_broken"]
    assert "5 of 6 files are left out" in problem.message


def test_a_shard_that_is_cut_in_half_is_named_and_the_others_are_used(hub: DatasetHub, tmp_path: Path) -> None:
    files = shards(2, rows(4), rows(4, first=4))
    last = "data/train-00001-of-00002.parquet"
    hub.repo(REPO, {**files, last: files[last][: len(files[last]) // 2]})
    report = examined(tmp_path)
    assert len(names(report)) == 4
    [broken] = report.sets[0].left_out
    assert broken.name == last and "not a complete parquet file" in broken.reason
    hub.repo(REPO, {last: files[last][:100]})
    assert refused(tmp_path).option == "dataloader[0].dataset_name"


def test_an_empty_split_is_an_error(hub: DatasetHub, tmp_path: Path) -> None:
    empty = shard(rows(1))
    hub.repo(REPO, {"data/train-00000-of-00001.parquet": empty})
    assert len(names(examined(tmp_path))) == 1
    filtered = refused(tmp_path, huggingface={"filter_func": {"min_width": 5}})
    assert filtered.code == "column_not_found", "there is no column width"
    hub.repo(REPO, shards(1, rows(3, width=[1, 2, 3])))
    assert refused(tmp_path, huggingface={"filter_func": {"min_width": 5}}).code == "no_usable_images"


def test_programs_and_other_formats_of_a_repository_are_refused_by_name(hub: DatasetHub, tmp_path: Path) -> None:
    hub.repo(REPO, {"README.md": CARD, "pictures.py": b"raise SystemExit", "data.zip": b"x"})
    script = refused(tmp_path)
    assert script.code == "loading_script" and "pictures.py" in script.message and "never run" in script.message
    hub.repo(REPO, {"README.md": CARD, "train-0000.tar": b"x"})
    assert refused(tmp_path).code == "other_format" and ".tar" in refused(tmp_path).message
    hub.repo(REPO, {"README.md": CARD})
    assert refused(tmp_path).code == "no_data"


def test_the_hubs_own_copy_in_parquet_is_read_instead(hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.repo(REPO, {"README.md": CARD, "pictures.py": b"raise SystemExit"})
    repo.commit({"default/train/0000.parquet": shard(rows(3)), "default/test/0000.parquet": shard(rows(1))}, "refs/convert/parquet")
    assert names(examined(tmp_path)) == ["0000/000000.png", "0000/000001.png", "0000/000002.png"]
    assert not [name for name in hub.fetched() if name.endswith(".py")]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(names(examined(tmp_path))) == 3


def test_rows_left_out_by_a_filter_are_named_with_the_reason(hub: DatasetHub, tmp_path: Path) -> None:
    cells = rows(
        5,
        quality_assessment=[{"clear": 0.9}, {"clear": 0.2}, {"clear": 0.9}, {"clear": None}, {"clear": 1.0}],
        collection=["photo", "photo", "art", "photo", "photo"],
        width=[96, 96, 96, 96, 10],
        height=[96] * 5,
    )
    hub.repo(REPO, shards(1, cells))
    conditions = {"quality_thresholds": {"clear": 0.5}, "collection": ["photo"], "min_width": 64}
    report = examined(tmp_path, huggingface={"filter_func": conditions})
    assert names(report) == ["train-00000/000000.png"]
    reasons = [file.reason for file in report.sets[0].left_out]
    assert reasons == [
        "its clear of 0.2 is below the threshold 0.5",
        "its collection 'art' is not among those of filter_func",
        "its row does not give the quality clear",
        "its width of 10 is below min_width=64",
    ]
    assert not any(file.broken for file in report.sets[0].left_out)


def test_captions_of_several_columns_lists_and_objects_are_alternatives(hub: DatasetHub, tmp_path: Path) -> None:
    cells = rows(2, tags=[["one", " ", "two"], []], text=[{"short": "brief", "long": None}, {"short": None, "long": "in full"}])
    hub.repo(REPO, shards(1, cells))
    report = examined(tmp_path, caption_column=["text.short", "text.long", "tags"])
    assert [sample.captions for sample in report.sets[0].samples] == [("brief", "one", "two"), ("in full",)]
    nested = examined(tmp_path, huggingface={"caption_column": "text.short"})
    assert [sample.captions for sample in nested.sets[0].samples] == [("brief",)]
    prompted = examined(tmp_path, caption_strategy="instanceprompt", instance_prompt="a domokun")
    assert {sample.captions for sample in prompted.sets[0].samples} == {("a domokun",)}


def test_a_row_without_a_caption_takes_that_of_another_column(hub: DatasetHub, tmp_path: Path) -> None:
    cells = rows(3, text=["first", None, " "], tags=["a", "b, c", None], description=["x", "y", "z"])
    hub.repo(REPO, shards(1, cells))
    report = examined(tmp_path, caption_column="text", fallback_caption_column="tags", huggingface={"description_column": "description"})
    assert [sample.captions for sample in report.sets[0].samples] == [("first",), ("b, c",), ("z",)]
    without = examined(tmp_path, caption_column="text", fallback_caption_column="tags")
    assert names(without) == ["train-00000/000000.png", "train-00000/000001.png"]
    assert [file.reason for file in without.sets[0].left_out] == ["its row has no caption in text or tags"]
    problem = refused(tmp_path, caption_column="text", fallback_caption_column="nowhere")
    assert problem.code == "column_not_found" and "nowhere" in problem.message and "tags" in problem.expected


def test_sizes_are_read_from_the_columns_that_the_entry_names(hub: DatasetHub, tmp_path: Path) -> None:
    cells = rows(2)
    sizes = [(sample.width, sample.height) for sample in examined(tmp_path).sets[0].samples[:2]]
    for row, (width, height) in zip(cells, sizes, strict=True):
        row |= {"w": width, "h": height, "width": 7, "height": 7}
    hub.repo(REPO, shards(1, cells))
    report = examined(tmp_path, huggingface={"width_column": "w", "height_column": "h"})
    assert [(sample.width, sample.height) for sample in report.sets[0].samples] == sizes


def test_validate_scans_what_is_in_the_cache(hub: DatasetHub, tmp_path: Path) -> None:
    examined(tmp_path)
    report = checked(tmp_path, datasets=datasets(tmp_path), hf_home=tmp_path / "hf")
    assert report.errors == []
    [found] = report.understood["datasets"]
    assert (found["folder"], found["usable"], found["files"]) == (REPO, 8, 8)


def test_validate_of_a_resumed_run_compares_rows_up_to_a_limit(hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, stop_after=2)
    given = {"datasets": datasets(tmp_path), "hf_home": tmp_path / "hf", "resume_from_checkpoint": "latest"}
    assert not {"data_changed", "contents_not_compared"} & codes(checked(tmp_path, **given))
    for hashes in (tmp_path / "cache").rglob("hashes.jsonl"):
        hashes.unlink()
    assert not {"data_changed", "contents_not_compared"} & codes(checked(tmp_path, **given))
    monkeypatch.setattr("training.preflight.data.MOST_READ_BYTES", 1_000)
    assert "contents_not_compared" in codes(checked(tmp_path, **given))


@pytest.mark.slow
def test_a_run_as_a_process_downloads_and_ends_at_once_if_it_is_stopped(hub: DatasetHub, tmp_path: Path) -> None:
    variables = hub.variables(tmp_path / "hf")
    done = fork_run(write_job(tmp_path, datasets=datasets(tmp_path), max_train_steps=1), **variables)
    assert done.wait() == 0, done.log()
    assert (tmp_path / "hf/hub/datasets--owner--pictures/refs/main").read_text() == hub.repos[REPO].branches["main"]
    shutil.rmtree(tmp_path / "output")
    shutil.rmtree(tmp_path / "hf")
    hub.failures = 1_000
    stopped = fork_run(write_job(tmp_path, "stopped", datasets=datasets(tmp_path), max_train_steps=1), **variables)
    while not [path for path in hub.asked[-3:] if "/resolve/" in path] or hub.failures == 1_000:
        assert stopped.is_alive(), stopped.log()
        time.sleep(0.05)
    stopped.request(Command.STOP)
    assert stopped.wait() == ExitCode.STOPPED, stopped.log()
