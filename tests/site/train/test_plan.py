"""``simpletuner plan``: the order of a run without training it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from simpletuner_site.cli import main
from tests.helpers.live_server import REPOSITORY
from tests.helpers.pictures import generate_images
from tests.helpers.tiny_run import tiny_datasets, tiny_options, train_here
from trainer_engine.batches.batch import Batch
from trainer_engine.batches.collate import Collator
from trainer_engine.batches.sampler import GlobalBatch
from trainer_engine.contract.errors import ExitCode

Samples = list[tuple[str, str, str]]


def write_config(place: Path, datasets: list[dict[str, Any]], **options: Any) -> Path:
    """``config.json`` and its datasets, of the tiny model."""
    values = tiny_options(place, **options)
    Path(values["data_backend_config"]).write_text(json.dumps(datasets))
    config = place / "config.json"
    config.write_text(json.dumps({f"--{name}": value for name, value in values.items()}))
    return config


def planned(config: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[Samples]:
    """What the command says of each step."""
    assert main(["plan", "--config", str(config), "--home", str(config.parent), "--json", *arguments]) == ExitCode.COMPLETED
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    return [[(sample["dataset"], sample["file"], sample["bucket"]) for sample in line["samples"]] for line in found]


def two_sizes(place: Path) -> list[dict[str, Any]]:
    small, texts = tiny_datasets(place, images=8, repeats=1, probability=0.5)
    large = {**small, "id": "large", "instance_data_dir": str(place / "large"), "cache_dir_vae": str(place / "cache/large")}
    large |= {"repeats": 0, "probability": 1.0}
    generate_images(place / "large", count=10, size=(96, 96))
    return [small, large, texts]


@pytest.mark.parametrize("sampling", ["auto-weighting", "uniform"])
def test_the_plan_is_what_a_run_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sampling: str
) -> None:
    taken: dict[int, Samples] = {}
    collate = Collator.collate

    def watched(self: Collator, step: int, number: int, batch: GlobalBatch, before: int) -> Batch:
        found = collate(self, step, number, batch, before)
        names = [(item.source, item.sample.name, item.sample.bucket) for item in batch]
        assert found.files == tuple(item.sample.location for item in batch)
        taken.setdefault(step, []).extend(names)
        return found

    monkeypatch.setattr(Collator, "collate", watched)
    options = {"max_train_steps": 15, "gradient_accumulation_steps": 2, "data_backend_sampling": sampling}
    datasets = two_sizes(tmp_path)
    train_here(tmp_path, datasets=datasets, **options)
    assert planned(write_config(tmp_path, datasets, **options), capsys, "--steps", "15") == [taken[step] for step in range(15)]


def test_a_small_set_is_spread_over_the_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = two_sizes(tmp_path)
    datasets[0] |= {"probability": 1.0, "repeats": 0}
    generate_images(tmp_path / "large/more", count=62, size=(96, 96))
    config = write_config(tmp_path, datasets, train_batch_size=1, max_train_steps=0, num_train_epochs=1)
    steps = planned(config, capsys)
    assert set(Counter(name for ((_, name, _),) in steps).values()) <= {1, 2}
    assert len(steps) == len({(source, name) for ((source, name, _),) in steps}) == 80
    small = [place for place, ((source, _, _),) in enumerate(steps) if source == "pictures"]
    assert len(small) == 8
    mean, deviation = 39.5, math.sqrt(80 * 80 / 12 / 8)
    assert abs(sum(small) / 8 - mean) < 4 * deviation
    assert max(small) > 40


def test_the_text_form_has_one_line_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = tiny_datasets(tmp_path, images=8)
    picture = next((tmp_path / "images").glob("*.png"))
    picture.rename(picture.with_name("new\nline.png"))
    config = write_config(tmp_path, datasets)
    assert main(["plan", "--config", str(config), "--home", str(tmp_path), "--steps", "5"]) == ExitCode.COMPLETED
    out, reported = capsys.readouterr()
    assert [line.split(": ")[0] for line in out.splitlines()] == ["1", "2", "3", "4", "5"]
    assert "pictures [1 (64x64)]: " in out and '"new\\nline.png"' in out
    assert "the run ends after step 4" in reported


def test_a_configuration_that_is_refused_is_refused_by_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = tiny_datasets(tmp_path)
    config = write_config(tmp_path, datasets, train_batch_size=0, optimiser="adam")
    assert main(["plan", "--config", str(config), "--home", str(tmp_path)]) == ExitCode.CONFIGURATION
    reported = capsys.readouterr().err
    assert "train_batch_size" in reported and "optimiser" in reported
    datasets[0]["instance_data_dir"] = str(tmp_path / "nowhere")
    config = write_config(tmp_path, datasets)
    assert main(["plan", "--config", str(config), "--home", str(tmp_path)]) == ExitCode.CONFIGURATION
    assert "does not exist" in " ".join(capsys.readouterr().err.split())
    assert main(["plan", "--config", str(tmp_path / "none.json")]) == ExitCode.CONFIGURATION
    assert not (tmp_path / "output").exists() and not (tmp_path / "state").exists()


def test_a_set_whose_files_are_not_here_yet_is_not_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, texts = tiny_datasets(tmp_path)
    (tmp_path / "rows.csv").write_text("url,caption\nhttps://unreachable.example/1.png,a cat\n")
    images = {"id": "web", "type": "csv", "csv_file": str(tmp_path / "rows.csv"), "csv_cache_dir": str(tmp_path / "files")}
    images |= {"caption_strategy": "csv", "csv_caption_column": "caption"}
    config = write_config(tmp_path, [images, texts])
    assert main(["plan", "--config", str(config), "--home", str(tmp_path)]) == ExitCode.CONFIGURATION
    captured = capsys.readouterr()
    assert "1 files are not here yet" in " ".join((captured.out + captured.err).split())


def test_planning_loads_no_torch(tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_datasets(tmp_path))
    script = (
        "import sys; from simpletuner_site.cli import main\n"
        "code = main(['plan', '--config', sys.argv[1], '--home', sys.argv[2], '--steps', '2'])\n"
        "print(code, sorted({'torch', 'diffusers', 'accelerate'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(config), str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
