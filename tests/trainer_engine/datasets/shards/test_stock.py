"""Caches are counted, verified and cleaned, beside runs that read and write them."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.trainer_engine.datasets.shards.entries import address, content, is_read, only
from trainer_engine.datasets.shards.collect import DAY, collect
from trainer_engine.datasets.shards.folder import SHARDS, ShardFolder
from trainer_engine.datasets.shards.older import QUARANTINE, entry_path
from trainer_engine.datasets.shards.record import ROW_BYTES
from trainer_engine.datasets.shards.shard import INDEX, SHARD
from trainer_engine.datasets.shards.stock import is_cache, stats, verify
from trainer_engine.datasets.shards.uses import HeldUse, hold_use, note_use, remove_unheld, use_lists
from trainer_engine.datasets.shards.writer import Entry, ShardWriter

NOW = 2_000_000_000.0
ROOT = Path(__file__).resolve().parents[4]


def filled(cache: Path, numbers: range, *, days: float, kind: str = "latents", used: bool = True) -> Path:
    """A cache with entries that were last used so many days before ``NOW``."""
    writer = ShardWriter(cache / SHARDS)
    writer.append(Entry(address(number), content(number), 0, int(NOW - days * DAY)) for number in numbers)
    writer.close()
    if used:
        listed = note_use(cache, [address(number).hex() for number in numbers], {"kind": kind, "family": "flux", "model": "one"})
        os.utime(listed, (NOW - days * DAY,) * 2)
    return cache


def numbers_in(cache: Path, most: int = 100) -> set[int]:
    shards = ShardFolder(cache / SHARDS)
    return {number for number in range(most) if is_read(shards, number)}


def old_entry(cache: Path, number: int, *, days: float) -> Path:
    """An entry in a file of its own, as older versions wrote it; its content does not matter here."""
    path = entry_path(cache, address(number).hex())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no safetensors")
    os.utime(path, (NOW - days * DAY,) * 2)
    return path


def test_stats_count_entries_by_kind_family_and_model(tmp_path: Path) -> None:
    filled(tmp_path, range(10), days=3)
    filled(tmp_path, range(10, 15), days=1, kind="prompts")
    filled(tmp_path, range(15, 17), days=9, used=False)
    old_entry(tmp_path, 50, days=30)
    found = stats(tmp_path)
    assert (found.entries, found.files, found.unused) == (18, 3, 3)
    assert (found.oldest, found.newest) == (NOW - 30 * DAY, NOW - DAY)
    assert [(use["kind"], use["family"], use["entries"], use["last_used"]) for use in found.uses] == [
        ("prompts", "flux", 5, NOW - DAY),
        ("latents", "flux", 10, NOW - 3 * DAY),
    ]
    assert found.bytes > sum(len(content(number)) for number in range(17))


def test_a_folder_without_entries_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.safetensors").write_bytes(b"x")
    assert not is_cache(tmp_path) and not is_cache(tmp_path / "nowhere")
    assert stats(tmp_path).entries == 0
    assert is_cache(filled(tmp_path / "cache", range(2), days=0))
    old_entry(tmp_path / "older", 1, days=0)
    assert is_cache(tmp_path / "older")


def test_files_that_no_cache_has_written_stay(tmp_path: Path) -> None:
    """A client chooses the folders of caches, and may choose one with files of the operator."""
    elsewhere = tmp_path / "elsewhere"
    old_entry(elsewhere, 2, days=90)
    cache = tmp_path / "models"
    old_entry(cache, 1, days=90)
    (cache / "zz").symlink_to(elsewhere / address(2).hex()[:2])
    names = (f"me/{'a-model-with-a-long-name-':x<64}.safetensors", f"ab/{'cd' * 32}.safetensors", "set_aside/a.txt")
    foreign = [cache / name for name in names]
    for path in foreign:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"of the operator")
    (cache / "set_aside" / f"{'ab' * 32}.0123abcd").write_bytes(b"damaged")
    (cache / "set_aside/folder").mkdir()
    assert stats(cache).entries == 1 and len(verify(cache).damaged) == 1
    done = collect([cache], unused_days=0, remove_now=True, now=NOW)
    assert all(path.read_bytes() == b"of the operator" for path in foreign) and list(elsewhere.rglob("*.safetensors"))
    assert done.entries == 0 and sorted(path.name for path in (cache / "set_aside").iterdir()) == ["a.txt", "folder"]


def test_the_same_use_is_noted_once_and_a_damaged_list_is_passed_over(tmp_path: Path) -> None:
    one = note_use(tmp_path, ["aa" * 32, "bb" * 32], {"kind": "latents"})
    os.utime(one, (1, 1))
    assert note_use(tmp_path, ["bb" * 32, "aa" * 32, "aa" * 32], {"kind": "latents"}) == one and one.stat().st_mtime > 1
    other = note_use(tmp_path, ["bb" * 32], {"kind": "latents"})
    assert {len(found.addresses) for found in use_lists(tmp_path)} == {1, 2}
    other.write_bytes(other.read_bytes()[:-1] + b"\0")
    assert [len(found.addresses) for found in use_lists(tmp_path)] == [2]


def test_verify_quarantines_what_is_damaged_and_repairs_indexes(tmp_path: Path) -> None:
    filled(tmp_path, range(20), days=1)
    shard, index = only(tmp_path / SHARDS, SHARD), only(tmp_path / SHARDS, INDEX)
    changed = bytearray(shard.read_bytes())
    changed[-3] ^= 8
    shard.write_bytes(changed)
    index.write_bytes(index.read_bytes()[:-ROW_BYTES])
    old_entry(tmp_path, 50, days=1)
    progress: list[tuple[int, int]] = []
    verdict = verify(tmp_path, lambda done, total: progress.append((done, total)))
    assert verdict.damaged == [address(50).hex()] and verdict.entries == 20, "what lies behind the index counts only if it is sound"
    assert progress[-1][0] == progress[-1][1] == verdict.bytes
    index.unlink()
    assert verify(tmp_path).damaged == [address(19).hex()], "without the index it is found by its header"
    assert verify(tmp_path).damaged == [] and index.stat().st_size == 20 * ROW_BYTES
    assert numbers_in(tmp_path) == set(range(19))
    assert len(list((tmp_path / QUARANTINE).iterdir())) == 1


def test_gc_counts_first_and_removes_what_was_not_used_for_so_many_days(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(30), days=40)
    filled(cache, range(20, 40), days=2)
    old, young = old_entry(cache, 60, days=40), old_entry(cache, 61, days=1)
    planned = collect([cache], unused_days=30, now=NOW)
    assert (planned.entries, planned.kept_entries, planned.is_done) == (21, 31, False)
    assert numbers_in(cache) == set(range(40)) and old.exists(), "nothing is removed yet"
    done = collect([cache], unused_days=30, remove_now=True, now=NOW)
    assert (done.entries, done.bytes, done.is_done) == (planned.entries, planned.bytes, True)
    assert numbers_in(cache) == set(range(20, 40)) and not old.exists() and young.exists()
    assert len(list(use_lists(cache))) == 1
    assert len(list((cache / SHARDS).glob(f"*{SHARD}"))) == 1 and stats(cache).entries == 31 == done.kept_entries


def test_gc_keeps_the_entries_that_were_used_last_across_caches(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "one", range(10), days=9), filled(tmp_path / "two", range(10, 20), days=3)
    total = stats(one).bytes + stats(two).bytes
    done = collect([one, two], keep_bytes=stats(two).bytes, remove_now=True, now=NOW)
    assert numbers_in(one) == set() and numbers_in(two) == set(range(10, 20))
    assert done.bytes + done.kept_bytes == total
    assert list((one / SHARDS).iterdir()) == [], "an empty shard is no file"


def test_gc_never_removes_what_was_just_used(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(5), days=0)
    assert collect([cache], unused_days=0, keep_bytes=0, remove_now=True, now=NOW + 60).entries == 0
    assert numbers_in(cache) == set(range(5))


def held_by_a_run(cache: Path, numbers: range, *, days: float) -> HeldUse:
    """A list of a run that lives, whose entries were last read from the disk so many days ago."""
    held = hold_use(cache, [address(number).hex() for number in numbers], {"kind": "latents", "run": "one"})
    os.utime(held.path, (NOW - days * DAY,) * 2)
    return held


def test_gc_never_removes_what_a_run_that_lives_has_noted(tmp_path: Path) -> None:
    """A run that keeps its entries in memory reads them once; it needs them again when it resumes."""
    cache = filled(tmp_path, range(10), days=40, used=False)
    files = [old_entry(cache, number, days=40) for number in (60, 61)]
    held = held_by_a_run(cache, range(4), days=40)
    own = hold_use(cache, [address(60).hex()], {"kind": "prompts"})
    os.utime(own.path, (NOW - 40 * DAY,) * 2)
    for limits in ({"unused_days": 30}, {"keep_bytes": 0}):
        assert collect([cache], **limits, now=NOW).entries == 7
    assert collect([cache], unused_days=30, remove_now=True, now=NOW).kept_entries == 5
    assert numbers_in(cache) == set(range(4)) and [path.exists() for path in files] == [True, False]
    assert held.path.exists() and own.path.exists()
    own.let_go()
    held.let_go()
    assert time.time() - 60 < held.path.stat().st_mtime < NOW - 40 * DAY, "the time of the last use is the end of the run"
    assert collect([cache], unused_days=30, remove_now=True, now=NOW).entries == 5
    assert numbers_in(cache) == set() and not held.path.exists()


def test_gc_sees_the_locks_of_file_systems_that_want_to_write_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS refuses an exclusive lock to a descriptor that only reads, with EBADF."""
    cache = filled(tmp_path, range(3), days=40, used=False)
    held = held_by_a_run(cache, range(3), days=40)
    lock = fcntl.flock

    def as_nfs_does(descriptor: int, how: int) -> None:
        if how & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", as_nfs_does)
    assert collect([cache], unused_days=30, remove_now=True, now=NOW).entries == 0
    held.let_go()


