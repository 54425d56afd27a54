"""How the OpenMP threads of an engine wait."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.tiny_run import start_run, write_job
from trainer_engine.runtime.environment import PASSIVE_WAITING, wait_passively
from training.engine.process import passed_environment


def test_threads_sleep_if_the_run_computes_on_a_cpu(tmp_path: Path) -> None:
    there = (str(tmp_path),)
    for variables in ({}, {"PATH": "/bin"}):
        assert wait_passively(variables, files=()) and PASSIVE_WAITING.items() <= variables.items()
    for hidden in ({"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}, {"ACCELERATE_USE_CPU": "true"}):
        assert wait_passively(hidden, files=there)


def test_policy_stays_unset_if_the_run_computes_on_a_gpu(tmp_path: Path) -> None:
    variables: dict[str, str] = {"CUDA_VISIBLE_DEVICES": "0"}
    assert not wait_passively(variables, files=(str(tmp_path),)) and variables == {"CUDA_VISIBLE_DEVICES": "0"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"])
def test_policy_of_the_user_reaches_the_engine(name: str) -> None:
    variables = passed_environment({name: "7", "SECRET": "x"})
    assert variables == {name: "7"}
    assert not wait_passively(variables, files=()) and variables == {name: "7"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what GNU's OpenMP prints")
@pytest.mark.parametrize(("chosen", "wanted"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_openmp_of_a_real_run_has_the_policy(chosen: dict[str, str], wanted: str, tmp_path: Path) -> None:
    folder = write_job(tmp_path, max_train_steps=1)
    run = start_run(folder, OMP_DISPLAY_ENV="TRUE", CUDA_VISIBLE_DEVICES="", **chosen)
    assert run.wait() == 0, run.log()
    assert f"OMP_WAIT_POLICY = '{wanted}'" in run.log()
