"""State of optimizers as tensors and JSON: what Python would pickle, without pickle."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer_engine.runtime.sharding import own_part, spread_like

GROUP = "group"
"""Under this key, optimizers of optimi that update single weights keep the parameter group of each weight."""
PLAIN = (str, int, float, bool, type(None))


def pack(tree: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """``tree`` as JSON; its tensors go into ``tensors`` under names that begin with ``path``. TypeError for what is neither."""
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().clone() if tree.dim() == 0 else tree.detach().contiguous()
        return {"tensor": path}
    if isinstance(tree, Mapping):
        return {"map": [[pack(key, tensors, path), pack(value, tensors, f"{path}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [pack(value, tensors, f"{path}.{index}") for index, value in enumerate(tree)]}
    if isinstance(tree, PLAIN):
        return tree
    raise TypeError(f"{path} holds a {type(tree).__name__}, which cannot be saved")


def unpack(document: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What ``pack`` was given. KeyError where a tensor is missing, ValueError where the document is not one of ``pack``."""
    if not isinstance(document, dict):
        return document
    if len(document) == 1:
        (kind, content), *_ = document.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "map":
            return {unpack(key, tensors): unpack(value, tensors) for key, value in content}
        if kind in ("list", "tuple"):
            values = [unpack(value, tensors) for value in content]
            return tuple(values) if kind == "tuple" else values
    raise ValueError("this is no packed state")


def pack_optimizer(optimizer: Optimizer, names: Sequence[str]) -> tuple[Any, dict[str, Tensor]]:
    """(JSON, tensors by name). ``names`` are those of the parameters in the optimizer's order."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    by_name = {names[index]: {key: value for key, value in values.items() if key != GROUP} for index, values in state["state"].items()}
    return {"state": pack(by_name, tensors, "state"), "groups": pack(state["param_groups"], tensors, "groups")}, tensors


def unpack_optimizer(optimizer: Optimizer, names: Sequence[str], document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put a packed state back. Scalars such as step counters return to the CPU, the rest to the parameters' devices.

    Numbers that the optimizer was made with (betas, decay) stay as they are: what the run asks for now counts. A run continues with the
    kernels of its checkpoint, fused or not, so that its numbers stay the same; only ``fused: false`` counts at once.
    KeyError or ValueError where the state is not that of such an optimizer over such parameters.
    """
    try:
        _unpack_optimizer(optimizer, names, document, tensors)
    except (TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(f"the state of the optimizer has another form: {error}") from error


def _unpack_optimizer(optimizer: Optimizer, names: Sequence[str], document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    index = {name: number for number, name in enumerate(names)}
    state = {index[name]: values for name, values in unpack(document["state"], tensors).items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in state.items():
        values.update((key, spread_like(value, parameters[number])) for key, value in values.items() if isinstance(value, Tensor))
    groups = unpack(document["groups"], tensors)
    for group, current in zip(groups, optimizer.param_groups, strict=False):
        if current.get("fused") is False:
            group["fused"] = False
    kept = {number: dict(values) for number, values in state.items()}
    arguments = set(inspect.signature(type(optimizer).__init__).parameters) - {"lr"}
    asked = [{key: value for key, value in group.items() if key in arguments and _is_number(value)} for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for group, values in zip(optimizer.param_groups, asked, strict=True):
        group.update(values)
    _restore_types(optimizer, kept)
    if "gradient_release" in optimizer.defaults:
        _count_steps(optimizer)


def _count_steps(optimizer: Optimizer) -> None:
    """optimi counts steps in each weight's state if gradients are released, and in the group otherwise; a run may change between them."""
    released = optimizer.defaults["gradient_release"]
    for group in optimizer.param_groups:
        group["gradient_release"] = released
        states = [optimizer.state[parameter] for parameter in group["params"] if optimizer.state.get(parameter)]
        for state in states:
            if released:
                state.setdefault("step", torch.as_tensor(group.get("step", 0)).clone())
            elif "step" in state:
                group["step"], group["setup"] = state.pop("step"), True
        for parameter in group["params"] if released else ():
            optimizer.state[parameter][GROUP] = group


def _is_number(value: object) -> bool:
    """Whether a value of a parameter group is a number of the options, and no flag or tensor that may be state."""
    return isinstance(value, (int, float, tuple)) and not isinstance(value, bool)


def _restore_types(optimizer: Optimizer, saved: Mapping[int, Mapping[str, Any]]) -> None:
    """PyTorch casts state to the type of the weights when it loads; what was saved in another type goes back to its own."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in saved.items():
        state = optimizer.state[parameters[number]]
        for key, value in values.items():
            if isinstance(value, Tensor) and isinstance(state.get(key), Tensor) and state[key].dtype != value.dtype:
                state[key] = value.to(state[key].device)


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no element is NaN or infinite, of those that this process has; one read from the device for all of them."""
    parts = [part for part in (own_part(tensor.detach()) for tensor in tensors) if part.numel()]
    if not parts:
        return True
    worst = torch.stack(torch._foreach_norm(parts, float("inf")))
    return bool(worst.isfinite().all())
