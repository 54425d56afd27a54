"""Downloads the files of a dataset of addresses, each once, and remembers which addresses are dead."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from trainer_engine.config.addresses import AddressRefused
from trainer_engine.config.secrets import hidden_address
from trainer_engine.datasets.dead_addresses import Failures, NoFile
from trainer_engine.datasets.http_client import HttpClient
from trainer_engine.datasets.media.base import BrokenImage, medium_of
from trainer_engine.datasets.sources.addresses import Address, hash_of
from trainer_engine.datasets.sources.base import Fetching, SourceFile, Suffixes, reason_of
from trainer_engine.datasets.sources.local import LocalSource

THREADS = 16
ATTEMPTS, PAUSE_SECONDS = 3, 0.5
LARGEST_FILE_BYTES = 1 << 28
FILE_SECONDS = 300.0
"""A download that takes longer is given up, even if bytes arrive."""
BUSY = frozenset((408, 425, 429, 500, 502, 503, 504))
"""HTTP statuses after which an address is asked again."""
PART = ".part-"
SUFFIX_OF_FORMAT = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "AVIF": ".avif"}


class SetTooLarge(Exception):
    """The files of a dataset take more than they may."""


class Allowance:
    """The bytes that the files of a dataset may still take. Every received byte counts, also of files that are given up."""

    def __init__(self, largest: int, taken: int) -> None:
        """``largest``: 0 for no limit."""
        self._left = largest - taken if largest else None
        self._lock = threading.Lock()

    def expect(self, count: int) -> None:
        """Raises SetTooLarge if so many bytes would be too many."""
        if self._left is not None and count > self._left:
            raise SetTooLarge

    def take(self, count: int) -> None:
        """Counts received bytes. Raises SetTooLarge, from then on for every thread."""
        if self._left is None:
            return
        with self._lock:
            self._left -= count
            if self._left < 0:
                raise SetTooLarge


def download_all(
    addresses: Sequence[Address], folder: Path, failures: Failures, suffixes: Suffixes, fetching: Fetching, allowance: Allowance
) -> None:
    """Downloads the files of addresses into a folder, several at once, and records the addresses that have none.

    What is complete stays if it is stopped or killed. Raises OSError if the folder cannot be written, SetTooLarge, Stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for rest in folder.glob(f"{PART}*"):
        rest.unlink()
    client, done = HttpClient(fetching.reach, THREADS), 0
    download = _Download(client, folder, suffixes, allowance, fetching.raise_if_stopped)
    try:
        with closing(_in_parallel(addresses, download.file)) as outcomes:
            for address, failure in outcomes:
                if failure:
                    failures.add(address.url, failure)
                done += 1
                fetching.on_progress(done, len(addresses))
                fetching.raise_if_stopped()
    finally:
        client.close()
        failures.write()


def _in_parallel(addresses: Sequence[Address], download: Callable[[Address], NoFile | None]) -> Generator[tuple[Address, NoFile | None]]:
    """Yields each address with its outcome. Only as many as there are threads wait at a time, so that a stop takes effect at once."""
    left = iter(addresses)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="download") as pool:
        running: dict[Future[NoFile | None], Address] = {pool.submit(download, one): one for one in islice(left, THREADS)}
        while running:
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                address = running.pop(future)
                yield address, future.result()
                for one in islice(left, 1):
                    running[pool.submit(download, one)] = one


@dataclass(frozen=True)
class _Download:
    client: HttpClient
    folder: Path
    suffixes: Suffixes
    allowance: Allowance
    raise_if_stopped: Callable[[], None]

    def file(self, address: Address) -> NoFile | None:
        """Downloads the file of an address. Returns None if it is there, else why it is not. Raises OSError if it cannot be stored."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._try(address)
                return None
            except NoFile as failure:
                self.raise_if_stopped()
                if not failure.for_now or attempt == ATTEMPTS:
                    return failure
            time.sleep(PAUSE_SECONDS * 2**attempt)
        raise AssertionError("the last attempt returns")

    def _try(self, address: Address) -> None:
        """Raises NoFile, and OSError if the file cannot be stored."""
        part = self.folder / f"{PART}{hash_of(address.url)}{address.suffix}"
        try:
            self._receive(address.url, part)
            suffix = address.suffix or self._suffix_of(part)
            named = part.with_name(f"{PART}{hash_of(address.url)}{suffix}")
            part.replace(named)
            part = named
            self._measure(named)
            _move(named, self.folder / f"{address.stem}{suffix}")
        finally:
            part.unlink(missing_ok=True)

    def _receive(self, url: str, part: Path) -> None:
        until = time.monotonic() + FILE_SECONDS
        with part.open("wb") as stream:
            for block in self._blocks(url):
                if stream.tell() + len(block) > LARGEST_FILE_BYTES:
                    raise NoFile(f"it is larger than {LARGEST_FILE_BYTES >> 20} MiB")
                if time.monotonic() > until:
                    raise NoFile(f"it takes longer than {FILE_SECONDS:.0f} s", for_now=True)
                self.raise_if_stopped()
                self.allowance.take(len(block))
                stream.write(block)

    def _blocks(self, url: str) -> Iterator[bytes]:
        """Yields the content at an address. Raises NoFile."""
        try:
            with self.client.stream("GET", url, {"Accept": "image/*,video/*,*/*;q=0.5"}) as answer:
                status = answer.status_code
                if answer.has_redirect_location:
                    raise NoFile(f"it leads to {hidden_address(answer.headers['location'])[:200]}: redirects are not followed")
                if status != 200:
                    raise NoFile(f"it answers HTTP {status}", for_now=status in BUSY)
                kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
                if kind.startswith("text/") or kind in ("application/json", "application/xhtml+xml"):
                    raise NoFile(f"it is {kind[:40]}, not an image")
                self.allowance.expect(_length(answer.headers.get("content-length", "")))
                yield from answer.iter_raw()
        except AddressRefused as error:
            raise NoFile(str(error)) from error
        except OSError as error:
            raise NoFile(reason_of(error), for_now=True) from error

    def _suffix_of(self, part: Path) -> str:
        """Returns the suffix of an image by its content. Raises NoFile."""
        try:
            with Image.open(part, formats=tuple(SUFFIX_OF_FORMAT)) as image:
                suffix = SUFFIX_OF_FORMAT.get(image.format or "", "")
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            suffix = ""
        if suffix not in self.suffixes.usable:
            raise NoFile("it is not an image of a known kind")
        return suffix

    def _measure(self, file: Path) -> None:
        """Raises NoFile for a file that no medium reads."""
        try:
            medium_of(file.name).measure(SourceFile(LocalSource(str(self.folder)), file.name, file.stat().st_size))
        except BrokenImage as error:
            raise NoFile(error.reason) from error


def _length(text: str) -> int:
    """Returns the length that an answer announces; 0 if it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def _move(file: Path, target: Path) -> None:
    """Raises NoFile if something else has the name, OSError if the file cannot be stored."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NoFile("a file has the name of its folder") from None
    if os.path.lexists(target):
        raise NoFile("something else in the folder has its name")
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
    file.replace(target)
