"""The network beside the trained one that validation images pass through too (``StagesSpec``): loaded for a validation, and let go of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer_engine.config.family_parts import TRAINED_STAGE
from trainer_engine.config.part_fit import unfit_stage
from trainer_engine.config.stages import NetworkFacts, OtherStage, mismatch
from trainer_engine.contract.errors import InvalidOptions, ModelUnavailable
from trainer_engine.contract.files import read_small_json
from trainer_engine.families.base import Family
from trainer_engine.families.generation import SamplerStep
from trainer_engine.families.inputs import PromptEmbedding
from trainer_engine.families.modules import free_device_memory
from trainer_engine.weights.hub import hub_cache, loading


class OtherNetwork:
    """The frozen network of the other stage, and its prompts."""

    def __init__(self, stage: OtherStage, family: Family) -> None:
        self.stage = stage
        self.family = family
        """The family with the weights of the other stage. Its autoencoder is not used."""
        self.free_text: Callable[[], None] = family.free_encoders
        """Lets go of its text encoders."""
        self._network: nn.Module | None = None
        self._prompts: dict[str, PromptEmbedding] = {}

    def find(self, *more: str) -> None:
        """Download what is missing of the network and of the components in the subfolders ``more``. Raises ModelUnavailable."""
        for name in (*(component.folder for component in self.family.spec.trained.values()), "scheduler", *more):
            self.family.parts.find(name)

    def network(self) -> nn.Module:
        """The network on its device, quantised as the trained one is; loaded at the first call after ``release``."""
        if self._network is None:
            network = self.family.load_network()
            self.family.place_network(network)
            self._network = network.eval().requires_grad_(False)
        return self._network

    def encode(self, texts: Iterable[str]) -> None:
        """Encode prompts that have not been encoded before. Their embeddings stay, the text encoders do not."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._prompts]
        if not missing:
            return
        try:
            self._prompts |= {text: self.family.encode_prompts([text])[0] for text in missing}
        finally:
            self.free_text()
            free_device_memory(self.family.devices.device)

    def prompt(self, text: str) -> PromptEmbedding:
        """The embedding of a text by the text encoders of the other stage."""
        self.encode([text])
        return self._prompts[text]

    def release(self) -> None:
        """Let go of the network."""
        self._network = None
        free_device_memory(self.family.devices.device)


class SharedSchedule(nn.Module):
    """Two networks as one for a pipeline: asks the first one from the timestep ``border`` on, and the second below it."""

    def __init__(self, first: nn.Module, second: nn.Module, border: int) -> None:
        super().__init__()
        self.first, self.second, self.border = first, second, border

    @property
    def config(self) -> Any:
        return self.first.config

    @property
    def dtype(self) -> torch.dtype:
        return cast("torch.dtype", self.first.dtype)

    @property
    def device(self) -> torch.device:
        return cast("torch.device", self.first.device)

    @property
    def networks(self) -> tuple[nn.Module, nn.Module]:
        return self.first, self.second

    def forward(self, hidden_states: Tensor, *, timestep: Tensor, **conditions: Any) -> Any:
        """(B, C, h, w), all at one timestep of ``timestep`` (B,), as the forward pass of each."""
        network = self.first if timestep[0].item() >= self.border else self.second
        return network(hidden_states, timestep=timestep, **conditions)


def other_network(family: Family, stage: OtherStage) -> OtherNetwork:
    """The other stage of a run, with nothing loaded. Raises InvalidOptions if the two cannot share a sampler that they have to share."""
    options, stages, devices = family.options, family.spec.stages, family.devices
    assert stages is not None
    own = options.families[family.spec.name].model_copy(update={stages.mode: TRAINED_STAGE})
    complete = options.distributed.model_copy(update={"fsdp_enable": False})  # nothing spreads this network, so it is placed at once
    frozen = {"model": stage.model, "families": {**options.families, family.spec.name: own}, "distributed": complete}
    # Outside autocast, both networks of an image compute in the type of their inputs.
    dtype = devices.network if devices.compute == devices.weights else devices.frozen
    other = type(family)(options.model_copy(update=frozen), replace(devices, network=dtype))
    try:
        problem = mismatch(stage, stages, _facts(family), _facts(other))
    except ModelUnavailable:  # it names the option of a base model
        for unfit in unfit_stage(stage, family.spec, hub_cache()):
            raise InvalidOptions([unfit]) from None
        raise
    if problem is not None:
        raise InvalidOptions([problem])
    return OtherNetwork(stage, other)


def _facts(family: Family) -> NetworkFacts:
    part = family.parts.find(family.spec.components[family.spec.network].folder)
    with loading(part):
        config = read_small_json(part.folder / "config.json")
    return NetworkFacts(family.scheduler_config(), config if isinstance(config, dict) else {}, family.prediction_type)


def counted(on_step: Callable[[SamplerStep], None] | None) -> Callable[[SamplerStep], None] | None:
    """Numbers the steps of several pipelines, which each begin with 1, one after the other."""
    if on_step is None:
        return None
    done, receive = 0, on_step

    def report(taken: SamplerStep) -> None:
        nonlocal done
        done += 1
        receive(replace(taken, number=done))

    return report
