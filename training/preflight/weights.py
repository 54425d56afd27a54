"""Which weights a run trains, and the bytes that trained and frozen weights and the state of the optimizer take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.optimizers import FLOAT32_BYTES, OPTIMIZERS
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.precisions import (
    PRECISIONS,
    QUANTISED,
    SDNQ_BYTES,
    Precision,
    activated,
    frozen_precision,
    trained_precision,
)
from trainer_engine.config.rules.updates import adds_in_float32
from training.preflight.adapter import adapted_layers
from training.preflight.tokens import sees_tokens

Shape = tuple[int, ...]
Tensors = Mapping[str, Shape]
"""Name in the safetensors files of a network -> shape."""
Weights = Mapping[Shape, int]
"""Shape -> number of weights of this shape."""

PARAMETERS_A_LAYER = 21_700_000
"""Parameters of one layer of a transformer, used if the files of the network are not on this machine."""
NUMBERS_A_WIDTH = 16
"""Parameters of a layer, as a multiple of the square of its width."""
ADAPTED_A_LAYER = 8
"""Matrices of a layer that a LoRA adapter is put on."""
LYCORIS_SHARE = 0.01
"""Parameters of an adapter like those of the example files, as a share of the network; other files may make ten times as many."""


def trained_weights(options: TrainingOptions, spec: FamilySpec, parameters: int, tensors: Tensors | None) -> Weights:
    """Shapes of the trained weights. Without ``tensors`` they are modelled from the number of ``parameters`` of the network."""
    if options.model.model_type == "full":
        return Counter(tensors.values()) if tensors else _square(parameters)
    if options.adapter.lora_type == "lycoris":
        return _square(int(parameters * LYCORIS_SHARE))
    rank = options.adapter.lora_rank
    layers = {name.removesuffix(".weight"): shape for name, shape in (tensors or {}).items() if name.endswith(".weight") and len(shape) > 1}
    adapted = adapted_layers(options, spec, layers).values()
    if adapted:
        return _lora_weights(Counter(adapted), rank, has_magnitudes=options.adapter.use_dora)
    count = layer_count(parameters)
    return {(rank, math.isqrt(parameters // count // NUMBERS_A_WIDTH)): 2 * ADAPTED_A_LAYER * count}


def layer_count(parameters: int) -> int:
    """Number of layers that a transformer of this size probably has."""
    return max(1, math.ceil(parameters / PARAMETERS_A_LAYER))


def _square(parameters: int) -> Weights:
    """One square matrix of at least this many numbers, and few more."""
    width = math.isqrt(parameters)
    return {(width, width): 1, (parameters - width * width,): 1}


def _lora_weights(layers: Weights, rank: int, *, has_magnitudes: bool) -> Weights:
    """``layers``: (out, in, *kernel) of the adapted layers. The first matrix keeps the kernel; the second has a kernel of one."""
    found: Counter[Shape] = Counter()
    for (out, *rest), count in layers.items():
        found[(rank, *rest)] += count
        found[(out, rank, *(1 for _ in rest[1:]))] += count
        found[(out,)] += count * has_magnitudes
    return found


def numbers_in(weights: Weights) -> int:
    return sum(math.prod(shape) * count for shape, count in weights.items())


def weight_bytes(options: TrainingOptions) -> int:
    """Bytes of one number of the trained weights."""
    return int(trained_precision(options.optimizer.optimizer, options.precision.mixed_precision).weight_bytes)


def gradient_bytes(options: TrainingOptions) -> int:
    """Bytes of one number of a gradient, or of the sum that the gradients of micro-batches are added to."""
    return FLOAT32_BYTES if adds_in_float32(options.as_values()) else weight_bytes(options)


def state_bytes(options: TrainingOptions, weights: Weights) -> int:
    """Bytes of the optimizer state after the first step."""
    optimizer, each, settings = OPTIMIZERS[options.optimizer.optimizer], weight_bytes(options), options.optimizer.arguments
    return sum(optimizer.state_bytes(shape, each, settings) * count for shape, count in weights.items())


def frozen_network_bytes(options: TrainingOptions, spec: FamilySpec, parameters: int, tensors: Tensors | None) -> int:
    """Bytes of the frozen weights under an adapter. Text encoders that are adapted, too, are not quantised."""
    precision = options.precision
    plain = frozen_precision(precision.mixed_precision, precision.base_model_default_dtype).weight_bytes
    name = activated(precision.base_model_precision, quantize_activations=precision.quantize_activations)
    row = PRECISIONS[name] if name in QUANTISED else None
    prefixes = _text_prefixes(spec)
    counted = sum(math.prod(shape) for name, shape in (tensors or {}).items() if prefixes and name.startswith(prefixes))
    of_text = counted or sum(component.parameters for component in spec.trained_text_encoders.values())
    if row is None or not _is_kept_quantised(options, row):
        return int(parameters * plain)
    if tensors:
        others = sum(math.prod(shape) for name, shape in tensors.items() if not _is_quantised(name, shape, row, prefixes))
    else:
        others = 0 if row.takes_convolutions else int((parameters - of_text) * spec.convolution_share)
    exact = of_text + others
    return int((parameters - exact) * quantised_bytes(options, row) + exact * plain)


def widened_numbers(options: TrainingOptions, tensors: Tensors | None) -> int:
    """Numbers of the largest quantised weight of a block, which is computed with in the type of the arithmetic; sdnq needs two copies.

    0 for quanto, which computes with whole numbers, and where the shapes are not known.
    """
    precision = options.precision
    name = activated(precision.base_model_precision, quantize_activations=precision.quantize_activations)
    if options.model.model_type == "full" or name not in QUANTISED or PRECISIONS[name].library == "quanto":
        return 0
    sizes = (math.prod(shape) for layer, shape in (tensors or {}).items() if len(shape) == 2 and sees_tokens(layer))
    return max(sizes, default=0) * (2 if PRECISIONS[name].library == "sdnq" else 1)


def quantised_bytes(options: TrainingOptions, row: Precision) -> float:
    """Bytes of one weight of this type with the settings of the run."""
    chosen = options.sdnq
    if row.library != "sdnq":
        return row.weight_bytes
    name = chosen.sdnq_weights_dtype or row.library_name
    if not chosen.sdnq_group_size:
        return SDNQ_BYTES[name]
    bits = int("".join(filter(str.isdigit, name)))
    scales = 2 if name.startswith("uint") else 1
    return bits / 8 + (4 * scales / chosen.sdnq_group_size if chosen.sdnq_group_size > 0 else 0.01)


def _is_kept_quantised(options: TrainingOptions, row: Precision) -> bool:
    return row.library != "sdnq" or options.sdnq.sdnq_use_static_quantization is not False


def _is_quantised(name: str, shape: Shape, row: Precision, of_text: tuple[str, ...]) -> bool:
    """Whether a tensor of the network is the weight of a layer that the library takes. Those of text encoders are counted apart."""
    if of_text and name.startswith(of_text):
        return True
    return name.rpartition(".")[2] == "weight" and (len(shape) == 2 or (len(shape) == 4 and row.takes_convolutions))


Layers = dict[str, Shape]
"""Module name -> (out, in, *kernel)."""


def split_layers(tensors: Tensors, spec: FamilySpec) -> tuple[Layers, Layers]:
    """(layers of the network by their names in it, layers of trained text encoders)"""
    layers = {name.removesuffix(".weight"): shape for name, shape in tensors.items() if name.endswith(".weight") and len(shape) > 1}
    prefixes = _text_prefixes(spec)
    if not prefixes:
        return layers, {}
    of_text = {name: shape for name, shape in layers.items() if name.startswith(prefixes)}
    own = spec.module_prefix(next(iter(spec.trained)))
    return {name.removeprefix(own): shape for name, shape in layers.items() if name not in of_text}, of_text


def _text_prefixes(spec: FamilySpec) -> tuple[str, ...]:
    return tuple(spec.module_prefix(name) for name in spec.trained_text_encoders)
