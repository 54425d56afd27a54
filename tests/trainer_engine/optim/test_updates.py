"""Updates on the host and during the backward pass end with the weights of the usual update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer_engine.checkpointing.optimizer_state import pack_optimizer, unpack_optimizer
from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.options.optimizer import OptimizerOptions
from trainer_engine.contract.errors import NonFiniteLoss
from trainer_engine.memory.transfers import Transfers, Wait
from trainer_engine.optim.updates import HostUpdate, Update, make_update

CPU = torch.device("cpu")
HOST: dict[str, Any] = {"optimizer_cpu_offload_method": "torchao"}
BOTH: dict[str, Any] = {**HOST, "optimizer_offload_gradients": True}
ON_HOST = [row.name for row in OPTIMIZERS.values() if not (row.needs_gpu or row.is_schedule_free)]
RELEASABLE = [row.name for row in OPTIMIZERS.values() if row.can_release]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def options_of(**values: Any) -> OptimizerOptions:
    return OptimizerOptions(**{"learning_rate": 0.01, "grad_clip_method": "value", "max_grad_norm": 0.5, **values})


def take(net: nn.Module, update: Update, steps: range, *, passes: int = 1, broken: tuple[int, ...] = ()) -> None:
    """Steps as the engine takes them; the loss of ``broken`` ones is infinite."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        rates = [0.01 / (1 + step)] * len(update.optimizer.param_groups)
        update.begin(rates)
        for _ in range(passes):
            loss = net(torch.randn(4, 6, generator=generator)).square().sum() * (float("inf") if step in broken else 1.0)
            loss.backward()
        norm = update.norm()
        if torch.isfinite(norm):
            update.apply(norm, rates)
        else:
            update.skip(float(loss), float(norm))
        update.clear()


def weights(net: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


def trained(steps: range = range(5), *, passes: int = 1, broken: tuple[int, ...] = (), **values: Any) -> list[Tensor]:
    net = network()
    update = make_update(options_of(**values), [list(net.parameters())], CPU)
    take(net, update, steps, passes=passes, broken=broken)
    assert all(parameter.grad is None for parameter in net.parameters())
    return weights(net)


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", ON_HOST)
@pytest.mark.parametrize("how", [HOST, BOTH], ids=["state", "state and gradients"])
def test_the_host_updates_as_the_device_does(name: str, how: dict[str, Any]) -> None:
    assert_equal(trained(optimizer=name, **how), trained(optimizer=name))


@pytest.mark.parametrize("how", [HOST, BOTH], ids=["state", "state and gradients"])
@pytest.mark.parametrize("clipping", [{"grad_clip_method": "norm"}, {"max_grad_norm": 0.0}, {}])
def test_accumulation_clipping_and_skipped_steps_are_the_same_on_the_host(how: dict[str, Any], clipping: dict[str, Any]) -> None:
    more: dict[str, Any] = {"optimizer": "torch-adamw", **clipping}
    assert_equal(trained(passes=3, broken=(2,), **more, **how), trained(passes=3, broken=(2,), **more))


@pytest.mark.parametrize("name", RELEASABLE)
def test_released_gradients_move_the_weights_as_kept_ones_do(name: str) -> None:
    assert_equal(trained(optimizer=name, optimizer_release_gradients=True), trained(optimizer=name))


def test_no_two_released_gradients_exist_at_once() -> None:
    net = network()
    make_update(options_of(optimizer="optimi-adamw", optimizer_release_gradients=True), [list(net.parameters())], CPU)
    seen: list[int] = []
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: seen.append(sum(one.grad is not None for one in net.parameters())))
    net(torch.ones(2, 6)).sum().backward()
    assert len(seen) == 4 and max(seen) <= 1


def test_a_gradient_that_is_not_finite_ends_a_run_that_released_it() -> None:
    with pytest.raises(NonFiniteLoss, match="has applied its gradients already"):
        trained(optimizer="optimi-lion", optimizer_release_gradients=True, broken=(1,))


Way = dict[str, Any]
CHANGES: list[tuple[str, Way, Way]] = [
    ("torch-adamw", {}, HOST),
    ("torch-adamw", BOTH, {}),
    ("prodigy", HOST, HOST),
    *((name, first, then) for name in RELEASABLE for first in ({}, {"optimizer_release_gradients": True})
      for then in ({}, {"optimizer_release_gradients": True})),
]  # fmt: skip


