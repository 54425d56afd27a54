"""Somebody with an empty account and a clone follows README and docs/lora.md, command by command, from the installation on.

What is added is what the machine of the test lacks: the hub (small models lie in its cache) and a GPU (the sizes of ``SMALL``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.helpers.models import tiny_model
from tests.helpers.pictures import generate_images
from tests.helpers.ports import free_port
from tests.helpers.served_runs import ENDED, wait_until
from tests.tutorial.commands import LORA, README, ROOT, blocks
from trainer_engine.config.families import find_spec
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache

pytestmark = pytest.mark.slow
INSTALL_SECONDS = 3600
MODELS = {"pixart_sigma": "900M-1024-v0.6", "flux": "dev"}
SMALL_README = {
    "curl -s -X POST $API/configs/first-lora/activate": (
        "sed -i 's/1024/64/' config/first-lora/multidatabackend.json\ncurl -s -X POST $API/configs/first-lora/activate"
    ),
    "--max_train_steps=500": "--max_train_steps=3",
    "1024x1024": "64x64",
}
SMALL_LORA = {
    '"--base_model_precision": "int8-quanto", "--max_train_steps": 1500': '"--base_model_precision": "int8-quanto", "--max_train_steps": 2,'
    ' "--resolution": 64, "--validation_resolution": "64x64", "--validation_num_inference_steps": 1, "--lr_warmup_steps": 1,'
    ' "--mixed_precision": "no", "--optimizer": "torch-adamw"',
}


@dataclass(frozen=True)
class Terminal:
    """A shell of the new account. ``port`` replaces 8001, which another program may have."""

    account: Path
    clone: Path
    hub: Path
    port: int

    def variables(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR") or name.startswith("PIP_")}
        without_ours = [part for part in kept["PATH"].split(os.pathsep) if Path(part) != Path(sys.executable).parent]
        return {
            **kept,
            "PATH": os.pathsep.join(without_ours),
            "HOME": str(self.account),
            "PIP_RETRIES": "0",  # an index that cannot be reached is left out at once
            "HF_HOME": str(self.hub),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def command(self, block: str, changes: Mapping[str, str]) -> list[str]:
        assert all(text in block for text in changes)
        for old, new in {**changes, "8001": str(self.port)}.items():
            block = block.replace(old, new)
        return ["bash", "-eo", "pipefail", "-c", f'[ ! -e "$CLONE/.venv" ] || . "$CLONE/.venv/bin/activate"\n{block}']

    def type(self, block: str, folder: Path, changes: Mapping[str, str] = {}, *, seconds: float = 600) -> str:  # noqa: B006
        """What a block of a page prints; it fails the test if it fails."""
        environment = {**self.variables(), "CLONE": str(self.clone)}
        done = subprocess.run(
            self.command(block, changes), cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """An account with thirty pictures and a clone in which the install command of a machine without a GPU was run."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    account, hub = tmp_path_factory.mktemp("account"), tmp_path_factory.mktemp("hub")
    for family, flavour in MODELS.items():
        spec = find_spec(family)
        assert spec is not None
        place_in_hub_cache(tiny_model(family), spec.repository(flavour), hub)
    generate_images(account / "Pictures/cats", count=30, size=(96, 80), kinds=("jpg",))
    clone = account / "simpletuner"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    found = Terminal(account, clone, hub, free_port())
    (commands,) = blocks("Installing", README)
    venv, *installs = [line for line in commands.splitlines() if line.strip()]
    (for_cpu,) = [line for line in installs if "'.[cpu]'" in line]
    found.type(f"{venv}\n{for_cpu}", clone, seconds=INSTALL_SECONDS)
    return found


@pytest.fixture(scope="module")
def folder(terminal: Terminal) -> Iterator[Path]:
    """The empty folder of README in which its server runs."""
    (start,) = blocks("A first LoRA", README, language="text")
    place = terminal.account / "training"
    place.mkdir()
    with (terminal.account / "server.log").open("wb") as log:
        server = subprocess.Popen(
            terminal.command(start, {}),
            cwd=place,
            env={**terminal.variables(), "CLONE": str(terminal.clone)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        wait_until(lambda: answers(terminal), "the first answer of the server")
        yield place
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(300)


def answers(terminal: Terminal) -> bool:
    try:
        return httpx.get(f"http://localhost:{terminal.port}/health", timeout=5).is_success
    except httpx.TransportError:
        time.sleep(0.2)
        return False


def status_at_the_end(terminal: Terminal) -> str:
    def ended() -> str | None:
        status: str = httpx.get(f"http://localhost:{terminal.port}/api/training/status", timeout=60).json()["status"]
        return status if status in ENDED else None

    return str(wait_until(ended, "the end of the run"))


def test_the_installed_command_is_that_of_the_new_environment(terminal: Terminal) -> None:
    assert terminal.type("command -v simpletuner", terminal.account).strip() == str(terminal.clone / ".venv/bin/simpletuner")
    assert "Python" in terminal.type("simpletuner doctor || true", terminal.account)


def test_the_first_lora_of_the_readme_is_trained(terminal: Terminal, folder: Path) -> None:
    (block,) = blocks("A first LoRA", README)
    assert "true\n[]\n[]\n" in terminal.type(block, folder, SMALL_README)
    assert status_at_the_end(terminal) == "completed"
    assert (folder / "output/first-lora/pytorch_lora_weights.safetensors").is_file()


def test_the_first_lora_over_http_is_trained_and_exported(terminal: Terminal, folder: Path) -> None:
    (block,) = blocks("The same over HTTP", LORA)
    printed = terminal.type(block, folder, SMALL_LORA)
    assert printed.count('"1 image in datasets/cats"') == 30 and "true\n[]\n" in printed
    assert status_at_the_end(terminal) == "completed"
    assert (folder / "output/cats/pytorch_lora_weights.safetensors").is_file()
    terminal.type("simpletuner status && simpletuner jobs", folder)
