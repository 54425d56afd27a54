"""Lets networks that read numbers of their inputs, such as where images are in a sequence, compute with fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from trainer_engine.families.inputs import PromptBatch

MAKERS: tuple[Callable[..., Any], ...] = (torch.tensor, torch.arange)


class RealIndices(TorchFunctionMode):
    """Inside a ``FakeTensorMode``, everything that is made of real tensors alone is real, and every new mask.

    A pass is given real masks and fake numbers: what follows from the masks can be read, and the large tensors take no memory. Operators
    whose result has a size that depends on a mask get the indices instead of it. Of the numbers of a row, such as the scores of experts,
    each is among the largest equally often.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is Tensor.backward:
            return self._backward(*args)
        tensors = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor)]
        if not any(isinstance(one, FakeTensor) for one in tensors):
            if tensors or func in MAKERS or given.get("dtype") == torch.bool:
                with unset_fake_temporarily():
                    return func(*args, **given)
        elif func is Tensor.repeat_interleave and isinstance(args[1], Tensor):
            whole, repeats = args
            with unset_fake_temporarily():
                rows = torch.repeat_interleave(torch.arange(len(repeats)), repeats)
            return whole.index_select(given["dim"], rows)
        elif func in (Tensor.__getitem__, Tensor.__setitem__):
            whole, index, *value = args
            with unset_fake_temporarily():
                index = tuple(_places(one) for one in (index if isinstance(index, tuple) else (index,)))
            return func(whole, index, *value)
        elif func is torch.topk:
            values, chosen = func(*args, **given)
            with unset_fake_temporarily():
                return values, (torch.arange(chosen.numel()) % args[0].shape[-1]).view(chosen.shape)
        return func(*args, **given)

    def _backward(self, loss: Tensor, *_: Any) -> None:
        """With this mode, for blocks that are computed again: a handler runs without it, and so does all of torch's own ``backward``."""
        gradient = torch.ones_like(loss)
        with self:
            _engine_run_backward((loss,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def _places(index: Any) -> Any:
    """Where a mask is true; any other index as it is."""
    return index.nonzero()[:, 0] if isinstance(index, Tensor) and index.dtype == torch.bool else index


def real_masks(prompts: PromptBatch) -> PromptBatch:
    """The tensors of a prompt, with real masks that mark nothing in the place of fake ones."""
    with unset_fake_temporarily():
        return {name: torch.zeros(one.shape, dtype=one.dtype) if one.dtype == torch.bool else one for name, one in prompts.items()}
