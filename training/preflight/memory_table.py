"""Prints ``docs/memory.md``: the estimated memory of every family at its real size, by number type and by what waits on the host."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
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
from training.preflight.on_device import EstimatedRun
from training.preflight.step import step_memory
from training.preflight.weights import layer_count

COMMAND = "python -m training.preflight.memory_table > docs/memory.md"
EDGES: Mapping[str, int] = MappingProxyType({"512": 512, "768": 768, "1024": 1024})
USUAL_EDGE = 1024
TYPES = ("no_change", "int8-quanto", "int8-torchao", "fp8wo-torchao", "nf4-bnb", "uint4-sdnq")
ENCODER_TYPES = ("no_change", "int8-torchao", "nf4-bnb", "uint4-sdnq")
GIB = 1024**3
INTRODUCTION = f"""# Memory

How much memory a training step needs on one GPU, estimated before anything is loaded. `validate` prints the estimate of your own run, with
the sizes of your images. This page is printed by `{COMMAND}`.

- Weights, gradients, state of the optimizer and average are counted from shapes. What the forward pass keeps for the backward pass is
  modelled; for small models of all kinds the sum is within 10 % of the bytes of every tensor that lives in a step
  (`tests/training/preflight/test_measured_memory.py`). Without the weights on this machine, as here, their shapes are modelled from their
  number, and the modelled part is less exact.
- The driver, the libraries and the allocator take 1 to 2 GiB more. Encoding and validations happen at other times; see below.
- Libraries other than quanto quantise linear layers alone: the convolutions of a UNet stay in bfloat16.
- `int4-torchao`, `fp8-torchao` and `fp8-int4-torchao` run on GPUs only, and were not tried on one. Layers that they compute wrongly are
  noticed when the run starts, and keep their weights.
"""
LOADING = """## While a run loads and encodes

- **Quantising.** Weights are loaded into the memory of the host in the type of the arithmetic, and become smaller layer by layer. The host
  needs the whole network once: 24 GB for Flux in bfloat16. With `quantize_via=accelerator` the device holds the quantised layers and one
  layer that is being quantised; with `quantize_via=cpu` it gets quantised layers alone.
- **Text encoders** are on the device while captions are encoded, before the network is loaded, and again while validation prompts are.
- **The autoencoder** has 50 to 130 million weights. What it needs grows with the image: about 4 GiB for 1024 pixels in bfloat16.
  Out of memory halves its batch. Sets that are encoded while training (`vae_cache_ondemand`, `vae_cache_disable`,
  `vae_cache_clear_each_epoch`) keep it on the device, and encode one image at a time.
- **Validation images** need the network, the adapter and the autoencoder, but no gradients and no state.
- **Checkpoints** are copied to the host while training goes on: as much as the trained weights and their state.

## Text encoders

| family | text encoders | type | GiB |
|---|---|---|---|
"""
ERRORS = """
## What rounding costs

Error of a layer's output against float32 weights, as a share of its size, for weights of a normal distribution
(`tests/trainer_engine/weights/quantised`). 4-bit types of quanto err by 0.10, 2-bit ones by 0.5.

| types | error |
|---|---|
| `int8-torchao`, `int8-sdnq`, `uint8-sdnq` | below 0.01 |
| `int8dq-torchao` (inputs rounded, too) | below 0.012 |
| `fp8wo-torchao`, `fp8-native`, `fp8-sdnq` | below 0.03 |
| `int6-sdnq` | below 0.035 |
| `int5-sdnq`, `uint5-sdnq` | below 0.065 |
| `nf4-bnb`, `uint4-sdnq`, `int8dq-int4-torchao` | below 0.11 |
| `uint3-sdnq` | below 0.2 |
| `uint2-sdnq` | below 0.4 |

`int8dq-int4-torchao` keeps its 4-bit numbers in 8 bits and takes as much memory as `int8-torchao`.
"""


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
    yield from _encoders()
    yield ERRORS.rstrip()


def _sizes(spec: FamilySpec) -> list[str]:
    """One flavour of each size that the family has, the usual one first."""
    found: dict[int, str] = {}
    for flavour in (spec.default_flavour, *spec.parameters):
        found.setdefault(round(spec.parameters.get(flavour, 0), -8), flavour)
    return [flavour for number, flavour in found.items() if number]


def _rows(spec: FamilySpec, flavour: str) -> Iterator[str]:
    parameters, edge = spec.parameters[flavour], usual_edge(spec, flavour)
    start = f"| {spec.title} `{flavour}` | {parameters / 1e9:.1f} billion | {edge} |"
    if "full" in spec.model_types:
        yield f"{start} full | - | {training_gib(spec, flavour, edge, {'model_type': 'full'})} | - | - |"
    for name in TYPES:
        if name != "no_change" and name not in spec.adapters.base_precisions:
            continue
        values = {"model_type": "lora", "lora_rank": 16, "base_model_precision": name}
        offloads: tuple[dict[str, Any], ...] = (
            {},
            {"musubi_blocks_to_swap": max(1, layer_count(parameters) // 2)},
            {"enable_group_offload": True},
        )
        cells = [training_gib(spec, flavour, edge, {**values, **offload}) for offload in offloads]
        yield f"{start} LoRA | {'bfloat16' if name == 'no_change' else f'`{name}`'} | " + " | ".join(cells) + " |"


def usual_edge(spec: FamilySpec, flavour: str) -> int:
    """The edge of the images that the published weights are for, in pixels, as names and descriptions tell it."""
    named = next((edge for word, edge in EDGES.items() if word in flavour), None)
    return named or next((edge for word, edge in EDGES.items() if f"{word} pixels" in spec.description), USUAL_EDGE)


def training_gib(spec: FamilySpec, flavour: str, edge: int, values: Mapping[str, Any]) -> str:
    """The estimated memory of a step with one square image of this edge in pixels, in GiB, as a table shows it."""
    options = _options(spec, flavour, values)
    run = EstimatedRun(options=options, spec=spec, parameters=spec.parameters[flavour], tensors=None)
    return f"{step_memory(run, _images(edge, options)).total / GIB:.1f}"


def _options(spec: FamilySpec, flavour: str, values: Mapping[str, Any]) -> TrainingOptions:
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
    }
    return parse_options({**usual, **values})


def _images(edge: int, options: TrainingOptions) -> DatasetReport:
    """One bucket of square images."""
    dataloader, _ = parse_dataloader([{"id": "images", "type": "local", "instance_data_dir": "images"}], options)
    (entry,) = dataloader.sets_of_images
    bucket = Bucket(key="1.0", aspect=1.0, size=(edge, edge), images=1, samples=1)
    alone = Effective(1, 1, 1)
    return DatasetReport([SetReport(entry, alone, counts=[bucket])], alone)


def _encoders() -> Iterator[str]:
    for spec in specs().values():
        own = [component.parameters for component in spec.components.values() if component.parameters]
        numbers = sum(spec.prompts.encoder_parameters or own)
        for name in ENCODER_TYPES if numbers else ():
            each = 2 if name == "no_change" else PRECISIONS[name].weight_bytes
            title = "bfloat16" if name == "no_change" else f"`{name}`"
            yield f"| {spec.title} | {', '.join(spec.prompts.text_encoders)} | {title} | {numbers * each / GIB:.1f} |"


if __name__ == "__main__":
    sys.stdout.write("\n".join(document()) + "\n")
