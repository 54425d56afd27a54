"""As much of the Hugging Face hub as data sets take: revisions, listings, files by ranges, gated and private repositories."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from tests.helpers.loopback import served_by

TOKEN = "hf_testing"
REPO = r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)"
HALF = 0.5


@dataclass
class DatasetRepo:
    """A repository with its commits."""

    branches: dict[str, str] = field(default_factory=dict)
    """Branch or tag -> commit."""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Commit -> path -> content."""
    is_gated: bool = False
    is_private: bool = False

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Adds a commit with exactly these files, and returns its hash."""
        digest = hashlib.sha1(repr(sorted((name, hashlib.sha1(content).hexdigest()) for name, content in files.items())).encode())
        self.commits[digest.hexdigest()] = dict(files)
        self.branches[branch] = digest.hexdigest()
        return digest.hexdigest()


@dataclass
class DatasetHub:
    """A hub in memory."""

    url: str = ""
    repos: dict[str, DatasetRepo] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""
    sent_bytes: int = 0
    failures: int = 0
    """How many further requests for files are answered with an error."""
    cuts: int = 0
    """How many further files are cut off after half of their bytes."""

    def repo(self, name: str, files: Mapping[str, bytes]) -> DatasetRepo:
        """Adds a repository with one commit."""
        self.repos[name] = DatasetRepo()
        self.repos[name].commit(files)
        return self.repos[name]

    def variables(self, hf_home: Path, **others: str) -> dict[str, str]:
        """Environment of a process that speaks to it."""
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(hf_home), **switches, **others}

    def fetched(self) -> list[str]:
        """The paths of the files that were sent."""
        return [path.rpartition("/resolve/")[2].partition("/")[2] for path in self.asked if path.startswith("GET ") and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: DatasetHub

    def log_message(self, *_: Any) -> None:
        return

    def _answer(self, status: int, content: bytes = b"", *, cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            sent = content[: int(len(content) * HALF)] if cut else content
            self.hub.sent_bytes += len(sent)
            self.wfile.write(sent)
        self.close_connection = cut

    def _json(self, document: object) -> None:
        self._answer(200, json.dumps(document).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        for pattern, answer in (
            (rf"/api/datasets/{REPO}/tree/(?P<revision>.+)", self._tree),
            (rf"/api/datasets/{REPO}/revision/(?P<revision>.+)", self._info),
            (rf"/datasets/{REPO}/resolve/(?P<revision>refs/convert/parquet|[^/]+)/(?P<path>.+)", self._file),
        ):
            found = re.fullmatch(pattern, path)
            if found:
                files = self._files(found["repo"], found["revision"])
                if files is not None:
                    answer(*files, found.groupdict().get("path", ""))
                return
        self._answer(404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a revision and its files; None once a refusal was sent."""
        repo, knows = self.hub.repos.get(name), self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.is_private and not knows):
            self._answer(401, X_Error_Code="RepoNotFound")
            return None
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            self._answer(404, X_Error_Code="RevisionNotFound")
            return None
        if repo.is_gated and not knows and "/resolve/" in self.path:
            self._answer(401, X_Error_Code="GatedRepo")
            return None
        return commit, repo.commits[commit]

    def _info(self, commit: str, files: dict[str, bytes], _: str) -> None:
        sized = "blobs=true" in self.path
        siblings = [{"rfilename": name, **({"size": len(content)} if sized else {})} for name, content in files.items()]
        self._json({"id": "x", "sha": commit, "siblings": siblings, "tags": [], "private": False})

    def _tree(self, _: str, files: dict[str, bytes], __: str) -> None:
        self._json([_facts(name, content) for name, content in files.items()])

    def _file(self, commit: str, files: dict[str, bytes], path: str) -> None:
        content = files.get(path)
        if content is None:
            self._answer(404, X_Error_Code="EntryNotFound")
            return
        if self.hub.failures:
            self.hub.failures -= 1
            self._answer(503)
            return
        headers = {"ETag": f'"{_checksum(path, content)}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        asked = (self.headers.get("Range") or "").removeprefix("bytes=")
        first, _, last = asked.partition("-")
        start = max(0, len(content) - int(last)) if asked and not first else int(first or 0)
        end = int(last) + 1 if first and last else len(content)
        if asked:
            headers["Content_Range"] = f"bytes {start}-{min(end, len(content)) - 1}/{len(content)}"
        cut = self.hub.cuts > 0 and self.command == "GET"
        self.hub.cuts -= cut
        self._answer(206 if asked else 200, content[start:end], cut=cut, **headers)


def _checksum(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith((".parquet", ".png", ".jpg")) else hashlib.sha1(content).hexdigest()


def _facts(path: str, content: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if path.endswith((".parquet", ".png", ".jpg")):
        facts["lfs"] = {"oid": _checksum(path, content), "size": len(content), "pointerSize": 100}
    return facts


@contextmanager
def dataset_hub() -> Iterator[DatasetHub]:
    hub = DatasetHub()
    with served_by(_Handler, hub=hub) as hub.url:
        yield hub


def png(number: int, size: tuple[int, int] = (96, 96)) -> bytes:
    """An image whose colours depend on a number."""
    stream = io.BytesIO()
    image = Image.new("RGB", size, (40 * number % 256, 90, 255 - 30 * number % 256))
    image.paste((200, 200, 20 * number % 256), (8, 8, size[0] // 2, size[1] // 2))
    image.save(stream, "PNG")
    return stream.getvalue()


def rows(count: int, *, first: int = 0, size: tuple[int, int] = (96, 96), **columns: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows as the hub's library writes them: an image as bytes and a path, and a caption."""
    made: list[dict[str, Any]] = []
    for number in range(first, first + count):
        image = {"bytes": png(number, size), "path": f"image_{number}.png"}
        made.append({"image": image, "caption": f"a picture, number {number}", **{name: cells[number] for name, cells in columns.items()}})
    return made


def shard(cells: Sequence[Mapping[str, Any]], *, group: int = 3, **settings: Any) -> bytes:
    """The content of a parquet file with these rows, ``group`` of them in a row group."""
    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(cells)), stream, row_group_size=group, **settings)
    return stream.getvalue()


def shards(count: int, *cells: Sequence[Mapping[str, Any]], split: str = "train") -> dict[str, bytes]:
    """Shards of a split under the names that the hub's library gives them."""
    return {f"data/{split}-{number:05d}-of-{count:05d}.parquet": shard(part) for number, part in enumerate(cells)}


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Writes the files of a repository into a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def speak_to(hub: DatasetHub, hf_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process speak to a hub. Its library has read the environment before, so the switch of tests is turned there too."""
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in hub.variables(hf_home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("trainer_engine.datasets.sources.hub.download.FIRST_WAIT_SECONDS", 0.01)
