"""The tables of sources and caption strategies: facts without large libraries, from which the fields of datasets derive."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.tiny_run import ROOT
from trainer_engine.config import dataset_tables
from trainer_engine.config.dataset_tables import (
    CAPTIONS_LATER,
    SOURCES_LATER,
    CaptionSpec,
    SourceSpec,
    caption_specs,
    fields_of,
    source_specs,
    table_paths,
)
from trainer_engine.config.datasets.generated import GeneratedFields
from trainer_engine.config.datasets.names import KIND, OF_IMAGES, specs
from trainer_engine.config.option import OptionGroup, option, spec_of
from trainer_engine.config.options import REGISTRY
from trainer_engine.datasets.captions.base import CaptionStrategy
from trainer_engine.datasets.sources.base import SourceKind

HEAVY = ("torch", "pyarrow", "PIL", "numpy", "datasets", "boto3", "huggingface_hub")


class Fields(OptionGroup):
    """Fields of a source in these tests."""

    bucket: str = option(..., "Name of the bucket.")
    prefix: str | None = option(None, "Only names with this prefix.", aliases=("folder",))


@pytest.fixture
def fresh_tables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Tables that are read anew in the test and after it."""
    for table in (source_specs, caption_specs):
        monkeypatch.setattr(dataset_tables, table.__name__, table.__wrapped__)
    return monkeypatch


def module_with(**declared: object) -> ModuleType:
    module = ModuleType("made")
    vars(module).update(declared)
    return module


def test_the_choices_of_both_fields_are_the_tables_with_the_default_first() -> None:
    storage, captions = specs("image")["type"], specs("image")["caption_strategy"]
    assert (storage.choices[0], set(storage.choices)) == ("local", set(source_specs()))
    assert (captions.choices[0], set(captions.choices)) == ("filename", set(caption_specs()))
    assert REGISTRY["caption_strategy"].choices == captions.choices
    assert captions.synonyms == {"instance_prompt": "instanceprompt"}


def test_another_name_of_a_choice_is_not_said_to_come_later() -> None:
    spec = spec_of("type", "conditioning", GeneratedFields.model_fields["type"])
    assert spec.synonyms["depth_midas"] == "depth"
    assert not set(spec.later) & {*spec.choices, *spec.synonyms}


def test_the_help_describes_every_choice() -> None:
    for spec, table in ((specs("image")["type"], source_specs()), (specs("image")["caption_strategy"], caption_specs())):
        assert all(f"{name}: {entry.help}" in spec.help for name, entry in table.items())


def test_what_has_a_file_is_available_and_the_rest_comes_later() -> None:
    assert specs("image")["type"].later == tuple(name for name in SOURCES_LATER if name not in source_specs())
    assert specs("image")["caption_strategy"].later == tuple(name for name in CAPTIONS_LATER if name not in caption_specs())


def test_a_cache_of_text_embeddings_lies_on_this_machine_whatever_sources_there_are() -> None:
    assert specs("text_embeds")["type"].choices == ("local",)


def test_every_shipped_entry_declares_its_code() -> None:
    assert source_specs() and all(isinstance(entry, SourceKind) and callable(entry.open) for entry in source_specs().values())
    assert caption_specs() and all(isinstance(entry, CaptionStrategy) and callable(entry.prepare) for entry in caption_specs().values())
    assert set(OF_IMAGES) < set(KIND.choices)


def test_the_fields_of_datasets_are_read_without_large_libraries() -> None:
    code = "import sys, trainer_engine.config.datasets, trainer_engine.config.options; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "trainer_engine.datasets.sources.local" in loaded and "trainer_engine.datasets.captions.textfile" in loaded
    assert not set(HEAVY) & set(loaded)


def test_two_files_that_declare_one_name_are_refused(fresh_tables: pytest.MonkeyPatch) -> None:
    local = source_specs()["local"]
    fresh_tables.setattr(dataset_tables, "modules_in", lambda package: [module_with(SOURCE=local), module_with(SOURCE=replace(local))])
    with pytest.raises(TypeError, match="'local'"):
        dataset_tables.source_specs()
    strategy = CaptionSpec(name="poem", help="a poem.")
    fresh_tables.setattr(dataset_tables, "modules_in", lambda package: [module_with(STRATEGIES=(strategy, strategy))])
    with pytest.raises(TypeError, match="'poem'"):
        dataset_tables.caption_specs()


def test_a_file_that_declares_nothing_is_a_helper(fresh_tables: pytest.MonkeyPatch) -> None:
    bucket = SourceSpec(name="bucket", help="a bucket.")
    fresh_tables.setattr(
        dataset_tables, "modules_in", lambda package: [module_with(), module_with(SOURCE=bucket), module_with(SOURCE="text")]
    )
    assert dict(dataset_tables.source_specs()) == {"bucket": bucket}


def test_the_further_fields_of_an_entry_are_declared_like_options() -> None:
    found = fields_of(SourceSpec(name="bucket", help="a bucket.", fields=Fields))
    assert found["bucket"] == spec_of("bucket", "bucket", Fields.model_fields["bucket"])
    assert found["bucket"].required and found["prefix"].aliases == ("folder",)
    assert fields_of(SourceSpec(name="plain", help="without fields.")) == {}


def test_paths_of_all_entries_are_known_for_the_path_rule(fresh_tables: pytest.MonkeyPatch) -> None:
    bucket = SourceSpec(name="bucket", help="a bucket.", paths={"key_file": "file"})
    table = CaptionSpec(name="table", help="a table.", paths={"table_folder": "folder"})
    fresh_tables.setattr(dataset_tables, "source_specs", lambda: {"bucket": bucket})
    fresh_tables.setattr(dataset_tables, "caption_specs", lambda: {"table": table})
    assert dict(table_paths.__wrapped__()) == {"key_file": "file", "table_folder": "folder"}


def test_a_module_of_another_folder_on_the_path_of_the_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer_engine.datasets import sources

    (tmp_path / "elsewhere_for_a_test.py").write_text('"""A helper."""\n')
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    names = [module.__name__.rpartition(".")[2] for module in dataset_tables.modules_in(sources)]
    assert names == sorted(names) and {"base", "local", "elsewhere_for_a_test"} <= set(names)
