"""Layers that a quantised kernel computes wrongly are not quantised, and the run reports them."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from optimum.quanto import QTensor
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from tests.helpers.models import options_with, tiny_family, tiny_pixart
from tests.helpers.params import first_fast
from tests.helpers.tiny_run import fork_tiny_run
from trainer_engine.contract.events import Notification
from trainer_engine.weights.layer_trial import Trial
from trainer_engine.weights.quantization import quantiser

CPU = torch.device("cpu")
ADAPTER = {"model_type": "lora", "lora_rank": 4, "base_model_precision": "int8-quanto"}


def layers(*sizes: tuple[int, int], dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(*size) for size in sizes)).to(dtype)


def is_quantised(layer: nn.Module) -> bool:
    return isinstance(layer.weight, QTensor)


@pytest.mark.parametrize("in_features", [4, 8, 12, 20, 24, 28, 36, 40, 1000])
def test_8_bit_layer_of_unusual_length_is_not_quantised_on_a_cpu_in_bfloat16(in_features: int) -> None:
    network = layers((in_features, 16), (32, 16), (in_features, 16))
    before = [layer.weight.detach().clone() for layer in network]
    (exact,) = quantiser("int8-quanto", options_with(), CPU).apply(network)
    assert [is_quantised(layer) for layer in network] == [False, True, False]
    assert torch.equal(network[0].weight, before[0]) and torch.equal(network[2].weight, before[2])
    assert (exact.count, exact.nbytes) == (2, 2 * 2 * 16 * in_features)
    assert exact.shape == f"Linear {in_features} -> 16 with bias in bfloat16" and "multiple of 16" in exact.fault


@pytest.mark.parametrize("preset", first_fast(["int8-quanto", "fp8-quanto", "int4-quanto", "int2-quanto"], 2))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(32, 16), (18, 7), (64, 3), (1152, 32), (256, 6), (24, 16)])
def test_module_computes_nearly_the_same_after_quantisation(preset: str, dtype: torch.dtype, size: tuple[int, int]) -> None:
    network = layers(size, dtype=dtype)
    x = torch.randn(2, 5, size[0], generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        wanted = network(x).float()
        quantiser(preset, options_with(), CPU).apply(network)
        distance = (network(x).float() - wanted).norm() / wanted.norm()
    assert distance < {"int8-quanto": 0.03, "fp8-quanto": 0.06, "int4-quanto": 0.2, "int2-quanto": 0.8}[preset]


@pytest.mark.slow
def test_layer_that_the_kernel_refuses_is_not_quantised() -> None:
    network = layers((256, 6), (256, 32))
    (exact,) = quantiser("int4-quanto", options_with(), CPU).apply(network)
    assert [is_quantised(layer) for layer in network] == [False, True]
    assert exact.count == 1 and "RuntimeError" in exact.fault
    assert torch.isfinite(network[0](torch.ones(1, 256, dtype=torch.bfloat16))).all()


class Wrong(nn.Linear):
    """Answers with other numbers than its weights say, for some numbers of rows."""

    def __init__(self, factor: float, rows: int) -> None:
        super().__init__(32, 16)
        self.factor, self.rows = factor, rows

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.factor if x.shape[-2] == self.rows else 1)


def fault(layer: nn.Linear) -> str:
    trial = Trial(layer, dict(layer.named_parameters()), [torch.float32], CPU, nullcontext)
    return trial.fault_of(layer, layer.weight.detach())


@pytest.mark.parametrize(("factor", "rows"), [(1e12, 1), (1.2, 33), (float("nan"), 2), (-1.0, 1), (0.0, 1)])
def test_kernel_that_computes_wrong_values_is_detected(factor: float, rows: int) -> None:
    assert "are off by" in fault(Wrong(factor, rows))
    assert fault(Wrong(1.0, rows)) == ""


def test_convolutions_are_tried_and_zero_weights_are_no_fault() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 2, stride=2), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Linear(16, 16))
    nn.init.zeros_(network[2].weight)
    assert quantiser("int8-quanto", options_with(), CPU).apply(network) == []
    assert all(is_quantised(layer) for layer in network)


def test_quantisation_gives_the_same_bytes_each_time() -> None:
    def quantised() -> list[Tensor]:
        network = layers((32, 16), (24, 16), (32, 16))
        quantiser("int8-quanto", options_with(), CPU).apply(network)
        return [part for layer in network for part in ((layer.weight._data,) if is_quantised(layer) else (layer.weight,))]

    assert all(torch.equal(one, other) for one, other in zip(quantised(), quantised(), strict=True))


def test_notification_lists_shape_count_and_bytes_of_failed_layers() -> None:
    family = tiny_family()
    reported: list[Notification] = []
    family.report = reported.append
    config = T5Config(vocab_size=16, d_model=24, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")
    encoder = T5EncoderModel(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        wanted = encoder(torch.arange(8)[None])[0]
        family.place(encoder, "int8-quanto", part="text_encoder")
        found = encoder(torch.arange(8)[None])[0]
    assert (found - wanted).float().norm() < 0.05 * wanted.float().norm()
    (note,) = reported
    assert note.code == "layers_not_quantised" and note.details["part"] == "text_encoder"
    reported = {layer["shape"]: (layer["count"], layer["nbytes"]) for layer in note.details["layers"]}
    assert reported["Linear 24 -> 32 without bias in bfloat16"] == (6, 6 * 24 * 32 * 2)
    assert "text_encoder" in note.message and "Linear 24 -> 32" in note.message and "9,216 bytes" in note.message


def pixart_of_width_24(folder: Path) -> Path:
    """The tiny model with a transformer whose layers no packed 8-bit kernel takes."""
    shutil.copytree(tiny_pixart(), folder)
    config: dict[str, Any] = dict(PixArtTransformer2DModel.load_config(folder / "transformer"))
    config |= {"num_attention_heads": 4, "attention_head_dim": 6, "cross_attention_dim": 24}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        PixArtTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    return folder


def test_run_with_unquantised_layers_trains_and_reports_them(tmp_path: Path) -> None:
    model = str(pixart_of_width_24(tmp_path / "model"))
    run = fork_tiny_run(tmp_path, model=model, mixed_precision="bf16", max_train_steps=2, **ADAPTER)
    assert run.wait() == 0, run.log()
    losses = [entry.data["loss"] for entry in run.of_type("training.progress")]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    notes = [entry.data for entry in run.of_type("notification") if entry.data.get("code") == "layers_not_quantised"]
    assert [note["details"]["part"] for note in notes] == ["transformer"]
