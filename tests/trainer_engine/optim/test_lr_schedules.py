"""Each schedule gives the learning rates of its formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler

from trainer_engine.config.options.run import ScheduleOptions
from trainer_engine.optim.lr_schedules import CURVES, Schedule

NAMES = sorted(CURVES)


def schedule(
    name: str, *, total: int = 10, warmup: int = 0, end: float = 0.0, cycles: int = 1, power: float = 1.0, peak: float = 1.0
) -> Schedule:
    options = ScheduleOptions(lr_scheduler=name, lr_warmup_steps=warmup, lr_end=end, lr_num_cycles=cycles, lr_power=power)
    return Schedule(options, peak, total)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("constant", [1, 1, 1, 1]),
        ("constant_with_warmup", [1, 1, 1, 1]),
        ("linear", [0.75, 0.5, 0.25, 0]),
        ("cosine", [0.853553, 0.5, 0.146447, 0]),
        ("cosine_with_restarts", [0.853553, 0.5, 0.146447, 0]),
        ("sine", [0.5, 0, 0.5, 1]),
        ("polynomial", [0.75, 0.5, 0.25, 0]),
    ],
)
def test_a_curve_without_warmup_gives_its_tabulated_rates(name: str, wanted: list[float]) -> None:
    curve = schedule(name, total=4)
    assert [curve.at(step) for step in (1, 2, 3, 4)] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_begins_with_a_linear_warmup(name: str) -> None:
    curve = schedule(name, total=20, warmup=5)
    assert [curve.at(step) for step in range(1, 6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_with_restarts", "polynomial"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_decaying_schedules_end_at_the_floor(name: str, warmup: int) -> None:
    curve = schedule(name, total=12, warmup=warmup, end=0.1, cycles=3)
    rates = [curve.at(step) for step in range(1, 13)]
    assert rates[-1] == pytest.approx(0.1)
    assert min(rates[warmup:]) >= 0.1


@pytest.mark.parametrize("name", NAMES)
def test_rates_stay_between_zero_and_the_peak(name: str) -> None:
    curve = schedule(name, total=37, warmup=4, cycles=3, power=0.8, peak=3e-4)
    assert all(0 <= curve.at(step) <= 3e-4 * (1 + 1e-9) for step in range(1, 60))


@pytest.mark.parametrize("name", NAMES)
def test_a_floor_above_the_peak_does_not_raise_the_rate(name: str) -> None:
    curve = schedule(name, end=0.5, peak=1e-3)
    assert all(curve.at(step) == pytest.approx(1e-3) for step in range(1, 11))


def test_each_restart_begins_at_the_peak() -> None:
    curve = schedule("cosine_with_restarts", total=8, cycles=2)
    assert curve.at(4) == pytest.approx(1.0)
    assert curve.at(3) < curve.at(2) < curve.at(1) < curve.at(4)


def test_lr_power_is_the_exponent_of_the_polynomial() -> None:
    assert schedule("polynomial", total=4, power=2.0).at(2) == pytest.approx(0.25)


def test_a_warmup_longer_than_the_run_never_reaches_the_peak() -> None:
    curve = schedule("cosine", total=4, warmup=8)
    assert [curve.at(step) for step in range(1, 5)] == pytest.approx([1 / 8, 2 / 8, 3 / 8, 4 / 8])


REFERENCES: dict[str, Callable[..., LRScheduler]] = {
    "linear": transformers.get_linear_schedule_with_warmup,
    "cosine": transformers.get_cosine_schedule_with_warmup,
    "cosine_with_restarts": transformers.get_cosine_with_hard_restarts_schedule_with_warmup,
    "polynomial": transformers.get_polynomial_decay_schedule_with_warmup,
}


@pytest.mark.parametrize("name", sorted(REFERENCES))
@pytest.mark.parametrize(("total", "warmup", "cycles", "power"), [(20, 0, 1, 1.0), (20, 5, 3, 2.0), (7, 6, 2, 0.5)])
def test_rates_equal_those_of_transformers(name: str, total: int, warmup: int, cycles: int, power: float) -> None:
    """Step n of a run has the rate that transformers gives after n steps of its scheduler: the warm-up begins above 0."""
    rest: dict[str, Any] = {"cosine_with_restarts": {"num_cycles": cycles}, "polynomial": {"lr_end": 1e-5, "power": power}}.get(name, {})
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1e-3)
    reference = REFERENCES[name](optimizer, num_warmup_steps=warmup, num_training_steps=total, **rest)
    ours = schedule(name, total=total, warmup=warmup, cycles=cycles, power=power, end=rest.get("lr_end", 0.0), peak=1e-3)
    for step in range(1, total + 1):
        optimizer.step()
        reference.step()
        assert ours.at(step) == pytest.approx(reference.get_last_lr()[0], rel=1e-9, abs=1e-12), step


@given(
    st.sampled_from(NAMES),
    st.integers(1, 500),
    st.integers(0, 50),
    st.floats(0, 2e-3),
    st.integers(1, 9),
    st.floats(0.1, 4),
)
def test_a_rate_never_leaves_the_band_between_floor_and_peak(
    name: str, total: int, warmup: int, end: float, cycles: int, power: float
) -> None:
    curve = schedule(name, total=total, warmup=warmup, end=end, cycles=cycles, power=power, peak=1e-3)
    floor = min(end, 1e-3)
    for step in range(1, total + 3):
        assert (0 if step < warmup else floor) - 1e-15 <= curve.at(step) <= 1e-3 * (1 + 1e-12)
        assert curve.at(step) > 0 or step >= total or end == 0
