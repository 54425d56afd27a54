"""Families with T5 cut prompts where tokenizer_max_length says, as their pipelines do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, PixArtSigmaPipeline, WanPipeline

from tests.helpers.models import tiny_family, tiny_model
from tests.helpers.tiny_run import train_here
from trainer_engine.datasets.hashes import FileHashes

LIMIT = 6
PROMPT = "a red circle on a yellow wall beside a very large blue square and other things"
PIPELINES: dict[str, Any] = {"flux": FluxPipeline, "pixart_sigma": PixArtSigmaPipeline, "wan": WanPipeline}


def of_pipeline(family: str) -> torch.Tensor:
    """The states that the family's pipeline gives the network, (LIMIT, D)."""
    pipeline = PIPELINES[family].from_pretrained(tiny_model(family))
    only_positive: dict[str, Any] = {"prompt_2": None} if family == "flux" else {"do_classifier_free_guidance": False}
    embeds: torch.Tensor = pipeline.encode_prompt(PROMPT, max_sequence_length=LIMIT, **only_positive)[0]
    return embeds[0]


@pytest.mark.parametrize("name", PIPELINES)
def test_embeddings_are_those_of_the_pipeline_with_that_limit(name: str) -> None:
    family = tiny_family(model_family=name, pretrained_model_name_or_path=str(tiny_model(name)), tokenizer_max_length=LIMIT)
    ours = family.collate_prompts(family.encode_prompts([PROMPT]))["embeds"][0]
    assert ours.shape[0] >= LIMIT or name == "pixart_sigma"
    assert torch.allclose(ours[:LIMIT], of_pipeline(name), atol=1e-4)


@pytest.mark.parametrize("name", PIPELINES)
def test_another_limit_has_other_addresses_and_the_usual_one_the_usual(name: str, tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "hashes.jsonl")

    def address(limit: int | None) -> str:
        made = tiny_family(model_family=name, pretrained_model_name_or_path=str(tiny_model(name)), tokenizer_max_length=limit)
        return made.text_fingerprint(hashes)

    assert address(LIMIT) != address(None) == address(1024)


def test_a_run_with_short_prompts_stores_less_and_shows_what_it_trains(tmp_path: Path) -> None:
    run = train_here(tmp_path, tokenizer_max_length=LIMIT, max_train_steps=2, validation_disable=False, validation_prompt=PROMPT)
    assert run.code == 0 and list((run.output_dir / "validation_images").iterdir())
