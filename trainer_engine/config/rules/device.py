"""Rules about the device of a run. Preflight asks them for the device it expects, the engine for the one it has."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec as find_module
from pathlib import Path
from shutil import which

from trainer_engine.config.attention import MECHANISMS
from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.precisions import PRECISIONS, QUANTISED, activated, available_on, compute_precision
from trainer_engine.config.token_splitting import ALL_GATHER
from trainer_engine.contract.errors import Problem

WEIGHT_OPTIONS = ("base_model_precision", *(f"text_encoder_{number}_precision" for number in (1, 2, 3, 4)))
GPU = "cuda"
INDUCTOR, CPP_COMPILER = "inductor", "clang++" if sys.platform == "darwin" else "g++"


def device_problems(options: TrainingOptions, device: str, capability: tuple[int, int] | None = None) -> Iterator[Problem]:
    """Yields an error for each option that a device of this type cannot serve.

    ``device``: a device type of torch, such as ``cpu``. ``capability``: compute capability of an NVIDIA GPU; None if it is not known.
    """
    mixed_precision = options.precision.mixed_precision
    devices = compute_precision(mixed_precision).compute_devices
    if devices is not None and device not in devices:
        message = f"mixed_precision={mixed_precision} needs a GPU; this run computes on {device}."
        yield Problem.error("mixed_precision", "needs_gpu", message, got=mixed_precision, expected="no or bf16")
    for name in WEIGHT_OPTIONS:
        chosen = activated(getattr(options.precision, name), quantize_activations=options.precision.quantize_activations)
        if chosen in QUANTISED:
            yield from _weight_problems(name, chosen, device, capability)
    yield from _attention_problems(options, device, capability)
    yield from _compiler_problems(options, device)
    optimizer = OPTIMIZERS[options.optimizer.optimizer]
    if optimizer.needs_gpu and device != GPU:
        message = f"optimizer={optimizer.name} needs a GPU; this run computes on {device}."
        yield Problem.error("optimizer", "needs_gpu", message, got=optimizer.name, expected="another optimizer")


def _weight_problems(option: str, chosen: str, device: str, capability: tuple[int, int] | None) -> Iterator[Problem]:
    row = PRECISIONS[chosen]
    reason = f": {row.why_devices}" if row.why_devices else ""
    if device in row.missing_on:
        message = f"A device of type {device} cannot hold {chosen} weights{reason}."
        yield Problem.error(option, "lacked_by_device", message, got=chosen, expected=f"one of {', '.join(available_on(device))}")
    elif device == GPU and capability is not None and capability < row.capability:
        has, needs = (".".join(map(str, version)) for version in (capability, row.capability))
        message = f"This GPU has compute capability {has}, and {chosen} needs {needs}{reason}."
        fitting = [name for name in available_on(device) if PRECISIONS[name].capability <= capability]
        yield Problem.error(option, "gpu_too_old", message, got=chosen, expected=f"one of {', '.join(fitting)}")


def _attention_problems(options: TrainingOptions, device: str, capability: tuple[int, int] | None) -> Iterator[Problem]:
    """What attention_mechanism lacks on this machine: a device, a package, a newer GPU or a shorter number type."""
    chosen = MECHANISMS[options.attention.attention_mechanism]
    option, name = "attention_mechanism", chosen.name
    here = [other.name for other in MECHANISMS.values() if device in other.devices and other.is_installed]
    if device not in chosen.devices:
        message = f"attention_mechanism={name} computes on {' or '.join(chosen.devices)}; this run computes on {device}."
        yield Problem.error(option, "lacked_by_device", message, got=name, expected=f"one of {', '.join(here)}")
        return
    if not chosen.is_installed:
        version = f" {chosen.least} or newer" if chosen.least != "0" else ""
        message = f"attention_mechanism={name} needs the package {chosen.package}{version}, which is not installed."
        yield Problem.error(option, "not_installed", message, got=name, expected=f"one of {', '.join(here)}", hint=chosen.install)
    if device != GPU:
        yield from _splitting_problems(options, device)
        return
    if capability is not None and capability < chosen.capability:
        needed, found = (".".join(map(str, numbers)) for numbers in (chosen.capability, capability))
        message = f"attention_mechanism={name} needs a GPU of compute capability {needed}; this one has {found}."
        yield Problem.error(option, "lacked_by_device", message, got=name, expected="diffusers, native or native-efficient")
    if chosen.is_short and options.precision.mixed_precision == "no":
        message = f"attention_mechanism={name} computes in bfloat16 or float16; mixed_precision=no computes in float32."
        yield Problem.error(
            option, "needs_short_type", message, got=name, expected="mixed_precision=bf16, or attention_mechanism=diffusers"
        )


def _splitting_problems(options: TrainingOptions, device: str) -> Iterator[Problem]:
    """Whether the attention of samples that are split over processes can be computed without a GPU."""
    chosen, group = MECHANISMS[options.attention.attention_mechanism], options.distributed.group_size
    if group > 1 and ALL_GATHER in chosen.splits:
        message = f"attention_mechanism={chosen.name} attends to tokens of other processes on a GPU alone; this run computes on {device}."
        yield Problem.error("attention_mechanism", "needs_gpu", message, got=chosen.name, expected="diffusers or native")


def _compiler_problems(options: TrainingOptions, device: str) -> Iterator[Problem]:
    """What the inductor lacks on this machine: it writes C++ for a CPU and Triton's language for a GPU, and C for the way there."""
    backend = options.distributed.dynamo_backend
    if backend != INDUCTOR:
        return
    lacked = [f"a C++ compiler ({CPP_COMPILER})"] if device == "cpu" and which(CPP_COMPILER) is None else []
    if device == GPU:
        lacked += ["the package triton"] if find_module("triton") is None else []
        lacked += [] if which("gcc") or which("clang") else ["a C compiler (gcc or clang)"]
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        lacked.append("the header files of Python (Python.h)")
    if lacked:
        message = f"dynamo_backend={backend} compiles on this machine, which lacks {' and '.join(lacked)}."
        hint = "on Debian and Ubuntu: apt install g++ python3-dev" + ("; pip install triton" if device == GPU else "")
        yield Problem.error("dynamo_backend", "no_compiler", message, got=backend, expected="no", hint=hint)
