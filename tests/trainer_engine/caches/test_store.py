"""The cache store writes entries atomically and detects damage."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer_engine.caches.store import QUARANTINE, CacheStore, InMemoryCache, address_of
from trainer_engine.caches.writer import GroupWriter
from trainer_engine.contract.errors import DiskFull

ENTRY = {
    "latents": torch.arange(24.0).view(2, 3, 4),
    "mask": torch.tensor([1, 0], dtype=torch.int64),
    "half": torch.ones(3, dtype=torch.bfloat16),
}
ADDRESS = address_of("test", number=1)


@pytest.fixture
def store(tmp_path: Path) -> CacheStore:
    return CacheStore(tmp_path / "cache")


def same(entry: dict[str, torch.Tensor] | None) -> bool:
    return entry is not None and entry.keys() == ENTRY.keys() and all(torch.equal(entry[name], tensor) for name, tensor in ENTRY.items())


def test_get_returns_stored_tensors_in_their_type(store: CacheStore) -> None:
    store.put(ADDRESS, ENTRY)
    assert store.holds(ADDRESS)
    assert same(store.get(ADDRESS))
    assert same(CacheStore(store.folder).get(ADDRESS))


def test_get_returns_none_for_a_missing_entry(store: CacheStore) -> None:
    assert not store.holds(ADDRESS)
    assert store.get(ADDRESS) is None


def test_address_depends_on_every_part_and_not_on_their_order() -> None:
    assert address_of("latents", a=1, b=[2, 3]) == address_of("latents", b=[2, 3], a=1)
    others = [address_of("prompt", a=1, b=[2, 3]), address_of("latents", a=1, b=[3, 2]), address_of("latents", a="1", b=[2, 3])]
    assert address_of("latents", a=1, b=[2, 3]) not in others


@pytest.mark.parametrize("position", [-1, -40, 9, 0])
def test_changed_byte_is_detected_and_the_entry_quarantined(store: CacheStore, position: int) -> None:
    store.put(ADDRESS, ENTRY)
    path = store.path(ADDRESS)
    content = bytearray(path.read_bytes())
    content[position] ^= 0x41
    path.write_bytes(content)
    assert store.get(ADDRESS) is None
    assert not path.exists()
    assert len(list((store.folder / "set_aside").iterdir())) == 1
    store.put(ADDRESS, ENTRY)
    assert same(store.get(ADDRESS))


@pytest.mark.parametrize("length", [0, 5, 60, 200])
def test_truncated_entry_is_not_held(store: CacheStore, length: int) -> None:
    store.put(ADDRESS, ENTRY)
    os.truncate(store.path(ADDRESS), length)
    assert not store.holds(ADDRESS)
    assert store.get(ADDRESS) is None


def test_foreign_safetensors_file_is_not_trusted(store: CacheStore) -> None:
    store.put(ADDRESS, ENTRY)
    save_file(ENTRY, store.path(ADDRESS))
    assert store.get(ADDRESS) is None


def test_many_entries_are_written_together(store: CacheStore) -> None:
    addresses = [address_of("test", number=number) for number in range(60)]
    store.put_all(dict.fromkeys(addresses, ENTRY))
    assert all(store.holds(address) for address in addresses)
    assert not list(store.folder.rglob("*.tmp"))


KILLED = """
import sys, torch
from pathlib import Path
from trainer_engine.caches.store import CacheStore, address_of
store, number = CacheStore(Path(sys.argv[1])), 0
print("ready", flush=True)
while True:
    store.put(address_of("test", number=number), {"latents": torch.full((64, 64), float(number))})
    number += 1
