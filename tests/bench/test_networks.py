"""The networks that the benchmarks make, and that both loops over them do the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.bench import gpu, published
from tests.bench.gpu_device import Clock, TimeLimit, attempt
from tests.bench.host import operators_of
from tests.bench.network_loops import Setting, bare_loss, bare_steps, engine_steps, flops_of_a_step, in_dtype, make_batch, make_family
from tests.bench.networks import COPIES_A_NUMBER, COUNTS_A_MASK, READS_A_NUMBER, Network, parameters_of
from tests.bench.table import Table
from tests.helpers.params import often
from tests.trainer_engine.families.test_host_work import Operators
from trainer_engine.config.families import find_spec
from trainer_engine.objectives.build import make_objective

NAMED: dict[str, Any] = {"ids": lambda network: network.family}
NETWORKS = pytest.mark.parametrize("network", published.NETWORKS.values(), **NAMED)
SOME_NETWORKS = pytest.mark.parametrize("network", often(published.NETWORKS.values(), lambda network: network.family), **NAMED)
CPU = torch.device("cpu")
MOST_ADDED = 24
"""Operators: the step's loss and norm are gathered for one read of the device, and the weighting of the loss looks at the noise level."""

WAITING = {READS_A_NUMBER, COPIES_A_NUMBER, COUNTS_A_MASK}
"""Operators that a step of the engine has none of. Its one read, a ``tolist()``, is none of these."""


def small(network: Network) -> dict[str, Any]:
    return {**network.architecture, **network.narrow, **network.shallow}


def setting(model_type: str = "full", **changes: Any) -> Setting:
    return Setting(device=CPU, model_type=model_type, latent_edge=8, lora_rank=2, **changes)


@NETWORKS
def test_the_architecture_has_the_parameters_that_the_spec_states(network: Network) -> None:
    spec = find_spec(network.family)
    assert spec is not None
    assert parameters_of(network) == spec.parameters[spec.default_flavour]


@NETWORKS
def test_both_loops_compute_the_same_loss(network: Network) -> None:
    options = setting(batch_size=2)
    family = make_family(network, small(network), options)
    module = family.load_network().eval()
    batch = make_batch(network, small(network), options, 0)
    objective = make_objective(family.prediction_type, network.schedule, family.options.objective)
    noisy = objective.add_noise(batch.latents, batch.noise, batch.timesteps)
    with torch.no_grad():
        prediction = family.predict(module, batch.inputs(noisy))
        target = objective.target(batch.latents, batch.noise, batch.timesteps)
        ours = objective.loss(prediction, target, batch.timesteps).mean()
        bare = bare_loss(network, in_dtype(batch, torch.float32), module, torch.float32)()
    assert float(ours) == pytest.approx(float(bare), rel=1e-5)


@SOME_NETWORKS
@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_both_loops_train_the_same_modules(network: Network, model_type: str) -> None:
    engine, module = engine_steps(network, small(network), setting(model_type))
    bare = bare_steps(network, small(network), setting(model_type), module)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for work in (engine, bare):
        before = [parameter.detach().clone() for parameter in trained]
        work(1)
        assert any(not torch.equal(old, new) for old, new in zip(before, trained, strict=True))
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]  # in full: what no prediction depends on
    assert (model_type == "full") is (len(frozen) < len(trained) / 2)


@SOME_NETWORKS
@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_what_the_engine_adds_to_a_step_does_not_grow_with_the_network(network: Network, model_type: str) -> None:
    added = []
    for changes in ({}, network.deeper):
        architecture = {**small(network), **changes}
        engine, module = engine_steps(network, architecture, setting(model_type))
        bare = bare_steps(network, architecture, setting(model_type), module)
        for work in (engine, bare):
            work(1)
        added.append(operators_of(engine) - operators_of(bare))
    assert added[0] == added[1] <= MOST_ADDED


@NETWORKS
@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_no_operator_of_a_step_waits_for_the_device_or_copies_numbers_to_it(network: Network, model_type: str) -> None:
    engine, _ = engine_steps(network, small(network), setting(model_type))
    engine(1)
    with Operators() as seen:
        engine(1)
    assert len(seen.names) > 100 and WAITING & set(seen.names) == network.waits_for


@pytest.mark.parametrize("family", [name for name, network in published.NETWORKS.items() if network.waits_for])
def test_the_engine_adds_no_wait_to_those_of_the_network_itself(family: str) -> None:
    network, options = published.NETWORKS[family], setting()
    engine, module = engine_steps(network, small(network), options)
    engine(1)
    loss = bare_loss(network, in_dtype(make_batch(network, small(network), options, 0), torch.float32), module, torch.float32)
    with Operators() as alone:
        loss().backward()
    with Operators() as seen:
        engine(1)
    ours, theirs = (Counter(name for name in names if name in WAITING) for names in (seen.names, alone.names))
    assert ours == theirs


@SOME_NETWORKS
def test_an_adapter_takes_fewer_operations_than_every_weight(network: Network) -> None:
    full, adapter = (flops_of_a_step(network, small(network), setting(kind)) for kind in ("full", "lora"))
    assert 0 < adapter < full


@pytest.mark.slow
def test_each_network_is_measured_beside_a_bare_loop() -> None:
    table = Table()
    cases = [replace(case, pixels=64, is_small=True) for case in gpu.CASES if not case.compiled]
    gpu.measure(table, Clock(device=CPU, steps=1, rounds=1), cases)
    assert [row.figure for row in table.rows] == [case.words for case in cases]
    assert {case.network.family for case in cases} == {"sd1x", "sdxl", "wan"}
    assert all("% of the device" in row.value and "bare loop" in row.beside for row in table.rows)


def test_a_case_that_needs_too_much_memory_is_named_and_the_next_is_measured() -> None:
    table = Table()

    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    attempt(table, "gpu", "large", fails)
    attempt(table, "gpu", "small", lambda: table.add("gpu", "small", "1 s"))
    attempt(table, "gpu", "late", fails, TimeLimit(0))
    assert [(row.figure, row.value) for row in table.rows] == [
        ("large", "not measured: the device has too little memory"),
        ("small", "1 s"),
        ("late", "not measured: the limit of 0 s is reached"),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_both_sections_say_that_they_need_a_gpu() -> None:
    table = Table()
    gpu.run(table)
    assert [(row.figure, row.value) for row in table.rows] == [("needs a GPU", "not measured here")] * 2
