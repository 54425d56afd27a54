"""Writes generated media as files that a browser shows: an image as PNG, WebP or JPEG, frames as an animated GIF and an mp4 file."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.events import MEDIA_TYPES, MediaFile

Picture: TypeAlias = Image.Image | Sequence[Image.Image]
"""An image, or the frames of a clip in order."""
FRAMES_PER_SECOND = 12
SHORTEST_GIF_TICKS = 2
"""Hundredths of a second; browsers show shorter frames at a tenth of a second."""
ENDINGS = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
"""``validation_image_format`` -> suffix of the file name."""
CLIP_ENDING = ".gif"
PIXEL_FORMAT = "yuv420p"
MP4_QUALITY = "18"
"""Constant rate factor of x264: 0 is lossless, 23 its default; at 18 a loss is hardly visible."""


def write_picture(
    folder: Path, stem: str, picture: Picture, *, format: str = "png", quality: int = 90, frames_per_second: float = FRAMES_PER_SECOND
) -> Path:
    """Write an image as ``<stem>.png`` (``.webp``, ``.jpg``) or frames as ``<stem>.gif``, atomically. Returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, Image.Image):
        path, content = folder / f"{stem}{ENDINGS[format]}", encode_still(picture, format, quality)
    else:
        path, content = folder / f"{stem}{CLIP_ENDING}", encode_gif(picture, frames_per_second)
    write_atomically(path, content)
    return path


def write_mp4(folder: Path, stem: str, frames: Sequence[Image.Image], frames_per_second: float) -> Path:
    """Write frames as ``<stem>.mp4``, atomically. Returns the path. Needs PyAV."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.mp4"
    write_atomically(path, encode_mp4(frames, frames_per_second))
    return path


def encode_still(image: Image.Image, format: str = "png", quality: int = 90) -> bytes:
    """Encode an image. ``quality``, 1 to 100, applies to lossy formats. JPEG has no transparency: what shows through is white there."""
    if format == "jpeg" and image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    buffer = io.BytesIO()
    arguments = {} if format == "png" else {"quality": quality}
    image.save(buffer, format=format.upper(), **arguments)
    return buffer.getvalue()


def encode_gif(frames: Sequence[Image.Image], frames_per_second: float = FRAMES_PER_SECOND) -> bytes:
    """Encode a looping animation. Raises ValueError without frames.

    A GIF counts hundredths of a second, so the duration of each frame is rounded such that the whole clip keeps its length. Equal frames
    that follow each other become one.
    """
    if not frames:
        raise ValueError("a video has at least one frame")
    buffer = io.BytesIO()
    first, *others = [frame.convert("RGB") for frame in frames]
    ends = [round(100 * number / frames_per_second) for number in range(len(frames) + 1)]
    milliseconds = [10 * max(SHORTEST_GIF_TICKS, end - start) for start, end in zip(ends, ends[1:], strict=False)]
    first.save(buffer, format="GIF", save_all=True, append_images=others, duration=milliseconds, loop=0, disposal=1)
    return buffer.getvalue()


def encode_mp4(frames: Sequence[Image.Image], frames_per_second: float) -> bytes:
    """Encode H.264 video in the colours of BT.709, which every browser plays; its index precedes the frames, so that it plays at once.

    Raises OSError, and ValueError without frames, or with an odd edge, which the 4:2:0 sampling of browsers does not have.
    """
    import av

    if not frames:
        raise ValueError("a video has at least one frame")
    width, height = frames[0].size
    if width % 2 or height % 2:
        raise ValueError(f"an mp4 file has even edges; {width}x{height} has not")
    with tempfile.TemporaryDirectory() as place:  # the index can be moved to the front of a file only
        file = Path(place, "clip.mp4")
        try:
            _encode_into(file, frames, Fraction(frames_per_second).limit_denominator(1000))
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise ValueError(f"the mp4 file could not be encoded: {error}") from error
        return file.read_bytes()


def _encode_into(file: Path, frames: Sequence[Image.Image], rate: Fraction) -> None:
    import av
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

    with av.open(file, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("h264", rate=rate, options={"crf": MP4_QUALITY})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = PIXEL_FORMAT
        codec = stream.codec_context
        codec.color_range, codec.colorspace = ColorRange.MPEG, Colorspace.ITU709
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for frame in frames:
            shown = av.VideoFrame.from_image(frame)
            shown = shown.reformat(format=PIXEL_FORMAT, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            container.mux(stream.encode(shown))
        container.mux(stream.encode())


def attachments(path: Path, video: Path | None = None) -> dict[str, list[MediaFile]]:
    """The fields of an image event for a file: ``images``, or ``videos`` for an animation and the mp4 file of the same frames."""
    files = [MediaFile(file=str(file), mime_type=MEDIA_TYPES[file.suffix]) for file in (path, video) if file is not None]
    return {"videos" if path.suffix == CLIP_ENDING else "images": files}
