"""Where a GPU is at hand: the engine's steps of PixArt, Stable Diffusion, SDXL and Wan beside bare loops, in less than eight minutes.

The weights are random, so nothing is downloaded. ``gpu_flux`` is a section of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from tests.bench import gpu_pixart
from tests.bench.gpu_device import ENDLESS, Clock, TimeLimit, add_row, attempt, matmul_peak
from tests.bench.network_loops import Setting, bare_steps, engine_steps, flops_of_a_step
from tests.bench.networks import Network
from tests.bench.table import NOT_MEASURED, Table
from tests.trainer_engine.families.sd1x.network import NETWORK as SD1X
from tests.trainer_engine.families.sdxl.network import NETWORK as SDXL
from tests.trainer_engine.families.wan.network import NETWORK as WAN

SECTION = "UNets and Wan on a GPU"
NETWORK_SECONDS, PIXART_SECONDS = 150, 390
"""From the start: when no further case of the first and of the second kind is begun. A case takes up to a minute and a half."""


@dataclass(frozen=True)
class Case:
    """One row: a network at its real size, in bf16."""

    network: Network
    model_type: str
    pixels: int
    compiled: bool = False
    is_small: bool = False
    """Few channels, for a CPU."""

    @property
    def words(self) -> str:
        kind = "every weight" if self.model_type == "full" else "LoRA"
        return f"{self.network.title}, {kind}, {self.pixels} px, batch 1, {'compiled' if self.compiled else 'eager'}"

    def setting(self, device: torch.device) -> Setting:
        return Setting(device=device, model_type=self.model_type, latent_edge=self.pixels // 8, precision="bf16", compiled=self.compiled)


CASES = (
    Case(SDXL, "lora", 1024),
    Case(SD1X, "full", 512),
    Case(WAN, "lora", 480),
    Case(SD1X, "full", 512, compiled=True),
)


def compare(table: Table, clock: Clock, case: Case, peak: float) -> None:
    """One row: the engine's step, then the bare loop over the very same modules, in turn."""
    network, setting = case.network, case.setting(clock.device)
    architecture = {**network.architecture, **(network.narrow if case.is_small else {})}
    clock.reset_peak()
    engine, module = engine_steps(network, architecture, setting)
    add_row(
        table,
        SECTION,
        case.words,
        clock,
        engine=engine,
        make_bare=lambda: bare_steps(network, architecture, setting, module),
        flops=flops_of_a_step(network, architecture, setting),
        peak=peak,
    )


def measure(table: Table, clock: Clock, cases: Sequence[Case], limit: TimeLimit = ENDLESS) -> None:
    """A row for each case."""
    peak = matmul_peak(clock)
    for case in cases:
        attempt(table, SECTION, case.words, partial(compare, table, clock, case, peak), limit)


def run(table: Table) -> None:
    """All rows; one for each of the two sections that says so where there is no GPU."""
    if not torch.cuda.is_available():
        for section in (SECTION, gpu_pixart.SECTION):
            table.add(section, "needs a GPU", NOT_MEASURED)
        return
    limit = TimeLimit(NETWORK_SECONDS)
    measure(table, Clock(device=torch.device("cuda"), steps=4, rounds=5), CASES, limit)
    gpu_pixart.run(table, TimeLimit(PIXART_SECONDS, limit.began))


if __name__ == "__main__":
    run(Table())
