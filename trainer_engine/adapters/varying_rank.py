"""Algorithms of LyCORIS whose rank changes between micro-batches: chosen once for each, so that activations computed again see the same."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lycoris.modules.dylora import DyLoraModule
from lycoris.modules.tlora import TLoraModule, compute_timestep_mask
from torch import Tensor, nn

from trainer_engine.config.lycoris.algorithms import OPTION
from trainer_engine.config.lycoris.config_file import LycorisConfig
from trainer_engine.contract.errors import InvalidOptions, Problem


def fewer_ranks_in_noise(network: nn.Module, modules: Sequence[TLoraModule], config: LycorisConfig, last_timestep: float) -> None:
    """tlora: the noisier a sample, the fewer ranks it uses; ``tlora_min_rank`` of them at ``last_timestep`` (pure noise).

    A mask for each sample, where the library has one for all; so the adapter is computed next to the weight, which all samples share.
    Raises InvalidOptions for convolutions.
    """
    masks: dict[int, Tensor] = {}

    def choose(_module: nn.Module, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        timesteps: list[float] = kwargs["timestep"].detach().float().flatten().tolist()
        for rank in {module.lora_dim for module in modules}:
            how = (rank, min(config.min_rank, rank), config.rank_power)
            one_each = [compute_timestep_mask(t, last_timestep, *how) for t in timesteps]
            masks[rank] = torch.cat(one_each).to(kwargs["timestep"].device)

    def with_masks(self: TLoraModule, x: Tensor, scale: float = 1.0) -> Tensor:
        """``x`` (B, ..., in): the mask becomes (B, ..., rank) with ones between."""
        mask = masks[self.lora_dim]
        fitting = mask.reshape(len(mask), *[1] * (x.dim() - 2), self.lora_dim)
        self._get_mask = lambda device: fitting.to(device)
        output: Tensor = TLoraModule.bypass_forward_diff(self, x, scale)
        return output

    for module in modules:
        if module.isconv:
            message = "tlora is for linear layers, and the adapter file names a convolution."
            hint = "name classes in apply_preset.target_module"
            raise InvalidOptions([Problem.error(f"{OPTION}.apply_preset", "not_for_algorithm", message, hint=hint)])
        module.bypass_mode = True
        module.bypass_forward_diff = types.MethodType(with_masks, module)
    if modules:
        network.register_forward_pre_hook(choose, with_kwargs=True)


def one_rank_a_pass(network: nn.Module, modules: Sequence[DyLoraModule]) -> None:
    """dylora (Valipour et al., 2023): train a random prefix of the blocks of ranks in each micro-batch; generate with all of them.

    The library asks Python's generator at every call of every layer, also while generating, and scales by the number of blocks instead of
    the rank that its file is read with.
    """
    chosen = {"share": 1.0}

    def choose(module: nn.Module, _args: tuple[Any, ...]) -> None:
        chosen["share"] = float(torch.rand(())) if module.training else 1.0

    def weight_of_pass(self: DyLoraModule) -> tuple[Tensor, Tensor, float]:
        block = min(int(chosen["share"] * self.block_count), self.block_count - 1)
        down = torch.cat([*(one.detach() for one in self.down_list[:block]), self.down_list[block]])
        up = torch.cat([*(one.detach() for one in self.up_list[:block]), self.up_list[block]], dim=1)
        return down, up, float(self.alpha) / len(down)

    for module in modules:
        module.get_random_rank_weight = types.MethodType(weight_of_pass, module)
    if modules:
        network.register_forward_pre_hook(choose)
