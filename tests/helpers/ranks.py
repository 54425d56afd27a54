"""Runs a function on several ranks of a gloo group, each a process of its own, and collects what it returns on the first one."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from tests.helpers.tiny_run import ROOT

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node")


def launcher(processes: int) -> list[str]:
    """The command that starts an engine on so many ranks; the engine needs ``ACCELERATE_USE_CPU``."""
    return [*TORCHRUN, str(processes)]


def on_ranks(place: Path, function: str, *, processes: int = 2, seconds: float = 300, **arguments: Any) -> Any:
    """What ``module:name`` returns on rank 0. Arguments and result are JSON."""
    wanted, answer = place / "wanted.json", place / "answer.json"
    wanted.write_text(json.dumps({"function": function, "arguments": arguments, "answer": str(answer)}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launcher(processes), "-m", "tests.helpers.ranks", str(wanted)]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(answer.read_bytes())


def main(path: str) -> None:
    asked = json.loads(Path(path).read_bytes())
    module, name = asked["function"].split(":")
    torch.distributed.init_process_group("gloo")
    try:
        result = getattr(importlib.import_module(module), name)(**asked["arguments"])
        if torch.distributed.get_rank() == 0:
            Path(asked["answer"]).write_text(json.dumps(result))
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
