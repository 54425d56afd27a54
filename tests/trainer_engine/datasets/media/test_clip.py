"""Real video files and animations are measured and decoded, whatever they contain."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.clips import moving_square, needs_pyav
from tests.helpers.samples import file_of
from tests.helpers.video_files import CODECS, cut, turn, write_video
from trainer_engine.datasets.index import discover
from trainer_engine.datasets.media import containers
from trainer_engine.datasets.media.base import BrokenImage, medium_of, suffixes_of
from trainer_engine.datasets.media.clip import MEDIUM, frames_of, measure_clip
from trainer_engine.datasets.sources.local import LocalSource
from trainer_engine.media import encode_gif, encode_mp4

ROOT = Path(__file__).resolve().parents[4]


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two images, of 255."""
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


@needs_pyav
@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_a_video_is_measured_and_decoded_in_every_container(tmp_path: Path, suffix: str) -> None:
    shown = moving_square(9)
    file = file_of(write_video(tmp_path / f"a{suffix}", shown))
    facts = measure_clip(file)
    assert (facts.size, facts.frames, facts.remark) == ((96, 64), 9, "")
    assert facts.frame_rate == pytest.approx(10, rel=0.02)
    decoded = list(frames_of(file))
    assert [frame.mode for frame in decoded] == ["RGB"] * 9
    assert all(difference(one, other) < 12 for one, other in zip(decoded, shown, strict=True))
    assert difference(decoded[0], shown[8]) > 2 * difference(decoded[0], shown[0]), "frames come in order"


@needs_pyav
def test_colours_of_high_definition_are_those_that_the_file_names(tmp_path: Path) -> None:
    shown = [Image.new("RGB", (96, 64), (200, 40, 30))] * 3
    (tmp_path / "a.mp4").write_bytes(encode_mp4(shown, 8))
    frame = next(frames_of(file_of(tmp_path / "a.mp4")))
    assert difference(frame, shown[0]) < 3


@needs_pyav
def test_a_file_without_named_colours_has_those_of_its_height(tmp_path: Path) -> None:
    """An encoder without tags writes BT.601, which a player shows as BT.709 from 720 lines on."""
    colour = (200, 40, 30)
    small = next(frames_of(file_of(write_video(tmp_path / "small.mp4", [Image.new("RGB", (96, 64), colour)] * 2))))
    large = next(frames_of(file_of(write_video(tmp_path / "large.mp4", [Image.new("RGB", (64, 720), colour)] * 2))))
    assert difference(small, Image.new("RGB", (96, 64), colour)) < 4
    assert difference(large, Image.new("RGB", (64, 720), colour)) > 5


@needs_pyav
def test_a_clip_of_a_phone_is_turned_upright(tmp_path: Path) -> None:
    flat = Image.new("RGB", (96, 64))
    flat.paste((255, 0, 0), (0, 0, 32, 32))
    file = file_of(turn(write_video(tmp_path / "a.mp4", [flat] * 4)))
    assert measure_clip(file).size == (64, 96)
    frame = next(frames_of(file))
    assert frame.size == (64, 96)
    assert difference(frame, flat.transpose(Image.Transpose.ROTATE_270)) < 8, "a quarter turn clockwise"


@needs_pyav
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_rate_is_measured_as_its_average_and_loses_no_frame(tmp_path: Path, suffix: str) -> None:
    times = [0, 40, 80, 400, 1000, 1040, 1080, 1900]
    file = file_of(write_video(tmp_path / f"a{suffix}", 8, rate=25, times=times))
    facts = measure_clip(file)
    assert facts.frames == 8 and len(list(frames_of(file))) == 8
    assert facts.frame_rate is not None and 3 < facts.frame_rate < 30


def test_animations_are_clips_with_all_their_frames(tmp_path: Path) -> None:
    shown = moving_square(5)
    (tmp_path / "a.gif").write_bytes(encode_gif(shown, 10))
    shown[0].save(tmp_path / "a.webp", save_all=True, append_images=shown[1:], duration=100, lossless=True)
    shown[0].save(tmp_path / "still.gif")
    for name in ("a.gif", "a.webp"):
        file = file_of(tmp_path / name)
        assert measure_clip(file)[0::2] == ((96, 64), 5) and measure_clip(file).frame_rate == 10
        assert all(difference(one, other) < 6 for one, other in zip(frames_of(file), shown, strict=True))
    assert measure_clip(file_of(tmp_path / "still.gif")).frames == 1


