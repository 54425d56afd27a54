"""Objects in a bucket of S3, or of a service that speaks its protocol: R2, Backblaze B2, MinIO and others. They are read in ranges."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, BinaryIO, cast

from trainer_engine.config.addresses import Reach
from trainer_engine.config.option import OptionGroup, option
from trainer_engine.datasets.sources.base import FoundFile, LeftOut, Listing, Source, SourceKind, Suffixes
from trainer_engine.datasets.sources.bucket import Bucket
from trainer_engine.datasets.sources.ranged import RangedFile

if TYPE_CHECKING:
    from trainer_engine.datasets.s3_client import S3Client

LIBRARY = "botocore"
MOST_OBJECTS = 5_000_000
GONE = (404, 412)
"""HTTP statuses of an object that is not there any more, or is another one now."""


class AwsFields(OptionGroup):
    """Fields of datasets in a bucket."""

    aws_bucket_name: str = option(..., "Name of the bucket.")
    aws_data_prefix: str = option("", "Only objects whose names begin with this folder, with all its subfolders. Empty: all objects.")
    aws_endpoint_url: str | None = option(None, "URL of a service other than AWS.")
    aws_region_name: str = option("auto", "Region of the bucket. auto: us-east-1 at AWS, auto elsewhere.")
    aws_access_key_id: str | None = option(None, "Access key. Empty: the bucket is read without one.")
    aws_secret_access_key: str | None = option(None, "Secret key that belongs to aws_access_key_id.")
    aws_session_token: str | None = option(None, "Token of temporary keys.")
    aws_max_pool_connections: int = option(128, "Largest number of connections to the service at once.", ge=1, le=1_000)


@dataclass(frozen=True)
class _Object:
    size_bytes: int
    etag: str


@dataclass(frozen=True)
class AwsSource(Source):
    """The objects of a bucket below a prefix. Names are those of the objects without the prefix."""

    bucket: Bucket
    prefix: str = ""
    """Empty, or ends with a slash."""
    reach: Reach = field(default=Reach(), compare=False)
    _listed: dict[str, _Object] = field(default_factory=dict, repr=False, compare=False)
    """Every object below the prefix, by name, as it was when it was listed."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    _clients: list[S3Client] = field(default_factory=list, repr=False, compare=False)

    @property
    def place(self) -> str:  # type: ignore[override]  # it follows from the bucket
        """An address without secrets: ``s3://bucket/prefix``, with the host of a service other than AWS in front of the bucket."""
        return "s3://" + "/".join(part for part in (self.bucket.host, self.bucket.name, self.prefix.strip("/")) if part)

    def reached_by(self, reach: Reach) -> Source:
        return replace(self, reach=reach, _listed={}, _lock=threading.Lock(), _clients=[])

    def list_files(self, suffixes: Suffixes) -> Listing:
        listing, found = Listing(), dict[str, _Object]()
        for key, size, etag in self._client.objects(self.prefix):
            name = key[len(self.prefix) :]
            if name.endswith("/") or any(part.startswith(".") for part in name.split("/") if part not in ("", ".", "..")):
                continue
            found[name] = _Object(size, etag)
            if len(found) > MOST_OBJECTS:
                raise OSError(f"it lists more than {MOST_OBJECTS} objects")
            _add(name, found[name], suffixes, listing)
        self._listed.clear()
        self._listed.update(found)
        listing.files.sort()
        listing.left_out.sort()
        return listing

    def stat(self, name: str) -> FoundFile:
        found = self._object(name)
        return FoundFile(name, found.size_bytes, _version(found))

    def open(self, name: str) -> BinaryIO:
        found = self._object(name)

        def read_range(start: int, count: int) -> bytes:
            with _of_object(name):
                return self._client.read(f"{self.prefix}{name}", found.etag, start, count)

        return cast(BinaryIO, RangedFile(read_range, found.size_bytes))

    def _object(self, name: str) -> _Object:
        """Raises FileNotFoundError for an object that was not listed."""
        if not self._listed:
            with _of_object(name):
                return _Object(*self._client.head(f"{self.prefix}{name}"))
        try:
            return self._listed[name]
        except KeyError:
            raise FileNotFoundError(2, "it is not in the bucket", name) from None

    @property
    def _client(self) -> S3Client:
        from trainer_engine.datasets.s3_client import S3Client

        with self._lock:
            if not self._clients:
                self._clients.append(S3Client(self.bucket, self.reach))
            return self._clients[0]


@contextmanager
def _of_object(name: str) -> Iterator[None]:
    """Says that an object is gone, in place of the service's own words."""
    try:
        yield
    except OSError as error:
        if getattr(error, "status", 0) in GONE:
            raise FileNotFoundError(2, "it is gone from the bucket, or was replaced, since it was listed", name) from error
        raise


def _add(name: str, found: _Object, suffixes: Suffixes, listing: Listing) -> None:
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - text, for speed
    if suffix in suffixes.refused:
        listing.left_out.append(LeftOut(name, suffixes.refused[suffix], broken=True))
    elif suffix not in suffixes.usable:
        return
    elif not name.isprintable() or any(part in ("", ".", "..") for part in name.split("/")):
        listing.left_out.append(LeftOut(name, "its name is not that of a file in a folder", broken=True))
    elif found.size_bytes == 0:
        listing.left_out.append(LeftOut(name, "the object is empty (0 bytes)", broken=True))
    else:
        listing.files.append(FoundFile(name, found.size_bytes, _version(found)))


def _version(found: _Object) -> str:
    return f"{found.etag} {found.size_bytes}"


def _open(fields: AwsFields) -> AwsSource:
    """Raises ValueError."""
    if importlib.util.find_spec(LIBRARY) is None:
        raise ValueError(f"type=aws needs {LIBRARY}: pip install '.[aws]'")
    prefix = fields.aws_data_prefix.strip("/")
    bucket = Bucket(
        fields.aws_bucket_name,
        endpoint_url=(fields.aws_endpoint_url or "").rstrip("/"),
        region=fields.aws_region_name,
        access_key=fields.aws_access_key_id or "",
        secret_key=fields.aws_secret_access_key or "",
        session_token=fields.aws_session_token or "",
        most_connections=fields.aws_max_pool_connections,
    )
    return AwsSource(bucket, f"{prefix}/" if prefix else "")


SOURCE = SourceKind(
    name="aws",
    help="a bucket of S3 or of a compatible service.",
    place_field="aws_bucket_name",
    place_noun="bucket",
    fields=AwsFields,
    secrets=("aws_access_key_id", "aws_secret_access_key", "aws_session_token"),
    addresses=("aws_endpoint_url",),
    places=("type", "aws_region_name"),
    open=lambda entry: _open(entry.own(AwsFields)),
)
