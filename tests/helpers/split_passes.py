"""Passes of networks whose tokens are split over two ranks, beside the same passes on one: what ``tests.helpers.ranks`` calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from diffusers.models.attention_dispatch import _templated_context_parallel_attention
from torch import Tensor

from tests.helpers.gradients import CPU, Pass, step_inputs, tiny, trainable_of
from trainer_engine.adapters.base import Trainable
from trainer_engine.families.base import Family
from trainer_engine.families.common.token_splitting import group_mesh, split_tokens
from trainer_engine.families.inputs import StepInputs
from trainer_engine.runtime.groups import make_group


def _apart(one: Tensor, other: Tensor) -> float:
    """The distance of two tensors in parts of the length of the first."""
    return float((one - other).norm() / one.norm().clamp(min=1e-30))


def _pass(family: Family, trainable: Trainable, batches: Sequence[StepInputs]) -> Pass:
    """Forward and backward of the mean squared distance to a random target, as in training, over all batches together."""
    trainable.network.zero_grad()
    targets = torch.Generator().manual_seed(9)
    predictions = []
    for inputs in batches:
        prediction = family.predict(trainable.network, inputs)
        target = torch.randn(prediction.shape, generator=targets)
        ((prediction.float() - target).square().mean() / len(batches)).backward()
        predictions.append(prediction.detach().clone())
    gradients = {name: one.grad.clone() for name, one in trainable.named_parameters if one.grad is not None}
    return Pass(torch.cat(predictions), gradients)


def _one_by_one(inputs: StepInputs) -> list[StepInputs]:
    """The samples of a batch, each alone."""
    return [
        replace(
            inputs,
            noisy_latents=inputs.noisy_latents[[index]],
            timesteps=inputs.timesteps[[index]],
            prompts={name: value[[index]] for name, value in inputs.prompts.items()},
        )
        for index in range(len(inputs.timesteps))
    ]


def split_passes(cases: list[tuple[str, str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """(title, family, options) -> how far prediction and gradients of the split network are from those of the complete one.

    ``rounding`` is the distance between two ways of one rank to the same gradient: of a batch, and of its samples one by one.
    """
    group = make_group(torch.distributed.get_rank(), 2, 2, timedelta(minutes=5))
    mesh = group_mesh(group, CPU, by_heads=True)
    found = {}
    for title, name, values in cases:
        family = tiny(name, **values)
        trainable, inputs = trainable_of(family), step_inputs(family)
        alone, in_parts = _pass(family, trainable, [inputs]), _pass(family, trainable, _one_by_one(inputs))
        for network in family.trained_modules(trainable.network).values():
            split_tokens(network, mesh, CPU)
        together = _pass(family, trainable, [inputs])
        own = torch.cat([one.flatten() for one in together.gradients.values()])
        for gradient in together.gradients.values():
            torch.distributed.all_reduce(gradient)
        assert alone.gradients.keys() == together.gradients.keys()
        whole, summed, added = (torch.cat([one.flatten() for one in each.gradients.values()]) for each in (alone, in_parts, together))
        found[title] = {
            "prediction": _apart(alone.prediction, together.prediction),
            "gradients": _apart(whole, added),
            "rounding": _apart(whole, summed),
            "own part": _apart(whole, own),
        }
    return found


def ring_attention() -> dict[str, float]:
    """How far attention over parts of the tokens is from attention over all, and its gradients, with PyTorch's kernel for CPUs."""
    rank = torch.distributed.get_rank()
    mesh = group_mesh(make_group(rank, 2, 2, timedelta(minutes=5)), CPU, by_heads=False)
    exchange = ContextParallelConfig(ring_degree=2, mesh=mesh)
    parallel = ParallelConfig(context_parallel_config=exchange)
    parallel.setup(rank, 2, CPU, mesh=mesh)
    whole = [torch.randn(1, 8, 2, 16, generator=torch.Generator().manual_seed(number)).requires_grad_() for number in range(3)]
    wanted = torch.nn.functional.scaled_dot_product_attention(*(one.transpose(1, 2) for one in whole)).transpose(1, 2)
    wanted.square().sum().backward()
    mine = slice(4 * rank, 4 * rank + 4)
    parts = [one.detach()[:, mine].clone().requires_grad_() for one in whole]
    attended = _templated_context_parallel_attention(*parts, forward_op=_forward, backward_op=_backward, _parallel_config=parallel)
    attended.square().sum().backward()
    found = {"output": _apart(wanted.detach()[:, mine], attended.detach())}
    for name, one, part in zip(("query", "key", "value"), whole, parts, strict=True):
        assert one.grad is not None and part.grad is not None
        found[name] = _apart(one.grad[:, mine], part.grad)
    return found


def _forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, _save_ctx: bool, **__: Any) -> tuple[Tensor, Tensor]:
    if _save_ctx:
        ctx.save_for_backward(query, key, value)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, scores = kernel(*(one.transpose(1, 2) for one in (query, key, value)))
    return out.transpose(1, 2), scores.transpose(1, 2)


def _backward(ctx: Any, gradient: Tensor, **given: Tensor) -> tuple[Tensor, ...]:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    arguments = [given[name].transpose(1, 2).contiguous() for name in ("query", "key", "value", "out", "lse")]
    found = kernel(gradient.transpose(1, 2).contiguous(), *arguments, 0.0, False)
    return tuple(one.transpose(1, 2) for one in found)


def answers() -> list[bool]:
    """What the processes of a group answer together when the second one alone says yes, then when none does."""
    group = make_group(torch.distributed.get_rank(), 2, 2, timedelta(minutes=5))
    return [group.agreed(lambda: group.place == 1)(), group.agreed(lambda: False)()]


def everything(cases: list[tuple[str, str, dict[str, Any]]]) -> dict[str, Any]:
    """All of it, in the seconds that one start of two ranks takes."""
    return {"passes": split_passes(cases), "ring": ring_attention(), "answers": answers()}
