"""The curves of a run."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.helpers.told_runs import ToldRun
from trainer_engine.report.curves import draw_curves
from trainer_engine.report.downsample import in_order, smoothed, thinned
from trainer_engine.report.journal import JournalContents, read_contents

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: bytes) -> str:
    return " | ".join("".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text"))


def images(run: ToldRun, heading: str = "boats") -> bytes:
    return draw_curves(read_contents(run.folder.journal), heading)


def test_figure_names_what_it_shows(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    for step in range(1, 41):
        run.step(step, 1 / step if step != 20 else None)
        if step % 10 == 0:
            run.evaluation(step, {"eval_loss/held-out": 0.5})
    run.checkpoint(40)
    run.image(10, "red")
    found = texts(images(run))
    for words in ("steps 1 to 40 of 100", "mean of the last 5 steps", "eval_loss/held-out", "checkpoint", "validation", "loss not finite"):
        assert words in found, found


@pytest.mark.parametrize(("sets", "more"), [(1, 0), (6, 0), (30, 18)])
def test_evaluations_with_long_names_leave_room_for_the_curves(tmp_path: Path, sets: int, more: int) -> None:
    run = ToldRun(tmp_path / "run")
    run.step(1)
    run.checkpoint(1)
    run.evaluation(1, {f"eval_loss/{'photos of a garden ' * 5}{number:02}": 0.5 for number in range(sets)})
    root = ElementTree.fromstring(images(run))
    found, [patch] = texts(images(run)), root.findall(f".//{SVG}g[@id='patch_2']/{SVG}path")
    corners = [float(number) for number in patch.attrib["d"].replace("M", "").replace("L", "").replace("z", "").split()]
    width, height = max(corners[::2]) - min(corners[::2]), max(corners[1::2]) - min(corners[1::2])
    assert width > 0.85 * 720 and height > 150
    assert found.count("eval_loss/photos") == sets - more and f"garden {sets - more - 1:02}" in found
    assert ("18 more evaluation losses" in found) == bool(more)


def test_figure_has_a_description_for_screen_readers(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    for step, loss in enumerate((0.5, 0.25, None, 0.375), start=1):
        run.step(step, loss)
    root = ElementTree.fromstring(images(run, "cost $5 of $6 <b>"))
    title, description = root.findtext(f"{SVG}title"), root.findtext(f"{SVG}desc")
    assert root.get("role") == "img"
    assert title == "Loss and learning rate: cost $5 of $6 <b>"
    assert description is not None and "least was 0.25 at step 2" in description and "1 losses were not finite" in description


def test_figure_has_no_script_and_no_external_reference(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    run.step(1)
    content = images(run).decode()
    assert "<script" not in content and "DOCTYPE" not in content
    links = {value for node in ElementTree.fromstring(content).iter() for name, value in node.attrib.items() if name.endswith("href")}
    assert all(link.startswith("#") for link in links)


def test_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    run.step(1)
    run.step(2)
    assert images(run) == images(run)


def test_losses_of_many_magnitudes_have_a_logarithmic_scale_with_plain_numbers(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    for step, loss in enumerate((2.0, 0.2, 0.02), start=1):
        run.step(step, loss)
    found = texts(images(run))
    assert all(f"| {number} |" in found for number in ("0.05", "0.1", "0.5", "1")) and "$" not in found


@pytest.mark.parametrize("losses", [[None, None], [0.0, 0.0], [1e-9, 1e6], [-1.0, 1.0]])
def test_strange_losses_are_drawn(tmp_path: Path, losses: list[float | None]) -> None:
    run = ToldRun(tmp_path / "run")
    for step, loss in enumerate(losses, start=1):
        run.step(step, loss, rate=0.0)
    assert images(run).startswith(b"<?xml")


def test_hundred_thousand_steps_make_a_small_file(tmp_path: Path) -> None:
    contents = JournalContents()
    for step in range(1, 100_001):
        contents.steps.append(step)
        contents.losses.append(0.1 + 1 / step + (step % 7) / 100)
        contents.learning_rates.append(1e-4)
    assert len(draw_curves(contents, "long")) < 200_000


def test_curves_without_steps_are_an_error() -> None:
    with pytest.raises(ValueError, match="need a step"):
        draw_curves(JournalContents(), "none")


def test_thinning_keeps_extremes_and_both_ends() -> None:
    steps = np.arange(50_000, dtype=np.float64)
    values = np.sin(steps / 1000)
    values[12_345], values[30_000] = 9.0, -9.0
    values[7] = np.nan
    shown_steps, shown = thinned(steps, values, bins=100)
    assert len(shown) <= 202 and not np.isnan(shown).any()
    assert {12_345, 30_000, 0, 49_999} <= set(shown_steps.astype(int))
    assert (np.diff(shown_steps) > 0).all()


def test_thinning_keeps_short_curves_unchanged() -> None:
    steps, values = thinned(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    assert steps.tolist() == [1, 2] and values.tolist() == [3, 4]


def test_smoothed_curve_is_a_trailing_mean_of_finite_values() -> None:
    values = np.array([1.0, 3.0, np.nan, 5.0, 7.0])
    assert smoothed(values, 2).tolist() == [1.0, 2.0, 3.0, 5.0, 6.0]
    assert np.isnan(smoothed(np.array([np.nan]), 2)).all()


def test_in_order_keeps_the_last_value_of_a_repeated_step() -> None:
    steps, losses = in_order(np.array([1.0, 2.0, 3.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 20.0, 30.0]))
    assert steps.tolist() == [1, 2, 3] and losses.tolist() == [1, 20, 30]
