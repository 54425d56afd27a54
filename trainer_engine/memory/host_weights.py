"""Frozen weights whose numbers are in the memory of the host, and which are bound to the memory of a device while they are needed."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

ALIGNMENT = 64
"""Bytes at whose multiples each tensor begins, so that it can be read as any number type."""

PlainTensors = Callable[[Tensor], Tensor]


def is_composed(tensor: Any) -> bool:
    """Whether a tensor consists of others, as quantised weights of quanto and torchao do."""
    return is_traceable_wrapper_subclass(tensor)


def map_plain(tensor: Tensor, change: PlainTensors) -> Tensor:
    """The tensor with each plain tensor that it consists of replaced: itself, or the integers and scales of a quantised one."""
    if not is_composed(tensor):
        return change(tensor)
    composed: Any = tensor
    names, context = composed.__tensor_flatten__()
    inner = {name: map_plain(getattr(composed, name), change) for name in names}
    rebuilt: Tensor = type(composed).__tensor_unflatten__(inner, context, composed.size(), composed.stride())
    return rebuilt


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a tensor consists of."""
    found: list[Tensor] = []

    def note(plain: Tensor) -> Tensor:
        found.append(plain)
        return plain

    map_plain(tensor, note)
    return found


def unknown_kinds(modules: Iterable[nn.Module]) -> set[str]:
    """Classes of frozen weights that cannot be taken apart into plain tensors, and so cannot be moved."""
    weights = [weight for module in modules for weight in module.parameters() if not weight.requires_grad]
    known = (Tensor, nn.Parameter)
    return {type(weight).__name__ for weight in weights if type(weight) not in known and not is_composed(weight)}


@dataclass(frozen=True)
class Owner:
    """Where a module keeps a weight. Keeps no module alive, so that a text encoder goes once nothing else refers to it."""

    module: Callable[[], nn.Module | None]
    name: str
    is_buffer: bool = False
    """Quantised layers may keep their weights as buffers."""

    def read(self) -> Tensor:
        found: Tensor | None = self._tensors()[self.name]
        assert found is not None, f"{self.name} is gone"
        return found

    def bind(self, weight: Tensor | None) -> None:
        """Makes the weight that of the module. None takes it out for a while."""
        self._tensors()[self.name] = weight

    def _tensors(self) -> dict[str, Any]:
        module = self.module()
        if module is None:
            return {}
        return module._buffers if self.is_buffer else module._parameters


def frozen_owners(module: nn.Module) -> list[Owner]:
    """Every frozen weight of a module and of the modules in it, and their buffers."""
    found = []
    for part in module.modules():
        place = weakref.ref(part)
        found += [Owner(place, name) for name, one in part._parameters.items() if one is not None and not one.requires_grad]
        found += [Owner(place, name, is_buffer=True) for name, one in part._buffers.items() if one is not None]
    return found


@dataclass(eq=False)
class Unit:
    """Weights that are copied to the device together."""

    owners: Sequence[Owner]
    host: Tensor
    """The numbers, (bytes,) uint8, in the layout that they have on the device."""
    _on_host: list[Tensor] = field(default_factory=list)
    _in_slots: dict[int, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, owners: Sequence[Owner], host_bytes: Callable[[int], Tensor]) -> Unit:
        """Moves the weights into one piece of memory of the host, of which ``host_bytes`` returns the given number of bytes."""
        held = [owner.read().detach() for owner in owners]
        offsets: list[int] = []
        size = 0
        for plain in (plain for tensor in held for plain in plain_tensors(tensor)):
            offsets.append(size)
            size += math.ceil(plain.nbytes / ALIGNMENT) * ALIGNMENT
        unit = cls(owners, host_bytes(size))
        remaining = iter(offsets)

        def move(plain: Tensor) -> Tensor:
            view = _view(unit.host, next(remaining), plain)
            view.copy_(plain)
            return view

        unit._on_host = [_frozen(owner, map_plain(tensor, move)) for owner, tensor in zip(owners, held, strict=True)]
        unit.unbind()
        return unit

    def bind(self, number: int, slot: Tensor) -> None:
        """Uses the memory ``slot`` of the device, which has this number, as the weights."""
        if number not in self._in_slots:
            self._in_slots[number] = [
                _frozen(owner, map_plain(weight.detach(), lambda plain: self.moved(plain, slot)))
                for owner, weight in zip(self.owners, self._on_host, strict=True)
            ]
        for owner, weight in zip(self.owners, self._in_slots[number], strict=True):
            owner.bind(weight)

    def take_out(self) -> None:
        """Leaves the modules without these weights until they are bound again."""
        for owner in self.owners:
            owner.bind(None)

    def unbind(self) -> None:
        """Uses the memory of the host as the weights, for readers other than the forward pass."""
        for owner, weight in zip(self.owners, self._on_host, strict=True):
            owner.bind(weight)

    @staticmethod
    def moved(plain: Tensor, memory: Tensor) -> Tensor:
        """The tensor at the same place in another memory of the same layout."""
        return memory.view(plain.dtype).as_strided(plain.shape, plain.stride(), plain.storage_offset())


def _view(memory: Tensor, offset: int, like: Tensor) -> Tensor:
    """A contiguous tensor of the type and shape of ``like`` that begins at a byte of ``memory``."""
    return memory[offset : offset + like.nbytes].view(like.dtype).view(like.shape)


def _frozen(owner: Owner, tensor: Tensor) -> Tensor:
    return tensor if owner.is_buffer else nn.Parameter(tensor, requires_grad=False)
