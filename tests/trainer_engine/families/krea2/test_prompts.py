"""The prompts of Krea 2 beside its pipeline: several layers of Qwen3-VL for each token, stored without padding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Krea2Pipeline
from torch import Tensor

from tests.helpers.models import fixed, tiny_model, tiny_of
from trainer_engine.config.datasets.sizes import caption_bytes
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.inputs import STORED, StepInputs
from trainer_engine.families.krea2.components import USUAL_LAYERS
from trainer_engine.families.krea2.family import Krea2
from trainer_engine.families.krea2.prompts import AFTER_TOKENS, as_sampled
from trainer_engine.families.krea2.spec import SPEC

PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain"]
LONG = "a " * 2000
LIMIT = SPEC.prompts.token_limit


@pytest.fixture(scope="module")
def ours() -> Krea2:
    return tiny_of(Krea2, tiny_model("krea2"))


@pytest.fixture(scope="module")
def theirs() -> dict[str, Tensor]:
    """Prompt -> the states (T, layers, D) that the pipeline of diffusers gives its real tokens, in float32."""
    pipeline = Krea2Pipeline.from_pretrained(tiny_model("krea2"))
    with torch.no_grad():
        embeds, mask = pipeline.encode_prompt([*PROMPTS, LONG])
    assert embeds.shape[1] == LIMIT
    return {prompt: one[real] for prompt, one, real in zip((*PROMPTS, LONG), embeds, mask, strict=True)}


def test_prompts_equal_those_of_the_pipeline_and_are_stored_without_padding(ours: Krea2, theirs: dict[str, Tensor]) -> None:
    for prompt, stored in zip(PROMPTS, ours.encode_prompts(PROMPTS), strict=True):
        assert torch.equal(stored["embeds"], theirs[prompt].to(STORED))
        assert stored["embeds"].is_contiguous()
    assert len({len(states) for states in theirs.values()}) == len(theirs)


def test_a_prompt_beyond_the_limit_is_cut_off_as_the_pipeline_does(ours: Krea2, theirs: dict[str, Tensor]) -> None:
    (long,) = ours.encode_prompts([LONG])
    assert len(long["embeds"]) == LIMIT
    assert torch.equal(long["embeds"], theirs[LONG].to(STORED))


def test_a_stored_number_is_within_the_stated_error(ours: Krea2, theirs: dict[str, Tensor]) -> None:
    for prompt, stored in zip(PROMPTS, ours.encode_prompts(PROMPTS), strict=True):
        exact = theirs[prompt]
        assert ((stored["embeds"].float() - exact).abs() <= 2**-8 * exact.abs()).all()


@torch.no_grad()
def test_rounded_prompts_change_a_prediction_by_less_than_a_percent(ours: Krea2, theirs: dict[str, Tensor]) -> None:
    network = ours.load_network().eval()
    noisy, sigmas = fixed(1, 16, 8, 8, seed=3), torch.tensor([0.5])

    def prediction(embeds: Tensor) -> Tensor:
        return ours.predict(network, StepInputs(noisy_latents=noisy, timesteps=sigmas, prompts={"embeds": embeds[None]}))

    exact = prediction(theirs[PROMPTS[0]])
    assert 0 < (prediction(theirs[PROMPTS[0]].to(STORED)) - exact).norm() < 0.01 * exact.norm()


def test_the_end_of_the_conversation_follows_the_prompt_and_not_its_padding(ours: Krea2) -> None:
    """The states of the last tokens depend on their positions: those that the model counts by itself are wrong."""
    model, _ = ours.text.parts()
    usual = model.forward
    (right,) = ours.encode_prompts(["a cat"])
    model.forward = lambda **given: usual(**{**given, "position_ids": None})
    try:
        (wrong,) = ours.encode_prompts(["a cat"])
    finally:
        model.forward = usual
    assert torch.equal(wrong["embeds"][:-AFTER_TOKENS], right["embeds"][:-AFTER_TOKENS])
    assert not torch.allclose(wrong["embeds"][-AFTER_TOKENS:].float(), right["embeds"][-AFTER_TOKENS:].float(), atol=1e-2)


def test_the_states_of_a_prompt_do_not_depend_on_the_side_that_its_tokenizer_pads(ours: Krea2) -> None:
    usual = ours.encode_prompts(PROMPTS)
    _, tokenizer = ours.text.parts()
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        other = ours.encode_prompts(PROMPTS)
    finally:
        tokenizer.padding_side = side
    assert all(torch.equal(one["embeds"], two["embeds"]) for one, two in zip(usual, other, strict=True))


def test_a_batch_has_a_mask_only_if_something_is_padded(ours: Krea2) -> None:
    equally_long = ours.collate_prompts(ours.encode_prompts(["a cat", "a dog"]))
    assert equally_long.keys() == {"embeds"} and equally_long["embeds"].dtype == STORED
    batch = ours.collate_prompts(ours.encode_prompts(PROMPTS))
    lengths = [len(one["embeds"]) for one in ours.encode_prompts(PROMPTS)]
    assert batch["mask"].sum(dim=1).tolist() == lengths and batch["embeds"].shape[:2] == (3, max(lengths))


def test_a_sampled_prompt_is_padded_before_the_end_of_the_conversation() -> None:
    embeds, mask = as_sampled(torch.arange(1.0, 9.0)[:, None, None], 12)
    assert embeds.flatten().tolist() == [1, 2, 3, 0, 0, 0, 0, 4, 5, 6, 7, 8]
    assert mask[0].tolist() == [True] * 3 + [False] * 4 + [True] * 5
    full, nothing_hidden = as_sampled(torch.arange(1.0, 9.0)[:, None, None], 8)
    assert full.flatten().tolist() == [1, 2, 3, 4, 5, 6, 7, 8] and nothing_hidden.all()


def test_a_caption_takes_the_bytes_of_its_own_tokens_in_twelve_layers() -> None:
    assert caption_bytes(SPEC, tokens=50) == 50 * 12 * 2560 * 2
    assert caption_bytes(SPEC, tokens=10_000) == LIMIT * 12 * 2560 * 2


def with_index(place: Path, **entries: Any) -> Krea2:
    """The micro model with other entries in the index of its pipeline; None leaves one out."""
    folder = shutil.copytree(tiny_model("krea2"), place, dirs_exist_ok=True)
    index = json.loads((folder / "model_index.json").read_text()) | entries
    (folder / "model_index.json").write_text(json.dumps({key: value for key, value in index.items() if value is not None}))
    return tiny_of(Krea2, folder)


def test_the_layers_are_those_of_the_pipeline_or_the_published_ones(tmp_path: Path, ours: Krea2) -> None:
    assert ours.parts.text_layers() == (1, 2, 3)
    other = with_index(tmp_path, text_encoder_select_layers=[3, 2, 1])
    (turned,), (usual,) = other.encode_prompts(["a cat"]), ours.encode_prompts(["a cat"])
    assert torch.equal(turned["embeds"], usual["embeds"].flip(1))
    hashes = FileHashes(tmp_path / "hashes.jsonl")
    assert other.text_fingerprint(hashes) != ours.text_fingerprint(hashes)
    assert with_index(tmp_path, text_encoder_select_layers=None).parts.text_layers() == USUAL_LAYERS
    assert USUAL_LAYERS == (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)


@pytest.mark.parametrize("stated", [[], "12", [1, "2", 3], [1, -2, 3], [True, 2, 3]])
def test_an_index_that_states_no_layers_is_refused(tmp_path: Path, stated: object) -> None:
    with pytest.raises(ModelUnavailable, match="no numbers of layers"):
        with_index(tmp_path, text_encoder_select_layers=stated).encode_prompts(["a cat"])


@pytest.mark.parametrize(("stated", "text"), [([1, 2, 30], "State 30 of text_encoder of .*, which has 4 layers"), ([1, 2], "3 states")])
def test_a_text_encoder_that_does_not_fit_is_refused_before_prompts_are_encoded(tmp_path: Path, stated: list[int], text: str) -> None:
    with pytest.raises(ModelUnavailable, match=text):
        with_index(tmp_path, text_encoder_select_layers=stated).encode_prompts(["a cat"])


def test_a_text_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    place = shutil.copytree(tiny_model("krea2"), tmp_path, dirs_exist_ok=True)
    config = json.loads((place / "transformer/config.json").read_text())
    (place / "transformer/config.json").write_text(json.dumps({**config, "text_hidden_dim": 64}))
    with pytest.raises(ModelUnavailable, match="takes 64 numbers .*text_hidden_dim.* makes 32"):
        tiny_of(Krea2, place).encode_prompts(["a cat"])
