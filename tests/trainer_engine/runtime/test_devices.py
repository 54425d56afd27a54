"""Devices and number types follow the options."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.helpers.models import options_with
from trainer_engine.runtime.devices import Devices, prepare_arithmetic, resolve_devices

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def resolved(device: torch.device = GPU, **values: str) -> Devices:
    return resolve_devices(options_with(**values), device)


@pytest.mark.parametrize(
    ("mixed_precision", "optimizer", "weights", "compute"),
    [
        ("no", "torch-adamw", torch.float32, torch.float32),
        ("no", "adamw_bf16", torch.float32, torch.float32),
        ("bf16", "adamw_bf16", torch.bfloat16, torch.bfloat16),
        ("bf16", "torch-adamw", torch.float32, torch.bfloat16),
        ("fp16", "torch-adamw", torch.float32, torch.float16),
    ],
)
def test_types_follow_precision_and_optimizer(mixed_precision: str, optimizer: str, weights: torch.dtype, compute: torch.dtype) -> None:
    devices = resolved(mixed_precision=mixed_precision, optimizer=optimizer)
    assert (devices.weights, devices.compute) == (weights, compute)


@pytest.mark.parametrize(
    ("word", "dtype"), [("no_change", None), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_base_is_rounded_only_if_the_option_says_so(word: str, dtype: torch.dtype | None) -> None:
    assert resolved(base_model_precision=word).base == dtype


@pytest.mark.parametrize(("word", "dtype"), [("default", None), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)])
def test_autoencoder_computes_in_its_option_type_on_a_gpu(word: str, dtype: torch.dtype | None) -> None:
    devices = resolved(vae_dtype=word)
    assert devices.vae == dtype
    assert devices.notes == ()


@pytest.mark.parametrize(("word", "notes"), [("bf16", 1), ("fp16", 1), ("fp32", 0), ("default", 0)])
def test_encoders_compute_in_float32_on_a_cpu_with_a_note(word: str, notes: int) -> None:
    devices = resolved(CPU, vae_dtype=word, mixed_precision="bf16")
    assert (devices.vae, devices.text) == (torch.float32, torch.float32)
    assert len(devices.notes) == notes
    assert all(f"vae_dtype={word}" in note for note in devices.notes)


def test_text_encoders_never_compute_in_float16() -> None:
    assert resolved(mixed_precision="fp16", optimizer="torch-adamw").text == torch.bfloat16
    assert resolved(mixed_precision="no").text == torch.float32


def test_autocast_converts_only_if_types_differ() -> None:
    product = torch.ones(2, 2)
    with resolved(CPU, mixed_precision="bf16", optimizer="torch-adamw").autocast():
        assert (product @ product).dtype == torch.bfloat16
    with resolved(CPU, mixed_precision="no").autocast():
        assert (product @ product).dtype == torch.float32


def test_resolve_devices_defaults_to_the_best_device() -> None:
    wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_devices(options_with()).device.type == wanted


@pytest.fixture
def arithmetic() -> Iterator[None]:
    """Puts back what PyTorch keeps for the process."""
    threads, matrices, convolutions = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matrices, convolutions


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("exact", [False, True])
def test_a_run_decides_whether_matrices_are_rounded_to_tf32(exact: bool) -> None:
    prepare_arithmetic(options_with(disable_tf32=exact))
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (not exact, not exact)


@pytest.mark.usefixtures("arithmetic")
def test_a_run_decides_how_many_threads_compute() -> None:
    before = torch.get_num_threads()
    prepare_arithmetic(options_with(torch_num_threads=0))
    assert torch.get_num_threads() == before
    prepare_arithmetic(options_with(torch_num_threads=3))
    assert torch.get_num_threads() == 3
