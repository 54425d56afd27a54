"""The blocks of diffusers that generate images with FLUX.3 from embeddings and latents, with a report of each step of the sampler."""

from __future__ import annotations

from typing import Any

from diffusers.modular_pipelines.flux3.modular_blocks_flux3 import Flux3AutoCoreDenoiseStep
from diffusers.modular_pipelines.flux3.modular_blocks_flux3_distilled import Flux3DistilledAutoCoreDenoiseStep
from diffusers.modular_pipelines.modular_pipeline import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, InsertableDict
from torch import Tensor


class _Report(ModularPipelineBlocks):  # type: ignore[misc]  # mypy does not read diffusers' types
    """The last block of a step of the sampler."""

    model_name = "flux3"

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("on_tokens", description="receives the number of the step, its timestep and the tokens (B, N, C) after it")]

    def __call__(self, components: Any, block_state: Any, i: int, t: Tensor) -> tuple[Any, Any]:
        if block_state.on_tokens is not None:
            block_state.on_tokens(i + 1, float(t), block_state.latents)
        return components, block_state


def make_denoising(*, is_flow_map: bool) -> Any:
    """A pipeline without components: embeddings and, for edits, ``image_cond_latents`` -> ``latents``.

    It calls ``on_tokens`` after each step of the sampler.
    """
    blocks = Flux3DistilledAutoCoreDenoiseStep() if is_flow_map else Flux3AutoCoreDenoiseStep()
    for workflow in blocks.sub_blocks.values():
        loop = workflow.sub_blocks["denoise"]  # an object that all pipelines of the process share
        steps = InsertableDict([*loop.sub_blocks.items(), ("report", _Report())])
        workflow.sub_blocks["denoise"] = type(loop).from_blocks_dict(steps)
        workflow.sub_blocks["denoise"].set_progress_bar_config(disable=True)
    return blocks.init_pipeline()
