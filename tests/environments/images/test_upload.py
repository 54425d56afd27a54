"""Uploads of images: what is stored, what is refused, and that nothing of a person is touched."""

from __future__ import annotations

import errno
import gc
import io
import os
import zlib
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from PIL import Image

from environments.api import folders
from environments.home import current_home
from environments.images import received, upload
from environments.images.received import LARGEST_CAPTION_BYTES, LONGEST_STEM, safe_name
from environments.images.upload import MOST_AT_ONCE, UploadLimits
from tests.environments.conftest import Api
from tests.helpers.video_files import write_video

pytestmark = pytest.mark.django_db


def image_bytes(kind: str = "PNG", size: tuple[int, int] = (32, 24), colour: str = "red", **values: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind, **values)
    return stream.getvalue()


def send(api: Api, folder: str, *files: tuple[str, bytes]) -> Any:
    """The answer of an upload, as a browser sends one."""
    return api.client.post(
        f"/api/folders/{folder}/images", {"file": [SimpleUploadedFile(name, content) for name, content in files]}, format="multipart"
    )


def names(api: Api, folder: str) -> list[str]:
    return sorted(path.name for path in (api.home / "datasets" / folder).iterdir())


def test_an_upload_of_many_files_has_one_of_them_open_at_a_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [(f"{number}.bmp", image_bytes("BMP", (100, 100), f"#{number:06x}")) for number in range(MOST_AT_ONCE)]
    assert sum(len(content) for _, content in files) > 2_621_440, "Django keeps a smaller body in memory"
    before, most, written = psutil.Process().num_fds(), [], received._written

    def counted(*arguments: Any) -> int:
        most.append(psutil.Process().num_fds())
        return written(*arguments)

    monkeypatch.setattr(received, "_written", counted)
    answer = send(api, "many", *files)
    assert len(answer.json()["images"]) == MOST_AT_ONCE == len(most) and max(most) < before + 10, (before, max(most))
    assert not list((api.home / "state").glob("tmp*")), "nothing of them is left"


@pytest.mark.parametrize("size", [3, 3_000_000], ids=["kept-in-memory", "kept-in-a-file"])
def test_a_form_that_cannot_be_read_leaves_no_file_behind(api: Api, size: int) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + b"1" * size
    for end in (
        b"",
        b'\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="b.png"\r\nContent-Transfer-Encoding: base64\r\n\r\n!',
    ):
        answer = api.client.post("/api/folders/cut/images", part + end, content_type="multipart/form-data; boundary=x")
        assert answer.status_code in (400, 422), answer.content
        gc.collect()
        assert not list((api.home / "state").glob("tmp*"))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a cat.JPG", "a cat.jpg"),
        ("../../etc/cat.png", "cat.png"),
        ("C:\\Users\\me\\cat.png", "cat.png"),
        (".hidden.png", "hidden.png"),
        ("..png", "image.png"),
        ("Katze & Hündin;`rm`.webp", "Katze _ Hündin_rm.webp"),
        ("tab\there\n.png", "tab_here.png"),
        ("猫.png", "猫.png"),
        ("x" * 300 + ".png", "x" * LONGEST_STEM + ".png"),
        ("cat.png.exe", None),
        ("cat.svg", None),
        ("cat", None),
        ("", None),
        (".png", "image.png"),
        ("-rf.png", "rf.png"),
        ("-- .png", "image.png"),
        ("a clip.MP4", "a clip.mp4"),
        ("../a.TXT", "a.txt"),
        ("a.json", None),
    ],
)
def test_a_name_keeps_no_folder_and_no_odd_character(given: str, kept: str | None) -> None:
    assert safe_name(given) == kept


def test_images_of_every_kind_are_stored_and_measured(api: Api) -> None:
    turned = image_bytes("JPEG", (40, 20), exif=_turned())
    answer = send(api, "cats", ("a.png", image_bytes()), ("b.JPG", turned), ("c.webp", image_bytes("WEBP")))
    assert answer.status_code == 200, answer.content
    shown = answer.json()
    assert (shown["folder"], shown["count"], shown["problems"]) == ("datasets/cats", 3, [])
    assert [(one["file"], one["width"], one["height"], one["is_new"]) for one in shown["images"]] == [
        ("a.png", 32, 24, True),
        ("b.jpg", 20, 40, True),
        ("c.webp", 32, 24, True),
    ]
    assert (api.home / "datasets/cats/a.png").read_bytes() == image_bytes()
    assert list((api.home / "state").iterdir()) == [], "what was received is removed"


