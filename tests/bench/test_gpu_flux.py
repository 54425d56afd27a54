"""The Flux benchmark's own code, on a network so small that a CPU takes it."""

from __future__ import annotations

import pytest
import torch

from tests.bench.gpu_device import Subject
from tests.bench.gpu_flux import FLUX, Case, bare_steps, engine_steps, flops_of_a_step, measure, parameters_of, that_fits
from tests.bench.table import Table
from trainer_engine.config.families import find_spec

TINY = {
    **FLUX,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "axes_dims_rope": (4, 6, 6),
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
}


@pytest.fixture
def subject() -> Subject:
    return Subject(device=torch.device("cpu"), architecture=TINY, latent_edge=8, tokens=4, steps=1, rounds=2)


@pytest.mark.slow
def test_each_base_and_kontext_is_measured_beside_a_bare_loop(subject: Subject) -> None:
    table = Table()
    measure(table, subject, (Case("no_change", compiled=False), Case("int8-quanto", compiled=False, flavour="kontext")))
    assert [row.figure for row in table.rows] == ["network", "dev, bf16 base, eager", "Kontext with one reference, int8-quanto base, eager"]
    assert all("% of the device" in row.value and "bare loop" in row.beside for row in table.rows[1:])
    assert table.rows[2].aim == "within 24 GiB"


def test_the_real_architecture_is_the_one_on_the_card() -> None:
    spec = find_spec("flux")
    assert spec is not None
    assert parameters_of(FLUX) == spec.parameters["dev"]


def test_a_device_gets_as_many_blocks_as_it_can_hold() -> None:
    whole = parameters_of(FLUX) * 2 / 0.5
    assert that_fits(FLUX, whole) == FLUX
    smaller = that_fits(FLUX, whole / 2)
    assert 2 * parameters_of(smaller) <= whole / 4
    assert smaller["num_single_layers"] == 2 * smaller["num_layers"] > 0


def test_the_base_is_quantised_and_only_the_adapter_learns(subject: Subject) -> None:
    steps, network = engine_steps(subject, Case("int8-quanto", compiled=False))
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters() if parameter.requires_grad}
    steps(1)
    assert "QLinear" in {type(module).__name__ for module in network.modules()}
    assert all("lora_" in name for name in before)
    assert any(not torch.equal(parameter, before[name]) for name, parameter in network.named_parameters() if name in before)


def test_a_reference_is_more_work(subject: Subject) -> None:
    plain, with_reference = (flops_of_a_step(subject, Case("no_change", False, flavour)) for flavour in ("dev", "kontext"))
    assert plain < with_reference


def test_the_bare_loop_learns_with_the_same_modules(subject: Subject) -> None:
    case = Case("no_change", compiled=False, flavour="kontext")
    _, network = engine_steps(subject, case)
    before = [parameter.detach().clone() for parameter in network.parameters() if parameter.requires_grad]
    bare_steps(subject, case, network)(1)
    after = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
