"""The images of an environment's datasets: listed with captions, shown small, described in text files."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from environments.create import own_images
from environments.errors import EnvironmentProblems
from environments.images import datasets, folders, thumbnails
from environments.images.datasets import LONGEST_CAPTION, OpenDataset
from environments.paths import Home
from tests.environments.conftest import Api
from tests.helpers.pictures import generate_images
from trainer_engine.config.datasets import ImageSet
from trainer_engine.datasets.media.base import suffixes_of
from trainer_engine.datasets.sources.local import Bound, LocalSource

pytestmark = pytest.mark.django_db
BASE = "/api/datasets/demo/demo-images"


@pytest.fixture
def folder(api: Api) -> Path:
    """The folder of the one dataset of the environment ``demo``: four images, two of them with captions."""
    api.create()
    folder = api.home / "datasets/demo"
    paths = generate_images(folder, count=4, size=(640, 480), captions="textfile")
    for path in paths[2:]:
        path.with_suffix(".txt").unlink()
    strategy(api, "textfile")
    return folder


def strategy(api: Api, name: str, **fields: Any) -> None:
    """Choose where the captions come from."""
    path = api.home / "config/demo/multidatabackend.json"
    entries = json.loads(path.read_text())
    entries[0] |= {"caption_strategy": name, **fields}
    path.write_text(json.dumps(entries))


def open_dataset_at(folder: Path) -> ImageSet:
    """A set of images with text files, whose path was kept as a link."""
    return ImageSet(position=0, id="demo-images", instance_data_dir=str(folder), caption_strategy="textfile")


def listed(api: Api, **query: Any) -> Any:
    answer = api.client.get(f"{BASE}/images", query)
    assert answer.status_code == 200, answer.content
    return answer.json()


def put(api: Api, file: str, caption: str) -> Any:
    return api.client.put(f"{BASE}/caption", {"file": file, "caption": caption}, format="json")


def test_images_are_listed_with_their_captions(api: Api, folder: Path) -> None:
    shown = listed(api)
    assert (shown["total"], shown["without_text"], shown["caption_strategy"], shown["folder"]) == (4, 2, "textfile", str(folder))
    assert [one["file"] for one in shown["images"]] == sorted(path.name for path in folder.iterdir() if path.suffix != ".txt")
    with_text = [one for one in shown["images"] if one["text"]]
    assert [one["captions"] for one in with_text] == [[one["text"].strip()] for one in with_text] and len(with_text) == 2
    without = [one for one in shown["images"] if one["text"] is None]
    assert all(one["captions"] is None and "no .txt file" in one["trouble"] for one in without)
    first = listed(api, missing_first="true", limit=2)["images"]
    assert [one["file"] for one in first] == [one["file"] for one in without]
    assert [one["file"] for one in listed(api, offset=3)["images"]] == [shown["images"][3]["file"]]


def test_captions_are_those_that_training_sees(api: Api, folder: Path) -> None:
    strategy(api, "filename", instance_prompt="sks", prepend_instance_prompt=True)
    assert all(one["captions"][0].startswith("sks a ") for one in listed(api)["images"])
    strategy(api, "instanceprompt", instance_prompt=["a cat", "one cat"])
    assert all(one["captions"] == ["a cat", "one cat"] for one in listed(api)["images"])


@pytest.mark.parametrize("query", [{"offset": "-1"}, {"limit": "0"}, {"limit": "101"}, {"offset": "x"}, {"missing_first": "maybe"}])
def test_bad_numbers_are_refused(api: Api, folder: Path, query: dict[str, str]) -> None:
    answer = api.client.get(f"{BASE}/images", query)
    assert answer.status_code == 422 and answer.json()["problems"][0]["option"] == next(iter(query))


@pytest.mark.parametrize(
    "address", ["/api/datasets/none/x/images", "/api/datasets/demo/none/images", "/api/datasets/demo/none/thumbnail?file=a.png"]
)
def test_unknown_names_are_not_found(api: Api, folder: Path, address: str) -> None:
    assert api.client.get(address).status_code == 404


def test_a_caption_is_written_and_used(api: Api, folder: Path) -> None:
    file = listed(api, missing_first="true")["images"][0]["file"]
    answer = put(api, file, "  a cat \r\nanother caption\n\n")
    assert answer.status_code == 200 and answer.json()["is_used"] is True
    assert (folder / file).with_suffix(".txt").read_text() == "a cat\nanother caption\n"
    again = next(one for one in listed(api)["images"] if one["file"] == file)
    assert again["captions"] == ["a cat", "another caption"] and listed(api)["without_text"] == 1
    assert put(api, file, "better").status_code == 200
    assert (folder / file).with_suffix(".txt").read_text() == "better\n"
    strategy(api, "filename")
    assert put(api, file, "not used").json()["is_used"] is False


@pytest.mark.parametrize("text", ["", "  \n ", "x" * (LONGEST_CAPTION + 1)])
def test_a_caption_has_a_length(api: Api, folder: Path, text: str) -> None:
    file = listed(api)["images"][0]["file"]
    assert put(api, file, text).status_code == 422


@pytest.mark.parametrize(
    "file", ["../../state/x.png", "/etc/passwd", "a.txt", "missing.png", ".hidden.png", "sub/../../../x.png", "a\0.png"]
)
def test_only_images_of_the_dataset_have_captions_and_copies(api: Api, folder: Path, file: str) -> None:
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "a.txt").write_text("x")
    assert put(api, file, "a cat").status_code in (404, 422)
    assert api.client.get(f"{BASE}/thumbnail?file={quote(file)}").status_code == 404
    assert (folder / "a.txt").read_text() == "x"


def test_links_of_strangers_are_followed_neither_to_read_nor_to_write(api: Api, folder: Path, links_of_a_stranger: None) -> None:
    (folder / "link.png").symlink_to("/usr/bin/env")
    assert "link.png" not in str(listed(api))
    assert api.client.get(f"{BASE}/thumbnail?file=link.png").status_code in (404, 422)
    victim = api.home / "state/secret.txt"
    victim.write_text("secret")
    file = listed(api, missing_first="true")["images"][0]["file"]
    (folder / file).with_suffix(".txt").symlink_to(victim)
    assert put(api, file, "overwritten").status_code == 422
    assert victim.read_text() == "secret"
    assert "secret" not in str(listed(api))


def test_small_copies_are_made_once_and_keep_the_orientation(api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (800, 400), "green").save(folder / "turned.jpg", exif=exif)
    address = next(one["thumbnail"] for one in listed(api)["images"] if one["file"] == "turned.jpg")
    answer = api.client.get(address)
    assert answer.status_code == 200 and answer["Content-Type"] == "image/webp" and answer["X-Content-Type-Options"] == "nosniff"
    assert Image.open(io.BytesIO(answer.content)).size == (160, 320)
    assert len(list((api.home / "state/thumbnails").iterdir())) == 1

    first = listed(api)["images"][0]
    assert api.client.get(first["thumbnail"]).status_code == 200
    assert len(list((api.home / "state/thumbnails").iterdir())) == 5, "those that follow were made with it"
    monkeypatch.setattr(thumbnails, "decode", lambda wanted: pytest.fail("it is there already"))
    assert api.client.get(first["thumbnail"]).status_code == 200


def test_a_broken_image_has_no_copy_and_says_why(api: Api, folder: Path) -> None:
    (folder / "0.png").write_bytes(b"no image")
    answer = api.client.get(f"{BASE}/thumbnail?file=0.png")
    assert answer.status_code == 404 and "not an image" in answer.json()["detail"]


def test_copies_take_a_bounded_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "LARGEST_BYTES", 1000)
    monkeypatch.setattr(thumbnails, "KEPT_BYTES", 500)
    for number in range(12):
        path = tmp_path / f"{number:02d}.webp"
        path.write_bytes(bytes(100))
        os.utime(path, ns=(number * 10**9, number * 10**9))
    thumbnails._prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number:02d}.webp" for number in range(7, 12)]


def test_a_link_among_the_images_hides_no_other_image(api: Api, folder: Path, links_of_a_stranger: None) -> None:
    (folder / "zz.png").symlink_to("/usr/bin/env")
    first = listed(api)["images"][0]
    assert api.client.get(first["thumbnail"]).status_code == 200
    assert len(list((api.home / "state/thumbnails").iterdir())) == 4, "one for each image but the link"


def test_a_copy_that_is_there_needs_no_look_at_the_dataset(api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = listed(api)["images"][0]
    made = api.client.get(first["thumbnail"])
    monkeypatch.setattr(OpenDataset, "files", lambda self: pytest.fail("a folder may hold a hundred thousand files"))
    assert api.client.get(first["thumbnail"]).content == made.content


def test_a_copy_that_is_removed_meanwhile_is_made_again(api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = listed(api)["images"][0]
    made = api.client.get(first["thumbnail"])
    is_file = Path.is_file

    def then_removed(path: Path) -> bool:
        """Another request removes the oldest copies just after this one has seen its own."""
        was_there = is_file(path)
        if path.suffix == ".webp":
            path.unlink(missing_ok=True)
        return was_there

    monkeypatch.setattr(Path, "is_file", then_removed)
    assert api.client.get(first["thumbnail"]).content == made.content


def test_a_caption_in_another_encoding_is_shown_as_training_reads_it(api: Api, folder: Path) -> None:
    file = listed(api)["images"][0]["file"]
    for encoding in ("latin-1", "utf-16", "utf-8-sig"):
        (folder / file).with_suffix(".txt").write_bytes("Übergröße".encode(encoding))
        assert [(one["text"], one["captions"]) for one in listed(api)["images"][:1]] == [("Übergröße", ["Übergröße"])], encoding


def test_a_folder_that_its_owner_links_out_of_the_roots_shows_its_texts(api: Api, folder: Path, tmp_path: Path) -> None:
    outside, links = tmp_path / "outside", api.home / "links/deep"
    folder.rename(outside)
    links.mkdir(parents=True)
    (links / "demo").symlink_to(outside)
    opened = OpenDataset(open_dataset_at(links / "demo"), Home(api.home, roots=()))
    assert [bool(one.text) for one in opened.images(offset=0, limit=4).images].count(True) == 2


# ---- very large folders ----
def test_a_page_of_a_very_large_folder_says_that_there_are_more(api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert listed(api)["is_cut"] is False
    monkeypatch.setattr(datasets, "MOST_LISTED", 3)
    shown = listed(api)
    assert (shown["total"], shown["is_cut"], len(shown["images"])) == (3, True, 3)
    file = shown["images"][0]["file"]
    assert put(api, file, "found by its name").status_code == 200, "what is not listed can be used all the same"
    with pytest.raises(EnvironmentProblems, match="more than 3 images"):
        datasets.open_dataset("demo", "demo-images").write_texts()
    monkeypatch.setattr(datasets, "LONGEST_SECONDS", 0.0)
    assert listed(api)["is_cut"] is True


def test_a_walk_ends_at_its_bound_wherever_the_files_lie(tmp_path: Path) -> None:
    for name in ("a/b/1.png", "a/2.png", "c/3.png", "4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source, suffixes = LocalSource(str(tmp_path)), suffixes_of(("image",))
    whole = [one.name for one in source.list_files(suffixes).files]
    assert whole == ["4.png", "a/2.png", "a/b/1.png", "c/3.png"]
    for most in range(1, 5):
        bound = Bound(most, 60.0)
        some = [one.name for one in source.list_files(suffixes, bound).files]
        assert len(some) == most and set(some) <= set(whole)
        assert bound.is_reached or most == 4
    far = Bound(5, 60.0)
    assert [one.name for one in source.list_files(suffixes, far).files] == whole and not far.is_reached
    late = Bound(5, -1.0)
    assert source.list_files(suffixes, late).files == [] and late.is_reached


def test_a_new_environment_looks_for_the_first_caption_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        (tmp_path / f"{number}.txt").write_text("x")
    looked: list[int] = []
    allows = Bound.allows

    def noting(bound: Bound, found: int) -> bool:
        looked.append(found)
        return allows(bound, found)

    monkeypatch.setattr(Bound, "allows", noting)
    assert own_images._has_captions(tmp_path) and looked == [0, 1]


def test_a_folder_of_many_is_listed_as_far_as_there_is_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        (api.home / f"datasets/set{number}").mkdir(parents=True)
    monkeypatch.setattr(folders, "MOST_FOLDERS", 4)
    shown = api.client.get("/api/folders", {"path": "datasets"}).json()
    assert shown["is_cut"] and len(shown["folders"]) == 4
    monkeypatch.setattr(folders, "LONGEST_SECONDS", 0.0)
    shown = api.client.get("/api/folders", {"path": "datasets"}).json()
    assert shown["is_cut"] and shown["folders"] == []