@pytest.mark.parametrize(("name", "first", "then"), CHANGES)
def test_a_checkpoint_continues_with_and_without_the_option(name: str, first: Way, then: Way) -> None:
    net = network()
    names = [key for key, _ in net.named_parameters()]
    update = make_update(options_of(optimizer=name, **first), [list(net.parameters())], CPU)
    take(net, update, range(3))
    document, tensors = pack_optimizer(update.optimizer, names)
    assert not any("group" in key.split(".") for key in tensors)
    later = network()
    later.load_state_dict(net.state_dict())
    update = make_update(options_of(optimizer=name, **then), [list(later.parameters())], CPU)
    unpack_optimizer(update.optimizer, names, document, {key: tensor.clone() for key, tensor in tensors.items()})
    take(later, update, range(3, 6))
    assert_equal(weights(later), trained(range(6), optimizer=name))


def test_gradients_leave_the_device_during_the_backward_pass() -> None:
    events: list[str] = []

    class Recorded(Transfers):
        def copy(self, source: Tensor, target: Tensor) -> Wait:
            events.append("copy")
            return super().copy(source, target)

        def finish(self) -> None:
            events.append("finish")

    net = network()
    update = HostUpdate(options_of(optimizer="torch-adamw", **BOTH), [list(net.parameters())], Recorded(CPU))
    count = len(list(net.parameters()))
    assert events == ["copy"] * count + ["finish"]
    events.clear()
    net(torch.ones(2, 6)).sum().backward()
    assert events == ["copy"] * count and all(parameter.grad is None for parameter in net.parameters())
    norm = update.norm()
    assert events[count:] == ["finish"]  # before the host reads a gradient
    update.apply(norm, [0.01])
    assert events[count + 1 :] == ["copy"] * count


def test_memory_of_gradients_on_the_host_is_used_again() -> None:
    asked: list[int] = []

    class Counted(Transfers):
        def host_bytes(self, size: int, *, pinned: bool = True) -> Tensor:
            asked.append(size)
            return super().host_bytes(size)

    net = network()
    update = HostUpdate(options_of(optimizer="torch-adamw", **HOST), [list(net.parameters())], Counted(CPU))
    take(net, update, range(4))
    assert len(asked) == 2 * len(list(net.parameters()))  # weights and gradients


@pytest.mark.parametrize("name", ["torch-adamw", "torch-sgd", "torch-adagrad"])
def test_fuse_optimizer_asks_for_the_fused_update(name: str) -> None:
    made: Callable[..., Update] = lambda **values: make_update(options_of(optimizer=name, **values), [list(network().parameters())], CPU)  # noqa: E731
    assert made(fuse_optimizer=True).optimizer.param_groups[0]["fused"] is True
    assert made().optimizer.param_groups[0]["fused"] is (True if OPTIMIZERS[name].has_fused else None)


def gradients_added(dtype: torch.dtype, values: list[float], **options: Any) -> Tensor:
    """The gradient of a step of one micro-batch for each value, which is its gradient."""
    weight = nn.Parameter(torch.ones(3, dtype=dtype))
    update = make_update(options_of(max_grad_norm=0, **options), [[weight]], CPU, micro_batches=len(values))
    update.begin([0.01])
    for value in values:
        (weight.float() * value).sum().backward()
    update.norm()
    assert weight.grad is not None and weight.grad.dtype == dtype
    return weight.grad.float()


SMALL = [1.0, *[1 / 512] * 8]
"""In bfloat16, 1 + 1/512 is 1."""


def test_gradients_of_bfloat16_weights_are_added_in_float32_on_request() -> None:
    assert gradients_added(torch.bfloat16, SMALL).tolist() == [1.0] * 3
    assert gradients_added(torch.bfloat16, SMALL, gradient_precision="fp32").tolist() == [1 + 8 / 512] * 3


def test_a_sum_begins_anew_in_each_step_and_is_none_of_a_weight_without_a_gradient() -> None:
    used, unused = (nn.Parameter(torch.ones(2, dtype=torch.bfloat16)) for _ in range(2))
    update = make_update(options_of(gradient_precision="fp32"), [[used, unused]], CPU, micro_batches=2)
    for _ in range(2):
        update.begin([0.01])
        for _ in range(2):
            used.sum().backward()
        update.norm()
        assert used.grad is not None and used.grad.tolist() == [2.0, 2.0] and unused.grad is None
        update.clear()
    assert used.grad is None


def test_without_micro_batches_or_in_float32_nothing_is_kept_twice() -> None:
    for dtype, passes in ((torch.float32, 4), (torch.bfloat16, 1)):
        weight = nn.Parameter(torch.ones(2, dtype=dtype))
        make_update(options_of(gradient_precision="fp32"), [[weight]], CPU, micro_batches=passes)
        weight.sum().backward()
        assert weight.grad is not None and weight.grad.dtype == dtype


def test_weights_of_float32_are_trained_alike_with_both_precisions() -> None:
    usual, sums = (trained(passes=3, gradient_precision=precision) for precision in ("unmodified", "fp32"))
    assert all(map(torch.equal, usual, sums))
