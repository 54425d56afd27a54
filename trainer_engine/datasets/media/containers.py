"""Opens video files with PyAV safely, whatever they contain, and decodes their frames as upright RGB images.

PyAV is the extra ``video``. It is imported when the first file is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from trainer_engine.datasets.media.base import BrokenImage, MediaFacts
from trainer_engine.datasets.media.pixels import LARGEST_PIXELS, refuse_bombs, stream_of
from trainer_engine.datasets.sources.base import SourceFile

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"))
LIBRARY = "av"
MOST_FRAMES = 1 << 20
"""Frames of a file that is opened; ten hours at thirty a second."""
LONGEST_SECONDS = 24 * 3600
ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
CODECS = frozenset(
    ("h264", "hevc", "vvc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "h263")
    + ("theora", "vc1", "wmv3", "mjpeg", "prores", "dnxhd", "cfhd", "ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "png", "qtrle")
)
"""The allowed decoders, by the names of their formats. Others are rare, little tested and not meant for clips."""
DECODERS = CODECS | {"libdav1d", "libvpx", "libvpx-vp9", "msmpeg4"}
"""The same by their own names, where those differ. None of them decodes sound."""
LIMITED = {"max_pixels": str(LARGEST_PIXELS), "codec_whitelist": ",".join(sorted(DECODERS))}
PROBING = {**LIMITED, "format_whitelist": "mov,matroska,avi", "protocol_whitelist": "file"}
"""FFmpeg opens decoders and decodes frames to find out what each stream holds, before anything could be refused."""
UNSPECIFIED_COLOURS = 2
HDR = frozenset((16, 18))
"""Transfer functions of PQ and HLG (ITU-T H.273)."""
HIGH_DEFINITION = 720
"""Height in pixels from which untagged clips have the colours of BT.709."""
TURNS: Mapping[int, Image.Transpose] = MappingProxyType(
    {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
)
"""Rotation of a frame in degrees, counterclockwise, until it is upright."""


class _Video(NamedTuple):
    """An open file and its first video stream."""

    container: InputContainer
    stream: VideoStream


@cache
def missing_suffixes() -> Mapping[str, str]:
    """Returns why files of each suffix cannot be read; empty if PyAV is installed, which is not imported to find out."""
    if find_spec(LIBRARY) is not None:
        return MappingProxyType({})
    return MappingProxyType({suffix: f"{suffix} files need PyAV: pip install '.[video]'" for suffix in SUFFIXES})


def measure_video(file: SourceFile) -> MediaFacts:
    """Returns the upright size, the number of frames and their average rate. Raises BrokenImage.

    Frames are counted from the index of the file, or from its packets if it has none (mkv, webm). Only the first frame is decoded.
    """
    with _opened(file) as (container, stream):
        _refuse_endless(file, container, stream)
        _refuse_cut_off(file, stream)
        first = next(container.decode(stream), None)
        if first is None:
            raise BrokenImage(file.location, "it has no frame that can be decoded")
        size, trc = _upright_size(first), int(first.color_trc or 0)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        counted = stream.frames
    frames = counted or _count_packets(file)
    if not frames or rate <= 0:
        raise BrokenImage(file.location, "its frames cannot be counted")
    remark = "the brightness of HDR is used as that of sRGB" if trc in HDR else ""
    return MediaFacts(size, remark, frames, rate)


def decode_video(file: SourceFile) -> Iterator[Image.Image]:
    """Yields every frame as it is shown: upright, RGB with 8 bits. Raises BrokenImage."""
    with _opened(file) as (container, stream):
        size = None
        for frame in container.decode(stream):
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                raise BrokenImage(file.location, "its frames have different sizes")
            if frame.is_corrupt:
                raise BrokenImage(file.location, "one of its frames is damaged")
            yield _upright(frame)


@contextmanager
def _opened(file: SourceFile) -> Iterator[_Video]:
    """Opens a file in its own format, so that no list of other files or addresses is ever followed. Raises BrokenImage."""
    import av

    with stream_of(file) as stream:
        try:
            format = _format_of(stream.read(12))
            if not format:
                raise BrokenImage(file.location, "it is not a video, despite its name")
            stream.seek(0)
            with av.open(stream, "r", format=format, options=PROBING, metadata_errors="replace") as container:
                if not container.streams.video:
                    raise BrokenImage(file.location, "it has no video stream")
                video = container.streams.video[0]
                _prepare(file, video)
                yield _Video(container, video)
        except (av.FFmpegError, OSError, ValueError, OverflowError, MemoryError) as error:
            raise BrokenImage(file.location, f"it is damaged or cut off: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return (strerror if isinstance(strerror, str) else str(error)).lower()


def _format_of(start: bytes) -> str:
    """Returns the name of the container by its first bytes; empty if they are of none that is opened."""
    if start[4:8] in ATOMS:
        return "mov"
    if start[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    return "avi" if start[:4] == b"RIFF" and start[8:12] == b"AVI " else ""


def _prepare(file: SourceFile, stream: VideoStream) -> None:
    """Sets limits before the first frame is decoded. Raises BrokenImage."""
    context = stream.codec_context
    if context is None:  # PyAV gives none for a codec that it does not know
        raise BrokenImage(file.location, "the codec of its video stream is not known")
    codec = context.codec.canonical_name
    if codec not in CODECS:
        raise BrokenImage(file.location, f"clips of the codec {codec} are not opened")
    refuse_bombs(file, (context.width, context.height))
    context.options = {**context.options, **LIMITED}
    context.thread_count = 1  # several files are decoded at once


def _refuse_endless(file: SourceFile, container: InputContainer, stream: VideoStream) -> None:
    seconds = (container.duration or 0) / 1_000_000
    if seconds > LONGEST_SECONDS:
        raise BrokenImage(file.location, f"it lasts {seconds / 3600:.0f} hours; at most {LONGEST_SECONDS // 3600} are opened")
    if stream.frames > MOST_FRAMES:
        raise BrokenImage(file.location, f"it has {stream.frames} frames; at most {MOST_FRAMES} are opened")


def _refuse_cut_off(file: SourceFile, stream: VideoStream) -> None:
    """Raises BrokenImage if the index names bytes beyond the end of the file."""
    entries = stream.index_entries
    last = entries[len(entries) - 1] if len(entries) else None
    if last is not None and last.pos + last.size > file.size_bytes:
        raise BrokenImage(file.location, "the file is cut off")


def _count_packets(file: SourceFile) -> int:
    """Counts frames by reading the file without decoding it. Raises BrokenImage."""
    count = 0
    with _opened(file) as (container, stream):
        for packet in container.demux(stream):
            count += packet.size > 0
            if count > MOST_FRAMES:
                raise BrokenImage(file.location, f"it has more than {MOST_FRAMES} frames, and these are not opened")
    return count


def _turn(frame: VideoFrame) -> Image.Transpose | None:
    return TURNS.get(round(frame.rotation / 90) * 90 % 360)


def _upright_size(frame: VideoFrame) -> tuple[int, int]:
    is_turned = _turn(frame) in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)
    return (frame.height, frame.width) if is_turned else (frame.width, frame.height)


def _upright(frame: VideoFrame) -> Image.Image:
    from av.video.reformatter import Colorspace

    untagged = int(frame.colorspace) == UNSPECIFIED_COLOURS and frame.height >= HIGH_DEFINITION
    image: Image.Image = frame.to_image(src_colorspace=Colorspace.ITU709) if untagged else frame.to_image()
    turn = _turn(frame)
    return image if turn is None else image.transpose(turn)
