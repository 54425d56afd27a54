"""The option ``control``: a network that sees the latents of a control image as further channels of its input. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer_engine.config.controlnet import NAME as CONTROLNET
from trainer_engine.contract.errors import Problem

NAME = "control"


@dataclass(frozen=True, kw_only=True)
class ControlSpec:
    """How the network of a family takes a control image in: its first layer is widened, and the new weights begin with zeros.

    FLUX.1 Canny and FLUX.1 Depth of Black Forest Labs (2024) take their control images in this way.
    """

    input_layer: str
    """Name of the layer that is widened, a linear layer or a convolution."""
    channels: int
    """Its input channels in a network without control; with it there are twice as many, first the image's, then the control image's."""
    parameters: Mapping[str, int]
    """Flavour -> number of weights of the widened network; a flavour that is not named cannot be widened."""
    pipeline: str
    """Class of the pipeline that generates with it."""
    module: str = "diffusers"
    """Where the class is."""
    in_comfyui: bool = False
    """Whether ComfyUI generates with the network, and widens a plain one for an adapter that says so."""
    unused: frozenset[str] = frozenset()
    """Options of validation images that its pipeline does not support, although the family's plain pipeline may."""

    def is_wide(self, channels: int) -> bool:
        """Whether a network with so many input channels takes a control image."""
        return channels == 2 * self.channels

    def widened(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The shapes of a network's tensors after its first layer is widened. One that is wide, or has no such layer, is left alone."""
        name = f"{self.input_layer}.weight"
        shape = shapes.get(name, ())
        if len(shape) < 2 or shape[1] != self.channels:
            return dict(shapes)
        return {**shapes, name: (shape[0], 2 * self.channels, *shape[2:])}


def sees_control_images(values: Mapping[str, Any]) -> bool:
    """Whether a run with these options looks at control images."""
    return bool(values[NAME] or values[CONTROLNET])


def width_problem(option: str, source: str, channels: int, spec: ControlSpec, *, with_control: bool) -> Problem | None:
    """Why a network with so many input channels cannot be trained with or without control, or None if it can."""
    if channels == spec.channels or (with_control and spec.is_wide(channels)):
        return None
    if spec.is_wide(channels):
        message = f"The network in {source} looks at a control image beside the image, and this run has none."
        return Problem.error(option, "needs_control", message, got=source, expected="control=true, or the weights of another model")
    message = f"The network in {source} has {channels} input channels, so it looks at more than an image and a control image."
    wide = f", or {2 * spec.channels} for one that was trained with control" if with_control else ""
    expected = f"{spec.channels} input channels{wide}"
    return Problem.error(option, "other_width", message, got=source, expected=expected)
