"""The cache store writes entries atomically and detects damage."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from trainer_engine.caches.packing import pack
from trainer_engine.caches.store import SCHEMA, CacheStore, InMemoryCache, address_by, address_of
from trainer_engine.caches.writer import GroupWriter
from trainer_engine.contract.errors import DiskFull
from trainer_engine.datasets.shards import older

ENTRY = {
    "latents": torch.arange(24.0).view(2, 3, 4),
    "mask": torch.tensor([1, 0], dtype=torch.int64),
    "half": torch.ones(3, dtype=torch.bfloat16),
}
ADDRESS, OTHER = (address_of("test", number=number) for number in (1, 2))


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


def test_many_entries_are_written_together(store: CacheStore) -> None:
    addresses = [address_of("test", number=number) for number in range(60)]
    store.put_all(dict.fromkeys(addresses, ENTRY))
    assert all(store.holds(address) for address in addresses)
    assert sorted(path.suffix for path in (store.folder / "shards").iterdir()) == [".index", ".shard"]


KILLED = """
import sys, torch
from pathlib import Path
from typing import Any
from trainer_engine.caches.store import CacheStore, address_of
store, number = CacheStore(Path(sys.argv[1])), 0
print("ready", flush=True)
while True:
    store.put(address_of("test", number=number), {"latents": torch.full((64, 64), float(number))})
    number += 1
