"""The blocks of diffusers that generate with Anima, from the states of a prompt to latents."""

from __future__ import annotations

from collections.abc import Callable

from diffusers import AnimaModularPipeline, SchedulerMixin
from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.anima.before_denoise import AnimaPrepareLatentsStep, AnimaSetTimestepsStep, AnimaTextInputStep
from diffusers.modular_pipelines.anima.denoise import AnimaDenoiseStep
from diffusers.modular_pipelines.modular_pipeline import BlockState
from torch import Tensor, nn

from trainer_engine.families.generation import SamplerStep

OnStep = Callable[[SamplerStep], None]


class StepReport(ModularPipelineBlocks):  # type: ignore[misc]  # mypy does not read diffusers' types
    """The last block of each step: it calls ``on_step``, whose exceptions pass through."""

    model_name = "anima"

    def __init__(self) -> None:
        super().__init__()
        self.on_step: OnStep | None = None

    def __call__(
        self, components: AnimaModularPipeline, block_state: BlockState, i: int, t: Tensor
    ) -> tuple[AnimaModularPipeline, BlockState]:
        if self.on_step is not None:
            self.on_step(SamplerStep(i + 1, float(t), block_state.latents.squeeze(2)))
        return components, block_state


class DenoisingPipeline(AnimaModularPipeline):  # type: ignore[misc]  # mypy does not read diffusers' types
    """The published pipeline without what encodes prompts and without its autoencoder."""

    def __init__(self, network: nn.Module, scheduler: SchedulerMixin) -> None:
        self.report = StepReport()
        denoise = AnimaDenoiseStep()
        denoise.sub_blocks.insert("report", self.report, len(denoise.sub_blocks))
        steps = {
            "input": AnimaTextInputStep(),
            "prepare_latents": AnimaPrepareLatentsStep(),
            "set_timesteps": AnimaSetTimestepsStep(),
            "denoise": denoise,
        }
        super().__init__(blocks=SequentialPipelineBlocks.from_blocks_dict(steps))
        self.update_components(transformer=network, scheduler=scheduler)
        self.set_progress_bar_config(disable=True)
