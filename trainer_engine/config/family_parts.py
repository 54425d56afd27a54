"""The parts of ``FamilySpec``: facts about components, prompts, latents, sampling and adapters. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

from trainer_engine.config.adapters.other_names import OriginalNames
from trainer_engine.config.family_costs import AutoencoderFacts, TextEncoderFacts
from trainer_engine.config.text_states import TextStates

IMAGES = "image"
"""The medium of still images in ``LatentSpec.media``; every other one holds clips."""


class Role(str, Enum):
    """What a run does with the weights of a component."""

    TRAINED = "trained"
    """All of them are trained, or an adapter is trained on them."""
    ON_REQUEST = "on_request"
    """A text encoder that is trained, too, if the run sets ``train_text_encoder``. Otherwise it is frozen."""
    FROZEN = "frozen"
    BESIDE = "beside"
    """They are frozen, and every prediction passes through them: those of the network that a ControlNet steers."""


@dataclass(frozen=True)
class Component:
    """One network of a pipeline: a transformer, a ControlNet, a text encoder, an autoencoder."""

    folder: str
    """Subfolder of a pipeline, and of a full checkpoint for a trained component."""
    state_dict_prefix: str
    """Prefix of its keys in the adapter files of diffusers."""
    role: Role = Role.FROZEN
    comfyui_prefix: str = "diffusion_model."
    """Prefix of its keys in the adapter files of ComfyUI. One that ends with an underscore is kohya's: the dots of a module's name become
    underscores, and the matrices of a LoRA are called ``lora_down`` and ``lora_up``."""
    original_names: OriginalNames | None = None
    """The names of its modules in the published code, with which adapter files are read as well; None if they are those of diffusers."""
    comfyui_takes_original: bool = True
    """Whether the files for ComfyUI have the ``original_names``, because it knows those modules by no other."""
    comfyui_takes_alpha: bool = True
    """Whether diffusers loads an adapter file with ComfyUI's keys although it states ``alpha``; otherwise the scale is worked into it."""
    lora_targets: tuple[str, ...] = ()
    """Endings of the module names that a standard adapter is put on; empty for those that the family's options choose."""
    file_prefix: str = ""
    """Prefix that the names of its weights have in every kind of file, and that the module of today's libraries has no more."""
    parameters: int = 0
    """Number of its weights, for estimates; needed of a component with the role ``ON_REQUEST``."""
    is_made: bool = False
    """Whether the run makes it from another network, so that no base weights are looked for."""


def frozen_components(*folders: str) -> Mapping[str, Component]:
    """Components that no run trains, named after their folders."""
    return {folder: Component(folder, f"{folder}.") for folder in folders}


def lokr_start(factor: int, factors: Mapping[str, int]) -> Mapping[str, Any]:
    """A LyCORIS configuration to begin with: LoKr (Yeh et al., 2024) with full matrices on the modules of these classes.

    ``factors``: class -> its factor; ``factor`` is that of modules which they do not name.
    """
    algorithms = {name: {"factor": own} for name, own in factors.items()}
    return MappingProxyType(
        {
            "algo": "lokr",
            "multiplier": 1.0,
            "full_matrix": True,
            "linear_dim": 10000,
            "linear_alpha": 1,
            "factor": factor,
            "apply_preset": {"target_module": list(factors), "module_algo_map": algorithms},
        }
    )


FEED_FORWARD = ("FeedForward", "SwiGLU", "MLP")
"""Ends of the names of the classes of feed-forward layers."""
MIXING_FEED_FORWARD = ("GLUMBConv",)
"""Ends of the names of classes in the place of feed-forward layers that see the neighbours of a token, so that tokens cannot be computed in
parts."""
OTHER_PREFIXES = ("unet.", "diffusion_model.")
"""Prefixes that other programs put before the module names of the only trained component."""


@dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """The text encoders of a family and the prompts that they take."""

    text_encoders: tuple[str, ...]
    """Their usual names, one for each of ``text_encoder_folders``."""
    token_limit: int
    """Longest prompt, in tokens."""
    flavour_token_limits: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> its longest prompt in tokens, if it differs from ``token_limit``."""
    text_encoder_folders: tuple[str, ...] = ("text_encoder",)
    """Subfolders of a pipeline that hold text encoders."""
    states: tuple[TextStates, ...] = ()
    """What the network reads of the states of the text encoders; each entry is checked before a run."""
    optional_folders: tuple[str, ...] = ()
    """Subfolders of text encoders and tokenizers that a base model may lack."""
    flavour_optional_folders: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> further ones that its base models may lack."""
    tokenizers: tuple[str, ...] = ()
    """Subfolders that hold tokenizers, if they are not those that are named after the text encoders."""
    limited_tokenizer: str = ""
    """The one of them whose tokens ``token_limit`` bounds; empty for the last one."""
    clip_folders: tuple[str, ...] = ()
    """Those of ``text_encoder_folders`` whose layers ``clip_skip`` counts; empty for a family without CLIP."""
    reads_penultimate: bool = False
    """Whether the network reads the states of CLIP's last layer but one, so that ``clip_skip`` counts from there."""
    t5_folder: str = ""
    """The one of ``text_encoder_folders`` that ``pretrained_t5_model_name_or_path`` replaces; empty for a family without T5."""
    joins_sequence: bool = False
    """Whether the tokens of the prompt are in one sequence with those of the image."""
    added_tokens: int = 0
    """Tokens in that sequence that ``token_limit`` does not count: those of another text encoder, or some that the network has learned."""
    mask: str = ""
    """Kind of mask that hides the padding of prompts from attention: ``boolean`` or ``additive``; empty if nothing is hidden."""
    mask_option: str = ""
    """The option that turns the mask on; empty if it is always on."""
    masks_pairs: bool = False
    """Whether each block makes a mask of its own of all pairs of tokens in the sequence (N, N), and keeps it."""
    pads_to_limit: bool = False
    """Whether every prompt is padded to ``token_limit`` for the network."""
    encoder_parameters: tuple[int, ...] = ()
    """Weights of each of ``text_encoder_folders``; empty where they are not known."""
    encoder_layers: int = 0
    """As ``TextEncoderFacts.layers``."""
    flavour_encoders: Mapping[str, TextEncoderFacts] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> its text encoders, if they are others than the family's."""
    width: int = 4096
    """Numbers in the state of one token, of all text encoders together."""
    stacked_layers: int = 1
    """States of so many layers of a text encoder are stacked for each token, and the network takes all of them. They are stored in
    bfloat16, whatever they were computed in."""
    stores_short: bool = False
    """Whether the states are stored in bfloat16, whatever they were computed in. Stacked ones always are."""
    pooled: int = 0
    """Numbers that are stored once for a prompt."""
    stores_padding: bool = False
    """Whether the states of padding are stored, because the network attends to them and they depend on the prompt."""
    unpadded_option: str = ""
    """Option with which they are not; empty if there is none."""

    replaced_code: tuple[str, ...] = ()
    """Code that the published tokenizer asks for, as ``module.Class``, and that is never loaded: the family names a class of diffusers."""

    @property
    def leaves_out_padding(self) -> bool:
        """Whether ``t5_padding=zero`` stores no states of padding: only if T5 is all that makes them."""
        return bool(self.t5_folder) and self.stacked_layers == 1

    @property
    def tokenizer_folders(self) -> tuple[str, ...]:
        """Subfolders of a pipeline that hold the tokenizers."""
        return self.tokenizers or tuple(map(tokenizer_of, self.text_encoder_folders))

    @property
    def counting_folder(self) -> str:
        """Subfolder of the tokenizer whose tokens ``token_limit`` bounds."""
        return self.limited_tokenizer or self.tokenizer_folders[-1]

    def encoders_of(self, flavour: str | None) -> TextEncoderFacts:
        """Returns the text encoders of a flavour; None is the default one."""
        usual = TextEncoderFacts(names=self.text_encoders, parameters=self.encoder_parameters, layers=self.encoder_layers, width=self.width)
        return self.flavour_encoders.get(flavour or "", usual)

    def is_masked(self, values: Mapping[str, Any]) -> bool:
        """Whether attention gets the mask, with these options."""
        return bool(self.mask) and (not self.mask_option or bool(values[self.mask_option]))


