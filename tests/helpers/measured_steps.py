"""Small models that are wide enough to measure, and the memory of their steps beside the estimate."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from tests.bench.adapters import assembled, datasets
from tests.bench.published import NETWORKS
from tests.helpers.live_bytes import LiveBytes, tensors_of
from tests.helpers.models import undistilled
from trainer_engine.config.components import spec_of_run
from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.datasets.examine import examine
from trainer_engine.loop.trainer import Trainer
from training.preflight.network import component_tensors, count_parameters, network_tensors
from training.preflight.on_device import EstimatedRun
from training.preflight.step import step_memory

EDGE = 128
"""Edge of the images, in pixels."""


def make_wide(family: str, folder: Path) -> None:
    """Writes a small pipeline with a wider network into ``folder``."""
    importlib.import_module(f"trainer_engine.families.{family}.tiny").make_tiny(folder)
    spec = specs()[family]
    part = folder / spec.components[spec.network].folder
    network = getattr(diffusers, json.loads((part / "config.json").read_text())["_class_name"])
    config = {**network.load_config(part), **NETWORKS[family].wider}
    shutil.rmtree(part)
    with torch.random.fork_rng(devices=[]):
        network.from_config(config).save_pretrained(part)


def measured_options(place: Path, family: str, values: Mapping[str, Any]) -> TrainingOptions:
    """The options of two steps of a family's model in ``place``, in a run folder of their own."""
    usual = {
        "model_family": family,
        "model_type": "lora",
        "pretrained_model_name_or_path": str(place / family),
        "data_backend_config": "none.json",
        "output_dir": str(place / f"run-{len(list(place.iterdir()))}"),
        "cache_dir": str(place / f"cache-{family}"),
        "max_train_steps": 2,
        "num_train_epochs": 0,
        "train_batch_size": 4,
        "optimizer": "torch-adamw",
        "mixed_precision": "no",
        "gradient_checkpointing": False,
        "dataloader_prefetch": False,
        "resolution": EDGE,
        "validation_disable": True,
        "resume_from_checkpoint": "",
        "lora_dropout": 0,
    }
    return parse_options({**usual, **undistilled(family), **values})


def measured_and_estimated(place: Path, options: TrainingOptions, *, assistant: int = 0) -> tuple[int, int]:
    """Bytes of the tensors that live at once in two steps of a run, and the estimate.

    On a CPU, what leaves the device stays in the same memory. ``assistant``: numbers in the file of the assistant adapter.
    """
    trainer = assembled(place, options)
    spec = _with_captions_of(trainer, spec_of_run(options.model, specs()[options.model.model_family]))
    networks = (trainer.step.network, *trainer.step.family.beside.values())
    with LiveBytes([tensor for network in networks for tensor in tensors_of(network)]) as live:
        trainer.fit()
    tensors = network_tensors(options.model, spec, place)
    assert tensors is not None
    folders = [spec.components[name].folder for name in spec.networks_beside]
    parts = {folder: component_tensors(options.model, spec, folder, place) or {} for folder in folders}
    run = EstimatedRun(options=options, spec=spec, parameters=count_parameters(tensors), tensors=tensors, parts=parts, assistant=assistant)
    held = step_memory(run, examine(datasets(place, options), options, spec))
    return live.peak, held.total + held.host


def _with_captions_of(trainer: Trainer, spec: FamilySpec) -> FamilySpec:
    """The family as if the longest caption of the run were the longest of all."""
    multiple = NETWORKS[spec.name].padded_to
    if multiple is None:
        return spec
    # (B, T, ...), or (T, D) for each prompt; where states are stacked, (B, T, layers, D)
    states = {name: one for name, one in trainer.loader.load(0).passes[0].prompts.items() if name.startswith("embeds")}
    tokens = max(one.shape[1 if name == "embeds" else 0] for name, one in states.items())
    stacked = max(one.shape[2] if one.ndim > 3 else 1 for one in states.values())
    return replace(spec, prompts=replace(spec.prompts, token_limit=-(-tokens // multiple) * multiple, stacked_layers=stacked))
