"""Where objects lie, and how they are asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Bucket:
    """A bucket of S3, or of a service that speaks its protocol. Raises ValueError for settings that no service takes."""

    name: str
    endpoint_url: str = ""
    """Without a slash at its end; empty for AWS."""
    region: str = "auto"
    access_key: str = field(default="", repr=False, compare=False)
    """Empty for a bucket that is read without keys."""
    secret_key: str = field(default="", repr=False, compare=False)
    session_token: str = field(default="", repr=False, compare=False)
    most_connections: int = field(default=128, compare=False)

    def __post_init__(self) -> None:
        if bool(self.access_key) != bool(self.secret_key):
            raise ValueError("aws_access_key_id and aws_secret_access_key need each other")
        if self.endpoint_url and not _is_endpoint(self.endpoint_url):
            raise ValueError("aws_endpoint_url is not a URL that begins with https:// or http:// and ends with its host, port or path")

    @property
    def host(self) -> str:
        """The service as a part of addresses; empty for AWS."""
        return urlsplit(self.endpoint_url).netloc

    @property
    def region_name(self) -> str:
        """The region that requests name: ``auto`` means one at AWS, and is a region of its own elsewhere."""
        return "us-east-1" if self.region == "auto" and not self.endpoint_url else self.region


def _is_endpoint(text: str) -> bool:
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and parts.username is None
    except ValueError:
        return False
    return fits and text.isascii() and text.isprintable() and not set(" ?#") & set(text)
