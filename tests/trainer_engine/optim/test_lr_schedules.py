"""Each schedule gives the learning rates of its formula."""

from __future__ import annotations

import pytest

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
