"""The flavour of LongCat-Image that edits, beside the pipeline of diffusers: prompts that see a reference, losses, images and a run."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LongCatImageEditPipeline
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from torch import Tensor, nn

from tests.helpers.adapter_gradients import LORA, assert_adapter_is_its_definition
from tests.helpers.checked_runs import checked
from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, laid_out_alike, tiny_model
from tests.helpers.pictures import generate_images
from tests.helpers.references import picture, pixels_of, processor_in, tell_images
from tests.helpers.resuming import assert_resumes_exactly
from tests.trainer_engine.families.longcat_image.models import bare_network, folder_of, our_loss, their_loss, tiny_longcat
from trainer_engine.adapters.build import make_trainable
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.longcat_image import prompts
from trainer_engine.families.longcat_image.family import LongCatImage
from trainer_engine.families.longcat_image.spec import EDIT, FINAL, PROCESSOR, SPEC

LIMIT = SPEC.prompts.token_limit
AREA = 64 * 64
TEXT = 'write "ok" on it'
SLOT_TOKENS = 2 + 36
"""The two ends of the slot of an image, and the tokens of a square that the tiny processor makes."""


def pipeline_in(folder: Path) -> Any:
    pipeline = LongCatImageEditPipeline.from_pretrained(folder, text_processor=processor_in(folder / PROCESSOR))
    pipeline.set_progress_bar_config(disable=True)
    tell_images(pipeline.text_encoder)
    return pipeline


@cache
def their_pipeline() -> Any:
    return laid_out_alike(pipeline_in(folder_of(EDIT)))


@pytest.fixture(autouse=True)
def small_area(monkeypatch: pytest.MonkeyPatch) -> None:
    """References are scaled to an area of 64 x 64 pixels, not to a million pixels."""
    usual = pipeline_longcat_image_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_longcat_image_edit, "calculate_dimensions", lambda area, ratio: usual(AREA, ratio))
    monkeypatch.setattr(prompts, "REFERENCE_AREA_PX", AREA)


@torch.no_grad()
def their_prompt(text: str, seed: int) -> Tensor:
    """The states (T, D) that the pipeline makes of a prompt and a reference of 64 x 64 pixels."""
    shown = their_pipeline().image_processor.resize(picture(seed), 32, 32)
    embeds: Tensor = their_pipeline().encode_prompt([text], image=shown)[0]
    return embeds[0]


@pytest.mark.parametrize("text", [TEXT, ""])
def test_prompts_see_the_reference_as_in_the_pipeline(text: str) -> None:
    family = tiny_longcat(EDIT)
    assert family.prompts_see_references and family.pipeline_name == "LongCatImageEditPipeline"
    ours, changed = family.encode_prompts([text] * 2, [[pixels_of(picture(seed))] for seed in (1, 7)])
    assert ours["embeds"].shape == (SLOT_TOKENS + LIMIT, 32)
    torch.testing.assert_close(ours["embeds"], their_prompt(text, 1), rtol=0, atol=1e-6)
    assert changed["embeds"].shape == ours["embeds"].shape
    assert not torch.allclose(changed["embeds"][SLOT_TOKENS:], ours["embeds"][SLOT_TOKENS:], atol=1e-3)


def test_the_reference_is_seen_with_half_the_edges_that_the_pipeline_gives_it() -> None:
    sizes = {prompts._scaled(pixels_of(picture(1, size))).size for size in ((64, 64), (128, 128))}
    assert sizes == {(32, 32)}
    assert prompts._scaled(pixels_of(picture(1, (96, 48)))).size == (48, 24)


def test_a_long_prompt_loses_its_end_and_no_part_of_the_reference() -> None:
    seen = [[pixels_of(picture(1))]] * 2
    short, long = (one["embeds"] for one in tiny_longcat(EDIT).encode_prompts(["a", "a" * 600], seen))
    assert len(long) == len(short) == SLOT_TOKENS + LIMIT
    assert torch.allclose(long[:SLOT_TOKENS], short[:SLOT_TOKENS], atol=1e-5)


def test_prompts_of_a_call_may_see_different_references_and_none() -> None:
    family = tiny_longcat(EDIT)
    seen = [[pixels_of(picture(1))], [pixels_of(picture(2, (96, 64)))], []]
    together = family.encode_prompts(["a", "b", "c"], seen)
    alone = [family.encode_prompts([text], [one])[0] for text, one in zip("abc", seen, strict=True)]
    assert all(torch.equal(first["embeds"], second["embeds"]) for first, second in zip(together, alone, strict=True))
    assert len(together[2]["embeds"]) == LIMIT


def losses(family: LongCatImage, network: nn.Module, bare: nn.Module) -> tuple[Tensor, Tensor]:
    """Ours, and that of diffusers alone, of three prompts with a reference each."""
    given = fixed(3, 16, 8, 10, seed=1), fixed(3, 16, 8, 10, seed=2), fixed(3, 60, 32, seed=3), [fixed(3, 16, 6, 8, seed=4)]
    return our_loss(family, network, *given), their_loss(bare, *given)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers_with_a_reference(gradient_checkpointing: bool) -> None:
    family = tiny_longcat(EDIT, gradient_checkpointing=gradient_checkpointing)
    network, theirs = family.load_network(), bare_network(EDIT).train()
    loss, wanted = losses(family, network, theirs)
    assert_same_gradients(loss, network, wanted, theirs)


def test_an_adapter_has_the_loss_and_gradients_of_its_definition_with_a_reference() -> None:
    family = tiny_longcat(EDIT, **LORA)
    assert_adapter_is_its_definition(make_trainable(family, None), bare_network(EDIT), partial(losses, family))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_images_equal_those_of_the_pipeline_bit_for_bit(guidance: float) -> None:
    """The pipeline generates an image as large as the reference after scaling."""
    family, image = tiny_longcat(EDIT), picture(1)
    prompt, negative = (family.encode_prompts([text], [[pixels_of(image)]])[0] for text in (TEXT, "blue"))
    references = (family.encode_images(pixels_of(image)[None])[0],)
    network, steps = family.load_network().eval(), list[SamplerStep]()
    request = GenerationRequest(
        prompt=prompt, negative=negative, width=64, height=64, steps=2, guidance=guidance, seed=5, references=references
    )
    ours = family.generate(family.make_pipeline(network), request, on_step=steps.append)
    wanted = their_pipeline()(
        image=image,
        prompt=TEXT,
        negative_prompt="blue",
        guidance_scale=guidance,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert {step.latents.shape for step in steps} == {(1, 16, 8, 8)}
    assert np.array_equal(np.asarray(ours), np.asarray(wanted))
    assert not network._forward_hooks and not network._forward_pre_hooks


def test_embeddings_of_flavours_that_word_prompts_differently_are_kept_apart(tmp_path: Path) -> None:
    hashes, model = FileHashes(tmp_path / "hashes.json"), str(folder_of(EDIT))
    kept = {flavour: tiny_longcat(flavour, pretrained_model_name_or_path=model).text_fingerprint(hashes) for flavour in SPEC.flavours}
    assert len(set(kept.values())) == 2 and kept[FINAL] == kept["dev"]


def without_processor(place: Path) -> Path:
    """A base model that lacks what shows references to the text encoder."""
    place.mkdir()
    for path in folder_of(FINAL).iterdir():
        if path.name != PROCESSOR:
            (place / path.name).symlink_to(path)
    return place


def test_a_base_model_without_the_processor_is_refused_by_name_where_references_are_seen(tmp_path: Path) -> None:
    model = str(without_processor(tmp_path / "model"))
    family = tiny_longcat(EDIT, pretrained_model_name_or_path=model)
    with pytest.raises(ModelUnavailable, match=f"has no folder {PROCESSOR}"):
        family.encode_prompts(["a"], [[pixels_of(picture(1))]])
    assert PROCESSOR not in tiny_longcat(pretrained_model_name_or_path=model).parts.copied()


def pairs(place: Path, *references: str) -> list[dict[str, Any]]:
    """Images with a reference each from every set of ``references``, by the names of their files."""
    found = []
    for name in ("after", *references):
        generate_images(place / name, count=3, size=(64, 64))
        entry = {"id": name, "type": "local", "instance_data_dir": str(place / name), "resolution": 64, "resolution_type": "pixel"}
        found.append(entry if name == "after" else {**entry, "conditioning_type": "reference_strict"})
    found[0] |= {"conditioning_data": list(references), "caption_strategy": "instanceprompt", "instance_prompt": "make it red"}
    texts = {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": str(place / "texts")}
    return [*({**entry, "cache_dir_vae": str(place / "latents" / entry["id"])} for entry in found), texts]


def test_two_references_of_an_image_are_refused(tmp_path: Path) -> None:
    usual = {"model_family": SPEC.name, "model_flavour": EDIT, "pretrained_model_name_or_path": str(folder_of(EDIT))}
    found = [checked(tmp_path, **usual, datasets=pairs(tmp_path / names[-1], *names)) for names in (("before",), ("before", "style"))]
    assert found[0].errors == [] and {problem.code for problem in found[1].errors} == {"too_many_references"}


@pytest.mark.parametrize("model_type", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    usual: dict[str, Any] = {"model_family": SPEC.name, "model_flavour": EDIT, "model": str(tiny_model(SPEC.name, flavour=EDIT))}
    usual |= {"max_train_steps": 4, "model_type": model_type, "train_batch_size": 2, "caption_dropout_probability": 0.5}
    straight = assert_resumes_exactly(tmp_path, datasets=pairs(tmp_path / "sets", "before"), **usual)
    if model_type == "full":
        pipeline = pipeline_in(straight.output_dir / "pipeline")
        assert pipeline(picture(1), "red", num_inference_steps=2).images[0].size == (64, 64)
