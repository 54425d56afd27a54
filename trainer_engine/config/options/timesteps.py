"""Options of the timesteps that a run trains on: their distribution, and the part of the noise schedule that they come from."""

from __future__ import annotations

import sys
from typing import Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.contract.files import read_document

MOST_KNOTS = 1000
"""Most numbers in ``flow_cubic_schedule_weights``."""

MOST_TIMESTEPS = 10_000
"""Most timesteps of a noise schedule that options can name."""


class TimestepOptions(OptionGroup):
    """Which timesteps the network sees in training."""

    flow_schedule_shift: float | None = option(
        3.0,
        "Flow matching: fixed shift s of the timesteps towards noise, sigma -> s sigma / (1 + (s - 1) sigma). 0 or empty: "
        "flow_schedule_auto_shift decides.",
        ge=0,
    )
    flow_schedule_auto_shift: bool = option(
        False,
        "Flow matching: shift timesteps towards noise by the size of the image; larger images are shifted more. No effect while "
        "flow_schedule_shift is above 0.",
    )
    flow_sigmoid_scale: float = option(
        1.0, "Flow matching: scale of the normal distribution whose sigmoid gives the timesteps. Larger values reach further out.", ge=0
    )
    flow_use_uniform_schedule: bool = option(False, "Flow matching: sample timesteps uniformly.")
    flow_use_beta_schedule: bool = option(False, "Flow matching: sample timesteps from a beta distribution.")
    flow_beta_schedule_alpha: float = option(2.0, "First parameter of the beta distribution of flow_use_beta_schedule.", gt=0)
    flow_beta_schedule_beta: float = option(2.0, "Second parameter of the beta distribution of flow_use_beta_schedule.", gt=0)
    flow_cubic_schedule_weights: str | None = option(
        None,
        "Flow matching: sample timesteps from a curve through these densities at even distances from data to noise, such as [1, 2, 1]. The "
        "curve between them is cubic and keeps their order; one number or none is uniform. Excludes the other distributions. A family may "
        "have densities of its own, which give way to every other distribution; empty: none.",
        json=True,
        shape="a JSON list of numbers that are not negative",
    )
    flux_fast_schedule: bool = option(
        False,
        "Flow matching: train on the four timesteps of a sampler with four steps alone, as schnell has it: sigma 1 (seven times of ten), "
        "0.75, 0.5 and 0.25, without a shift. Excludes the other distributions.",
    )
    timestep_bias_strategy: Literal["none", "earlier", "later", "range"] = option(
        "none",
        "Diffusion: which timesteps are sampled more or less often, by timestep_bias_multiplier. earlier and later: the share "
        "timestep_bias_portion with the least, or the most noise. range: timestep_bias_begin to timestep_bias_end.",
        synonyms={"": "none", "null": "none"},
    )
    timestep_bias_multiplier: float = option(
        1.0, "How many times as often timesteps of timestep_bias_strategy are sampled; below 1 more rarely.", gt=0, le=1000
    )
    timestep_bias_portion: float = option(0.25, "Share of the schedule that earlier and later change.", gt=0, le=1)
    timestep_bias_begin: int = option(0, "First timestep that range changes.", ge=0, le=MOST_TIMESTEPS)
    timestep_bias_end: int = option(
        1000, "Timestep before which range ends. Most noise schedules have 1000 timesteps.", ge=1, le=MOST_TIMESTEPS
    )
    refiner_training: bool = option(
        False,
        "Diffusion: train one of two networks that share the noise schedule. This one is trained on the part with the least noise, "
        "refiner_training_strength of the schedule, and evaluated there.",
    )
    refiner_training_strength: float = option(
        0.2, "Share of the schedule, from its end without noise, that belongs to the second of the two networks.", ge=0, le=1
    )
    refiner_training_invert_schedule: bool = option(
        False, "With refiner_training: train the first of the two networks, on the rest of the schedule, which has the most noise."
    )

    def trained_part(self, count: int) -> range:
        """The timesteps that are trained of a diffusion schedule with so many. It may be empty."""
        if not self.refiner_training:
            return range(count)
        border = round(self.refiner_training_strength * count)
        return range(border, count) if self.refiner_training_invert_schedule else range(border)


def parse_densities(text: str | None) -> tuple[float, ...] | None:
    """Returns the numbers of ``flow_cubic_schedule_weights``, or None if it is empty. Raises ValueError if they are no densities."""
    if not text:
        return None
    try:
        numbers = read_document(text if text.lstrip().startswith("[") else f"[{text}]")
    except ValueError as error:
        raise ValueError(f"{text[:100]!r} is not a list of numbers") from error
    if not isinstance(numbers, list) or len(numbers) > MOST_KNOTS:
        raise ValueError(f"it is not a list of at most {MOST_KNOTS} numbers")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= sys.float_info.max:
            raise ValueError(f"{number!r} is not a number that can be a density")
    if len(numbers) > 1 and not any(numbers):
        raise ValueError("no density is above 0")
    return tuple(map(float, numbers))
