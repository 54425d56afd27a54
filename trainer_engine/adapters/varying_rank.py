"""Algorithms of LyCORIS whose rank changes from pass to pass: chosen once a pass, so that activations computed again see the same."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lycoris.modules.dylora import DyLoraModule
from lycoris.modules.tlora import TLoraModule, compute_timestep_mask
from torch import Tensor, nn

from trainer_engine.contract.lycoris import LycorisConfig


def fewer_ranks_in_noise(network: nn.Module, modules: Sequence[TLoraModule], config: LycorisConfig, last_timestep: float) -> None:
    """tlora: the noisier a sample, the fewer ranks it uses; ``tlora_min_rank`` of them at ``last_timestep`` (pure noise).

    Masks are (B, 1, rank), one a sample, where the library has one for all: the adapted layers have to see (B, tokens, width).
    """
    chosen: dict[str, Tensor] = {}

    def choose(_module: nn.Module, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        timesteps: list[float] = kwargs["timestep"].detach().float().flatten().tolist()
        ranks = (config.linear_dim, config.min_rank, config.rank_power)
        masks = [compute_timestep_mask(t, last_timestep, *ranks) for t in timesteps]  # type: ignore[arg-type]
        chosen["mask"] = torch.stack(masks).to(kwargs["timestep"].device)

    for module in modules:
        module._get_mask = lambda device: chosen["mask"].to(device)  # type: ignore[method-assign]
    if modules:
        network.register_forward_pre_hook(choose, with_kwargs=True)


def one_rank_a_pass(network: nn.Module, modules: Sequence[DyLoraModule]) -> None:
    """dylora (Valipour et al., 2023): train a prefix of the blocks of ranks, chosen by chance once a pass; draw with all of them.

    The library asks Python's generator at every call of every layer, also while drawing, and scales by the number of blocks instead of
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
