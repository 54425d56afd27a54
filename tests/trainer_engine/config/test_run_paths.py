"""The paths that a run reads and writes, those of sources and caption strategies among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers.tiny_run import tiny_options
from trainer_engine.config import run_paths
from trainer_engine.config.datasets import Dataloader, ImageSet, parse_dataloader
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.config.run_paths import place_problems, read_places, refuse_closed_places, written_folders
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.contract.path_rule import PlaceRule

TABLE: Mapping[str, str] = {"key_file": "file", "downloads": "cache", "table": "any"}


@pytest.fixture
def options() -> TrainingOptions:
    return parse_options(tiny_options(Path("/place"), model="nobody/nothing"))


def datasets_of(options: TrainingOptions, **own_fields: str) -> Dataloader:
    """One image set, with fields that its source declares."""
    dataloader, _ = parse_dataloader([{"id": "set", "instance_data_dir": "/data/set", "cache_dir_vae": "/cache/set"}], options)
    [images] = dataloader.image_sets
    return Dataloader((images.model_copy(update={"own_fields": own_fields}),), dataloader.text_sets)


def test_a_folder_of_images_is_read_and_its_cache_written(options: TrainingOptions) -> None:
    dataloader = datasets_of(options)
    assert read_places(options, dataloader)["dataloader[0].instance_data_dir"] == Path("/data/set")
    assert written_folders(options, dataloader)["dataloader[0].cache_dir_vae"] == Path("/cache/set")


def test_a_set_without_a_folder_reads_none(options: TrainingOptions) -> None:
    [images] = datasets_of(options).image_sets
    bare = Dataloader((ImageSet.model_validate({**images.model_dump(), "position": 0, "instance_data_dir": ""}),), ())
    assert "dataloader[0].instance_data_dir" not in read_places(options, bare)


def test_paths_of_a_source_are_read_or_written_as_it_declares(options: TrainingOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_paths, "table_paths", lambda: TABLE)
    dataloader = datasets_of(options, key_file="/keys/a", downloads="/downloads", bucket="not a path")
    read, written = read_places(options, dataloader), written_folders(options, dataloader)
    assert read["dataloader[0].key_file"] == Path("/keys/a") and written["dataloader[0].downloads"] == Path("/downloads")
    assert not {"dataloader[0].downloads", "dataloader[0].table", "dataloader[0].bucket"} & read.keys()
    assert "dataloader[0].key_file" not in written


def test_the_path_rule_of_the_server_applies_to_the_paths_of_a_source(options: TrainingOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_paths, "table_paths", lambda: TABLE)
    dataloader = datasets_of(options, key_file="/keys/a", downloads="/downloads")
    rule = PlaceRule(roots=("/place", "/data", "/cache"))
    found = {problem.option: problem.code for problem in place_problems(rule, options, dataloader)}
    assert found == {"dataloader[0].key_file": "outside_roots", "dataloader[0].downloads": "outside_roots"}
    with pytest.raises(InvalidOptions):
        refuse_closed_places(rule, options, dataloader)
    refuse_closed_places(PlaceRule(anywhere=True), options, dataloader)
