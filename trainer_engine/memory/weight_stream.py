"""Copies frozen weights to the device before they are used, in the order of the forward pass and in reverse for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer_engine.memory.host_weights import Owner, Unit, frozen_owners, is_composed, map_plain, plain_tensors
from trainer_engine.memory.transfers import Transfers, Wait

SLOTS = 2
"""Units on the device at once: the one in use, and the next one."""


@dataclass(eq=False)
class _Slot:
    """Memory of the device for one unit."""

    number: int
    memory: Tensor
    unit: Unit | None = None
    wait: Wait | None = None
    """Of a copy that nothing has waited for yet."""
    last_use: int = 0


@dataclass(frozen=True)
class _StreamedTensor:
    """A saved tensor that is a part of streamed weights."""

    unit: Unit
    slot: _Slot
    """Where the unit was when the tensor was saved."""
    tensor: Tensor


class WeightStream:
    """Frozen weights stay in the memory of the host, and are only read there: nothing is copied back.

    While a unit computes, the next one is copied. The order is the one of the forward pass before.
    """

    def __init__(self, units: Sequence[tuple[Sequence[nn.Module], Unit]], transfers: Transfers, *, prefetch: bool = True) -> None:
        """``units``: each with the modules whose forward passes need its weights."""
        self.units = [unit for _, unit in units]
        self._transfers = transfers
        self._prefetch = prefetch
        size = max((unit.host.nbytes for unit in self.units), default=0)
        self._slots = [_Slot(number, transfers.device_bytes(size)) for number in range(SLOTS if prefetch else 1)]
        self._by_address = {slot.memory.untyped_storage().data_ptr(): slot for slot in self._slots}
        self._after: dict[Unit, Unit] = {}
        self._before: dict[Unit, Unit] = {}
        self._last_forward: Unit | None = None
        self._uses = 0
        self._open: list[Any] = []
        for modules, unit in units:
            for module in modules:
                module.register_forward_pre_hook(lambda *_, unit=unit: self._enter(unit), prepend=True)
                module.register_forward_hook(lambda *called, unit=unit: self._leave(unit, called[-1]), always_call=True)

    @property
    def resident(self) -> list[Unit]:
        """Units on the device now."""
        return [slot.unit for slot in self._slots if slot.unit is not None]

    def use(self, unit: Unit) -> _Slot:
        """Makes the work that is queued from now on find the weights of a unit on the device, and starts to copy those that follow."""
        is_backward = torch._C._current_graph_task_id() != -1
        slot = self._slot_of(unit) or self._load(unit, keep=None)
        self._uses += 1
        slot.last_use = self._uses
        if slot.wait is not None:
            slot.wait()
            slot.wait = None
        following = self._following(unit, is_backward)
        if self._prefetch and following is not None and self._slot_of(following) is None:
            self._load(following, keep=slot)
        return slot

    def _following(self, unit: Unit, is_backward: bool) -> Unit | None:
        if is_backward:
            self._last_forward = None
            return self._before.get(unit)
        last, self._last_forward = self._last_forward, unit
        if last is not None and last is not unit:
            self._after[last] = unit
            self._before[unit] = last
        return self._after.get(unit)

    def _slot_of(self, unit: Unit) -> _Slot | None:
        return next((slot for slot in self._slots if slot.unit is unit), None)

    def _load(self, unit: Unit, *, keep: _Slot | None) -> _Slot:
        """Starts to copy a unit into the slot that was not used for the longest time."""
        slot = min((one for one in self._slots if one is not keep), key=lambda one: one.last_use)
        if slot.unit is not None:
            slot.unit.unbind()
        slot.unit = unit
        slot.wait = self._transfers.copy(unit.host, slot.memory[: unit.host.nbytes])
        unit.bind(slot.number, slot.memory)
        return slot

    def _enter(self, unit: Unit) -> None:
        self.use(unit)
        outer = torch._C._autograd._top_saved_tensors_default_hooks(True)
        hooks = torch.autograd.graph.saved_tensors_hooks(self._packing(outer), self._unpacking(outer))
        hooks.__enter__()
        self._open.append(hooks)

    def _leave(self, unit: Unit, output: Any) -> None:
        """Some layers read their weights in the backward pass without saving them: the unit is there as soon as its gradient is."""
        self._open.pop().__exit__()
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        for one in outputs:
            if isinstance(one, Tensor) and one.requires_grad:
                one.register_hook(lambda _: self._use_backward(unit))

    def _use_backward(self, unit: Unit) -> None:
        self.use(unit)

    def _packing(self, outer: Any) -> Callable[[Tensor], Any]:
        """What is no streamed weight goes to the hooks around these, such as those of a checkpoint: PyTorch calls the innermost alone."""

        def pack(tensor: Tensor) -> Any:
            slot = self._slot_that_holds(tensor)
            if slot is not None and slot.unit is not None:
                return _StreamedTensor(slot.unit, slot, tensor)
            return tensor if outer is None else outer[0](tensor)

        return pack

    def _unpacking(self, outer: Any) -> Callable[[Any], Tensor]:
        def unpack(saved: Any) -> Tensor:
            if isinstance(saved, _StreamedTensor):
                slot = self.use(saved.unit)
                if slot is saved.slot:
                    return saved.tensor
                return map_plain(saved.tensor, lambda plain: self._in_slot(plain, slot))
            found: Tensor = saved if outer is None else outer[1](saved)
            return found

        return unpack

    def _slot_that_holds(self, tensor: Tensor) -> _Slot | None:
        if not is_composed(tensor):
            return self._by_address.get(tensor.untyped_storage().data_ptr())
        found = (self._by_address.get(plain.untyped_storage().data_ptr()) for plain in plain_tensors(tensor))
        return next((slot for slot in found if slot is not None), None)

    def _in_slot(self, plain: Tensor, slot: _Slot) -> Tensor:
        return Unit.moved(plain, slot.memory) if plain.untyped_storage().data_ptr() in self._by_address else plain


def make_units(groups: Sequence[Sequence[nn.Module]], host_bytes: Callable[[int], Tensor]) -> list[tuple[Sequence[nn.Module], Unit]]:
    """Moves the frozen weights of each group of modules to the host. A weight that several groups share stays where it is."""
    owners = [[owner for module in group for owner in frozen_owners(module)] for group in groups]
    places: dict[int, set[int]] = {}
    for number, found in enumerate(owners):
        for owner in found:
            places.setdefault(id(owner.read()), set()).add(number)
    units = []
    for group, found in zip(groups, owners, strict=True):
        alone: list[Owner] = [owner for owner in found if len(places[id(owner.read())]) == 1]
        if alone:
            units.append((group, Unit.of(alone, host_bytes)))
    return units