"""


@pytest.mark.slow
def test_process_killed_while_writing_leaves_only_complete_entries(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    store, number = CacheStore(tmp_path), 0
    while store.get(address_of("test", number=20)) is None:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    while (entry := store.get(address_of("test", number=number))) is not None:
        assert bool((entry["latents"] == number).all())
        number += 1
    assert number > 20
    store.put(address_of("test", number=-1), ENTRY)
    again = CacheStore(tmp_path)
    assert all(again.holds(address_of("test", number=one)) for one in range(-1, number))
    assert len(list((tmp_path / "shards").iterdir())) == 2, "the next writer goes on with the same shard"


def test_failed_write_leaves_nothing_of_its_entries(store: CacheStore) -> None:
    store.put(OTHER, ENTRY)
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            store.put(ADDRESS, {"latents": torch.zeros(64, 64)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    for one in (store, CacheStore(store.folder)):
        assert not one.holds(ADDRESS) and same(one.get(OTHER))
    store.put(ADDRESS, ENTRY)
    assert same(CacheStore(store.folder).get(ADDRESS))


def test_full_disk_is_an_error_that_names_the_folder(store: CacheStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store.put(OTHER, ENTRY)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DiskFull, match=str(store.folder)):
        store.put(ADDRESS, ENTRY)
    with pytest.raises(DiskFull, match=str(store.folder)):
        CacheStore(store.folder).note_use([ADDRESS], kind="latents")
    monkeypatch.undo()
    again = CacheStore(store.folder)
    assert not again.holds(ADDRESS) and same(again.get(OTHER))


def old_entry(store: CacheStore, *, fields: bool = True) -> Path:
    """``ENTRY`` under ``ADDRESS`` in a file, as versions before shards wrote it; the oldest had no digest of the fields."""
    content = save(ENTRY)
    length = int.from_bytes(content[:8], "little")
    digests = {older.CONTENT: hashlib.sha256(content[8 + length :]).hexdigest()}
    if fields:
        digests[older.FIELDS] = older.digest_of_fields(json.loads(content[8 : 8 + length]))
    path = older.entry_path(store.folder, ADDRESS)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(ENTRY, path, metadata=digests)
    return path


@pytest.mark.parametrize("fields", [True, False])
def test_an_entry_of_an_older_version_is_read(store: CacheStore, fields: bool) -> None:
    path = old_entry(store, fields=fields)
    assert store.holds(ADDRESS) and same(store.get(ADDRESS))
    assert path.exists() and not (store.folder / "shards").exists()


def test_no_flipped_bit_of_an_old_entry_goes_unnoticed(store: CacheStore) -> None:
    """Of the header as well: a tensor under another name, or with another shape, is damage too."""
    path = old_entry(store)
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1 << position % 8]) + content[position + 1 :])
        assert store.holds(ADDRESS) in (True, False)
        found = store.get(ADDRESS)
        assert found is None or same(found), position
    assert len(list((store.folder / older.QUARANTINE).iterdir())) > 100


def test_a_damaged_old_entry_is_replaced_by_one_in_a_shard(store: CacheStore) -> None:
    path = old_entry(store)
    os.truncate(path, 200)
    assert not store.holds(ADDRESS) and store.get(ADDRESS) is None and not path.exists()
    store.put(ADDRESS, ENTRY)
    assert same(store.get(ADDRESS)) and not path.exists()


def test_foreign_safetensors_file_is_not_trusted(store: CacheStore) -> None:
    save_file(ENTRY, old_entry(store))
    assert store.get(ADDRESS) is None


@pytest.mark.parametrize(
    "header",
    [b"{}", b"[]", b'{"a": 1}', b'{"a": {"data_offsets": 3}}', b'{"a": {"data_offsets": []}}', b"[" * 100_000, b'{"__metadata__": []}'],
    ids=lambda header: header[:30].decode(),
)
def test_an_old_entry_with_a_header_of_something_else_is_damaged(store: CacheStore, header: bytes) -> None:
    path = old_entry(store)
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    assert not store.holds(ADDRESS) and store.get(ADDRESS) is None
    assert not path.exists() and len(list((store.folder / older.QUARANTINE).iterdir())) == 1


def test_threads_that_read_a_damaged_old_entry_quarantine_it_once(store: CacheStore) -> None:
    path = old_entry(store)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(store.get, [ADDRESS] * 8)) == [None] * 8
    assert len(list((store.folder / older.QUARANTINE).iterdir())) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64])
def test_a_compressed_entry_is_smaller_and_has_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    """Rows that repeat, as those of padded prompts nearly do, with odd numbers of rows and bytes around them."""
    rows = torch.randn(9, 1000).repeat_interleave(57, dim=0)[:511].to(dtype)
    entry = {"embeds": rows, "pooled": torch.randn(7).to(dtype), "mask": torch.tensor(3, dtype=torch.uint8)}
    plain, small = CacheStore(tmp_path / "plain"), CacheStore(tmp_path / "small", compress=True)
    for one in (plain, small):
        one.put(ADDRESS, entry)
        found = CacheStore(one.folder).get(ADDRESS)
        assert found is not None and found.keys() == entry.keys()
        assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in entry.items())
    sizes = [sum(path.stat().st_size for path in (one.folder / "shards").iterdir()) for one in (plain, small)]
    assert sizes[1] < sizes[0] / 5


def test_an_entry_that_compresses_badly_is_stored_as_it_is() -> None:
    noise = {"latents": torch.randint(0, 255, (1 << 17,), dtype=torch.uint8)}
    assert pack(save(noise), noise) is None
    assert pack(save(ENTRY), ENTRY) is None, "and so is a small one"


def test_memory_never_holds_more_than_its_limit_whatever_threads_keep() -> None:
    cache = InMemoryCache(limit_bytes=10 * 16)
    entries = {str(number): {"x": torch.full((4,), float(number))} for number in range(40)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda address: cache.keep(address, entries[address]), [*entries, *reversed(entries)]))
    held = [address for address in entries if cache.get(address) is not None]
    assert len(held) == 10 and cache.held_bytes == 160
    assert all(cache.get(address) is entries[address] for address in held)


def test_an_error_of_the_disk_reaches_the_encoder_and_ends_the_writer(store: CacheStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(entries: object, writer: object) -> None:
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


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.text(), st.dictionaries(st.sampled_from(["a", "b", "image", "window", "Zoë"]), JSON_VALUES))
def test_an_address_is_the_hash_of_the_canonical_json_of_everything(kind: str, made_from: dict[str, Any]) -> None:
    canonical = json.dumps({"kind": kind, "schema": SCHEMA, **made_from}, sort_keys=True, separators=(",", ":"))
    assert address_of(kind, **made_from) == hashlib.sha256(canonical.encode()).hexdigest()


VARYING = st.sampled_from(["a", "image", "kind of it", "schema of it", "prompt", "zoo", "é", "\n"])


@given(
    VARYING,
    st.text(),
    st.dictionaries(st.sampled_from(["A", "b", "j", "window", "Zoë", "ü"]), JSON_VALUES),
    st.lists(st.text(), min_size=1),
)
def test_addresses_by_one_text_are_the_addresses_of_everything(
    varying: str, kind: str, made_from: dict[str, Any], texts: list[str]
) -> None:
    address = address_by(varying, kind, **made_from)
    assert list(map(address, texts)) == [address_of(kind, **{**made_from, varying: text}) for text in texts]


def test_addresses_are_those_of_earlier_versions() -> None:
    made_from = {"image": "ab", "resized": [70, 64], "target": [64, 64], "window": [3, 0], "pixels": "sRGB 2", "encoder": "é"}
    assert address_of("latents", **made_from) == "5c076af674cfd95e5b04701f0d055c9f429c12d457110b4fc3f54fb66e2371c2"
