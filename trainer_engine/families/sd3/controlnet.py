"""The ControlNet of Stable Diffusion 3.5: how a new one is made, what it is given, and the pipeline that generates with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from diffusers import SD3ControlNetModel, SD3Transformer2DModel, StableDiffusion3ControlNetPipeline
from torch import Tensor, nn

from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.families.modules import DiffusersNetwork, unwrap
from trainer_engine.families.sd3.spec import CONTROL_LAYERS, layers_problem


def controlnet_of(network: SD3Transformer2DModel, num_layers: int | None = None) -> SD3ControlNetModel:
    """A ControlNet with the first blocks of a transformer: twelve, or half of its blocks if it has fewer than 24.

    Raises InvalidOptions if it is to have more than half.
    """
    blocks = int(network.config["num_layers"])
    if num_layers is not None and (problem := layers_problem(num_layers, blocks)):
        raise InvalidOptions([problem])
    layers = num_layers or min(CONTROL_LAYERS, blocks // 2)
    made = SD3ControlNetModel.from_transformer(network, num_layers=layers, num_extra_conditioning_channels=0)
    network.register_to_config(num_layers=blocks)  # NOTE: diffusers writes the number of the ControlNet into it
    return made


def controlnet_inputs(network: nn.Module, inputs: Mapping[str, Any], control: Tensor, shift: float) -> dict[str, Any]:
    """The inputs of a transformer as its ControlNet takes them, as ``StableDiffusion3ControlNetPipeline`` does.

    ``control``: scaled latents of the control images, and ``shift`` what they would be more without the shift of the autoencoder. Most
    ControlNets, and new ones, see no pooled prompt and latents that are not shifted (``force_zeros_for_pooled_projection``).
    """
    if not cast("DiffusersNetwork", unwrap(network)).config.force_zeros_for_pooled_projection:
        return {**inputs, "controlnet_cond": control}
    return {**inputs, "pooled_projections": torch.zeros_like(inputs["pooled_projections"]), "controlnet_cond": control + shift}


def unread_parameters(network: nn.Module, beside: nn.Module) -> list[nn.Parameter]:
    """Those of a ControlNet that do not reach the prediction of the transformer beside it.

    Its outputs are spread over the transformer's blocks but the last, which takes none. The last block that is read gives nothing on to
    the prompt.
    """
    own, blocks = cast("Any", network), len(cast("Any", beside).transformer_blocks)
    layers = len(own.transformer_blocks)
    read = {int(index / (blocks / layers)) for index in range(blocks - 1)}
    last = own.transformer_blocks[max(read)]
    modules = [layer for number, layer in enumerate(own.controlnet_blocks) if number not in read]
    modules += [*own.transformer_blocks[max(read) + 1 :], last.attn.to_add_out, last.ff_context]
    return [parameter for module in modules for parameter in module.parameters()]


class ControlPipeline(StableDiffusion3ControlNetPipeline):  # type: ignore[misc]  # mypy does not read diffusers' types
    """Takes an autoencoder of another number type than the transformer's."""

    def prepare_image(self, **named: Any) -> Tensor:
        image: Tensor = super().prepare_image(**{**named, "dtype": self.vae.dtype})
        return image


@contextmanager
def encoding_control(controlnet: nn.Module, device: torch.device, dtype: torch.dtype, seed: int) -> Iterator[None]:
    """The pipeline samples the latents of the control image from the global random state, here from ``seed``; the ControlNet gets them
    in ``dtype``."""

    def convert(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "controlnet_cond": kwargs["controlnet_cond"].to(dtype)}

    hook = controlnet.register_forward_pre_hook(convert, with_kwargs=True)
    try:
        with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        hook.remove()