def test_every_image_of_the_folder_is_counted(api: Api) -> None:
    send(api, "cats", ("a.png", image_bytes()))
    for number in range(1100):
        for suffix in ("jpg", "txt"):
            (api.home / f"datasets/cats/{number}.{suffix}").touch()
    shown = send(api, "cats", ("b.png", image_bytes()), ("c.png", image_bytes(size=(16, 16)))).json()
    assert (len(shown["images"]), shown["count"]) == (2, 1103)


def _turned() -> Any:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_what_is_no_image_is_refused_and_the_rest_is_stored(api: Api) -> None:
    files = [
        ("good.png", image_bytes()),
        ("notes.txt", b"a cat"),
        ("page.png", b"<html><script>alert(1)</script></html>"),
        ("cut.jpg", image_bytes("JPEG", (400, 400))[:600]),
        ("empty.png", b""),
        ("bomb.png", _bomb()),
    ]
    shown = send(api, "cats", *files).json()
    assert [one["file"] for one in shown["images"]] == ["good.png"] == names(api, "cats")
    assert [one["code"] for one in shown["problems"]] == ["empty", "broken_image", "broken_image", "broken_image", "no_image"]
    assert all("/" not in one["message"].replace("HTML/", "") for one in shown["problems"]), "no path of the server is shown"
    refused = send(api, "cats", ("page.png", b"nothing")).json()
    assert refused["images"] == [] and refused["problems"][0]["code"] == "broken_image" and refused["count"] == 1


def _bomb() -> bytes:
    """A PNG of a few bytes whose header promises a gigapixel."""
    content = bytearray(image_bytes())
    content[16:24] = (40_000).to_bytes(4, "big") * 2
    return bytes(content)


def test_nothing_is_replaced_and_the_same_image_is_stored_once(api: Api) -> None:
    send(api, "cats", ("a.png", image_bytes(colour="red")))
    shown = send(api, "cats", ("a.png", image_bytes(colour="blue")), ("a.png", image_bytes(colour="red"))).json()
    assert [(one["file"], one["is_new"]) for one in shown["images"]] == [("a-2.png", True), ("a.png", False)]
    assert names(api, "cats") == ["a-2.png", "a.png"]
    assert Image.open(api.home / "datasets/cats/a.png").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("folder", ["..", ".ssh", "a..b", "x%2Fy", "import"])
def test_a_folder_has_the_name_of_an_environment(api: Api, folder: str) -> None:
    answer = send(api, folder, ("a.png", image_bytes()))
    assert answer.status_code in (404, 422)
    assert not (api.home / "datasets").exists()


