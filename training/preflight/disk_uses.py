"""Estimates what a run writes to each folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from environments.paths import Home
from trainer_engine.config.destinations import parse_trackers
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.validation import ValidationOptions
from trainer_engine.config.prompt_library import built_in_library, library_of
from trainer_engine.config.stages import other_stage
from trainer_engine.contract.run import RESERVED_BYTES
from training.preflight.base_model import HubSettings, find_weights
from training.preflight.disk import OUTPUT, DiskUse
from training.preflight.streamed import streamed_share
from training.preflight.weights import Tensors, frozen_network_bytes

BYTES_OF_STEP = 1500
"""Bytes of a line of the journal and its row in the database."""
TRACKED_BYTES_OF_STEP = 600
BYTES_OF_PIXEL = 1.5
"""Bytes per pixel of a compressed image."""
DOWNLOADED_BYTES = 2
"""Bytes per parameter of a model on the hub."""


def run_uses(options: TrainingOptions, home: Home, parts: Mapping[str, int], steps: int) -> Iterator[DiskUse]:
    """All uses but caches and downloads. ``parts`` holds the bytes of ``checkpoint``, ``checkpoints`` and ``pipeline``."""
    output_dir = Path(options.run.output_dir)
    yield DiskUse(OUTPUT, output_dir, "checkpoints", parts["checkpoints"], parts["checkpoint"])
    yield DiskUse(OUTPUT, output_dir, "the result", parts["pipeline"], parts["pipeline"])
    images = _image_bytes(options.validation, steps)
    yield DiskUse("validation_resolution", output_dir / "validation_images", "validation images", images)
    if parse_trackers(options.reporting.report_to):
        yield DiskUse("logging_dir", output_dir / options.reporting.logging_dir, "tracker files", images + TRACKED_BYTES_OF_STEP * steps)
    previews = images // options.validation.frames * _previews_of_an_image(options.validation)
    yield DiskUse("state", home.state, "the run's journal and previews", RESERVED_BYTES + BYTES_OF_STEP * steps + previews)


def weights_use(options: TrainingOptions, spec: FamilySpec, parameters: int, tensors: Tensors | None) -> Iterator[DiskUse]:
    """Frozen weights that wait on a disk. Nothing of them remains after the run."""
    memory = options.memory
    if memory.enable_group_offload and memory.group_offload_to_disk_path:
        share = streamed_share(memory, parameters, tensors).share
        number = int(share * frozen_network_bytes(options, spec, parameters, tensors))
        folder = Path(memory.group_offload_to_disk_path)
        yield DiskUse("group_offload_to_disk_path", folder, "weights that wait on the disk", number, number)


def download_use(source: str, base: Path | None, options: TrainingOptions, spec: FamilySpec, hub: HubSettings) -> Iterator[DiskUse]:
    """The download of the base model if it is not cached. Text encoders are not counted, because their size is unknown."""
    if base is not None or hub.is_offline:
        return
    numbers = spec.parameters.get(options.model.model_flavour or spec.default_flavour, 0)
    what = f"the downloaded files of {source}"
    yield DiskUse("pretrained_model_name_or_path", hub.cache, what, DOWNLOADED_BYTES * numbers, numbers)


def other_stage_download(options: TrainingOptions, spec: FamilySpec, hub: HubSettings) -> Iterator[DiskUse]:
    """The download of the network that makes validation images beside the trained one, if it is not cached."""
    stage = other_stage(options, spec)
    if stage is None or hub.is_offline or find_weights(stage.name, None, hub) is not None:
        return
    numbers = spec.parameters.get(stage.model.model_flavour or spec.default_flavour, 0)
    yield DiskUse(stage.option, hub.cache, f"the downloaded files of {stage.name}", DOWNLOADED_BYTES * numbers, numbers)


def _image_bytes(validation: ValidationOptions, steps: int) -> int:
    """Bytes of all validation images of a run."""
    if validation.validation_disable:
        return 0
    built_in = {"false": "", "true": "general"}.get(validation.validation_prompt_library, validation.validation_prompt_library)
    prompts = len(library_of(validation.user_prompt_library)) + (len(built_in_library(built_in)) if built_in else 0)
    prompts += bool(validation.validation_prompt) + (not validation.validation_disable_unconditional)
    pixels = sum(width * height for width, height in validation.resolutions)
    times = steps // (validation.validation_step_interval or steps + 1) + 1
    return int(times * prompts * validation.num_validation_images * validation.frames * pixels * BYTES_OF_PIXEL)


def _previews_of_an_image(validation: ValidationOptions) -> int:
    if not validation.validation_preview:
        return 0
    return -(-validation.validation_num_inference_steps // validation.validation_preview_steps)
