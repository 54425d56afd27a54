"""UNets that know the size and the crop of their images, and are given a pooled prompt beside the states of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer_engine.families.common.unet import UNetFamily
from trainer_engine.families.inputs import Conditions, PromptBatch, SampleFacts, StepInputs


class SizedUNetFamily(UNetFamily):
    """A prompt is ``{"embeds": (T, D), "pooled": (P,)}``.

    The network also embeds six numbers of each image, ``time_ids`` (Podell et al., 2023, section 2.2): height and width of the file, top
    and left of the crop, height and width of what is trained, in pixels.
    """

    def time_ids(self, sample: SampleFacts) -> list[float]:
        """The numbers of one image, in this order."""
        (width, height), (left, top), (target_width, target_height) = sample.original_size, sample.crop_corner, sample.target_size
        return [float(value) for value in (height, width, top, left, target_height, target_width)]

    def conditions(self, samples: Sequence[SampleFacts], generators: Sequence[torch.Generator] | None = None) -> Conditions:
        """``time_ids`` (B, 6)."""
        return {"time_ids": torch.tensor([self.time_ids(sample) for sample in samples], dtype=torch.float32)}

    def added_conditions(self, inputs: StepInputs, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """``text_embeds`` (B, P) and ``time_ids`` (B, 6)."""
        return {
            "text_embeds": inputs.prompts["pooled"].to(device, dtype),
            "time_ids": inputs.conditions["time_ids"].to(device, dtype),
        }

    def pipeline_prompts(self, batch: PromptBatch) -> dict[str, Tensor]:
        embeds, pooled = batch["embeds"], batch["pooled"]
        return {
            "prompt_embeds": embeds[:1],
            "negative_prompt_embeds": embeds[1:],
            "pooled_prompt_embeds": pooled[:1],
            "negative_pooled_prompt_embeds": pooled[1:],
        }