def test_a_list_of_a_run_that_was_killed_is_free(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(3), days=40, used=False)
    code = (
        "import sys, pathlib, time; from trainer_engine.datasets.shards.uses import hold_use;"
        "held = hold_use(pathlib.Path(sys.argv[1]), sys.argv[2:], {}); print('held', flush=True); time.sleep(600)"
    )
    numbers = [address(number).hex() for number in range(3)]
    with subprocess.Popen([sys.executable, "-c", code, str(cache), *numbers], stdout=subprocess.PIPE, cwd=ROOT) as run:
        assert run.stdout is not None and run.stdout.readline() == b"held\n"
        assert collect([cache], unused_days=30, remove_now=True, now=NOW).entries == 0
        run.kill()
        run.wait()
    assert collect([cache], unused_days=30, remove_now=True, now=NOW).entries == 3


def test_gc_leaves_what_a_run_begins_to_read_while_it_cleans(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(5), days=40, used=False)
    other, writer = ShardWriter(cache / SHARDS), ShardWriter(cache / SHARDS)
    other.others_write()  # it has the shard of the first entries now
    writer.append(Entry(address(number), content(number), 0, int(NOW - 40 * DAY)) for number in range(5, 10))
    writer.close()
    other.close()
    assert len(list((cache / SHARDS).glob(f"*{SHARD}"))) == 2
    begun: list[HeldUse] = []
    done = collect(
        [cache], unused_days=30, remove_now=True, now=NOW, on_progress=lambda: begun.append(held_by_a_run(cache, range(10), days=0))
    )
    assert (done.entries, done.busy, done.kept_entries) == (5, 5, 5) and len(numbers_in(cache)) == 5


