"""Checks of the installed packages and of torch, which is imported in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from environments.places import INSTALLED
from simpletuner_site.client.findings import Finding, Verdict

NAME = "simpletuner"
REINSTALL = "install again from the checkout: pip install '.[cuda]'"
TORCH_SECONDS = 120.0
TORCH_SCRIPT = """
import json, torch
device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if device == "cuda" else []
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "device": device, "names": names}))
"""


def check_packages(home: Path) -> Iterator[Finding]:
    """Every package that the project declares is there, in a version that it declares."""
    try:
        installed = metadata.distribution(NAME)
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages", Verdict.WARNING, f"run from {INSTALLED}, which is not installed", "pip install -e '.[cuda]' in the checkout"
        )
        return
    declared = [Requirement(text) for text in installed.requires or ()]
    if not any(one.name.lower() == "django" for one in declared):
        text = f"the package {NAME} {installed.version} of the public index is installed, which is another project"
        yield Finding("packages", Verdict.PROBLEM, text, f"pip uninstall {NAME}, then {REINSTALL}")
        return
    wrong = [problem for one in declared if (problem := _problem_with(one))]
    for problem in wrong:
        yield Finding("packages", Verdict.PROBLEM, problem, REINSTALL)
    if not wrong:
        yield Finding("packages", Verdict.OK, f"{NAME} {installed.version} and everything that it needs")


def _problem_with(requirement: Requirement) -> str:
    """What is wrong with an installed package; empty if it fits or is not needed here."""
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return ""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    fits = requirement.specifier.contains(version, prereleases=True)
    return "" if fits else f"{requirement.name} is {version}; {requirement.specifier} is needed"


def check_torch(*, has_gpus: bool) -> Iterator[Finding]:
    """The build of torch, and whether it sees the GPUs that the driver lists."""
    found = torch_facts()
    if "error" in found:
        yield Finding("torch", Verdict.PROBLEM, f"torch cannot be imported: {found['error']}", REINSTALL)
        return
    build = f"CUDA {found['cuda']}" if found["cuda"] else f"ROCm {found['hip']}" if found["hip"] else "without CUDA and ROCm"
    names = ", ".join(found["names"])
    text = f"torch {found['version']} ({build}) computes on {found['device']}{f': {names}' if names else ''}"
    if not has_gpus or found["device"] == "cuda":
        yield Finding("torch", Verdict.OK, text)
    elif not found["cuda"]:
        yield Finding(
            "torch", Verdict.PROBLEM, f"{text}, although there is a GPU", "pip install --force-reinstall '.[cuda]' in the checkout"
        )
    else:
        todo = f"update the driver to one for CUDA {found['cuda']}, and look at CUDA_VISIBLE_DEVICES"
        yield Finding("torch", Verdict.PROBLEM, f"{text}, although the driver lists a GPU", todo)


def torch_facts() -> dict[str, Any]:
    """Version, build and devices of torch; ``error`` if it cannot be imported."""
    try:
        ended = subprocess.run([sys.executable, "-c", TORCH_SCRIPT], capture_output=True, text=True, timeout=TORCH_SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": f"it takes longer than {TORCH_SECONDS:g} s"}
    if ended.returncode:
        return {"error": (ended.stderr.strip().splitlines() or ["it crashes"])[-1]}
    facts: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return facts
