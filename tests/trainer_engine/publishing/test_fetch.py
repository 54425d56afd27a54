"""Checkpoints are fetched completely, or refused with a reason and without a partial checkpoint."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkpoint_folder import FILES, WEIGHTS, manifest_of, write_checkpoint
from tests.helpers.object_store import ObjectServer
from tests.helpers.params import first_fast, first_rows_fast
from trainer_engine.config.publishing import PublishTarget, parse_publishing
from trainer_engine.contract.checkpoint_files import list_checkpoints, verify
from trainer_engine.contract.errors import CheckpointUnusable
from trainer_engine.publishing import bring as bringing
from trainer_engine.publishing.base import ProviderError
from trainer_engine.publishing.connect import ConnectionRule, address_of
from trainer_engine.publishing.fetch import fetch_checkpoint
from trainer_engine.publishing.web import WebProvider

EXPECTED = {"model_family": "pixart_sigma", "model_type": "full"}
ADDRESS = "s3://trained/runs/checkpoint-5"


def put(store: ObjectServer, folder: Path, remote: str = "runs/checkpoint-5") -> None:
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        store.put(f"{remote}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def bring(store: ObjectServer, output_dir: Path, address: str = ADDRESS) -> str:
    targets, _ = parse_publishing(store.entry())
    return bringing.bring_checkpoint(address, output_dir, targets, EXPECTED, lambda *_: None)


def refusal(store: ObjectServer, output_dir: Path, address: str = ADDRESS) -> str:
    with pytest.raises(CheckpointUnusable) as refused:
        bring(store, output_dir, address)
    assert list_checkpoints(output_dir) == []
    return refused.value.message


def test_fetch_downloads_a_complete_checkpoint(tmp_path: Path, store: ObjectServer) -> None:
    put(store, write_checkpoint(tmp_path / "far", 5))
    assert bring(store, tmp_path / "here") == "checkpoint-5"
    assert verify(tmp_path / "here/checkpoint-5") == []
    assert bring(store, tmp_path / "here") == "checkpoint-5"  # the same one is there already


def test_fetch_keeps_the_name_of_a_rolling_checkpoint(tmp_path: Path, store: ObjectServer) -> None:
    put(store, write_checkpoint(tmp_path / "far", 5), "runs/checkpoint-5-rolling")
    assert bring(store, tmp_path / "here", f"{ADDRESS}-rolling") == "checkpoint-5-rolling"
    (fetched,) = list_checkpoints(tmp_path / "here")
    assert fetched.is_rolling and verify(fetched.path) == []


def test_fetch_does_not_overwrite_another_checkpoint_of_the_name(tmp_path: Path, store: ObjectServer) -> None:
    put(store, write_checkpoint(tmp_path / "far", 5))
    ours = write_checkpoint(tmp_path / "here", 5, {"training_state.json": b"ours"})
    with pytest.raises(CheckpointUnusable, match="Another checkpoint-5 lies in the output folder"):
        bring(store, tmp_path / "here")
    assert verify(ours) == []


def test_fetch_names_what_is_missing(tmp_path: Path, store: ObjectServer) -> None:
    assert "HTTP 404" in refusal(store, tmp_path / "here")


@pytest.mark.parametrize(
    ("content", "words"),
    first_rows_fast(
        [
            (json.dumps(manifest_of({"../../evil": b"x"}, 5)).encode(), "has no valid list of files"),
            (json.dumps(manifest_of(FILES, 5, model_type="lora")).encode(), "model_type was lora and is full"),
            (json.dumps({**manifest_of({}, 5), "files": {WEIGHTS: {"sha256": "0" * 64, "size": 10**15}}}).encode(), "MB left"),
            (b"<html>", "manifest.json cannot be used"),
            (b"[" * 100_000, "manifest.json cannot be used"),
            (b'{"version": 1, "step": 5}', "has no valid list of files"),
            (json.dumps(manifest_of({"/etc/evil": b"x"}, 5)).encode(), "has no valid list of files"),
            (json.dumps(manifest_of(FILES, 6)).encode(), "holds checkpoint-6"),
            (json.dumps(manifest_of(FILES, 5, model_family="flux")).encode(), "model_family was flux and is pixart_sigma"),
            (b" " * ((16 << 20) + 1), "larger than"),
        ],
        3,
    ),
)
def test_invalid_manifest_is_refused_before_the_download(tmp_path: Path, store: ObjectServer, content: bytes, words: str) -> None:
    put(store, write_checkpoint(tmp_path / "far", 5))
    store.put("runs/checkpoint-5/manifest.json", content)
    assert words in refusal(store, tmp_path / "here")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "name",
    first_fast(
        [
            "run.py",
            "transformer/run.py",
            "transformer/weights.bin",
            "ema/weights.safetensors.py",
            ".bashrc",
            "transformer/../run.py",
            "transformer/diffusion_pytorch_model.safetensors\n",
            "transformer/deeper/config.json",
            "hooks/config.json",
            "pytorch_model.bin",
            "training_state.json/x",
            "config.json",
            "./run.py",
            "x/",
            "run.py ",
            "manifest.json.part",
            "Training_State.json",
        ],
        3,
    ),
)
def test_foreign_file_is_refused_before_the_download(tmp_path: Path, store: ObjectServer, name: str) -> None:
    put(store, write_checkpoint(tmp_path / "far", 5))
    store.put("runs/checkpoint-5/manifest.json", json.dumps(manifest_of({**FILES, name: b"#!/bin/sh"}, 5)).encode())
    message = refusal(store, tmp_path / "here")
    assert "lists files that no checkpoint has" in message or "has no valid list of files" in message
    assert [path for path in (tmp_path / "here").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("state", first_fast([b'{"identity": {"optimizer": "lion"}}', b"[]", b"{}", b"no JSON", b'{"identity": [1]}'], 2))
def test_checkpoint_of_another_run_is_deleted(tmp_path: Path, store: ObjectServer, state: bytes) -> None:
    put(store, write_checkpoint(tmp_path / "far", 5, {**FILES, "training_state.json": state}))
    targets, _ = parse_publishing(store.entry())
    with pytest.raises(CheckpointUnusable):
        bringing.bring_checkpoint(ADDRESS, tmp_path / "here", targets, EXPECTED, lambda *_: None, {"optimizer": "adamw"})
    assert [path for path in (tmp_path / "here").rglob("*") if path.is_file()] == []


def test_checkpoint_of_the_same_identity_is_kept(tmp_path: Path, store: ObjectServer) -> None:
    put(store, write_checkpoint(tmp_path / "far", 5, {**FILES, "training_state.json": b'{"identity": {"optimizer": "adamw"}}'}))
    targets, _ = parse_publishing(store.entry())
    name = bringing.bring_checkpoint(ADDRESS, tmp_path / "here", targets, EXPECTED, lambda *_: None, {"optimizer": "adamw"})
    assert verify(tmp_path / "here" / name) == []


def test_fetch_does_not_write_through_a_linked_hidden_folder(tmp_path: Path, store: ObjectServer) -> None:
    put(store, write_checkpoint(tmp_path / "far", 5))
    (tmp_path / "here").mkdir()
    (tmp_path / "victim").mkdir()
    (tmp_path / "here/.publishing").symlink_to(tmp_path / "victim")
    assert "leads elsewhere" in refusal(store, tmp_path / "here")
    assert list((tmp_path / "victim").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    first_rows_fast(
        [(b"x" * 3000, "hash differs from the manifest"), (b"o" * 3001, "more than the 3000 bytes"), (b"o" * 2999, "ended after 2999")]
    ),
)
def test_damaged_file_is_refused(tmp_path: Path, store: ObjectServer, content: bytes, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bringing, "PAUSES", (0.01,))
    put(store, write_checkpoint(tmp_path / "far", 5))
    store.put("runs/checkpoint-5/optimizer.safetensors", content)
    assert words in refusal(store, tmp_path / "here")


def test_interrupted_download_continues_with_missing_files(tmp_path: Path, store: ObjectServer) -> None:
    put(store, write_checkpoint(tmp_path / "far", 5))
    first, last = f"runs/checkpoint-5/{WEIGHTS}", "runs/checkpoint-5/training_state.json"
    store.client.delete_object(Bucket="trained", Key=last)
    assert "HTTP 404" in refusal(store, tmp_path / "here")
    store.put(last, FILES["training_state.json"])
    store.client.delete_object(Bucket="trained", Key=first)  # brought before
    assert bring(store, tmp_path / "here") == "checkpoint-5"
    assert verify(tmp_path / "here/checkpoint-5") == []


class Quiet(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if "elsewhere" in self.path:
            self.send_response(302)
            self.send_header("Location", self.path.replace("elsewhere/", ""))
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_public_address_needs_no_credentials(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "far/my run", 5)
    with served(tmp_path / "far") as url:
        targets, _ = parse_publishing({"provider": "s3", "bucket": "trained", "public_base_url": url})
        address = f"{url}/my%20run/checkpoint-5"
        assert bringing.bring_checkpoint(address, tmp_path / "here", targets, EXPECTED, lambda *_: None) == "checkpoint-5"
    assert verify(tmp_path / "here/checkpoint-5") == []


def test_web_provider_follows_no_redirects(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "far", 5)
    with served(tmp_path / "far") as url:
        store = WebProvider(PublishTarget("http", endpoint_url=f"{url}/elsewhere"))
        with pytest.raises(ProviderError, match="HTTP 302") as refused:
            fetch_checkpoint(store, "checkpoint-5", tmp_path, EXPECTED, lambda total: lambda count: None)
    assert refused.value.permanent


@pytest.mark.parametrize("host", ["169.254.169.254", "[::ffff:169.254.169.254]", "[fe80::1]"])
def test_metadata_services_are_never_contacted(tmp_path: Path, host: str) -> None:
    store = WebProvider(PublishTarget("http", endpoint_url=f"http://{host}"))
    with pytest.raises(ProviderError, match="never allowed"):
        fetch_checkpoint(store, "checkpoint-5", tmp_path, EXPECTED, lambda total: lambda count: None)


@pytest.mark.parametrize("host", ["10.1.2.3", "[fd00::1]", "100.64.1.1", "[::ffff:192.168.1.1]"])
def test_private_networks_are_closed_unless_the_operator_opens_them(tmp_path: Path, host: str) -> None:
    store = WebProvider(PublishTarget("http", endpoint_url=f"http://{host}"))
    with pytest.raises(ProviderError, match="private network") as refused:
        fetch_checkpoint(store, "checkpoint-5", tmp_path, EXPECTED, lambda total: lambda count: None)
    assert refused.value.permanent
    assert address_of(host.strip("[]"), 80, ConnectionRule(private=True))