@needs_pyav
@pytest.mark.parametrize(
    ("name", "share", "reason"),
    [
        ("a.mp4", 0.05, "damaged or cut off"),
        ("a.mp4", 0.5, "damaged or cut off"),
        ("a.avi", 0.3, "damaged or cut off|cut off|cannot be counted|can be decoded"),
        ("a.webm", 0.02, "damaged or cut off"),
    ],
)
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, name: str, share: float, reason: str) -> None:
    file = file_of(cut(write_video(tmp_path / name, 30), share))
    with pytest.raises(BrokenImage, match=reason):
        measure_clip(file)


@needs_pyav
def test_a_file_whose_index_comes_first_is_named_if_its_end_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(encode_mp4(moving_square(30), 10))
    with pytest.raises(BrokenImage, match="the file is cut off"):
        measure_clip(file_of(cut(tmp_path / "a.mp4", 0.9)))


@needs_pyav
def test_a_cut_off_file_without_an_index_has_the_frames_that_are_left(tmp_path: Path) -> None:
    whole = measure_clip(file_of(write_video(tmp_path / "a.mkv", 30))).frames
    left = measure_clip(file_of(cut(tmp_path / "a.mkv", 0.6))).frames
    assert whole == 30 and 0 < left < 30


@needs_pyav
def test_no_damage_of_a_file_raises_anything_but_its_reason(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    for suffix in (".mp4", ".webm", ".avi"):
        content = write_video(tmp_path / f"a{suffix}", 6).read_bytes()
        for number in range(25):
            damaged = bytearray(content)
            for place in random.integers(0, len(content), 6):
                damaged[place] ^= 1 << int(random.integers(8))
            path = tmp_path / f"damaged{number}{suffix}"
            path.write_bytes(damaged)
            try:
                measure_clip(file_of(path))
                assert all(frame.mode == "RGB" for frame in frames_of(file_of(path)))
            except BrokenImage as broken:
                assert broken.reason


@needs_pyav
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nothing",
        b"#EXTM3U\n#EXTINF:9,\nfile:///etc/hostname\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
    ],
    ids=["empty", "text", "playlist", "list"],
)
def test_a_file_that_is_no_video_is_named_and_leads_to_no_other_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(BrokenImage, match="not a video, despite its name"):
        measure_clip(file_of(tmp_path / "a.mp4"))


@needs_pyav
def test_a_name_of_another_container_does_not_matter(tmp_path: Path) -> None:
    written = write_video(tmp_path / "a.webm", 4)
    renamed = written.rename(tmp_path / "a.mp4")
    assert measure_clip(file_of(renamed)).frames == 4


@needs_pyav
def test_a_file_beyond_the_limits_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", 9)
    write_video(tmp_path / "a.mkv", 9)
    monkeypatch.setattr(containers, "MOST_FRAMES", 8)
    for name in ("a.mp4", "a.mkv"):
        with pytest.raises(BrokenImage, match="8"):
            measure_clip(file_of(tmp_path / name))
    monkeypatch.setattr(containers, "MOST_FRAMES", 100)
    monkeypatch.setattr(containers, "LONGEST_SECONDS", 0)
    with pytest.raises(BrokenImage, match="at most 0 are opened"):
        measure_clip(file_of(tmp_path / "a.mp4"))
    monkeypatch.setattr(containers, "LONGEST_SECONDS", 100)
    monkeypatch.setattr(containers, "CODECS", frozenset({"vp9"}))
    with pytest.raises(BrokenImage, match="the codec h264"):
        measure_clip(file_of(tmp_path / "a.mp4"))


