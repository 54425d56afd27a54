"""Checks that the paths a run reads and writes are allowed by the server's path rule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer_engine.config.adapters.validation_adapter import validation_adapter_runs
from trainer_engine.config.dataset_tables import FOLDER_FIELD, table_paths
from trainer_engine.config.datasets import Dataloader, ImageSet, ReferenceSet
from trainer_engine.config.datasets.lists import FILTERS
from trainer_engine.config.destinations import parse_trackers
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.stages import model_options
from trainer_engine.config.validation_inputs import parse_validation_inputs
from trainer_engine.contract.errors import InvalidOptions, Problem
from trainer_engine.contract.path_rule import PlaceRule

WRITTEN = ("output_dir", "cache_dir", "cache_dir_vae", "cache_dir_text", "group_offload_to_disk_path")
READ = (
    "pretrained_model_name_or_path",
    "pretrained_config_name_or_path",
    "pretrained_vae_model_name_or_path",
    "pretrained_t5_model_name_or_path",
    "pretrained_unet_model_name_or_path",
    "pretrained_transformer_model_name_or_path",
    "controlnet_model_name_or_path",
    "pretrained_evaluation_model_name_or_path",
    "validation_adapter_path",
    "assistant_lora_path",
    "lycoris_config",
    "init_lora",
    "init_lora_ema",
    "accelerate_config",
    "publishing_config",
)
"""Options that may hold an absolute path. Any other value is the name of a repository, or JSON."""


def written_folders(options: TrainingOptions, dataloader: Dataloader | None) -> dict[str, Path]:
    """Returns the folders that the run writes to, by option or dataset field."""
    values = options.as_values()
    wanted = {name: Path(values[name]) for name in WRITTEN if values.get(name)}
    if parse_trackers(options.reporting.report_to):
        wanted["logging_dir"] = Path(options.run.output_dir, options.reporting.logging_dir)
    for images in _image_sets(dataloader):
        wanted[images.option("cache_dir_vae")] = Path(str(images.cache_dir_vae))
        wanted |= _own_paths(images, written=True)
        if isinstance(images, ReferenceSet) and images.generated:
            wanted[images.option(FOLDER_FIELD)] = Path(images.instance_data_dir)
    for text in dataloader.text_sets if dataloader else ():
        wanted[text.option("cache_dir")] = Path(str(text.cache_dir))
    return wanted


def index_folder(options: TrainingOptions) -> Path:
    """Returns the folder in which a run caches the sizes of images."""
    return Path(options.data.cache_dir or Path(options.run.output_dir, "cache"), "index")


def read_places(options: TrainingOptions, dataloader: Dataloader | None) -> dict[str, Path]:
    """Returns the files and folders that the run reads, by option or dataset field."""
    values = options.as_values()
    named = {name: Path(str(values[name])) for name in (*READ, *model_options()) if values.get(name)}
    named |= {source.place: Path(source.path) for run in validation_adapter_runs(values) for source in run.sources}
    named |= {one.place: Path(one.path) for one in parse_validation_inputs(values["validation_input"])[0]}
    for images in _image_sets(dataloader):
        named |= {images.option(FOLDER_FIELD): Path(images.instance_data_dir)} if images.instance_data_dir else {}
        named |= {images.option("parquet.path"): Path(images.parquet.path)} if images.parquet else {}
        named |= _own_paths(images, written=False)
    for text in dataloader.text_sets if dataloader else ():
        named |= {text.option(FILTERS): Path(text.caption_filter_list)} if isinstance(text.caption_filter_list, str) else {}
    return {name: path for name, path in named.items() if path.is_absolute()}


def _image_sets(dataloader: Dataloader | None) -> tuple[ImageSet | ReferenceSet, ...]:
    return (*dataloader.sets_of_images, *dataloader.reference_sets) if dataloader else ()


def _own_paths(images: ImageSet | ReferenceSet, *, written: bool) -> dict[str, Path]:
    """Returns the paths in the fields that the source and the caption strategy of a dataset declare, by field."""
    names = [name for name, kind in table_paths().items() if (kind == "cache") is written]
    return {images.option(name): Path(images.own_fields[name]) for name in names if images.own_fields.get(name)}


def place_problems(rule: PlaceRule, options: TrainingOptions, dataloader: Dataloader | None) -> Iterator[Problem]:
    """Yields a problem for each path of a run that the rule refuses, given the links on the disk now."""
    for writing, places in ((True, written_folders(options, dataloader)), (False, read_places(options, dataloader))):
        for option, path in places.items():
            refusal = rule.refusal(path, writing=writing)
            if refusal is not None:
                yield Problem.error(option, "outside_roots", f"{path} {refusal.message}.", got=str(path), hint=refusal.hint)


def refuse_closed_places(rule: PlaceRule, options: TrainingOptions, dataloader: Dataloader) -> None:
    """Raises InvalidOptions if a path that was checked before has become a link to a place that the rule refuses."""
    problems = list(place_problems(rule, options, dataloader))
    if problems:
        raise InvalidOptions(problems, hint="a folder in this path has changed since the run was checked")
