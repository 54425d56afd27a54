"""Which rule the order of samples follows: a checkpoint says the rule of the run that saved it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ORDER_KEY = "sample_order"
"""In ``training_state.json``; checkpoints of the first rule do not have it."""
ORDER_VERSION = 2
"""1: no two batches in a row from one bucket while another had something left. 2: every batch is drawn by what is left."""


def order_change(state: Mapping[str, Any]) -> str:
    """What a run that resumes from a checkpoint should know about its order; empty where the rule is the same."""
    theirs = state.get(ORDER_KEY, 1)
    if theirs == ORDER_VERSION:
        return ""
    return (
        f"The checkpoint was saved by a version that ordered samples by another rule ({theirs}, now {ORDER_VERSION}). In the rest of the "
        "epoch that it lies in, some samples are seen twice and others not; every later epoch holds each sample as often as asked."
    )
