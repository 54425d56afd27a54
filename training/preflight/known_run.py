"""Collects what is known of a run's memory before it starts: shapes of weights on this machine, and what is encoded when."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from trainer_engine.config.adapters.assistant import assistant_of
from trainer_engine.config.adapters.file_header import UnusableAdapter, open_adapter
from trainer_engine.config.datasets import Dataloader
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from training.preflight.autoencoder import FOLDER as AUTOENCODER
from training.preflight.base_model import HubSettings
from training.preflight.cache_stock import EMBEDDINGS
from training.preflight.cache_stock import LATENTS as CACHED_LATENTS
from training.preflight.disk import DiskUse
from training.preflight.network import Shape, component_tensors, count_parameters
from training.preflight.on_device import CAPTIONS, LATENTS, EstimatedRun
from training.preflight.published_shapes import published_tensors
from training.preflight.validation_adapters import adapter_file


def known_run(
    options: TrainingOptions,
    spec: FamilySpec,
    dataloader: Dataloader,
    tensors: Mapping[str, Shape] | None,
    caches: Iterable[DiskUse],
    hub: HubSettings,
    *,
    on_cpu: bool,
) -> EstimatedRun:
    """``tensors``: those of the trained components on this machine; without them, the published shapes count.

    ``caches``: what the run still writes to its caches."""
    flavour = options.model.model_flavour or spec.default_flavour
    tensors = tensors or published_tensors(spec, flavour)
    missing = {use.what for use in caches if use.bytes}
    encodes = {CAPTIONS: EMBEDDINGS in missing, LATENTS: CACHED_LATENTS in missing}
    folders = {AUTOENCODER, *spec.prompts.text_encoder_folders, *(spec.components[name].folder for name in spec.networks_beside)}
    return EstimatedRun(
        options=options,
        spec=spec,
        parameters=count_parameters(tensors) if tensors else spec.parameters.get(flavour, 0),
        tensors=tensors,
        parts={name: found for name in folders if (found := component_tensors(options.model, spec, name, hub.cache)) is not None},
        on_cpu=on_cpu,
        first=frozenset(name for name, is_missing in encodes.items() if is_missing),
        meanwhile=frozenset(_meanwhile(options, dataloader)),
        captions_at_once=max((text.text_encoder_batch_size for text in dataloader.text_sets), default=1),
        assistant=_assistant_numbers(options, hub),
    )


def _meanwhile(options: TrainingOptions, dataloader: Dataloader) -> Iterable[str]:
    """What is encoded while training."""
    data = options.data
    texts = any(text.text_cache_ondemand or text.text_cache_disable for text in dataloader.text_sets)
    if texts or data.text_cache_ondemand or data.text_cache_disable:
        yield CAPTIONS
    images = any(one.vae_cache_ondemand or one.vae_cache_disable for one in (*dataloader.sets_of_images, *dataloader.reference_sets))
    changes = any(one.changes_crops for one in dataloader.sets_of_images)
    if images or changes or data.vae_cache_ondemand or data.vae_cache_disable:
        yield LATENTS


def _assistant_numbers(options: TrainingOptions, hub: HubSettings) -> int:
    """Numbers in the file of the assistant adapter; 0 without one, or if the file is not on this machine."""
    source = assistant_of(options.as_values())
    file: Path | None = adapter_file(source, hub) if source else None
    if file is None:
        return 0
    try:
        return sum(math.prod(tensor.shape) for tensor in open_adapter(file).tensors.values())
    except (UnusableAdapter, OSError):
        return 0
