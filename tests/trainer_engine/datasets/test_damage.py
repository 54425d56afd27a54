"""A large folder with every kind of damage in it: the pass ends, and each bad file is named."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tests.trainer_engine.datasets.test_report import entry, only, report_of
from trainer_engine.datasets.summary import summarise

GOOD, BAD = 2_000, 200


def damaged(dice: random.Random) -> Iterator[tuple[str, bytes]]:
    """Endless bad files, as (ending, content)."""
    picture = Image.effect_noise((120, 90), 90).convert("RGB")
    whole: dict[str, bytes] = {}
    for kind in ("JPEG", "PNG", "WEBP"):
        stream = io.BytesIO()
        picture.save(stream, kind)
        whole[kind] = stream.getvalue()
    while True:
        for kind, ending in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
            yield ending, whole[kind][: dice.randrange(20, len(whole[kind]) - 20)]
        yield "jpg", b""
        yield "png", dice.randbytes(500)
        yield "jpg", b"<html>404 not found</html>"
        yield "svg", b"<svg/>"
        yield "jpg", b"%PDF-1.4 nothing"


def test_every_bad_file_of_a_large_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    Image.effect_noise((80, 64), 90).convert("RGB").save(tmp_path / "good.jpg")
    for number in range(GOOD):
        os.link(tmp_path / "good.jpg", folder / f"good_{number}.jpg")
    bad = set()
    for number, (ending, content) in zip(range(BAD), damaged(random.Random(7))):
        name = f"bad_{number}.{ending}"
        (folder / name).write_bytes(content)
        bad.add(name)
    (folder / "round").symlink_to(folder)
    report = report_of(entry(folder))
    assert {file.name for file in only(report).left_out} == bad
    assert all(file.reason for file in only(report).left_out)
    assert len(only(report).samples) == GOOD
    assert [problem.code for problem in report.problems] == ["files_broken"]
    assert summarise(report)["datasets"][0]["left_out_count"] == BAD
