"""Prints ``docs/memory.md``: the estimated memory of every family at its real size, by number type, by what waits on the host, by phase."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.config.precisions import PRECISIONS
from trainer_engine.datasets.buckets import Bucket, Effective
from trainer_engine.datasets.report import DatasetReport, SetReport
from training.preflight.memory_text import ENCODERS, ERRORS, INTRODUCTION, LOADING
from training.preflight.network import count_parameters
from training.preflight.on_device import CAPTIONS, LATENTS, EstimatedRun
from training.preflight.phases import TRAINING, VALIDATION, Phase, peak_of, phases
from training.preflight.published_shapes import published_tensors
from training.preflight.step import step_memory
from training.preflight.streamed import block_sizes

EDGES: Mapping[str, int] = MappingProxyType({"512": 512, "768": 768, "1024": 1024})
USUAL_EDGE = 1024
TYPES = ("no_change", "int8-quanto", "int8-torchao", "fp8wo-torchao", "nf4-bnb", "uint4-sdnq")
PHASE_TYPES = ("no_change", "nf4-bnb")
ENCODER_TYPES = ("no_change", "int8-torchao", "nf4-bnb", "uint4-sdnq")
GIB = 1024**3
OFFLOADS = ("none", "block swap", "group offload")
"""What waits on the host: nothing, half the blocks, or all of them."""


def document() -> Iterator[str]:
    """Yields the lines of the page."""
    yield INTRODUCTION
    yield "## A training step"
    yield ""
    yield (
        "GiB a GPU: batch of 1, bfloat16, gradient checkpointing, `adamw_bf16`, adapters of rank 16 with float32 weights. *Block swap* is "
        "`musubi_blocks_to_swap` of half the blocks, *group offload* `enable_group_offload`; both keep frozen weights on the host."
    )
    yield ""
    yield "| family | weights | pixels | trained | type of the base | " + " | ".join(OFFLOADS) + " |"
    yield "|---|---|---|---|---|" + "---|" * len(OFFLOADS)
    for spec in specs().values():
        for flavour in _sizes(spec):
            yield from _rows(spec, flavour)
    yield ""
    yield LOADING.rstrip()
    yield ""
    yield from _phase_rows()
    yield ENCODERS.rstrip()
    yield from _encoders()
    yield ERRORS.rstrip()


def _sizes(spec: FamilySpec) -> list[str]:
    """One flavour of each size that the family has, the usual one first."""
    found: dict[int, str] = {}
    for flavour in (spec.default_flavour, *spec.parameters):
        found.setdefault(round(spec.parameters.get(flavour, 0), -8), flavour)
    return [flavour for number, flavour in found.items() if number]


@dataclass(frozen=True)
class Row:
    """One row of the first table: what is trained, on which type of the base."""

    trained: str
    base: str
    cells: tuple[Mapping[str, Any], ...]
    """The options of each cell, in the order of ``OFFLOADS``; a row of a full fine-tune has the first alone."""


def training_rows(spec: FamilySpec, swapped: int) -> Iterator[Row]:
    """The rows of a family. ``swapped``: half of its blocks."""
    if "full" in spec.model_types:
        yield Row("full", "-", ({"model_type": "full"},))
    offloads: tuple[dict[str, Any], ...] = ({}, {"musubi_blocks_to_swap": swapped}, {"enable_group_offload": True})
    for name in TYPES:
        if name == "no_change" or name in spec.adapters.base_precisions:
            values = {"model_type": "lora", "lora_rank": 16, "base_model_precision": name}
            yield Row("LoRA", "bfloat16" if name == "no_change" else f"`{name}`", tuple({**values, **one} for one in offloads))


def _rows(spec: FamilySpec, flavour: str) -> Iterator[str]:
    parameters, edge = spec.parameters[flavour], usual_edge(spec, flavour)
    start = f"| {spec.title} `{flavour}` | {parameters / 1e9:.1f} billion | {edge} |"
    for row in training_rows(spec, max(1, len(block_sizes(parameters, published_tensors(spec, flavour))) // 2)):
        cells = [training_gib(spec, flavour, edge, values) for values in row.cells]
        cells += ["-"] * (len(OFFLOADS) - len(cells))
        yield f"{start} {row.trained} | {row.base} | {' | '.join(cells)} |"


def usual_edge(spec: FamilySpec, flavour: str) -> int:
    """The edge of the images that the published weights are for, in pixels, as names and descriptions tell it."""
    named = next((edge for word, edge in EDGES.items() if word in flavour), None)
    return named or next((edge for word, edge in EDGES.items() if f"{word} pixels" in spec.description), USUAL_EDGE)


def training_gib(spec: FamilySpec, flavour: str, edge: int, values: Mapping[str, Any]) -> str:
    """The estimated memory of a step with one square image of this edge in pixels, in GiB, as a table shows it."""
    options = table_options(spec, flavour, values)
    return f"{step_memory(published_run(spec, flavour, options), images_of(edge, options)).total / GIB:.1f}"


def published_run(spec: FamilySpec, flavour: str, options: TrainingOptions) -> EstimatedRun:
    """A run of the published weights of a flavour."""
    tensors = published_tensors(spec, flavour)
    parameters = count_parameters(tensors) if tensors else spec.parameters[flavour]
    return EstimatedRun(options=options, spec=spec, parameters=parameters, tensors=tensors)


def table_options(spec: FamilySpec, flavour: str, values: Mapping[str, Any]) -> TrainingOptions:
    usual = {
        "model_family": spec.name,
        "model_flavour": flavour,
        "data_backend_config": "datasets.json",
        "output_dir": "output",
        "train_batch_size": 1,
        "gradient_checkpointing": True,
        "mixed_precision": "bf16",
        "optimizer": "adamw_bf16" if values["model_type"] == "full" else "torch-adamw",
        "max_train_steps": 1,
        "num_train_epochs": 0,
        **({spec.widening_option: True} if spec.widening_option else {}),
    }
    return parse_options({**usual, **values})


def images_of(edge: int, options: TrainingOptions, count: int = 1) -> DatasetReport:
    """One bucket of so many square images."""
    dataloader, _ = parse_dataloader([{"id": "images", "type": "local", "instance_data_dir": "images"}], options)
    (entry,) = dataloader.sets_of_images
    bucket = Bucket(key="1.0", aspect=1.0, size=(edge, edge), images=count, samples=count)
    alone = Effective(1, 1, 1)
    return DatasetReport([SetReport(entry, alone, counts=[bucket])], alone)


def _phase_rows() -> Iterator[str]:
    """What each phase of a run needs, for one flavour of each size and two types of its base."""
    names = (CAPTIONS, LATENTS, TRAINING, VALIDATION)
    yield f"| family | type of the base | {' | '.join(names)} | decides |"
    yield "|---|---|" + "---|" * (len(names) + 1)
    for spec in specs().values():
        for flavour in _sizes(spec):
            for name in PHASE_TYPES:
                found = phases_of(spec, flavour, {"base_model_precision": name})
                cells = " | ".join(f"{phase.memory.middle / GIB:.1f}" for phase in found)
                title = "bfloat16" if name == "no_change" else f"`{name}`"
                yield f"| {spec.title} `{flavour}` | {title} | {cells} | {peak_of(found).name} |"


def phases_of(spec: FamilySpec, flavour: str, precisions: Mapping[str, Any]) -> list[Phase]:
    """What each phase of a LoRA of rank 16 needs at the usual size. ``precisions``: options of number types."""
    edge = usual_edge(spec, flavour)
    values = {"model_type": "lora", "lora_rank": 16, "validation_resolution": f"{edge}x{edge}", **precisions}
    options = table_options(spec, flavour, values)
    run = replace(published_run(spec, flavour, options), first=frozenset({CAPTIONS, LATENTS}))
    return list(phases(run, images_of(edge, options, count=4)))


def _encoders() -> Iterator[str]:
    for spec in specs().values():
        for facts in dict.fromkeys(spec.prompts.encoders_of(flavour) for flavour in (None, *spec.flavours)):
            own = [component.parameters for component in spec.components.values() if component.parameters]
            numbers = sum(facts.parameters or own)
            for name in ENCODER_TYPES if numbers else ():
                each = 2 if name == "no_change" else PRECISIONS[name].weight_bytes
                title = "bfloat16" if name == "no_change" else f"`{name}`"
                yield f"| {spec.title} | {', '.join(facts.names)} | {title} | {numbers * each / GIB:.1f} |"


if __name__ == "__main__":
    sys.stdout.write("\n".join(document()) + "\n")