def test_no_link_leads_an_upload_out_of_the_home(api: Api, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (api.home / "datasets").mkdir()
    (api.home / "datasets/cats").symlink_to(outside)
    assert send(api, "cats", ("a.png", image_bytes())).status_code == 422
    assert list(outside.iterdir()) == []
    (api.home / "datasets/dogs").symlink_to(api.home / "state")
    assert send(api, "dogs", ("a.png", image_bytes())).status_code == 422
    (api.home / "datasets/real").mkdir()
    (outside / "a.png").write_bytes(b"precious")
    (api.home / "datasets/real/a.png").symlink_to(outside / "a.png")
    assert [one["file"] for one in send(api, "real", ("a.png", image_bytes())).json()["images"]] == ["a-2.png"]
    assert (outside / "a.png").read_bytes() == b"precious"


def test_the_number_of_files_is_limited(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    assert send(api, "cats").status_code == 422
    monkeypatch.setattr(upload, "MOST_AT_ONCE", 2)
    many = [(f"{number}.png", image_bytes()) for number in range(3)]
    assert send(api, "cats", *many).json()["problems"][0]["code"] == "bad_count"
    monkeypatch.setattr(upload, "MOST_IN_FOLDER", 1)
    shown = send(api, "cats", *many[:2]).json()
    assert [one["code"] for one in shown["problems"]] == ["full_folder"] and len(shown["images"]) == 1
    monkeypatch.setattr(folders, "LIMITS", UploadLimits(50, 0))
    assert send(api, "dogs", ("a.png", image_bytes())).json()["problems"][0]["code"] == "too_large"


def test_a_full_disk_is_said_for_each_file_and_leaves_no_part(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    send(api, "cats", ("a.png", image_bytes()))
    link = os.link

    def full_for_b(source: Any, target: Any, **values: Any) -> None:
        if Path(target).name == "b.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        link(source, target, **values)

    monkeypatch.setattr(os, "link", full_for_b)
    monkeypatch.setattr(os, "open", _full_open(os.open))
    shown = send(api, "cats", ("b.png", image_bytes()), ("c.png", image_bytes())).json()
    assert [one["file"] for one in shown["images"]] == ["c.png"]
    assert shown["problems"][0]["code"] == "not_written" and "full" in shown["problems"][0]["message"]
    assert names(api, "cats") == ["a.png", "c.png"]


def _full_open(open_: Any) -> Any:
    def opened(path: Any, flags: int, *rest: Any, **values: Any) -> int:
        if str(path).endswith("/b.png"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(open_(path, flags, *rest, **values))

    return opened


def test_the_folder_is_listed_for_a_person_who_picks_one(api: Api, tmp_path: Path) -> None:
    send(api, "cats", ("a.png", image_bytes()), ("b.png", image_bytes(colour="blue")))
    (api.home / "datasets/cats/a.txt").write_text("a cat")
    begin = api.client.get("/api/folders").json()
    assert begin["folder"] is None and str(current_home().root / "datasets") in [one["path"] for one in begin["folders"]]
    listed = api.client.get("/api/folders", {"path": "datasets"}).json()
    assert [(one["name"], one["images"], one["captions"]) for one in listed["folders"]] == [("cats", 2, 1)]
    assert listed["parent"] == str(api.home)
    inside = api.client.get("/api/folders", {"path": listed["folders"][0]["path"]}).json()
    assert (inside["folder"]["images"], inside["folders"]) == (2, [])


@pytest.mark.parametrize("path", ["/etc", "state", "../../../..", "missing", "/proc/self", "a\0b"])
def test_places_that_are_closed_are_not_listed(api: Api, path: str) -> None:
    answer = api.client.get("/api/folders", {"path": path})
    assert answer.status_code == 422 and answer.json()["problems"][0]["option"] == "path"


def test_a_listing_shows_no_folder_that_a_stranger_linked(api: Api, links_of_a_stranger: None) -> None:
    (api.home / "datasets/own").mkdir(parents=True)
    (api.home / "datasets/link").symlink_to("/usr")
    (api.home / "datasets/.dot").mkdir()
    (api.home / "datasets/state").symlink_to(api.home / "state")
    assert [one["name"] for one in api.client.get("/api/folders", {"path": "datasets"}).json()["folders"]] == ["own"]


@pytest.mark.parametrize("place", ["datasets/mine", "datasets"])
def test_a_file_in_the_place_of_the_folder_is_named(api: Api, place: str) -> None:
    (api.home / place).parent.mkdir(exist_ok=True)
    (api.home / place).write_text("a file")
    answer = send(api, "mine", ("a.png", image_bytes()))
    assert answer.status_code == 422 and [one["code"] for one in answer.json()["problems"]] == ["not_writable"]
    assert (api.home / place).read_text() == "a file"


# ---- captions and clips ----
def problems(answer: Any) -> list[str]:
    return [one["code"] for one in answer.json()["problems"]]


def test_a_caption_lies_beside_its_image_whatever_that_is_called_now(api: Api) -> None:
    shown = send(api, "cats", ("a b&c.txt", b"a cat"), ("a b&c.PNG", image_bytes())).json()
    assert shown["captions"] == ["a b_c.txt"] and names(api, "cats") == ["a b_c.png", "a b_c.txt"]
    send(api, "cats", ("x.png", image_bytes(colour="red")))
    shown = send(api, "cats", ("x.png", image_bytes(colour="blue")), ("x.txt", b"a blue one")).json()
    assert shown["captions"] == ["x-2.txt"] and (api.home / "datasets/cats/x-2.txt").read_bytes() == b"a blue one"
    shown = send(api, "cats", ("x.txt", "une fête".encode("latin-1"))).json()
    assert shown["captions"] == ["x.txt"] and shown["images"] == [], "its image came before"


def test_a_caption_never_replaces_one(api: Api) -> None:
    send(api, "cats", ("a.png", image_bytes()), ("a.txt", b"mine"))
    answer = send(api, "cats", ("a.png", image_bytes()), ("a.txt", b"another"))
    assert problems(answer) == ["exists"] and (api.home / "datasets/cats/a.txt").read_bytes() == b"mine"
    assert problems(send(api, "cats", ("a.txt", b"mine"))) == []


def test_a_caption_is_text_of_an_image(api: Api, tmp_path: Path) -> None:
    send(api, "cats", ("a.png", image_bytes()), ("b.png", image_bytes(colour="blue")))
    (tmp_path / "secret").write_bytes(b"precious")
    (api.home / "datasets/cats/b.txt").symlink_to(tmp_path / "secret")
    sent = {"a.txt": b"\0\1\2" * 9, "b.txt": b"precious", "none.txt": b"x", "bad.png": b"x", "bad.txt": b"x", "blank.txt": b" \n"}
    answer = send(api, "cats", *sent.items(), ("long.txt", b"x" * (LARGEST_CAPTION_BYTES + 1)))
    assert sorted(problems(answer)) == ["broken_image", "empty", "exists", "no_image", "no_image", "no_text", "too_large"]
    assert answer.json()["captions"] == [] and names(api, "cats") == ["a.png", "b.png", "b.txt"]
    assert (tmp_path / "secret").read_bytes() == b"precious"


def test_a_clip_is_opened_before_it_is_stored(api: Api, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "boat.mp4").read_bytes()
    sent = [("boat.MP4", clip), ("boat.txt", b"a boat"), ("cut.mp4", clip[: len(clip) // 2]), ("page.webm", b"<html>")]
    answer = send(api, "clips", *sent)
    shown = answer.json()
    assert [(one["file"], one["width"], one["height"]) for one in shown["images"]] == [("boat.mp4", 96, 64)], shown
    assert shown["captions"] == ["boat.txt"] and problems(answer) == ["broken_image", "broken_image"]
    assert names(api, "clips") == ["boat.mp4", "boat.txt"]


def test_a_playlist_that_calls_itself_a_clip_opens_no_other_file(api: Api, tmp_path: Path) -> None:
    (tmp_path / "secret.ts").write_bytes(b"precious")
    playlist = f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/secret.ts\n#EXT-X-ENDLIST\n".encode()
    concat = f"ffconcat version 1.0\nfile '{tmp_path}/secret.ts'\n".encode()
    answer = send(api, "clips", ("a.mp4", playlist), ("b.avi", concat))
    assert problems(answer) == ["broken_image"] * 2 and "precious" not in answer.content.decode()


# ---- sizes ----
def test_a_file_is_cut_off_at_its_limit_and_leaves_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = len(image_bytes())
    monkeypatch.setattr(folders, "LIMITS", UploadLimits(limit, 0))
    answer = send(api, "cats", ("a.png", image_bytes()), ("b.png", image_bytes() + b"x"))
    assert problems(answer) == ["too_large"] and names(api, "cats") == ["a.png"] and "b.png" in answer.json()["problems"][0]["message"]
    assert list((api.home / "state").iterdir()) == []


def test_a_disk_keeps_the_space_that_runs_need(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "LIMITS", UploadLimits(64_000_000, 1 << 60))
    answer = send(api, "cats", ("a.png", image_bytes()))
    assert problems(answer) == ["no_space"] and names(api, "cats") == []


def test_a_file_that_django_put_on_the_disk_is_stored_and_gone_from_there(api: Api, settings: Any) -> None:
    settings.FILE_UPLOAD_MAX_MEMORY_SIZE, settings.FILE_UPLOAD_TEMP_DIR = 10, str(api.home / "state")
    noise = Image.effect_noise((300, 300), 90)
    stream = io.BytesIO()
    noise.save(stream, "PNG")
    assert send(api, "cats", ("noise.png", stream.getvalue())).json()["images"][0]["size_bytes"] == len(stream.getvalue())
    assert (api.home / "datasets/cats/noise.png").read_bytes() == stream.getvalue()
    assert list((api.home / "state").iterdir()) == []


@pytest.mark.parametrize("size", [(60_000, 60_000), (2_000_000_000, 1), (0, 0)])
def test_an_image_of_impossible_dimensions_is_refused_by_name(api: Api, size: tuple[int, int]) -> None:
    content = bytearray(image_bytes())
    content[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    answer = send(api, "cats", ("huge.png", bytes(content)), ("good.png", image_bytes()))
    assert problems(answer) == ["broken_image"] and "huge.png" in answer.json()["problems"][0]["message"]
    assert names(api, "cats") == ["good.png"]


def test_an_image_of_few_bytes_that_fills_the_memory_is_refused(api: Api) -> None:
    """A bomb within the header's limits is no danger either: another process decodes it, with a limit of memory."""
    rows = zlib.compressobj(9)
    width, height = 40_000, 4_000
    packed = b"".join(rows.compress(b"\0" * (width + 1)) for _ in range(height)) + rows.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    assert len(bomb) < 400_000
    answer = send(api, "cats", ("bomb.png", bomb), ("good.png", image_bytes()))
    assert answer.status_code == 200 and "good.png" in [one["file"] for one in answer.json()["images"]]
