from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option


class ObjectiveOptions(OptionGroup):
    """What the network learns: which timesteps it sees, and how far off a prediction is."""

    flow_schedule_shift: float | None = option(
        3.0,
        "Flow matching: static shift s of the timesteps towards noise, s sigma / (1 + (s - 1) sigma). 0 or empty: flow_schedule_auto_shift "
        "decides.",
        ge=0,
    )
    flow_schedule_auto_shift: bool = option(
        False, "Flow matching: shift timesteps the more the larger the image. Without effect while flow_schedule_shift is above 0."
    )
    flow_sigmoid_scale: float = option(1.0, "Flow matching: spread of the timesteps, which are sigmoid(spread x normal noise).", ge=0)
    flow_use_uniform_schedule: bool = option(False, "Flow matching: draw timesteps uniformly instead.")
    flow_use_beta_schedule: bool = option(False, "Flow matching: draw timesteps from a beta distribution instead.")
    flow_beta_schedule_alpha: float = option(2.0, "First parameter of that distribution.", gt=0)
    flow_beta_schedule_beta: float = option(2.0, "Second parameter of that distribution.", gt=0)
    loss_type: Literal["l2", "huber", "smooth_l1"] = option(
        "l2", "l2 is the squared error; huber and smooth_l1 grow linearly where the error is large, huber_c being what large means."
    )
    huber_c: float = option(0.1, "Error at which huber and smooth_l1 turn from squared to linear.", gt=0)
    huber_schedule: Literal["snr", "exponential", "constant"] = option(
        "snr", "How huber_c falls as the noise grows: with the signal-to-noise ratio, exponentially, or not at all."
    )
    snr_gamma: float | None = option(
        None,
        "Diffusion: min-SNR weighting, which keeps easy timesteps from counting too much; 5 is typical. 0 or empty: none.",
        ge=0,
        le=20,
    )
    use_soft_min_snr: bool = option(False, "Diffusion: the smooth form of min-SNR weighting, with snr_gamma.")
