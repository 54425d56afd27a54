"""What the network learns: how data becomes noise, what is predicted, and how far off it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from trainer_engine.objectives.losses import ErrorShape, sample_means


class Objective(ABC):
    """One parameterisation. Pure: no option, no model and no global random state inside.

    Shapes: data, noise and x_t are (B, C, ...) of any rank, t is (B,). Results of ``add_noise`` and ``target`` are float32.
    """

    shape: ErrorShape = ErrorShape()

    @abstractmethod
    def sample_timesteps(self, generators: Sequence[torch.Generator], token_count: int, offset: float = 0.0) -> Tensor:
        """One t a sample from the sample's own generator, (B,) on the CPU: int64 indices of a discrete schedule, or float32 in [0, 1].

        ``token_count``: tokens that the network makes of one sample; a schedule may depend on it. ``offset`` moves t towards noise before
        the sigmoid of flow matching; other schedules take 0.
        """

    @abstractmethod
    def spread_timesteps(self, count: int) -> Tensor:
        """The middles of ``count`` equal parts of the schedule, from data to noise: (count,) in the dtype of ``sample_timesteps``.

        They depend on no option of training but the part of the schedule that is trained at all, so that runs can be compared.
        """

    @property
    def is_partial(self) -> bool:
        """Whether a part of the schedule is neither trained nor evaluated."""
        return False

    @abstractmethod
    def add_noise(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t, on the device of ``data``."""

    @abstractmethod
    def target(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect network predicts from x_t."""

    @abstractmethod
    def noise_level(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(progress from 0 for data to 1 for noise, sigma_t / alpha_t), each (B,) float32 on the device of ``like``."""

    def weight(self, noise_to_signal: Tensor) -> Tensor | None:
        """Weight of each sample's loss, (B,); None if all weigh the same."""
        return None

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor, mask: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Mean error of each sample, (B,) float32; a batch's loss is the mean of these.

        ``mask`` broadcasts to the prediction, such as (B, 1, ...) in [0, 1]: the mean is over its elements, weighted by their values.
        ``weights`` (B,) multiply the loss of each sample, in addition to the objective's own ``weight``.
        """
        progress, noise_to_signal = self.noise_level(t, prediction)
        error = sample_means(self.shape(prediction.float() - target.float(), progress, noise_to_signal), mask)
        for factor in (self.weight(noise_to_signal), weights):
            if factor is not None:
                error = error * factor.to(error)
        return error
