"""Uploads of images: what is stored, what is refused, and that nothing of a person is touched."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from PIL import Image

from environments.home import current_home
from environments.images import upload
from environments.images.upload import LONGEST_STEM, safe_name
from tests.environments.conftest import Api

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
    assert [one["code"] for one in shown["problems"]] == ["no_image", "empty", "broken_image", "broken_image", "broken_image"]
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
    monkeypatch.setattr(upload, "LARGEST_BYTES", 50)
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
