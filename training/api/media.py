"""Media files of events. They are served from the run folder and the output folder only."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

from trainer_engine.contract.events import MEDIA_TYPES
from trainer_engine.contract.files import is_file
from training.jobs.results import open_inside
from training.models import Job

VIDEOS = "videos"
ATTACHMENTS = ("images", VIDEOS)
LARGEST_INLINE_BYTES = 8 * 1024 * 1024
"""A larger file of a clip is a link also where media are inline."""
UNKNOWN_TYPE = "application/octet-stream"
LARGEST_PART_BYTES = 4 * 1024 * 1024
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z", re.ASCII)


def locate(file: object, run_dir: Path, output_dir: Path) -> Path | None:
    """The real path of a media file; None if it is gone or outside both folders."""
    if not isinstance(file, str) or not file or "\0" in file:
        return None
    path = (run_dir / file).resolve()
    inside = any(path.is_relative_to(root.resolve()) for root in (run_dir, output_dir))
    return path if inside and is_file(path) else None


def opened(job: Job, entry: dict[str, Any]) -> BinaryIO | None:
    """Opens a media file of an event of this run; None if it is gone or outside the folders of the run."""
    run_dir, output_dir = Path(job.run_dir), Path(job.output_dir)
    path = locate(entry.get("file"), run_dir, output_dir)
    return open_inside(path, run_dir, output_dir) if path else None


def attached(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """The media entries of an event's payload, in order."""
    return [entry for key in ATTACHMENTS for entry in payload.get(key, []) if isinstance(entry, dict)]


def files_of(job: Job, payload: dict[str, Any]) -> list[Path]:
    """The existing media files of an event."""
    found = (locate(entry.get("file"), Path(job.run_dir), Path(job.output_dir)) for entry in attached(payload))
    return [path for path in found if path is not None]


def url(job_id: object, index: int, place: int) -> str:
    return f"/api/training/jobs/{job_id}/media/{index}/{place}"


def data_uri(content: bytes, mime_type: str) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode('ascii')}"


def shown(job: Job, index: int, payload: dict[str, Any], *, as_links: bool) -> dict[str, Any]:
    """The payload with ``src`` instead of file names: a data URI, a link, or an empty text if the file is gone.

    Files of clips above ``LARGEST_INLINE_BYTES`` are links without ``as_links`` too.
    """
    place = 0
    result = dict(payload)
    for key in ATTACHMENTS:
        if key not in payload:
            continue
        entries = []
        for entry in attached({key: payload[key]}):
            largest = 0 if as_links else LARGEST_INLINE_BYTES if key == VIDEOS else None
            entries.append(_shown_entry(job, index, place, entry, largest))
            place += 1
        result[key] = entries
    return result


def _shown_entry(job: Job, index: int, place: int, entry: dict[str, Any], largest: int | None) -> dict[str, Any]:
    """``largest``: most bytes that are shown inline; None for any number, 0 for a link without a look at the file."""
    mime_type, link = str(entry.get("mime_type", "image/png")), url(job.pk, index, place)
    if largest == 0:
        return {"src": link, "mime_type": mime_type}
    stream = opened(job, entry)
    if stream is None:
        return {"src": "", "mime_type": mime_type}
    try:
        with stream:
            is_inline = largest is None or os.fstat(stream.fileno()).st_size <= largest
            return {"src": data_uri(stream.read(), mime_type) if is_inline else link, "mime_type": mime_type}
    except OSError:  # the disk cannot read it
        return {"src": "", "mime_type": mime_type}


def served_type(entry: dict[str, Any]) -> str:
    """The content type that an entry's file is served with: one of the types that a run writes, or bytes without a type."""
    stated = str(entry.get("mime_type", "image/png"))
    return stated if stated in MEDIA_TYPES.values() else UNKNOWN_TYPE


def part_of(header: str, size: int, largest: int) -> tuple[int, int] | None:
    """(first byte, byte behind the last) of the part of a file that a Range header asks for, cut to ``largest`` bytes.

    None means the whole file: for a header that asks for several parts, for none that the file has, or that is malformed. A server may
    ignore such a header, and may answer with less than was asked for (RFC 9110, sections 14.2 and 15.3.7).
    """
    match = RANGE.match(header[:64])
    if match is None or not (match[1] or match[2]):
        return None
    first = int(match[1]) if match[1] else max(0, size - int(match[2]))
    behind = min(size, int(match[2]) + 1) if match[1] and match[2] else size
    return (first, min(behind, first + largest)) if first < behind else None


def begins_behind(header: str, size: int) -> bool:
    """Whether a Range header asks for a part that begins behind the end of a file, as after a download that is complete."""
    match = RANGE.match(header[:64])
    return match is not None and bool(match[1]) and int(match[1]) >= size