class Scaling(NamedTuple):
    """What is done with the latents of an autoencoder before the network gets them: (latents - shift) x factor."""

    factor: float
    shift: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """The latents of a family and the images that they stand for."""

    channels: int
    scale_factor_px: int
    """Pixels per latent cell, each way."""
    alignment_px: int
    """Image edges are multiples of this."""
    canvas_px: int = 0
    """Pixels of the largest image. The network pads images to this many that are not square; 0 if it takes any number, and pads none."""
    token_px: int = 0
    """Edge of the square of pixels that one token of the network stands for, if it is not ``SamplingSpec.multiple_px``."""
    media: tuple[str, ...] = (IMAGES,)
    """The kinds of media that the family is trained on: names of ``trainer_engine/datasets/media``."""
    preview_decoder: str = ""
    """Repository of a Tiny AutoEncoder that decodes latents of this family quickly; empty if no such decoder is known."""
    previews_in_full: bool = False
    """Whether the family's own autoencoder decodes previews, if there is no ``preview_decoder``."""
    memory_options: frozenset[str] = frozenset({"vae_enable_tiling", "vae_enable_slicing", "vae_enable_patch_conv"})
    """The options ``vae_enable_...`` that change how the autoencoder computes."""
    autoencoder: AutoencoderFacts = AutoencoderFacts()
    autoencoder_classes: tuple[str, ...] = ()
    """Values of ``_class_name`` in the ``config.json`` of its autoencoder; empty if any is taken."""
    scaling: Scaling | None = None
    """That of the published autoencoder, which others of its class do not have; None if statistics of each channel take its place."""

    @property
    def has_previews(self) -> bool:
        """Whether images can be shown while they are generated."""
        return bool(self.preview_decoder) or self.previews_in_full


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """The clips that a family generates and is trained on."""

    stride: int
    """Frames of a latent frame: a clip has a multiple of these, and one frame more."""
    trained_frames: int
    """Frames of the longest clips that the published weights were trained on."""
    frames_per_second: float
    """Rate of the clips that the published weights were trained on."""


@dataclass(frozen=True, kw_only=True)
class FirstFrameSpec:
    """Flavours whose network is given the first frame of a clip, and learns how the clip goes on."""

    flavours: frozenset[str]
    folders: tuple[str, ...] = ()
    """Subfolders of a pipeline that only these flavours have: an image encoder for the frame, and what prepares images for it."""
    numbers: int = 0
    """Numbers that the image encoder makes of a frame; they are cached with the latents of each sample."""


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    """How validation images of a family are generated."""

    samplers: tuple[str, ...] = ()
    """Values of ``validation_noise_scheduler`` that this family can be sampled with."""
    options: frozenset[str] = frozenset()
    """Options of validation images that only some families' pipelines support, this one's included."""
    multiple_px: int = 16
    """Edges of a generated image are multiples of this: a latent cell times the network's patch."""
    clips: ClipSpec | None = None
    """None for a family that generates images only."""


SLIDER_TARGETS = (
    *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn1.to_qkv"),
    *("proj_in", "proj_out", "conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"),
)
"""For networks with self-attention ``attn1`` and cross-attention ``attn2``."""


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """The modules that adapters are put on."""

    module_classes: tuple[str, ...] = ()
    """Class names of modules in the network that an adapter file may name."""
    class_aliases: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Class name in files for older libraries -> the class names that are meant."""
    lycoris_start: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """The adapter file that a new environment begins with."""
    lora_targets: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Named set -> endings of the module names that a standard adapter is put on."""
    default_lora_target: str = ""
    lora_target_option: str = ""
    """Name of the option that chooses one of ``lora_targets``; empty if there is none for the family."""
    slider_targets: tuple[str, ...] = SLIDER_TARGETS
    """Endings of the module names that a standard adapter is put on with ``slider_lora_target``: nothing that reads the prompt."""
    base_precisions: tuple[str, ...] = ()
    """Quantised types in which the frozen base weights may be kept."""

    def lora_target(self, values: Mapping[str, Any]) -> str:
        """The name in ``lora_targets`` that the values of the options choose."""
        return str(values[self.lora_target_option]) if self.lora_target_option else self.default_lora_target


def tokenizer_of(text_encoder: str) -> str:
    """Returns the tokenizer's subfolder for that of a text encoder: ``text_encoder_2`` -> ``tokenizer_2``."""
    return text_encoder.replace("text_encoder", "tokenizer")


TRAINED_STAGE, FULL_PIPELINE = "trained-stage", "full-pipeline"
"""Values of ``StagesSpec.mode``: the trained network alone makes the validation images, or both do."""


@dataclass(frozen=True, kw_only=True)
class StagesSpec:
    """Two networks of a family that share the noise schedule: the first has the part with the most noise."""

    mode: str
    """The option that chooses whether validation images are made by both."""
    models: tuple[str, str]
    """The options that name the weights of the first and of the second network."""
    flavours: Mapping[str, str]
    """Flavour of the first network -> flavour of the second."""
    usual: str
    """Flavour of the first network of the pair that is taken for weights of no pair."""
    shares_sampler: bool = False
    """Whether one pipeline asks both networks, which then have to predict the same thing."""
