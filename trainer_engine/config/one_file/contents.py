"""Says what a file of weights holds, from the keys and shapes in its header, and whether a run can use it. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from trainer_engine.config.adapters.file_header import UnusableAdapter
from trainer_engine.config.components import BASE, NETWORKS, VAE
from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.one_file.header import read_header
from trainer_engine.config.one_file.layout import NETWORK_PREFIX, VAE_PREFIXES, FileLayout, layout_of
from trainer_engine.contract.errors import Problem

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
ADAPTER_MARKS = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.", ".lokr_w1", ".hada_w1_a", ".oft_blocks", ".dora_scale")
CONTROL_MARKS = ("control_", "controlnet")
OTHER_MODELS: Mapping[str, str] = MappingProxyType(
    {
        "single_stream_modulation.": "Flux.2",
        "joint_blocks.": "Stable Diffusion 3",
        "cap_embedder.": "Lumina 2 or Z-Image",
        "individual_token_refiner.": "HunyuanVideo",
        "clip_txt_mapper.": "Stable Cascade",
    }
)
"""Part of a key -> a model of which this version has no family."""
NETWORK_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.", "down_blocks.", "input_blocks.", "double_blocks.", "blocks.")
VAE_KEYS = ("decoder.conv_in.weight", *(f"{prefix}decoder.conv_in.weight" for prefix in VAE_PREFIXES))
INPUT_KEYS = tuple(prefix + key for prefix in (NETWORK_PREFIX, "") for key in ("input_blocks.0.0.weight", "conv_in.weight"))
TEXT_MARKS = ("text_model.", "encoder.block.0.layer.", "token_embedding", "shared.weight")


class Kind(str, Enum):
    """What a file of weights holds."""

    CHECKPOINT = "checkpoint"
    """Every component of a model."""
    NETWORK = "network"
    """The network of a model; perhaps some of its other components, but not all."""
    VAE = "autoencoder"
    ADAPTER = "adapter"
    OTHER = "other"


@dataclass(frozen=True)
class Contents:
    """What a file of weights holds."""

    kind: Kind
    text: str
    """As a message names it: ``a Stable Diffusion XL checkpoint``."""
    family: str = ""
    layout: FileLayout | None = None


def contents_of(shapes: Shapes) -> Contents:
    """``shapes``: key -> shape of every tensor in the file."""
    if any(mark in key for key in shapes for mark in ADAPTER_MARKS):
        return Contents(Kind.ADAPTER, "an adapter (LoRA or LyCORIS), not a model")
    if any(key.startswith(CONTROL_MARKS) for key in shapes):
        return Contents(Kind.OTHER, "a ControlNet, not a base model")
    layouts = [(spec.name, layout) for spec in specs().values() for layout in spec.file_layouts]
    for family, layout in layouts:
        if layout.is_complete(shapes):
            return Contents(Kind.CHECKPOINT, f"a {layout.title} checkpoint", family, layout)
    for mark, title in OTHER_MODELS.items():
        if any(mark in key for key in shapes):
            return Contents(Kind.OTHER, f"a {title} model")
    return _part_of(shapes, layouts)


def _part_of(shapes: Shapes, layouts: list[tuple[str, FileLayout]]) -> Contents:
    """What a file holds that is no complete checkpoint."""
    for family, layout in layouts:
        if layout.has_network(shapes):
            return Contents(Kind.NETWORK, f"the network of {layout.title} without its other components", family, layout)
    if any(key.removeprefix(NETWORK_PREFIX).startswith(NETWORK_BLOCKS) for key in shapes):
        return Contents(Kind.NETWORK, "a network without its other components")
    if any(key in shapes for key in VAE_KEYS):
        return Contents(Kind.VAE, "an autoencoder (VAE) alone")
    if any(mark in key for key in shapes for mark in TEXT_MARKS):
        return Contents(Kind.OTHER, "a text encoder alone")
    first = min(shapes, default="")
    return Contents(Kind.OTHER, f"no model that is known here (its first key is {first[:60]!r})" if first else "a file without tensors")


def file_problem(option: str, path: Path, spec: FamilySpec, flavour: str | None) -> Problem | None:
    """Why the file that an option names cannot be used in a run of a flavour, or None if it can."""
    expected = _expected(option, spec)
    try:
        shapes = {key: tensor.shape for key, tensor in read_header(path).tensors.items()}
    except UnusableAdapter as error:
        hint = "give the .safetensors file of a model"
        return Problem.error(option, error.code, error.message, got=str(path), expected=expected, hint=hint)
    contents, wanted = contents_of(shapes), layout_of(spec.file_layouts, flavour or spec.default_flavour)
    if not _is_usable(option, contents, spec, wanted):
        trained = wanted.title if wanted else spec.title
        message = f"{path.name} is {contents.text}; this run trains {trained}."
        return Problem.error(option, "other_model", message, got=str(path), expected=expected, hint=_hint(option, contents, spec))
    return _channel_problem(option, path, shapes, spec)


def network_problem(option: str, source: str, shapes: Shapes, spec: FamilySpec, flavour: str | None) -> Problem | None:
    """Why a network, in a file or a folder, is not that of a flavour, or None if it is or is not known. ``shapes``: tensor -> shape."""
    wanted = layout_of(spec.file_layouts, flavour or spec.default_flavour)
    if wanted is None or wanted.has_network(shapes):
        return None
    layouts = [(other.name, layout) for other in specs().values() for layout in other.file_layouts]
    found = next(((family, layout) for family, layout in layouts if layout.has_network(shapes)), None)
    if found is None:
        return None
    family, layout = found
    message = f"{source} holds the network of {layout.title}; this run trains {wanted.title}."
    hint = _hint(option, Contents(Kind.CHECKPOINT, "", family, layout), spec)
    return Problem.error(option, "other_model", message, got=source, expected=_expected(option, spec), hint=hint)


def _is_usable(option: str, contents: Contents, spec: FamilySpec, wanted: FileLayout | None) -> bool:
    if wanted is None:
        return option == VAE and contents.kind in (Kind.VAE, Kind.CHECKPOINT)
    if option == BASE:
        return contents.kind is Kind.CHECKPOINT and contents.layout == wanted
    if option == VAE:
        return contents.kind in (Kind.VAE, Kind.CHECKPOINT)
    is_known = contents.layout in (wanted, None)
    return is_known and contents.kind in (Kind.NETWORK, Kind.CHECKPOINT)


def _channel_problem(option: str, path: Path, shapes: Shapes, spec: FamilySpec) -> Problem | None:
    """A problem if the network or the autoencoder has other latents than the family."""
    found = next((shapes[key][1] for key in (VAE_KEYS if option == VAE else INPUT_KEYS) if len(shapes.get(key, ())) == 4), None)
    if found is None or found == spec.latents.channels:
        return None
    what = "decodes latents" if option == VAE else "takes latents"
    message = f"{path.name} {what} of {found} channels; those of {spec.title} have {spec.latents.channels}."
    hint = "" if option == VAE else "it is a model for inpainting or editing: use one for generating images"
    return Problem.error(option, "other_model", message, got=str(path), expected=_expected(option, spec), hint=hint)


def _expected(option: str, spec: FamilySpec) -> str:
    if option == VAE:
        return "an autoencoder in safetensors, or a folder in the diffusers layout"
    what = "a checkpoint" if option == BASE else "the network"
    has_files = any(layout.prefixes or option != BASE for layout in spec.file_layouts)
    return f"{what} of {spec.title} in {'one safetensors file, or in ' if has_files else ''}a folder in the diffusers layout"


def _hint(option: str, contents: Contents, spec: FamilySpec) -> str:
    if contents.kind is Kind.ADAPTER:
        return f"set init_lora to it, and {BASE} to its base model"
    if contents.kind is Kind.VAE:
        return f"set {VAE} to it"
    if contents.family and contents.family != spec.name:
        return f"set model_family={contents.family}, or use a model of {spec.title}"
    if contents.layout and contents.layout.flavours and contents.kind is Kind.CHECKPOINT:
        return f"set model_flavour={max(contents.layout.flavours)}"
    if contents.kind is Kind.NETWORK and option == BASE and spec.file_layouts:
        return f"set {NETWORKS[next(iter(spec.trained.values())).folder][0]} to it"
    return "leave model_flavour out" if contents.family == spec.name else ""