"""


def test_process_killed_while_writing_leaves_only_complete_entries(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    store, number = CacheStore(tmp_path), 0
    while not store.holds(address_of("test", number=20)):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    while store.holds(address_of("test", number=number)):
        entry = store.get(address_of("test", number=number))
        assert entry is not None and bool((entry["latents"] == number).all())
        number += 1
    assert number > 20
    assert not (tmp_path / "set_aside").exists()


def test_failed_write_leaves_no_file(store: CacheStore) -> None:
    folder = store.path(ADDRESS).parent
    folder.mkdir(parents=True)
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            store.put(ADDRESS, {"latents": torch.zeros(64, 64)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(folder.iterdir())
    assert not store.holds(ADDRESS)


def test_full_disk_is_an_error_that_names_the_folder(store: CacheStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DiskFull, match=str(store.folder)):
        store.put(ADDRESS, ENTRY)
    assert not list(store.path(ADDRESS).parent.iterdir())


def test_no_flipped_bit_of_an_entry_goes_unnoticed_or_ends_the_run(store: CacheStore) -> None:
    """Of the header as well: a tensor under another name, or with another shape, is damage too."""
    store.put(ADDRESS, ENTRY)
    path = store.path(ADDRESS)
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1 << position % 8]) + content[position + 1 :])
        assert store.holds(ADDRESS) in (True, False)
        found = store.get(ADDRESS)
        assert found is None or same(found), position
    path.write_bytes(content)
    assert same(store.get(ADDRESS))


@pytest.mark.parametrize(
    "header",
    [b"{}", b"[]", b'{"a": 1}', b'{"a": {"data_offsets": 3}}', b'{"a": {"data_offsets": []}}', b"[" * 100_000, b'{"__metadata__": []}'],
    ids=lambda header: header[:30].decode(),
)
def test_an_entry_with_a_header_of_something_else_is_damaged(store: CacheStore, header: bytes) -> None:
    path = store.path(ADDRESS)
    path.parent.mkdir(parents=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    assert not store.holds(ADDRESS) and store.get(ADDRESS) is None
    assert not path.exists() and len(list((store.folder / QUARANTINE).iterdir())) == 1


def test_an_entry_of_an_older_version_is_read(store: CacheStore) -> None:
    store.put(ADDRESS, ENTRY)
    content = store.path(ADDRESS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(content[8 + length :]).hexdigest()
    save_file(ENTRY, store.path(ADDRESS), metadata={"sha256": digest})
    assert store.holds(ADDRESS) and same(store.get(ADDRESS))


def test_threads_that_read_a_damaged_entry_quarantine_it_once(store: CacheStore) -> None:
    store.put(ADDRESS, ENTRY)
    path = store.path(ADDRESS)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(store.get, [ADDRESS] * 8)) == [None] * 8
    assert len(list((store.folder / QUARANTINE).iterdir())) == 1


def test_memory_never_holds_more_than_its_limit_whatever_threads_keep() -> None:
    cache = InMemoryCache(limit_bytes=10 * 16)
    entries = {str(number): {"x": torch.full((4,), float(number))} for number in range(40)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda address: cache.keep(address, entries[address]), [*entries, *reversed(entries)]))
    held = [address for address in entries if cache.get(address) is not None]
    assert len(held) == 10 and cache.held_bytes == 160
    assert all(cache.get(address) is entries[address] for address in held)


def test_an_error_of_the_disk_reaches_the_encoder_and_ends_the_writer(store: CacheStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(entries: object) -> None:
        raise DiskFull("No space is left.")

    monkeypatch.setattr(store, "put_all", full)
    before = threading.active_count()
    with pytest.raises(DiskFull), GroupWriter(store, 1) as writer:
        writer.add("a", ENTRY)
        writer.add("b", ENTRY)  # waits for the first group
        pytest.fail("the error of the first group was lost")
    assert threading.active_count() == before


def test_an_error_of_the_encoder_does_not_lose_what_was_encoded_before(store: CacheStore) -> None:
    with pytest.raises(RuntimeError, match="encoder"), GroupWriter(store, 100) as writer:
        writer.add(ADDRESS, ENTRY)
        raise RuntimeError("the encoder failed")
    assert same(store.get(ADDRESS))
