"""The interface of a model family. A new family is a new folder here with a ``spec.py`` and a ``family.py``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from diffusers import ConfigMixin
from PIL import Image
from torch import Tensor, nn

from trainer_engine.config.components import spec_of_run
from trainer_engine.config.controlnet import FOLDER, NAME, weights_problem
from trainer_engine.config.family_parts import Component
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.config.precisions import activated
from trainer_engine.config.resuming.identity import adapter_targets
from trainer_engine.config.sdnq_settings import weights_identity
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.contract.events import Notification, Severity
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.common.computation import prepare_network
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import Conditions, PromptBatch, PromptEmbedding, SampleFacts, StepInputs
from trainer_engine.families.modules import DiffusersNetwork, cast_weights, join, split
from trainer_engine.media import Picture
from trainer_engine.memory.placement import encoder_groups, held_back, stream_weights, streamed_groups
from trainer_engine.memory.recompute import enable_checkpointing
from trainer_engine.runtime.devices import Devices
from trainer_engine.weights.loading import PartFinder
from trainer_engine.weights.quantization import exact_layers_message, is_quantised, quantiser


class Family(ABC):
    """One model family on one device. Weights are loaded when they are first needed, and only those."""

    spec: FamilySpec
    """The family's facts; of an instance, those of its run, which may train more components (``FamilySpec.for_run``)."""
    parts: PartFinder
    """Finds the components of the base model, and downloads what is not here yet."""
    may_skip: bool = False
    """Whether a prediction may leave trained parameters out, depending on its inputs: processes then do not wait for their gradients."""

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        self.options = options
        self.devices = devices
        self.spec = spec_of_run(options.model, type(self).spec)
        self.beside: Mapping[str, nn.Module] = {}
        """The frozen networks that predictions pass through beside a ControlNet; ``load_network`` loads them."""
        self.keeps_encoders = False
        """Whether the run encodes while it trains, so that ``release_encoders`` leaves the encoders in memory."""
        self.receives_weights = False
        """Whether another process reads the weights of the network: here they are 0 until they are spread (FSDP)."""
        self.report: Callable[[Notification], None] = lambda _: None
        """Receives notifications about weights that were loaded."""

    @property
    def components(self) -> Mapping[str, Component]:
        """The networks of the family's pipelines by name."""
        return self.spec.components

    # ---- the encoders: used for the caches, then freed ----

    @property
    def token_limit(self) -> int:
        """The longest prompt in tokens; longer ones are cut off."""
        return self.spec.tokens_of(self.options.model.model_flavour, self.options.model.tokenizer_max_length)

    def image_fingerprint(self, hashes: FileHashes) -> str:
        """Changes whenever the same pixels would give other latents: weights, configuration, number type, tiles."""
        tiles = " tiled" if self.tiles_images else ""
        return f"{self.parts.find('vae').fingerprint(hashes)} mode {self.devices.vae or 'stored'}{tiles}"

    @property
    def tiles_images(self) -> bool:
        """Whether the autoencoder takes large images in tiles, which changes their latents."""
        return self.options.autoencoder.vae_enable_tiling and "vae_enable_tiling" in self.spec.latents.memory_options

    @abstractmethod
    def text_fingerprint(self, hashes: FileHashes) -> str:
        """Changes whenever the same prompt would give another embedding."""

    def encoder_fingerprint(self, hashes: FileHashes) -> str:
        """``text_fingerprint`` of a family with one text encoder, whose layers and template are the family's own."""
        encoder, tokenizer = self.parts.find("text_encoder"), self.parts.find(self.spec.prompts.tokenizer_folders[0])
        precision = weights_identity(self.options.precision.text_encoder_1_precision, self.options)
        weights = f"{encoder.fingerprint(hashes)} {tokenizer.fingerprint(hashes)}"
        return f"{self.spec.name} {weights} {self.token_limit} {self.devices.text} {precision}"

    @abstractmethod
    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        """(B, 3, H, W) float32 in [-1, 1] -> (B, C, h, w) on the CPU, scaled as the network expects, in the type that was computed in.

        Clips are (B, 3, T, H, W); only a family whose ``LatentSpec.media`` names such a medium receives them.

        The same pixels give the same latents up to rounding, whatever else is in the batch.
        ``exact`` computes in float32 whatever was configured.
        """

    @property
    def animates(self) -> bool:
        """Whether the network is given the first frame of a clip."""
        return self.spec.animates(self.options.model.model_flavour)

    @property
    def edits_in_place(self) -> bool:
        """Whether the network sees the reference of each image in further channels."""
        return self.spec.edits_in_place(self.options.model.model_flavour)

    @property
    def caches_conditions(self) -> bool:
        """Whether the network takes further inputs that are made of the pixels of a sample: those of ``encode_conditions``."""
        return False

    def encode_conditions(self, pixels: Tensor, *, exact: bool = False) -> Conditions:
        """Named inputs (B, ...) on the CPU that are made of the pixels of samples and cached with their latents.

        Takes what ``encode_images`` takes. ``image_fingerprint`` covers what makes them. Only called if ``caches_conditions``.
        """
        return {}

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        """One embedding a prompt, on the CPU, without padding.

        ``references``: pixels (3, H, W) in [-1, 1] of the reference images of each prompt. They are empty, and the family ignores them,
        unless ``prompts_see_references``.
        """

    def negative_text(self, text: str) -> str:
        """The text under which a negative prompt is encoded and cached: itself, unless the family reads negative prompts in another way."""
        return text

    @property
    def prompts_see_references(self) -> bool:
        """Whether the text encoder looks at the reference images of a prompt, so that an embedding depends on both."""
        return False

    @abstractmethod
    def free_encoders(self) -> None:
        """Release the weights of every encoder; they are loaded again when they are needed."""

    def release_encoders(self) -> None:
        """``free_encoders``, unless the run encodes while it trains."""
        if not self.keeps_encoders:
            self.free_encoders()

    @abstractmethod
    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """Stack embeddings into one padded batch, on the CPU."""

    def conditions(self, samples: Sequence[SampleFacts], generators: Sequence[torch.Generator] | None = None) -> Conditions:
        """Named inputs (B, ...) on the CPU that follow from facts of the samples or from chance; none by default.

        ``generators``: one a sample, for what is random in training. None, as in an evaluation, gives fixed values instead.
        """
        return {}

    # ---- the components that are trained ----

    @abstractmethod
    def load_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        """A component as it is stored, on the CPU: from the base model, or from ``folder`` (what ``save_component`` wrote).

        Raises ModelUnavailable.
        """

    def save_component(self, name: str, module: nn.Module, folder: Path) -> None:
        """Write configuration and weights (safetensors, in the type they are trained in) into ``folder``. Takes the bare module.

        The weights have the names that published files have.
        """
        prefix, network = self.components[name].file_prefix, cast("DiffusersNetwork", module)
        renamed = {"state_dict": {f"{prefix}{key}": tensor for key, tensor in module.state_dict().items()}} if prefix else {}
        network.save_pretrained(folder, safe_serialization=True, max_shard_size="50GB", **renamed)

    def load_network(self, checkpoint: Path | None = None) -> nn.Module:
        """The trained components on their device in ``devices.network``, in training mode; trainable if ``model_type`` is ``full``.

        The network is the component itself, or a ``JointNetwork`` of several. The weights come from the base model, quantised as the
        options say, or from the folders of a full checkpoint, without the rounding to ``devices.base``. Text encoders are neither
        quantised nor rounded. In a run of a ControlNet, ``beside`` gets the network that it steers. Raises ModelUnavailable.
        """
        self._refuse_other_controlnet()
        modules = {}
        for name, component in self.spec.trained.items():
            folder = checkpoint / component.folder if checkpoint else None
            modules[name] = self._prepared(name, folder, is_beside=False)
        self.beside = {name: self._prepared(name, None, is_beside=True) for name in self.spec.networks_beside}
        return join(modules)

    def _refuse_other_controlnet(self) -> None:
        """Raises InvalidOptions if the weights that a ControlNet begins with are those of another network."""
        steers = self.spec.steers
        if steers is None or self.spec.components[NAME].is_made:
            return
        own, network = self.parts.find(FOLDER), self.parts.find(self.spec.components[self.spec.network].folder)
        problem = weights_problem(own.source.name, own.folder, network.folder, steers)
        if problem:
            raise InvalidOptions([problem])

    def _prepared(self, name: str, folder: Path | None, *, is_beside: bool) -> nn.Module:
        """A component as ``load_network`` returns it; one beside a ControlNet is frozen, and the only one that is quantised."""
        is_text = name in self.spec.trained_text_encoders
        dtype = self.devices.frozen if is_beside else self.devices.network
        is_exact = is_text or (bool(self.spec.networks_beside) and not is_beside)
        rounded = None if folder or is_exact else self.devices.base
        with torch.device("meta") if self.receives_weights else nullcontext():
            module = self.load_component(name, rounded or dtype, folder)
        if isinstance(module, ConfigMixin):  # it would name the folder of the checkpoint, and say so in every result
            module.register_to_config(_name_or_path=self.parts.base.name)
        if module.dtype != dtype:
            cast_weights(module, dtype)
        precision = "no_change" if is_exact else self.options.precision.base_model_precision
        groups = [] if is_text else streamed_groups(module, self.options.memory)
        with held_back(module, groups):
            self.place(module, precision, part=self.components[name].folder, in_autocast=True)
        module.train(not is_beside).requires_grad_(not is_beside and self.options.model.model_type == "full")
        enable_checkpointing(module, self.options, self.devices.device, is_network=not is_text)
        if not is_text:
            prepare_network(module, self.options)
        return module

    def place_network(self, network: nn.Module) -> None:
        """Moves a network with its adapter to the device, apart from frozen weights that wait in the memory of the host.

        A network whose weights are spread over processes (FSDP) is moved block by block while that is done.
        Raises InvalidOptions if they cannot wait there.
        """
        networks = [module for name, module in self.trained_modules(network).items() if name not in self.spec.trained_text_encoders]
        groups = [group for module in networks for group in streamed_groups(module, self.options.memory)]
        if groups:
            stream_weights(network, groups, self.options.memory, self.devices.device, prefetch=self.options.memory.prefetches_network)
        elif not self.options.distributed.fsdp_enable:
            network.to(self.devices.device)

    def unread_parameters(self, network: nn.Module) -> Sequence[nn.Parameter]:
        """Parameters in trained components, or in the adapter on them, that no prediction depends on. They are not trained.

        Takes the bare network.
        """
        return ()

    def call(self, network: nn.Module, name: str, *args: Any, **kwargs: Any) -> Any:
        """The output of a trained component, whether it is the network of the run or one of several. ``network`` may be wrapped."""
        return network(name, *args, **kwargs) if len(self.spec.trained) > 1 else network(*args, **kwargs)

    def trained_modules(self, network: nn.Module) -> dict[str, nn.Module]:
        """The trained components by name, from the bare network of a run."""
        return split(network, self.spec)

    def place(self, module: nn.Module, precision: str, *, part: str, in_autocast: bool = False) -> nn.Module:
        """A module on its device, its weights in the precision that an option names; ``part`` is its name in a pipeline.

        Layers that the quantised kernels do not take stay as they are, and are reported. ``in_autocast``: the module computes in
        ``devices.autocast``.
        """
        precision = activated(precision, quantize_activations=self.options.precision.quantize_activations)
        if not is_quantised(precision):
            return self._moved(module, is_network=in_autocast)
        how = {"autocast": self.devices.autocast, "compute": self.devices.compute} if in_autocast else {}
        exact = quantiser(precision, self.options, self.devices.device, **how).apply(module)
        if exact:
            self.report(
                Notification(
                    code="layers_not_quantised",
                    title="Layers not quantised",
                    message=exact_layers_message(part, precision, exact),
                    severity=Severity.WARNING,
                    details={"part": part, "precision": precision, "layers": [asdict(one) for one in exact]},
                )
            )
        return self._moved(module, is_network=in_autocast)

    def _moved(self, module: nn.Module, *, is_network: bool) -> nn.Module:
        """A module on its device; the weights of a text encoder may wait in the memory of the host.

        A network that is spread over processes stays in the memory of the host until then: no device need hold all of it.
        """
        memory = self.options.memory
        if is_network and self.options.distributed.fsdp_enable:
            return module
        if is_network or not memory.streams_encoders:
            return module.to(self.devices.device)
        module.requires_grad_(False)
        stream_weights(module, encoder_groups(module, memory), memory, self.devices.device, prefetch=memory.prefetches_encoders)
        return module

    def adapter_targets(self, name: str) -> tuple[str, ...]:
        """Endings of the names of the modules of a component that a standard adapter is put on."""
        return self.components[name].lora_targets or adapter_targets(self.options, self.spec)

    @abstractmethod
    def token_count(self, latent_shape: Sequence[int]) -> int:
        """Tokens that the network makes of one sample with latents of this shape (C, ...), without its references."""

    @abstractmethod
    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the network's prediction in its dtype, in the shape of ``inputs.noisy_latents``.

        Moves the inputs to the network's device. ``network`` may be wrapped (DDP, compiled).
        """

    def penalty(self) -> Tensor | None:
        """What the last call of ``predict`` adds to the loss of a step, such as a balance of experts; None if it adds nothing."""
        return None

    @cached_property
    def _scheduler_config(self) -> Mapping[str, Any]:
        return MappingProxyType(self.parts.scheduler_config())

    def scheduler_config(self) -> Mapping[str, Any]:
        """The base model's noise schedule, as its repository states it."""
        return self._scheduler_config

    @property
    def prediction_type(self) -> str:
        """What the network learns: the option if it is set, or else what its weights were trained for."""
        if self.spec.objective == "flow_matching":  # its schedulers state nothing, or what their class has for others
            return self.spec.objective
        return self.options.model.prediction_type or str(self.scheduler_config().get("prediction_type", self.spec.objective))

    @property
    def objective_options(self) -> ObjectiveOptions:
        """What the network learns: the options of the run, or what its weights ask for where these leave it open."""
        return self.options.objective

    # ---- generation and the result ----

    @property
    @abstractmethod
    def pipeline_name(self) -> str:
        """Class name of the diffusers pipeline for the family's weights."""

    @abstractmethod
    def make_pipeline(self, network: nn.Module, *, sampler: str | None = None, spacing: str | None = None) -> Any:
        """The family's diffusers pipeline around the live network, without text encoders; ``generate`` takes it. Takes the bare network.

        ``spacing``: which timesteps of a diffusion schedule are taken; None leaves it to the base model.
        """

    def expect_prompts(self, texts: Sequence[str]) -> None:
        """Called before ``make_pipeline`` with all texts that images are generated from next. Families with one network ignore it."""
        return

    @abstractmethod
    def generate(self, pipeline: Any, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None) -> Picture:
        """One image, or the frames of a clip where more than one is asked for.

        ``on_step`` receives each step of the sampler, and may end the generation by raising.
        """

    def preview(self, latents: Tensor) -> Image.Image:
        """The image, or the first frame of a clip, that scaled latents (1, C, ...) show; for families whose ``LatentSpec`` says
        ``previews_in_full``.

        The family's own autoencoder decodes it, which ``generate`` has loaded.
        """
        raise NotImplementedError(f"{self.spec.title} has no previews by its own autoencoder")

    @abstractmethod
    def save_pipeline(self, folder: Path, network: nn.Module) -> None:
        """Write a pipeline that diffusers loads as it is; ``folder`` appears whole or not at all. Takes the bare network.

        An older pipeline there is replaced. Without ``save_text_encoder`` its text encoder and tokenizer are null, unless it was trained.
        """
