from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quick_collections() -> Iterator[None]:
    """LyCORIS collects garbage for each layer of a T-LoRA: that need not walk through torch itself."""
    gc.freeze()
    yield
    gc.unfreeze()
