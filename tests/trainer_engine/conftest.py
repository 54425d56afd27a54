from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def own_signals() -> Iterator[None]:
    """What a test does to the handlers of this process is undone afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def quick_collections() -> Iterator[None]:
    """LyCORIS collects garbage for each layer of a T-LoRA: that need not walk through torch itself.

    What a test leaves is collected, with the files that it holds open.
    """
    gc.freeze()
    yield
    gc.collect()
    gc.unfreeze()
