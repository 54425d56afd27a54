"""What the hub's cache and a folder hold of a dataset, and what leads out of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.dataset_hub import png, rows, shard, shards, write
from trainer_engine.config.hub import HubSettings, is_repository
from trainer_engine.datasets.sources.base import NotFetched, WrongField
from trainer_engine.datasets.sources.hub.opening import chosen_in_cache, named_files, open_rows
from trainer_engine.datasets.sources.hub.options import RowOptions
from trainer_engine.datasets.sources.hub.snapshot import (
    cached_commit,
    cached_snapshot,
    folder_snapshot,
    incomplete_shards,
    read_listing,
    repository_folder,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "owner/name"


@pytest.fixture
def hub(tmp_path: Path) -> HubSettings:
    return HubSettings.of({"HF_HOME": str(tmp_path / "hf")})


def cached(hub: HubSettings, files: dict[str, bytes], *, branch: str = "main", listed: dict[str, object] | None = None) -> Path:
    """A snapshot as the hub's library leaves it: links to blobs, a branch, and with ``listed`` its note of all files."""
    folder = repository_folder(hub, REPO)
    for number, (name, content) in enumerate(files.items()):
        blob = folder / "blobs" / f"blob{number}"
        write(folder / "blobs", {blob.name: content})
        link = folder / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    write(folder, {f"refs/{branch}": COMMIT.encode()})
    if listed is not None:
        write(folder, {f"trees/{COMMIT}.json": json.dumps({"format_version": 1, "files": listed}).encode()})
    return folder


def test_a_snapshot_of_another_program_is_read_by_its_links(hub: HubSettings) -> None:
    cached(hub, shards(1, rows(2)))
    snapshot = cached_snapshot(hub, REPO, None)
    assert (snapshot.commit, dict(snapshot.checksums), snapshot.is_complete) == (
        COMMIT,
        {"data/train-00000-of-00001.parquet": "blob0"},
        False,
    )
    _, chosen = chosen_in_cache(REPO, RowOptions(), hub)
    assert chosen.tables == ("data/train-00000-of-00001.parquet",)
    assert COMMIT in str(snapshot.version(chosen.tables[0])) and "blob0" in str(snapshot.version(chosen.tables[0]))


def test_a_listing_says_what_is_missing(hub: HubSettings) -> None:
    files = shards(2, rows(1), rows(1))
    first, second = files
    cached(hub, {first: files[first]}, listed={first: {"size": 1, "blob_id": "a"}, second: {"size": 1, "lfs_sha256": "b", "blob_id": "c"}})
    snapshot = cached_snapshot(hub, REPO, None)
    assert snapshot.is_complete and snapshot.checksums[second] == "b"
    assert snapshot.missing(files) == [second]
    with pytest.raises(NotFetched, match="1 of its files"):
        chosen_in_cache(REPO, RowOptions(), hub)


def test_a_missing_split_is_an_error_only_if_every_file_is_known(hub: HubSettings) -> None:
    files = shards(1, rows(1))
    folder = cached(hub, files)
    with pytest.raises(NotFetched):
        chosen_in_cache(REPO, RowOptions(split="test"), hub)
    write(folder, {f"trees/{COMMIT}.json": json.dumps({"format_version": 1, "files": {name: {"size": 1} for name in files}}).encode()})
    with pytest.raises(WrongField) as error:
        chosen_in_cache(REPO, RowOptions(split="test"), hub)
    assert not isinstance(error.value, NotFetched)


def test_a_card_that_was_not_downloaded_may_say_anything(hub: HubSettings) -> None:
    files = shards(1, rows(1))
    cached(hub, files, listed={"README.md": {"size": 1}, **{name: {"size": 1} for name in files}})
    with pytest.raises(NotFetched, match="README.md"):
        chosen_in_cache(REPO, RowOptions(), hub)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format_version": 2, "files": {}}', b'{"format_version": 1, "files": []}'])
def test_a_listing_that_cannot_be_read_is_none(content: bytes, hub: HubSettings) -> None:
    folder = cached(hub, shards(1, rows(1)))
    write(folder, {f"trees/{COMMIT}.json": content})
    assert read_listing(folder, COMMIT) is None


@pytest.mark.parametrize("revision", ["../../../etc/passwd", "/etc/passwd", "never-fetched"])
def test_a_revision_leads_to_no_other_file(revision: str, hub: HubSettings) -> None:
    cached(hub, shards(1, rows(1)))
    assert cached_commit(hub, REPO, revision) is None
    with pytest.raises(NotFetched):
        cached_snapshot(hub, REPO, revision)


def test_a_branch_file_with_other_content_is_no_commit(hub: HubSettings) -> None:
    folder = cached(hub, shards(1, rows(1)))
    write(folder, {"refs/main": b"../../../../etc"})
    assert cached_commit(hub, REPO, "main") is None
    assert cached_commit(hub, REPO, COMMIT) == COMMIT


def test_nothing_in_the_cache_is_not_fetched(hub: HubSettings) -> None:
    with pytest.raises(NotFetched, match="not in the cache"):
        open_rows(REPO, RowOptions(), hub)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "deep/../../secret.png", "link.png", "folder/secret.png", "a\0b"])
def test_no_name_leads_out_of_a_folder(name: str, tmp_path: Path) -> None:
    write(tmp_path, {"secret.png": png(1), "set/a.png": png(2)})
    (tmp_path / "set/link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "set/folder").symlink_to(tmp_path)
    snapshot = folder_snapshot(str(tmp_path / "set"))
    with pytest.raises(OSError):
        snapshot.open(name)
    assert snapshot.open("a.png").read() == png(2)


def test_a_folder_lists_its_files_without_hidden_folders_and_links_to_folders(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": b"x", "deep/b.png": b"x", ".git/c.png": b"x"})
    (tmp_path / "round").symlink_to(tmp_path)
    assert sorted(folder_snapshot(str(tmp_path)).checksums) == ["a.png", "deep/b.png"]
    with pytest.raises(FileNotFoundError):
        folder_snapshot(str(tmp_path / "gone"))


def test_files_that_rows_name_are_those_of_the_dataset(hub: HubSettings, tmp_path: Path) -> None:
    cells = [{"image": {"bytes": None, "path": path}, "text": "x"} for path in ("images/a.png", "images/gone.png", "../x", None)]
    cached(hub, {"rows.parquet": shard(cells), "images/a.png": png(1)})
    snapshot, chosen = chosen_in_cache(REPO, RowOptions(), hub)
    assert named_files(snapshot, chosen, RowOptions()) == ["images/a.png"]


@pytest.mark.parametrize(
    ("names", "incomplete"),
    [
        ([], False),
        (["rows.parquet"], False),
        (["train-00000-of-00002.parquet"], True),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], False),
        (["data/train-00000-of-00001-a1b2.parquet"], False),
    ],
)
def test_names_of_shards_show_that_some_are_missing(names: list[str], incomplete: bool) -> None:
    assert incomplete_shards(names) is incomplete


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", True),
        ("gpt2", True),
        ("a/b/c", False),
        ("/a/b", False),
        ("./a", False),
        ("a..b/c", False),
        ("a b/c", False),
        ("a--b/c", False),
    ],
)
def test_a_repository_id_is_no_path(text: str, expected: bool) -> None:
    assert is_repository(text) is expected
