"""Processes that never saw this project: they have its libraries, and cannot import its packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

CUT_OFF = """
import importlib.util, sys
sys.path += {libraries!r}
for name in ("trainer_engine", "training", "environments", "tests"):
    assert importlib.util.find_spec(name) is None, name + " can be imported"
"""
"""Precedes a program. ``-S`` leaves out the .pth files of site-packages, one of which leads to a checkout: it adds their folders itself."""

GENERATE = """
import json
import diffusers, torch

for result in json.loads(sys.argv[1]):
    pipeline = getattr(diffusers, result["pipeline"]).from_pretrained(result["folder"])
    if result["adapter"]:
        pipeline.load_lora_weights(result["adapter"], weight_name="pytorch_lora_weights.safetensors")
    made = pipeline(**result["arguments"], generator=torch.Generator().manual_seed(result["seed"]), output_type="pil")
    picture = made.images[0] if hasattr(made, "images") else made.frames[0][0]
    picture.save(result["image"])
"""


@dataclass(frozen=True)
class Result:
    """What a run left, and how to generate with it."""

    pipeline: str
    """Class of diffusers."""
    folder: str
    """A pipeline: the result of a full fine-tune, or the base of an adapter."""
    adapter: str
    """Folder with ``pytorch_lora_weights.safetensors``; empty for a full fine-tune."""
    arguments: dict[str, object]
    """Of the pipeline."""
    seed: int
    image: str
    """Where the image goes, or the first frame of a clip."""


def run_without_project(program: str, *arguments: str, place: Path, variables: Mapping[str, str] = MappingProxyType({})) -> str:
    """The output of a program in a process that cannot import this project. ``place`` is its folder, ``variables`` go over this one's."""
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    command = [sys.executable, "-I", "-S", "-c", CUT_OFF.format(libraries=libraries) + program, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def generate_without_project(results: Sequence[Result], place: Path) -> None:
    """Generate with each result, in one process that has diffusers alone."""
    run_without_project(GENERATE, json.dumps([asdict(result) for result in results]), place=place)
