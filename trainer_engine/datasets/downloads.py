"""Downloads the files of a dataset of addresses, each once, and remembers which addresses are dead."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from trainer_engine.config.addresses import AddressRefused, Reach
from trainer_engine.config.secrets import hidden_address
from trainer_engine.datasets.dead_addresses import Failures, NoFile
from trainer_engine.datasets.http_client import HttpClient
from trainer_engine.datasets.media.base import BrokenImage, medium_of
from trainer_engine.datasets.sources.addresses import Address, hash_of
from trainer_engine.datasets.sources.base import Progress, SourceFile, Suffixes, reason_of
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


def download_all(
    addresses: Sequence[Address],
    folder: Path,
    failures: Failures,
    reach: Reach,
    suffixes: Suffixes,
    on_progress: Progress,
    should_stop: Callable[[], bool],
) -> None:
    """Downloads the files of addresses into a folder, several at once, and records the addresses that have none.

    What is complete stays if it is stopped or killed. Raises OSError if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for rest in folder.glob(f"{PART}*"):
        rest.unlink()
    client, done = HttpClient(reach, THREADS), 0
    download = _Download(client, folder, suffixes, should_stop)
    try:
        for address, failure in _in_parallel(addresses, download.file, should_stop):
            if failure:
                failures.add(address.url, failure)
            done += 1
            on_progress("Downloading files", done, len(addresses))
    finally:
        client.close()
        failures.write()


def _in_parallel(
    addresses: Sequence[Address], download: Callable[[Address], NoFile | None], should_stop: Callable[[], bool]
) -> Iterator[tuple[Address, NoFile | None]]:
    """Yields each address with its outcome. Only as many as there are threads wait at a time, so that a stop takes effect at once."""
    left = iter(addresses)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="download") as pool:
        running: dict[Future[NoFile | None], Address] = {pool.submit(download, one): one for one in islice(left, THREADS)}
        while running:
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                address = running.pop(future)
                outcome = future.result()
                if should_stop():
                    continue
                yield address, outcome
                for one in islice(left, 1):
                    running[pool.submit(download, one)] = one


@dataclass(frozen=True)
class _Download:
    client: HttpClient
    folder: Path
    suffixes: Suffixes
    should_stop: Callable[[], bool]

    def file(self, address: Address) -> NoFile | None:
        """Downloads the file of an address. Returns None if it is there, else why it is not. Raises OSError if it cannot be stored."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._try(address)
                return None
            except NoFile as failure:
                if not failure.for_now or attempt == ATTEMPTS or self.should_stop():
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
                if time.monotonic() > until or self.should_stop():
                    raise NoFile(f"it takes longer than {FILE_SECONDS:.0f} s", for_now=True)
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
