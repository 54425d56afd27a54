"""Samplers of flow matching on the noise schedules that base models state."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.families.common.flow_samplers import SAMPLERS, flow_scheduler

SPACED = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0, "use_beta_sigmas": True}
"""A schedule whose steps follow a beta distribution, for which diffusers needs scipy."""


@pytest.mark.parametrize("sampler", ["unipc", "dpm++"])
def test_a_solver_takes_the_steps_of_flow_matching_whatever_the_base_model_spaces(sampler: str) -> None:
    scheduler: Any = flow_scheduler(SPACED, sampler, "a model")
    scheduler.set_timesteps(4)
    plain: Any = flow_scheduler({**SPACED, "use_beta_sigmas": False}, sampler, "a model")
    plain.set_timesteps(4)
    assert torch.equal(scheduler.sigmas, plain.sigmas) and 0.9 < scheduler.sigmas[0] <= 1


@pytest.mark.skipif(find_spec("scipy") is not None, reason="scipy is installed")
def test_a_schedule_that_needs_a_package_names_the_model_and_the_package() -> None:
    for sampler in (None, "euler"):
        with pytest.raises(ModelUnavailable, match="a model needs a package.*scipy"):
            flow_scheduler(SPACED, sampler, "a model")


def test_each_sampler_is_made_of_a_plain_schedule() -> None:
    for sampler in (None, *SAMPLERS):
        made: Any = flow_scheduler({**SPACED, "use_beta_sigmas": False}, sampler, "a model")
        assert isinstance(made, FlowMatchEulerDiscreteScheduler) == (sampler in (None, "euler"))
