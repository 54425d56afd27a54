"""Which libraries of adapters a run loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers.models import tiny_pixart
from tests.helpers.tiny_run import ROOT
from tests.trainer_engine.adapters.test_runs import LOKR, STANDARD, lycoris
from trainer_engine.adapters.lycoris import LycorisAdapter
from trainer_engine.config.lycoris.config_file import parse_lycoris

PROGRAM = """
import json, os, sys
import trainer_engine.loop.run
from tests.helpers.models import tiny_family
from trainer_engine.adapters.build import make_trainable

for kind, values in json.loads(sys.argv[1]).items():  # each in a child, which has loaded what every run loads
    if os.fork() == 0:
        assert make_trainable(tiny_family(**values), None).parameters
        loaded = [name for name in ("lycoris", "optimum.quanto", "trainer_engine.adapters.lora") if name in sys.modules]
        print(json.dumps({kind: loaded}), flush=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0, kind
"""


@pytest.mark.slow
def test_a_run_loads_only_the_libraries_of_its_own_adapter(tmp_path: Path) -> None:
    kinds = {"full": {}, "standard": STANDARD, "quantised lokr": {**lycoris(tmp_path, **LOKR), "base_model_precision": "int8-quanto"}}
    values = {kind: {**options, "pretrained_model_name_or_path": str(tiny_pixart())} for kind, options in kinds.items()}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, json.dumps(values)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # NOTE: PEFT itself is in each of them: diffusers loads it for its own use wherever it is installed.
    loaded = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert loaded == [
        {"full": []},
        {"standard": ["trainer_engine.adapters.lora"]},
        {"quantised lokr": ["lycoris", "optimum.quanto"]},
    ]


class Mixed(nn.Module):
    """A convolution of each channel for itself between two that mix them."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.each, self.narrow = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 4, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 4, H, W) -> the same shape."""
        output: torch.Tensor = self.narrow(self.each(self.widen(pixels)))
        return output


@pytest.mark.parametrize("preset", [{}, {"target_module": ["Mixed"]}], ids=["everything", "a class"])
@pytest.mark.parametrize("algo", ["lora", "lokr", "loha"])
def test_lycoris_leaves_out_convolutions_in_groups(algo: str, preset: dict[str, object]) -> None:
    document = {"algo": algo, "linear_dim": 2, "linear_alpha": 1, "multiplier": 1.0, "apply_preset": preset}
    config, _ = parse_lycoris({**document, "bypass_mode": True}, None)
    assert config is not None
    network = nn.ModuleDict({"block": Mixed()}).requires_grad_(False)
    adapter = LycorisAdapter(network, config, {}, last_timestep=1.0)
    assert {lora.lora_name for lora in adapter.net.loras} == {"lycoris_block_widen", "lycoris_block_narrow"}
    network["block"](torch.rand(1, 4, 6, 6)).sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.net.parameters())
