"""The ControlNet of PixArt: copies of the first blocks, whose outputs are added between the blocks of the frozen transformer.

Chen et al., 2024, "PixArt-delta: Fast and Controllable Image Generation with Latent Consistency Models", section 4. The diffusers library
has no class for it. Folders have the names and keys of its research project, ``examples/research_projects/pixart``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers import ModelMixin, PixArtTransformer2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from trainer_engine.config.controlnet import CUSTOM
from trainer_engine.contract.errors import InvalidOptions, Problem

USUAL_BLOCKS = 13
"""Blocks of a new ControlNet, as in the paper."""
OF_BLOCKS = (
    *("num_attention_heads", "attention_head_dim", "cross_attention_dim", "dropout", "activation_fn", "num_embeds_ada_norm"),
    *("attention_bias", "upcast_attention", "norm_elementwise_affine", "norm_eps", "attention_type"),
)
"""Keys of the configuration of a transformer that say how its blocks are made."""


class ControlBlock(nn.Module):
    """A copy of one block of the transformer, and the layer that begins with zeros behind it. The first one takes the control image in."""

    def __init__(self, block: Mapping[str, Any], *, is_first: bool) -> None:
        super().__init__()
        width = block["num_attention_heads"] * block["attention_head_dim"]
        if is_first:
            self.before_proj = _zeros(width)
        self.transformer_block = BasicTransformerBlock(width, **{name: block[name] for name in OF_BLOCKS}, norm_type="ada_norm_single")
        self.after_proj = _zeros(width)

    def forward(self, states: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> what is added to the tokens of the transformer, and the states for the next block, both (B, T, C)."""
        prompts, prompt_bias, modulation = conditions
        states = self.transformer_block(
            states, encoder_hidden_states=prompts, encoder_attention_mask=prompt_bias, timestep=modulation, class_labels=None
        )
        return self.after_proj(states), states


def _zeros(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class PixArtControlNetAdapterModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # mypy does not read diffusers' types
    """The trained blocks. Everything else, such as the embedding of a control image, is the transformer's."""

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_layers: int = USUAL_BLOCKS,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        cross_attention_dim: int = 1152,
        dropout: float = 0.0,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int = 1000,
        attention_bias: bool = True,
        upcast_attention: bool = False,
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-6,
        attention_type: str = "default",
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        blocks = [ControlBlock(self.config, is_first=number == 0) for number in range(num_layers)]
        self.controlnet_blocks = nn.ModuleList(blocks)

    @classmethod
    def from_transformer(cls, network: PixArtTransformer2DModel, num_layers: int | None = None) -> PixArtControlNetAdapterModel:
        """A ControlNet that begins with the first blocks of a transformer. Raises InvalidOptions if it has too few."""
        most = len(network.transformer_blocks) - 1
        if num_layers is not None and num_layers > most:
            message = f"The transformer has {most} blocks behind its first one."
            raise InvalidOptions([Problem.error(f"{CUSTOM}.num_layers", "too_many", message, got=num_layers, expected=f"at most {most}")])
        made: PixArtControlNetAdapterModel = cls(
            num_layers=num_layers or min(USUAL_BLOCKS, most), **{name: network.config[name] for name in OF_BLOCKS}
        )
        for ours, theirs in zip(made.controlnet_blocks, network.transformer_blocks, strict=False):
            cast("ControlBlock", ours).transformer_block.load_state_dict(theirs.state_dict())
        return made

    def forward(self, tokens: Tensor, control: Tensor, prompts: Tensor, prompt_bias: Tensor, modulation: Tensor) -> tuple[Tensor, ...]:
        """Returns what is added to the tokens of the transformer in front of its second block and those behind it, (B, T, C) each.

        ``tokens``: those behind its first block. ``control``: those of the control image. The others are what its blocks are given.
        """
        states, outputs = tokens + cast("ControlBlock", self.controlnet_blocks[0]).before_proj(control), []
        for block in self.controlnet_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                output, states = self._gradient_checkpointing_func(block, states, prompts, prompt_bias, modulation)
            else:
                output, states = block(states, prompts, prompt_bias, modulation)
            outputs.append(output)
        return tuple(outputs)


class SteeredPixArt(nn.Module):
    """A transformer with its ControlNet beside it, called like the transformer alone."""

    def __init__(self, transformer: PixArtTransformer2DModel, controlnet: nn.Module, control_dtype: torch.dtype | None = None) -> None:
        """``controlnet`` may be wrapped (DDP, compiled); it computes in ``control_dtype``, by default in that of the transformer."""
        super().__init__()
        self.transformer = transformer
        self.controlnet = controlnet
        self.control_dtype = control_dtype or transformer.dtype
        self.control: Tensor | None = None
        """(1 or B, C, h, w): the scaled latents of the control image, which must be set."""

    @property
    def config(self) -> Any:
        return self.transformer.config

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.transformer.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        device: torch.device = self.transformer.device
        return device

    @property
    def use_additional_conditions(self) -> bool:
        return bool(self.transformer.use_additional_conditions)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        timestep: Tensor,
        added_cond_kwargs: Mapping[str, Tensor | None],
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """(B, C, h, w) and the prompts (B, T, D) with their mask (B, T) -> (B, C', h, w), as the transformer's own forward pass."""
        assert self.control is not None, "a ControlNet looks at a control image"
        network, count = self.transformer, len(hidden_states)
        tokens = network.pos_embed(hidden_states)
        modulation, embedded = network.adaln_single(timestep, added_cond_kwargs, batch_size=count, hidden_dtype=tokens.dtype)
        prompts = encoder_hidden_states
        if network.caption_projection is not None:
            prompts = network.caption_projection(prompts).view(count, -1, tokens.shape[-1])
        bias = ((1 - encoder_attention_mask.to(tokens.dtype)) * -10000.0).unsqueeze(1)
        first, *others = network.transformer_blocks
        tokens = self._pass(first, tokens, prompts, bias, modulation)
        control = network.pos_embed(self.control.to(tokens.dtype).expand(count, -1, -1, -1))
        outputs = self.controlnet(*(one.to(self.control_dtype) for one in (tokens, control, prompts, bias, modulation)))
        for number, block in enumerate(others):
            if number < len(outputs):
                tokens = tokens + outputs[number].to(tokens.dtype)
            tokens = self._pass(block, tokens, prompts, bias, modulation)
        shift, scale = (network.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
        patches = network.proj_out(network.norm_out(tokens) * (1 + scale) + shift)
        return (self._unpatched(patches, *hidden_states.shape[-2:]),)

    def _pass(self, block: nn.Module, tokens: Tensor, prompts: Tensor, bias: Tensor, modulation: Tensor) -> Tensor:
        network = self.transformer
        arguments = (tokens, None, prompts, bias, modulation, None, None)
        output: Tensor = (
            network._gradient_checkpointing_func(block, *arguments)
            if torch.is_grad_enabled() and network.gradient_checkpointing
            else block(*arguments)
        )
        return output

    def _unpatched(self, patches: Tensor, height: int, width: int) -> Tensor:
        """(B, T, p * p * C) -> (B, C, h, w)."""
        edge, channels = self.config.patch_size, self.transformer.out_channels
        cells = patches.reshape(-1, height // edge, width // edge, edge, edge, channels)
        return cells.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height, width)
