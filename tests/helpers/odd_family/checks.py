"""What the odd family must be able to do; run by ``tests/trainer_engine/families/test_odd_family.py`` with the plugin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaVideoTransformer3DModel
from PIL import Image
from safetensors.torch import load_file

from tests.helpers.models import options_with, tiny_model
from tests.helpers.pictures import generate_images, levels_apart
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import HereRun, Listener, tiny_datasets, train_here
from tests.trainer_engine.loop.test_saving import run_of
from trainer_engine.config.family_problems import family_problems
from trainer_engine.contract.events import EVALUATION
from trainer_engine.families.base import Family
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.inputs import SampleFacts, StepInputs
from trainer_engine.families.load import load_family
from trainer_engine.runtime.devices import resolve_devices

SHORT, LONG = "a cat", "a photograph of a very large red boat on a lake at night"
LORA = {"model_type": "lora", "lora_rank": 2}
VALIDATION = {"validation_disable": False, "validation_prompt": "a red circle", "validation_resolution": "64x64"}


def captioned_datasets(place: Path) -> list[dict[str, Any]]:
    """The usual images with captions of one to eight words: a batch of two is ragged."""
    sets = tiny_datasets(place, caption_strategy="textfile")
    for number, image in enumerate(sorted((place / "images").rglob("*.*g"))):
        image.with_suffix(".txt").write_text(" ".join(["a", "red", "boat", "on", "a", "lake", "at", "night"][: number + 1]))
    return sets


def run(place: Path, **options: Any) -> HereRun:
    """Four steps on images that have references."""
    sets = captioned_datasets(place)
    references = place / "references"
    if not references.exists():
        for image in (place / "images").rglob("*.*g"):
            target = references / image.relative_to(place / "images")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(image.read_bytes())
    sets[0]["conditioning_data"] = ["refs"]
    sets.append(
        {
            "id": "refs",
            "type": "local",
            "dataset_type": "conditioning",
            "instance_data_dir": str(references),
            "cache_dir_vae": str(place / "cache/refs"),
        }
    )
    held = place / "held-out"
    if not held.exists():
        generate_images(held, count=2, size=(96, 96))
    sets.append(
        {"id": "eval", "type": "local", "dataset_type": "eval", "instance_data_dir": str(held), "cache_dir_vae": str(place / "cache/eval")}
    )
    return train_here(place, datasets=sets, model_family="odd", model=str(tiny_model("odd")), max_train_steps=4, **options)


def odd_family(**options: Any) -> Family:
    chosen = options_with(model_family="odd", pretrained_model_name_or_path=str(tiny_model("odd")), **options)
    return load_family(chosen, resolve_devices(chosen, torch.device("cpu")))


def inputs(family: Family, prompts: Sequence[str]) -> StepInputs:
    """A batch of as many samples as prompts, alike except for these."""
    count, dice = len(prompts), torch.Generator().manual_seed(0)
    facts = SampleFacts(original_size=(100, 50), crop_corner=(0, 0), target_size=(64, 64))
    return StepInputs(
        noisy_latents=torch.randn(1, 16, 1, 8, 8, generator=dice).repeat(count, 1, 1, 1, 1),
        timesteps=torch.full((count,), 0.7),
        prompts=family.collate_prompts(family.encode_prompts(prompts)),
        conditions=family.conditions([facts] * count),
    )


def test_the_folder_satisfies_the_interface() -> None:
    assert list(family_problems("odd")) == []


@pytest.mark.parametrize("kind", [{}, LORA], ids=["full", "lora"])
def test_a_run_resumes_to_the_same_bytes(tmp_path: Path, kind: dict[str, Any]) -> None:
    assert_resumes_exactly(tmp_path, run, **kind)
    for config in tmp_path.rglob("transformer*/config.json"):
        assert str(tmp_path) not in config.read_text(), "no result names the folder of a checkpoint"


def test_a_full_fine_tune_saves_both_networks(tmp_path: Path) -> None:
    result = run(tmp_path).output_dir / "pipeline"
    for name in ("transformer", "transformer_2"):
        trained = SanaVideoTransformer3DModel.from_pretrained(result, subfolder=name).state_dict()
        base = SanaVideoTransformer3DModel.from_pretrained(tiny_model("odd"), subfolder=name).state_dict()
        assert any(not torch.equal(trained[key], base[key]) for key in base), name


def test_an_adapter_has_the_keys_of_both_networks(tmp_path: Path) -> None:
    keys = load_file(run(tmp_path, **LORA).output_dir / "pytorch_lora_weights.safetensors")
    assert {key.split(".")[0] for key in keys} == {"transformer", "transformer_2"}
    assert not any(".to_v." in key for key in keys if key.startswith("transformer_2.")), "its own targets"


def test_a_run_is_evaluated_and_generates_images(tmp_path: Path) -> None:
    result = run(tmp_path, eval_steps_interval=2, **VALIDATION)
    assert list((result.output_dir / "validation_images").glob("*.png"))
    measured = [event for event in result.heard.events if getattr(event, "code", "") == EVALUATION]
    assert result.code == 0 and len(measured) >= 2


def test_a_short_prompt_beside_a_long_one_is_predicted_as_alone() -> None:
    family = odd_family()
    network = family.load_network().eval()
    both = inputs(family, [SHORT, LONG])
    assert both.prompts["mask"].tolist()[0] != both.prompts["mask"].tolist()[1]
    with torch.no_grad():
        together = family.predict(network, both)
        for row, prompt in enumerate((SHORT, LONG)):
            alone = family.predict(network, inputs(family, [prompt]))[0]
            assert torch.allclose(together[row], alone, rtol=1e-5, atol=1e-6), prompt
        blind = replace(both, prompts={**both.prompts, "mask": torch.ones_like(both.prompts["mask"])})
        unmasked = family.predict(network, blind)
    assert torch.equal(unmasked[1], together[1]) and not torch.allclose(unmasked[0], together[0], rtol=1e-3, atol=1e-4)


def test_padding_gets_no_gradient() -> None:
    family = odd_family()
    both = inputs(family, [SHORT, LONG])
    embeds = both.prompts["embeds"].requires_grad_()
    family.predict(family.load_network(), both).square().sum().backward()
    assert embeds.grad is not None
    reached = embeds.grad.abs().sum(dim=-1) > 0
    assert torch.equal(reached, both.prompts["mask"].bool())


def test_gradients_of_a_ragged_batch_are_the_mean_of_those_alone() -> None:
    family = odd_family()
    network = family.load_network()

    def gradients(prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        network.zero_grad()
        family.predict(network, inputs(family, prompts)).square().mean().backward()
        return {name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None}

    together, short, long = gradients([SHORT, LONG]), gradients([SHORT]), gradients([LONG])
    assert together
    for name, gradient in together.items():
        mean = (short[name] + long[name]) / 2
        assert torch.linalg.norm(gradient - mean) <= 1e-5 * torch.linalg.norm(mean) + 1e-9, name


def test_the_loss_of_a_batch_is_masked_and_weighted_sample_by_sample(tmp_path: Path) -> None:
    sets = captioned_datasets(tmp_path)
    trainer, *_ = run_of(tmp_path, Listener(), datasets=sets, model_family="odd", model=str(tiny_model("odd")))
    step, batch = trainer.step, trainer.loader.load(0).passes[0]
    mask = torch.zeros(2, 1, *batch.latents.shape[2:])
    mask[0, ..., :3], mask[1, ..., 1:, :] = 1, 1
    weights = torch.tensor([0.25, 2.0])
    noisy = step.objective.add_noise(batch.latents, batch.noise, batch.timesteps)
    target = step.objective.target(batch.latents, batch.noise, batch.timesteps)
    with torch.no_grad():
        error = (step.family.predict(step.network, batch.inputs(noisy)) - target).square()
        found = step.loss(replace(batch, loss_mask=mask, loss_weights=weights))
    each = [error[row][mask[row].expand_as(error[row]).bool()].mean() for row in range(2)]
    assert float(found) == pytest.approx(float((0.25 * each[0] + 2 * each[1]) / 2), rel=1e-6)


def test_batches_of_training_are_ragged(tmp_path: Path) -> None:
    sets, model = captioned_datasets(tmp_path), str(tiny_model("odd"))
    trainer, *_ = run_of(tmp_path, Listener(), datasets=sets, model_family="odd", model=model, caption_dropout_probability=0)
    masks = [trainer.loader.load(number).passes[0].prompts["mask"] for number in range(4)]
    assert all(len(mask) == 2 and mask.sum(dim=1).max() == mask.shape[1] for mask in masks)
    assert not any(mask.all() for mask in masks), "each caption has a length of its own"


@torch.no_grad()
def test_a_negative_prompt_of_any_length_leaves_an_unguided_image_alone() -> None:
    family = odd_family()
    network = family.load_network().eval()
    images = []
    for negative in ("", SHORT, LONG):
        wanted, unwanted = family.encode_prompts([SHORT, negative])
        request = GenerationRequest(prompt=wanted, negative=unwanted, width=64, height=64, steps=2, guidance=1.0, seed=1)
        images.append(family.generate(network, request))
    assert isinstance(images[0], Image.Image) and isinstance(images[1], Image.Image) and isinstance(images[2], Image.Image)
    assert levels_apart(images[0], images[1]) <= 1 and levels_apart(images[0], images[2]) <= 1


def test_prompts_see_images_and_samples_reach_the_network() -> None:
    family = odd_family()
    (dark,), (bright,) = (family.encode_prompts(["a cat"], [[torch.full((3, 8, 8), level)]]) for level in (-1.0, 1.0))
    assert torch.equal(dark["embeds"][:-1], bright["embeds"][:-1]) and not torch.equal(dark["embeds"], bright["embeds"])
    facts = SampleFacts(original_size=(100, 50), crop_corner=(0, 0), target_size=(64, 64))
    assert family.conditions([facts])["edges"].tolist() == [[1.0, 0.5]]