def png_of(width: int, height: int) -> bytes:
    """A black PNG of one bit a pixel."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(bytes((width // 8 + 1) * height)), b"IEND": b""}
    chunks = (struct.pack(">I", len(one)) + name + one + struct.pack(">I", zlib.crc32(name + one)) for name, one in parts.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@needs_pyav
def test_frames_larger_than_the_container_says_are_not_decoded_to_learn_of_them(tmp_path: Path) -> None:
    import av

    with av.open(tmp_path / "a.mov", "w", format="mov") as container:
        stream = container.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        stream.encode(av.VideoFrame(64, 64, "rgb24"))
        packet = av.Packet(png_of(14_000, 14_000))
        packet.stream, packet.time_base, packet.pts, packet.dts, packet.is_keyframe = stream, Fraction(1, 10), 0, 0, True
        container.mux(packet)
    with pytest.raises(BrokenImage) as caught:
        measure_clip(file_of(tmp_path / "a.mov"))
    assert "14000" not in caught.value.reason, "a frame was decoded before its size was judged"


@needs_pyav
def test_a_sound_file_in_the_container_of_a_clip_is_named(tmp_path: Path) -> None:
    import av

    with av.open(tmp_path / "a.mp4", "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BrokenImage, match="it has no video stream"):
        measure_clip(file_of(tmp_path / "a.mp4"))


@needs_pyav
def test_a_folder_is_measured_once_and_a_gif_is_what_the_set_is(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    write_video(folder / "a.mp4", 9)
    (folder / "b.gif").write_bytes(encode_gif(moving_square(5), 10))
    Image.new("RGB", (96, 64)).save(folder / "c.png")
    for opened in (2, 0):
        clips = discover(LocalSource(str(folder)), media=["clip"], index_dir=tmp_path / "index")
        assert [(file.name, file.frames) for file in clips.images] == [("a.mp4", 9), ("b.gif", 5)]
        assert clips.opened == opened and [file.name for file in clips.left_out] == ["c.png"]
        images = discover(LocalSource(str(folder)), index_dir=tmp_path / "index")
        assert [(file.name, file.frames, file.frame_rate) for file in images.images] == [("b.gif", 1, None), ("c.png", 1, None)]


def test_without_pyav_files_are_named_with_the_extra_and_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"anything")
    (tmp_path / "clips" / "b.gif").write_bytes(encode_gif(moving_square(5), 10))
    monkeypatch.setattr(containers, "LIBRARY", "no_such_library")
    containers.missing_suffixes.cache_clear()
    try:
        assert ".mp4" not in suffixes_of(["clip"]).usable
        found = discover(LocalSource(str(tmp_path / "clips")), media=["clip"], index_dir=tmp_path / "index")
    finally:
        containers.missing_suffixes.cache_clear()
    assert [file.name for file in found.images] == ["b.gif"]
    assert [file.reason for file in found.left_out] == [".mp4 files need PyAV: pip install '.[video]'"]
    assert "a.mp4" not in "".join(path.read_text() for path in (tmp_path / "index").iterdir())


def test_the_table_imports_pyav_only_for_the_first_clip() -> None:
    script = "import sys; from trainer_engine.datasets.media.base import suffixes_of; suffixes_of(['clip']); print('av' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_medium_of_clips_reads_what_a_browser_plays() -> None:
    assert medium_of("A.MP4") is MEDIUM and {".mp4", ".webm", ".gif"} <= MEDIUM.suffixes
    assert not MEDIUM.suffixes & MEDIUM.unsupported
    assert Image.open(io.BytesIO(encode_gif(moving_square(2)))).format == "GIF"


@needs_pyav
@pytest.mark.parametrize(("codec", "format"), [("snow", "yuv420p"), ("jpeg2000", "rgb24")])
def test_no_decoder_that_is_not_allowed_sees_a_file(tmp_path: Path, codec: str, format: str) -> None:
    """FFmpeg decodes frames while it opens a file, before its codec can be refused."""
    written = write_stream(tmp_path / "a.mkv", codec, format)
    log = log_of(lambda: measure_clip(file_of(written)), BrokenImage)
    assert f"Codec ({codec}) not on whitelist" in log


@needs_pyav
def test_the_sound_of_a_clip_is_never_decoded(tmp_path: Path) -> None:
    written = write_stream(tmp_path / "a.mkv", "h264", "yuv420p", sound="aac")
    assert "Codec (aac) not on whitelist" in log_of(lambda: measure_clip(file_of(written)))
    assert measure_clip(file_of(written)).frames == len(list(frames_of(file_of(written)))) == 5


@needs_pyav
def test_every_codec_that_is_allowed_has_a_decoder_that_is_allowed() -> None:
    import av

    decoders = [av.Codec(name, "r") for name in containers.DECODERS & av.codecs_available]
    assert {one.canonical_name for one in decoders} >= containers.CODECS & av.codecs_available
    assert {one.type for one in decoders} == {"video"}


def write_stream(path: Path, codec: str, format: str, sound: str = "") -> Path:
    """Writes five frames with any codec, and a packet of silence if there is to be sound."""
    import av

    with av.open(path, "w", format="matroska") as container:
        video = container.add_stream(codec, rate=Fraction(10))
        video.width, video.height, video.pix_fmt = 96, 64, format
        audio = container.add_stream(sound, rate=48000) if sound else None
        for number, image in enumerate(moving_square(5)):
            frame = av.VideoFrame.from_image(image).reformat(format=format)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), dtype="float32"), format="fltp", layout="stereo")
            silence.sample_rate, silence.pts, silence.time_base = 48000, 0, Fraction(1, 48000)
            container.mux([*audio.encode(silence), *audio.encode()])
    return path


def log_of(work: Callable[[], object], *expected: type[Exception]) -> str:
    """Returns what FFmpeg logs during some work."""
    import av.logging

    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as captured:
            if expected:
                with pytest.raises(expected):
                    work()
            else:
                work()
        return "".join(message for _, _, message in captured)
    finally:
        av.logging.set_level(level)
