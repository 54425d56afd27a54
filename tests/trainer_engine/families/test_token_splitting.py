"""Networks whose tokens are split over two ranks compute what one rank computes, and their gradients add up to its."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.gradients import FAMILIES, LORA, tiny
from tests.helpers.models import tiny_model
from tests.helpers.params import first_fast
from tests.helpers.ranks import on_ranks
from trainer_engine.config.families import specs

PASSES = "tests.helpers.split_passes"
GROUPED = {name: {"context_parallel_size": 2} for name, spec in specs().items() if spec.splitting and spec.splitting.splits_masks}
"""Families that pad prompts, of any length, to a multiple of the processes."""
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *((f"{name} full", name, GROUPED.get(name, {})) for name in FAMILIES if specs()[name].splitting),
    *(
        (f"{name} LoRA, computed again", name, {**LORA, **GROUPED.get(name, {}), "gradient_checkpointing": True})
        for name in FAMILIES
        if specs()[name].splitting
    ),
    ("flux, projections joined, in native attention", "flux", {"fuse_qkv_projections": True, "attention_mechanism": "native"}),
    ("wan, blocks swapped", "wan", {**LORA, "musubi_blocks_to_swap": 1}),
]


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the two ranks have computed for each case of this session's tests."""
    asked = {item.callspec.params.get("title") for item in request.session.items if hasattr(item, "callspec")}
    cases = [(title, name, {**values, "model": str(tiny_model(name))}) for title, name, values in CASES if title in asked]
    answer: dict[str, Any] = on_ranks(tmp_path_factory.mktemp("passes"), f"{PASSES}:everything", cases=cases)
    return answer


@pytest.mark.parametrize("title", first_fast(sorted((title for title, _, _ in CASES), key=lambda title: title != "flux full")))
def test_the_parts_of_a_split_sample_add_up_to_it(found: dict[str, Any], title: str) -> None:
    apart = found["passes"][title]
    assert apart["prediction"] < 1e-6 and apart["gradients"] < max(1e-6, 2 * apart["rounding"]) < 1e-5, apart
    assert apart["own part"] > 0.1, "each rank has computed a part of the gradient, not all of it"


def test_attention_joined_from_parts_of_the_tokens_equals_attention_over_all(found: dict[str, Any]) -> None:
    apart = found["ring"]
    assert sorted(apart) == ["key", "output", "query", "value"] and max(apart.values()) < 1e-6, apart


def test_a_group_says_yes_when_one_of_it_does(found: dict[str, Any]) -> None:
    assert found["answers"] == [True, False]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_splits_tokens_only_where_its_network_has_a_plan(name: str) -> None:
    family = tiny(name)
    network = next(iter(family.trained_modules(family.load_network()).values()))
    plan, splitting = getattr(network, "_cp_plan", None), family.spec.splitting
    assert (splitting is not None) == (plan is not None)
    if splitting is None or plan is None:
        return
    split = {argument for arguments in plan.values() if isinstance(arguments, dict) for argument in arguments}
    assert splitting.splits_prompt == ("encoder_hidden_states" in split)
    assert splitting.splits_masks == bool(split & {"encoder_attention_mask", "encoder_hidden_states_mask"})
    size = (64, 96)
    channels, frames = family.spec.latents.channels, (1,) if family.spec.sampling.clips else ()
    cells = [edge // family.spec.latents.scale_factor_px for edge in reversed(size)]
    assert splitting.tokens(size, 1, family.spec.latents.scale_factor_px) == family.token_count([channels, *frames, *cells])
