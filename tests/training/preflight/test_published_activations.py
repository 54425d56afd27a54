"""The estimate of activations at the size of the published weights is within 10 % of what ``docs/activations.md`` says was measured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.checkpoint import checkpoint

from tests.bench.activations import FAMILIES, INTRODUCTION, PAGE, Case, cases, estimated, measured, row, rows_on
from tests.bench.real_indices import RealIndices, real_masks
from trainer_engine.config.families import specs
from training.preflight.memory_table import GIB, images_of, table_options
from training.preflight.on_device import EstimatedRun
from training.preflight.published_shapes import published_tensors
from training.preflight.step import step_memory

TOLERANCE = 0.10
MEASURED = rows_on(PAGE)


def title(case: Case) -> str:
    return case.words.strip("| ").replace("`", "")


def test_the_page_has_every_case_with_its_estimate() -> None:
    assert set(MEASURED) == set(cases())
    assert PAGE.read_text(encoding="utf-8") == INTRODUCTION + "".join(f"{row(case, *MEASURED[case])}\n" for case in cases())


@pytest.mark.parametrize("case", MEASURED, ids=title)
def test_the_estimate_at_real_size_is_what_was_measured(case: Case) -> None:
    _, most = MEASURED[case]
    assert estimated(case) / GIB == pytest.approx(most, rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["pixart_sigma", "sd3", "qwen_image_21"])
def test_what_the_page_says_is_measured_again(family: str) -> None:
    case = next(case for case in MEASURED if case.family == family and not case.checkpointing)
    kept, most = measured(case)
    assert (kept / GIB, most / GIB) == pytest.approx(MEASURED[case], abs=0.001)


def test_a_network_of_known_shapes_is_not_modelled_from_its_number_of_weights() -> None:
    spec, options = (
        specs()["qwen_image"],
        table_options(specs()["qwen_image"], "v2.0", {"model_type": "lora", "gradient_checkpointing": False}),
    )
    modelled, known = (
        step_memory(EstimatedRun(options=options, spec=spec, parameters=spec.parameters["v2.0"], tensors=tensors), images_of(1024, options))
        for tensors in (None, published_tensors(spec, "v2.0"))
    )
    assert modelled.activations > 5 * known.activations


def test_every_network_is_measured() -> None:
    assert {case.family for case in MEASURED} == set(FAMILIES) == set(specs())


def test_experts_have_as_many_tokens_each_when_blocks_are_computed_again_too() -> None:
    chosen: list[list[int]] = []

    def block(tokens: Tensor) -> Tensor:
        _, experts = torch.topk(tokens, k=2, dim=-1)
        repeated, flat = tokens.repeat_interleave(2, dim=0), experts.view(-1)
        chosen.append([len(repeated[flat == expert]) for expert in range(4)])
        found = torch.empty_like(repeated)
        for expert in range(4):
            found[flat == expert] = repeated[flat == expert] ** 2
        return found

    with FakeTensorMode(allow_non_fake_inputs=True), RealIndices():
        tokens = torch.empty(6, 4, requires_grad=True)
        checkpoint(block, tokens, use_reentrant=False).sum().backward()
    assert chosen == [[3] * 4] * 2 and tokens.grad is not None and tokens.grad.shape == (6, 4)


def test_what_follows_from_real_masks_is_real_and_takes_the_places_of_masks_in_fake_tensors() -> None:
    mask, numbers = torch.tensor([False, True, False]), torch.arange(6.0).view(1, 3, 2)

    def joined(mask: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, list[bool]]:
        repeats = torch.where(mask, 4, 1)
        longer = torch.repeat_interleave(mask, repeats)
        whole = numbers.repeat_interleave(repeats, dim=1)
        whole[:, longer] = numbers.new_zeros(1, 4, 2)
        return whole, longer, longer.tolist()

    wanted = joined(mask, numbers.clone())
    with FakeTensorMode(allow_non_fake_inputs=True), RealIndices():
        fake = torch.empty(1, 3, 2)
        whole, longer, read = joined(mask, fake)
    assert isinstance(fake, FakeTensor) and isinstance(whole, FakeTensor) and whole.shape == wanted[0].shape
    assert not isinstance(longer, FakeTensor) and torch.equal(longer, wanted[1]) and read == wanted[2]


def test_masks_are_the_only_inputs_that_become_real() -> None:
    with FakeTensorMode():
        prompts = real_masks({"embeds.0": torch.zeros(5, 2), "slots.0": torch.ones(5, dtype=torch.bool)})
    assert isinstance(prompts["embeds.0"], FakeTensor) and prompts["slots.0"].tolist() == [False] * 5
