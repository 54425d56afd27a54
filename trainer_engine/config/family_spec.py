"""The torch-free facts of a model family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from trainer_engine.config.adapters.other_names import ModuleKeys
from trainer_engine.config.control import ControlSpec
from trainer_engine.config.controlnet import FOLDER, NAME, ControlNetSpec
from trainer_engine.config.distillation import DistillationSpec
from trainer_engine.config.family_parts import (
    FEED_FORWARD,
    IMAGES,
    OTHER_PREFIXES,
    AdapterSpec,
    Component,
    FirstFrameSpec,
    LatentSpec,
    PromptSpec,
    Role,
    SamplingSpec,
    StagesSpec,
    frozen_components,
)
from trainer_engine.config.one_file.layout import FileLayout
from trainer_engine.config.positions import PositionSpec
from trainer_engine.config.routing import RoutingSpec
from trainer_engine.config.token_splitting import SplittingSpec


@dataclass(frozen=True, kw_only=True)
class FamilySpec:
    """The torch-free facts of one family."""

    name: str
    """The value of ``model_family``."""
    title: str
    description: str
    flavours: Mapping[str, str]
    """Flavour -> repository id on the hub."""
    default_flavour: str
    model_types: tuple[str, ...]
    """Supported values of ``model_type``: ``full``, ``lora``."""
    objective: str
    """Training target of the published weights: ``epsilon``, ``flow_matching``."""
    components: Mapping[str, Component]
    """The networks by their names in a pipeline, the trained ones first."""
    prompts: PromptSpec
    latents: LatentSpec
    sampling: SamplingSpec = SamplingSpec()
    adapters: AdapterSpec = AdapterSpec()
    schedule: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Configuration of the sampler if the pipelines of the family make it themselves; empty if each model has one, in ``scheduler``."""
    aliases: tuple[str, ...] = ()
    known_as: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Word by which configurations of other trainers, or names of weight files, mean this family -> the flavour that they mean with it;
    empty: the default one. Lower case, with underscores."""
    prediction_types: tuple[str, ...] = ()
    """Supported values of ``prediction_type``."""
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Option defaults of this family. They override the registry's; the environment overrides them."""
    flavour_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> option defaults that override the family's."""
    parameters: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> parameters of the trained components, for estimates."""
    companion: str = ""
    """Repository that holds what the repositories of some flavours lack; empty if they are complete."""
    architectures: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> the name of its architecture in Stability AI's model metadata, if it has one."""
    published_precisions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour whose published weights are quantised -> the type of ``precisions`` that holds the same numbers."""
    widening_option: str = ""
    """The option that dequantises these weights for good when they are loaded; empty if there is none."""
    second_network_option: str = ""
    """The option with which another frozen network of the same size makes a part of validation images; empty if there is none."""
    passes_alone: bool = False
    """Whether each sample of a batch is a pass of its own through the network."""
    expert_share: float = 1.0
    """Share of the tokens that each expert of a mixture computes, for estimates."""
    convolution_share: float = 0.0
    """Share of these parameters that convolutions hold, for estimates: most libraries quantise linear layers alone."""
    activation_share: float = 1.0
    """Activation memory of a step relative to PixArt's network with the same layers; measured with ``make bench``."""
    flavour_activation_shares: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> its ``activation_share``, if its blocks have other layers than those of the family."""
    short_shares: tuple[float, float] = (1.0, 1.0)
    """What is kept in a type of two bytes, relative to float32: of blocks as a whole, and of those that gradient checkpointing recomputes.
    Above 1 where norms are computed in float32, of a copy. Measured at the size of the published weights (``docs/activations.md``)."""
    licenses: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> the license of its weights in the terms of the hub's metadata; derived weights have the same license."""
    distillation: DistillationSpec | None = None
    """How weights of the family are recognised that are distilled to few sampler steps; None if none are known."""
    network_classes: tuple[str, ...] = ()
    """Values of ``_class_name`` in the ``config.json`` of its network; empty if any is taken."""
    foreign_networks: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    """Title of another model whose network has one of ``network_classes``, but other inputs -> entries of its ``config.json``."""
    flavour_networks: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> entries that the ``config.json`` of its network has, where other flavours have other inputs."""
    repeated_blocks: tuple[str, ...] = ()
    """Class names of the blocks that the network consists of, for regional compilation; empty if it has none."""
    routing: RoutingSpec | None = None
    """How tokens skip blocks of the network (``tread_config``); None if they cannot, as in a UNet."""
    positions: PositionSpec | None = None
    """The positions that its network holds, which bound the edges of images; None if any edge has positions."""
    splitting: SplittingSpec | None = None
    """How the tokens of a sample are spread over several processes (``context_parallel_size``); None if diffusers has no plan for it."""
    poor_precisions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Value of ``mixed_precision`` with which runs of the family go wrong -> what happens, as the end of a sentence."""
    sees_image_sizes: bool = False
    """Whether the network is given the size of an image's file and the place of its crop."""
    file_layouts: tuple[FileLayout, ...] = ()
    """The layouts in which other programs keep its models in one file; empty if none of them can be loaded."""
    takes_references: frozenset[str] = frozenset()
    """Flavours that accept reference images."""
    needs_references: frozenset[str] = frozenset()
    """Flavours that need reference images."""
    most_references: int = 0
    """References of one image that its pipelines accept; 0 for any number."""
    references_in_place: bool = False
    """Whether the network sees the reference of a flavour that needs one in further channels, cell by cell: it then has the size of its
    image and adds no tokens, and images are generated from references alone."""
    reference_folders: tuple[str, ...] = ()
    """Subfolders with what prepares reference images, in the models of flavours that need references."""
    first_frame: FirstFrameSpec | None = None
    """The flavours that are given the first frame of a clip; None if there are none."""
    other_flavours: tuple[str, ...] = ()
    """Flavours of the configuration format that are other models, with other inputs or components, and are not implemented."""
    controlnet: ControlNetSpec | None = None
    """The family's ControlNet; None if diffusers has none."""
    stages: StagesSpec | None = None
    """Two of its networks that share the noise schedule; None if no published weights do."""
    control: ControlSpec | None = None
    """How its network is widened by the option ``control``; None if no pipeline generates with one that is."""
    beside: FamilySpec | None = None
    """In a run that trains a ControlNet, the facts of the family without it."""
    is_widened: bool = False
    """Whether the run has the option ``control``."""

    @property
    def clip_media(self) -> tuple[str, ...]:
        """The kinds of clips that the family is trained on; empty if it takes images alone."""
        return tuple(name for name in self.latents.media if name != IMAGES)

    @property
    def frame_stride(self) -> int:
        """Clips have one frame and a multiple of these."""
        return self.sampling.clips.stride if self.sampling.clips else 1

    def latent_frames(self, frames: int) -> int:
        """Returns how many frames the latents of a clip have; 1 for an image."""
        return (frames - 1) // self.frame_stride + 1

    def seeing_folders(self, flavour: str | None) -> tuple[str, ...]:
        """The subfolders with which a flavour sees first frames or references; others of the family have none."""
        chosen = flavour or self.default_flavour
        frames = self.first_frame.folders if self.first_frame is not None and self.animates(chosen) else ()
        return (*frames, *(self.reference_folders if chosen in self.needs_references else ()))

    def animates(self, flavour: str | None) -> bool:
        """Whether a flavour is given the first frame of each clip that it learns or generates."""
        return self.first_frame is not None and (flavour or self.default_flavour) in self.first_frame.flavours

    def edits_in_place(self, flavour: str | None) -> bool:
        """Whether a flavour sees its reference in further channels."""
        return self.references_in_place and (flavour or self.default_flavour) in self.needs_references

    @property
    def has_feed_forward(self) -> bool:
        """Whether its blocks have feed-forward layers of their own, which can be computed in parts."""
        return any(name.endswith(FEED_FORWARD) for name in self.adapters.module_classes)

    @property
    def trained(self) -> Mapping[str, Component]:
        """The components that a run trains, by name, text encoders last."""
        found = ((name, component) for name, component in self.components.items() if component.role == Role.TRAINED)
        return dict(sorted(found, key=lambda item: item[1].folder in self.prompts.text_encoder_folders))

    @property
    def base_folders(self) -> tuple[str, ...]:
        """The subfolders of a base model that a run takes: networks, tokenizers and the noise schedule."""
        networks = (component.folder for component in self.components.values() if not component.is_made)
        return (*networks, *self.prompts.tokenizer_folders, *(() if self.schedule else ("scheduler",)))

    @property
    def trainable_text_encoders(self) -> Mapping[str, Component]:
        """The text encoders that ``train_text_encoder`` trains, by name; empty if the family has none."""
        return {name: component for name, component in self.components.items() if component.role == Role.ON_REQUEST}

    @property
    def trained_text_encoders(self) -> Mapping[str, Component]:
        """The text encoders among the trained components."""
        return {name: component for name, component in self.trained.items() if component.folder in self.prompts.text_encoder_folders}

    @property
    def network(self) -> str:
        """Name of the network that makes the predictions: trained, or frozen beside a ControlNet."""
        return next(iter(self.components))

    @property
    def networks_beside(self) -> tuple[str, ...]:
        """Names of the frozen networks beside a ControlNet; none in other runs."""
        return tuple(name for name, component in self.components.items() if component.role == Role.BESIDE)

    @property
    def network_folders(self) -> frozenset[str]:
        """Subfolders of the trained components, and of the network beside a ControlNet."""
        return frozenset(self.components[name].folder for name in (*self.trained, *self.networks_beside))

    @property
    def steers(self) -> ControlNetSpec | None:
        """The ControlNet that the run trains, or None."""
        return self.controlnet if self.beside else None

    def of_flavour(self, flavour: str | None) -> FamilySpec:
        """The facts of a flavour, with the components that others lack."""
        if self.first_frame is None or not self.animates(flavour):
            return self
        return replace(self, components=MappingProxyType({**self.components, **frozen_components(*self.first_frame.folders)}))

    @property
    def widened(self) -> ControlSpec | None:
        """How the network of a run with ``control`` is widened; None in other runs."""
        return self.control if self.is_widened else None

    @property
    def sees_control(self) -> bool:
        """Whether the run looks at a control image of each image: with a ControlNet, or with a widened network."""
        return self.steers is not None or self.widened is not None

    @property
    def sees_control_pixels(self) -> bool:
        """Whether it is the pixels of control images that the run looks at, and not their latents."""
        return self.steers is not None and not self.steers.sees_latents

    def for_run(
        self, *, train_text_encoder: bool, controlnet: bool = False, has_weights: bool = False, control: bool = False
    ) -> FamilySpec:
        """The facts of a run: with ``train_text_encoder``, the text encoders that can be trained are trained components.

        ``controlnet``: a ControlNet is the only trained component. ``has_weights``: it begins with weights of its own. ``control``: the
        network is widened by a control image.
        """
        if controlnet and self.controlnet:
            steered = {name: replace(one, role=Role.BESIDE) for name, one in self.components.items() if one.role == Role.TRAINED}
            made = Component(FOLDER, f"{FOLDER}.", Role.TRAINED, is_made=not has_weights)
            components = MappingProxyType({**self.components, **steered, NAME: made})
            return replace(self, components=components, parameters=self.controlnet.parameters, beside=self)
        if control and self.control:
            return replace(self, parameters=self.control.parameters, is_widened=True)
        if not train_text_encoder or not self.trainable_text_encoders:
            return self
        trained = {name: replace(component, role=Role.TRAINED) for name, component in self.trainable_text_encoders.items()}
        more = sum(component.parameters for component in trained.values())
        return replace(
            self,
            components=MappingProxyType({**self.components, **trained}),
            parameters=MappingProxyType({flavour: number + more for flavour, number in self.parameters.items()}),
        )

    def module_prefix(self, name: str) -> str:
        """Prefix of a trained component's module names in the network of a run; empty for the only one."""
        return f"{name}." if len(self.trained) > 1 else ""

    @property
    def diffusers_prefixes(self) -> Mapping[str, str]:
        """Prefix of module names in the network of a run -> prefix of their keys in the files of diffusers."""
        return {self.module_prefix(name): one.state_dict_prefix + one.file_prefix for name, one in self.trained.items()}

    @property
    def comfyui_prefixes(self) -> Mapping[str, str]:
        """Prefix of module names in the network of a run -> prefix of their keys in the files of ComfyUI."""
        return {self.module_prefix(name): _comfyui_prefix(component) for name, component in self.trained.items()}

    @property
    def comfyui_keys(self) -> Mapping[str, ModuleKeys]:
        """Prefix of module names in the network of a run -> how the files of ComfyUI name the modules behind it."""
        return {
            self.module_prefix(name): ModuleKeys(
                _comfyui_prefix(one),
                names.names if names else (),
                one.comfyui_takes_alpha,
                names.joint if names else (),
            )
            for name, one in self.trained.items()
            for names in (one.original_names if one.comfyui_takes_original else None,)
        }

    @property
    def joins_for_comfyui(self) -> bool:
        """Whether ComfyUI has layers as one that the network has apart."""
        return any(keys.joint for keys in self.comfyui_keys.values())

    @property
    def key_prefixes(self) -> Mapping[str, str]:
        """Prefix of keys in any adapter file -> prefix of the module names that they stand for."""
        plain = {self.module_prefix(name): component.state_dict_prefix for name, component in self.trained.items()}
        stated = (*self.diffusers_prefixes.items(), *self.comfyui_prefixes.items(), *plain.items())
        known = {in_file: in_network for in_network, in_file in reversed(stated)}
        return {**known, **(dict.fromkeys(OTHER_PREFIXES, "") if len(self.trained) == 1 else {})}

    def defaults_of(self, flavour: str | None) -> Mapping[str, Any]:
        """Returns the option defaults of a flavour, including the family's."""
        return {**self.defaults, **self.flavour_defaults.get(flavour or self.default_flavour, {})}

    def activation_share_of(self, flavour: str | None) -> float:
        """Returns the activation memory of a flavour relative to PixArt's network with the same layers."""
        return self.flavour_activation_shares.get(flavour or self.default_flavour, self.activation_share)

    def tokens_of(self, flavour: str | None, asked: int | None = None) -> int:
        """Returns the longest prompt of a flavour, in tokens. ``asked``: the option tokenizer_max_length, which T5 alone can follow."""
        limit = self.prompts.flavour_token_limits.get(flavour or self.default_flavour, self.prompts.token_limit)
        return min(asked, limit) if asked and self.prompts.t5_folder else limit

    def repository(self, flavour: str | None) -> str:
        """Returns the hub repository of a flavour. Raises KeyError if the family has no such flavour."""
        return self.flavours[flavour or self.default_flavour]


def _comfyui_prefix(component: Component) -> str:
    """``comfyui_prefix`` and ``file_prefix``, whose dots become underscores behind a prefix of kohya."""
    is_flat = component.comfyui_prefix.endswith("_")
    return component.comfyui_prefix + (component.file_prefix.replace(".", "_") if is_flat else component.file_prefix)
