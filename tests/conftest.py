"""Every test runs against a home of its own making, never the developer's, and with one thread a process."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from trainer_engine.contract import path_rule

TEST_HOME = Path(tempfile.mkdtemp(prefix="simpletuner-test-home-"))

# Read by the settings at import and inherited by every process that a test starts.
os.environ["SIMPLETUNER_HOME"] = str(TEST_HOME)
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
for variable in (
    "DATABASE_URL",
    "REDIS_URL",
    "SIMPLETUNER_SLOTS",
    "SIMPLETUNER_ALLOWED_HOSTS",
    "SIMPLETUNER_SECRET_KEY",
    "SIMPLETUNER_HOOKS",
    "SIMPLETUNER_HOOKS_ENV",
    "SIMPLETUNER_ALLOW_SCRIPTS",
    "SIMPLETUNER_ROOTS",
    "SIMPLETUNER_TOKEN",
    "SIMPLETUNER_NEEDS_TOKEN",
    "SIMPLETUNER_TRUSTED_PROXIES",
    "SIMPLETUNER_UPLOAD_MB",
    "CUDA_VISIBLE_DEVICES",
    "PYTHONDONTWRITEBYTECODE",
):
    os.environ.pop(variable, None)
# With PYTHONDONTWRITEBYTECODE every process would compile the whole tree, and pytest rewrite 500 test modules, again and again.
sys.dont_write_bytecode = False


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As of a shell that starts the tests in the background; every process that they start would go on ignoring Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


SLOW_ROOMS = ("tutorial", "site", "security", "training", "trainer_engine", "bench")
"""Rooms whose files take longest, the longest first. All processes end at the same time if only short files are left at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files of slow rooms first."""

    def rank(item: pytest.Item) -> int:
        room = item.path.relative_to(Path(__file__).parent).parts[0]
        return SLOW_ROOMS.index(room) if room in SLOW_ROOMS else len(SLOW_ROOMS)

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing that is imported and made while tests are collected is garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(TEST_HOME, ignore_errors=True)
    gc.freeze()  # pytest collects five times more, to find errors of finalizers: each test has had its own collection


@pytest.fixture(autouse=True)
def quick_collections() -> Iterator[None]:
    """A collection of garbage within a test need not walk through torch and every test module, which takes a second.

    Those who count live tensors collect before they count, and LyCORIS collects for each layer of a T-LoRA. What a test leaves is
    collected, with the files that it holds open.
    """
    gc.freeze()
    yield
    gc.collect()
    gc.unfreeze()


@pytest.fixture
def home(tmp_path: Path, settings: object) -> Path:
    """A fresh home for tests that go through Django in this process: ``config/`` and ``state/`` exist."""
    root = tmp_path / "home"
    for name in ("config", "state"):
        (root / name).mkdir(parents=True)
    for name, value in {"HOME": root, "CONFIG_DIR": root / "config", "STATE_DIR": root / "state"}.items():
        setattr(settings, name, value)
    return root


@pytest.fixture
def links_of_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every link counts as made by another account than the owner of the root: a test need not be root to see that."""
    monkeypatch.setattr(path_rule, "SYSTEM_UID", -1)
    monkeypatch.setattr(path_rule, "_owner", lambda root: os.geteuid() + 1)
