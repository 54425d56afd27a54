"""Compiles the network of a run with torch.compile, and reports how long it takes and what is compiled again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters, get_compilation_metrics
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options.run import DistributedOptions
from trainer_engine.contract.errors import InvalidOptions, Problem
from trainer_engine.contract.events import Notification, Severity, StageKey
from trainer_engine.runtime.stages import Stages

INDUCTOR = "inductor"
MOST_GRAPHS = 256
"""Graphs that one function may have. PyTorch's own limit is 8; beyond it, the function would silently run without compilation."""
USUAL_GRAPHS = 8
"""A warning follows when more steps than this compile something."""
LONGEST_REASON = 300
log = logging.getLogger(__name__)


def compile_network(network: nn.Module, options: DistributedOptions, spec: FamilySpec) -> nn.Module:
    """The network as it is called in training: compiled at its first call, or the network itself without ``dynamo_backend``.

    The result holds the same parameters. Names and files are those of the bare network, which stays as it is, except that regional
    compilation compiles its blocks in place.
    """
    if options.dynamo_backend == "no":
        return network
    dynamo_config.recompile_limit = MOST_GRAPHS
    dynamo_config.accumulated_recompile_limit = max(dynamo_config.accumulated_recompile_limit, 4 * MOST_GRAPHS)
    # NOTE: static shapes are compiled one by one. Left to itself, PyTorch makes the second shape that it sees dynamic, so that the numbers
    # of a resumed run, which sees another shape first, would differ from those of the straight one in their last digits.
    how: dict[str, Any] = {
        "backend": options.dynamo_backend,
        "dynamic": options.dynamo_dynamic,
        "fullgraph": options.dynamo_fullgraph,
        "mode": options.dynamo_mode if options.dynamo_backend == INDUCTOR else None,
    }
    if not options.dynamo_use_regional_compilation:
        return cast("nn.Module", torch.compile(network, **how))
    for module in network.modules():
        if type(module).__name__ not in spec.repeated_blocks:
            continue
        if any(is_traceable_wrapper_subclass(weight) for weight in (*module.parameters(), *module.buffers())):
            module._compiled_call_impl = torch.compile(MethodType(_call_with_copies, module), **how)
        else:
            module.compile(**how)
    return network


def _call_with_copies(module: nn.Module, *arguments: Any, **named: Any) -> Any:
    """Calls a block and copies its outputs if it has several.

    PyTorch compiles no region with quantised weights whose outputs are views of one tensor, as those of Flux's single blocks are. The
    copies are part of the region: PyTorch leaves the graph before it calls a hook.
    """
    output = module._call_impl(*arguments, **named)
    return tuple(one.clone() if isinstance(one, Tensor) else one for one in output) if isinstance(output, tuple) else output


class CompilationWatch:
    """Shows the first step as a stage, reports what later steps compile again, and explains failures of the compiler."""

    def __init__(self, options: DistributedOptions, stages: Stages) -> None:
        self.options = options
        self.stages = stages
        self.graphs = 0
        """Graphs that were compiled so far."""
        self.late_steps = 0
        """Steps after the first one that compiled something."""

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step ``number``. Raises InvalidOptions if the network cannot be compiled as the options ask."""
        is_first, before = not self.graphs, _graph_count()
        try:
            if is_first:
                with self.stages.stage(StageKey.COMPILE):
                    yield
            else:
                yield
        except TorchDynamoException as error:
            raise InvalidOptions([_problem(self.options, error)]) from error
        made = _graph_count() - before
        self.graphs += max(made, 1 if is_first else 0)
        if made and not is_first:
            self._report(number, made)

    def _report(self, step: int, graphs: int) -> None:
        self.late_steps += 1
        reason = _newest_reason()
        message = f"Step {step} compiled {graphs} graph{'s' if graphs > 1 else ''} again{f': {reason}' if reason else '.'}"
        log.warning("%s", message)
        details = {"step": step, "graphs": graphs, "steps": self.late_steps, "reason": reason}
        if self.late_steps <= USUAL_GRAPHS:
            self.stages.sink.emit(Notification(code="recompiled", title="Compiled again", message=message, details=details))
        elif self.late_steps == USUAL_GRAPHS + 1:
            advice = "Train at fewer sizes, or set dynamo_dynamic=true, which compiles one graph for all sizes."
            message = f"{self.late_steps} steps compiled something again; further ones are in the log alone. {advice} {message}"
            event = Notification(
                code="recompiled_often", title="Compiled often", message=message, severity=Severity.WARNING, details=details
            )
            self.stages.sink.emit(event)


def _graph_count() -> int:
    return int(counters["stats"]["unique_graphs"])


def _newest_reason() -> str:
    """Why the last graph was compiled again, in a line; empty if PyTorch does not say."""
    reasons = [metrics.recompile_reason for metrics in get_compilation_metrics() if metrics.recompile_reason]
    return " ".join(reasons[-1].split())[:LONGEST_REASON] if reasons else ""


def _problem(options: DistributedOptions, error: TorchDynamoException) -> Problem:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = " ".join(lines[:3])
    if options.dynamo_fullgraph:
        message = f"The network is not one graph: {reason}"
        return Problem.error("dynamo_fullgraph", "several_graphs", message, got=True, expected="false")
    message = f"The network cannot be compiled: {reason}"
    got, hint = options.dynamo_backend, "train.log has the whole report of the compiler"
    return Problem.error("dynamo_backend", "cannot_compile", message, got=got, expected="no", hint=hint)
