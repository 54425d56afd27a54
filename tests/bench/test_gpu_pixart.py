"""The GPU benchmark's own code, on a network so small that a CPU takes it."""

from __future__ import annotations

import torch

from tests.bench.gpu_device import Subject, TimeLimit
from tests.bench.gpu_pixart import CASES, PIXART_900M, Case, measure
from tests.bench.table import Table

TINY = {**PIXART_900M, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "cross_attention_dim": 16, "caption_channels": 8}


def test_the_engine_and_the_bare_loop_are_measured_in_turn() -> None:
    table = Table()
    subject = Subject(device=torch.device("cpu"), architecture={**TINY, "sample_size": 8}, latent_edge=8, tokens=4, steps=1, rounds=2)
    measure(table, subject, (Case(2), Case(2, checkpointing=True)))
    assert [row.figure for row in table.rows] == ["parameters", "batch 2, eager", "batch 2, gradient checkpointing, eager"]
    assert all("% of the device" in row.value for row in table.rows[1:])


def test_cases_beyond_the_time_limit_are_named_and_not_measured() -> None:
    table = Table()
    subject = Subject(device=torch.device("cpu"), architecture={**TINY, "sample_size": 8}, latent_edge=8, tokens=4, steps=1, rounds=2)
    measure(table, subject, CASES, TimeLimit(0))
    assert [row.figure for row in table.rows[1:]] == [case.words for case in CASES]
    assert {row.value for row in table.rows[1:]} == {"not measured: the limit of 0 s is reached"}


def test_the_real_architecture_has_nine_hundred_million_parameters() -> None:
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        network = PixArtTransformer2DModel(**PIXART_900M)
    assert 0.88e9 < sum(parameter.numel() for parameter in network.parameters()) < 0.93e9
