"""The odd family with clips of any number of frames, and the frame rate among its conditions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from trainer_engine.families.odd.family import Odd
from trainer_engine.families.odd_clips.spec import SPEC

from trainer_engine.families.inputs import Conditions, SampleFacts


class OddClips(Odd):
    """Its autoencoder takes (B, 3, T, H, W)."""

    spec = SPEC

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        return self.autoencoder.encode(pixels if pixels.dim() == 5 else pixels.unsqueeze(2), exact=exact)

    def conditions(self, samples: Sequence[SampleFacts], generators: Sequence[torch.Generator] | None = None) -> Conditions:
        return {"edges": torch.tensor([[float(sample.frames), sample.frame_rate or 0.0] for sample in samples])}


FAMILY = OddClips