def test_two_runs_hold_one_list_and_the_last_one_frees_it(tmp_path: Path) -> None:
    one, two = (held_by_a_run(tmp_path, range(3), days=40) for _ in range(2))
    assert one.path == two.path and not remove_unheld(one.path)
    one.let_go()
    assert [found.is_held for found in use_lists(tmp_path)] == [True] and not remove_unheld(one.path)
    two.let_go()
    assert [found.is_held for found in use_lists(tmp_path)] == [False] and remove_unheld(one.path)
    assert list(use_lists(tmp_path)) == [] and not remove_unheld(one.path)


def test_runs_that_begin_at_once_hold_the_list_that_is_there(tmp_path: Path) -> None:
    """Beside a cleaning that removes the list whenever nobody holds it."""
    until, wrong, removed = time.monotonic() + 1.5, list[str](), list[bool]()

    def run() -> None:
        while time.monotonic() < until:
            held = hold_use(tmp_path, ["aa" * 32], {"kind": "latents"})
            if not held.path.exists() or held.path.stat().st_ino != held.inode:
                wrong.append("it holds another list")
            held.let_go()

    def clean() -> None:
        while time.monotonic() < until:
            removed.extend(filter(None, map(remove_unheld, (tmp_path / "uses").glob("*.use"))))

    with ThreadPoolExecutor(5) as pool:
        running = [pool.submit(work) for work in (run, run, run, clean, clean)]
    assert [one.result() for one in running] == [None] * 5
    assert wrong == [] and removed
    assert sorted(path.suffix for path in (tmp_path / "uses").iterdir()) in ([], [".use"])


def test_gc_leaves_a_shard_alone_that_a_run_is_writing_to(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(5), days=40)
    writer = ShardWriter(cache / SHARDS)
    writer.append([Entry(address(5), content(5), 0, int(NOW))])
    done = collect([cache], unused_days=30, remove_now=True, now=NOW)
    assert (done.entries, done.busy, done.kept_entries) == (0, 5, 6) and numbers_in(cache) == set(range(6))
    writer.append([Entry(address(6), content(6), 0, int(NOW))])
    writer.close()
    assert collect([cache], unused_days=30, remove_now=True, now=NOW).entries == 5
    assert numbers_in(cache) == {5, 6}


def test_gc_reclaims_the_room_of_damaged_entries(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(8), days=0)
    shard = only(cache / SHARDS, SHARD)
    changed = bytearray(shard.read_bytes())
    changed[-3] ^= 8
    shard.write_bytes(changed)
    assert verify(cache).damaged == [address(7).hex()]
    collect([cache], unused_days=100, remove_now=True, now=NOW + 60)
    assert not list((cache / SHARDS).glob("*.bad")) and numbers_in(cache) == set(range(7))
    assert verify(cache).entries == 7


def test_a_full_disk_while_cleaning_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled(tmp_path, range(10), days=40)
    filled(cache, range(10, 12), days=1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        collect([cache], unused_days=30, remove_now=True, now=NOW)
    monkeypatch.undo()
    assert numbers_in(cache) == set(range(12))
