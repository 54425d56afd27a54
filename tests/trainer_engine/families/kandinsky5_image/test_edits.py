"""The flavours of Kandinsky 5 that edit, beside the pipeline of diffusers: prompts that see a reference, losses, images and runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Kandinsky5Transformer3DModel
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.adapter_gradients import LORA, assert_adapter_is_its_definition
from tests.helpers.checked_runs import checked, codes
from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, laid_out_alike, options_with, tiny_model
from tests.helpers.pictures import generate_images
from tests.helpers.resuming import assert_resumes_exactly
from tests.trainer_engine.families.kandinsky5_image.models import EDIT, NAME, SIGMAS, pipeline_in, tiny_edit, tiny_kandinsky
from tests.trainer_engine.families.kandinsky5_image.network import called
from trainer_engine.adapters.build import make_trainable
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.kandinsky5_image import prompts as kandinsky_prompts
from trainer_engine.families.kandinsky5_image.family import Kandinsky5Image
from trainer_engine.families.kandinsky5_image.spec import SPEC
from trainer_engine.families.load import load_family
from trainer_engine.objectives.build import make_objective
from trainer_engine.runtime.devices import resolve_devices

CPU = torch.device("cpu")
LIMIT = 1024
PROMPTS = ["make it red", "", "put two small stars behind the mountain"]


def picture(seed: int, size: tuple[int, int] = (64, 96)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def pixels_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pipeline_in(tiny_model(NAME, flavour=EDIT))


@torch.no_grad()
def test_prompts_see_their_reference_as_in_the_pipeline(theirs: Any) -> None:
    family, images = tiny_edit(), [picture(1), picture(2, (96, 64)), picture(3)]
    assert family.prompts_see_references and family.pipeline_name == type(theirs).__name__
    ours = family.encode_prompts(PROMPTS, [[pixels_of(image)] for image in images])
    for one, prompt, image in zip(ours, PROMPTS, images, strict=True):
        states, pooled, _ = theirs.encode_prompt(prompt, image=[image], device=CPU)
        assert torch.equal(one["embeds"], states[0]) and torch.equal(one["pooled"], pooled[0])
    (changed,) = family.encode_prompts(PROMPTS[:1], [[pixels_of(picture(7))]])
    assert changed["embeds"].shape == ours[0]["embeds"].shape and not torch.allclose(changed["embeds"], ours[0]["embeds"], atol=1e-3)


def test_a_long_prompt_loses_its_end_and_the_reference_keeps_its_place(theirs: Any) -> None:
    family, seen = tiny_edit(), [[pixels_of(picture(1))]]
    with pytest.raises(ValueError, match="image_pad"):
        theirs.encode_prompt("make it red " * 300, image=[picture(1)], device=CPU)
    (long,) = family.encode_prompts(["make it red " * 300], seen)
    assert LIMIT - 4 <= len(long["embeds"]) <= LIMIT == family.token_limit
    beginning = ("make it red " * 300)[: -(300 * len("make it red ") - (LIMIT - 100))]
    (short,) = family.encode_prompts([beginning], seen)
    assert torch.allclose(long["embeds"][:800], short["embeds"][:800], atol=1e-5)


@torch.no_grad()
def test_a_large_reference_is_shown_at_the_area_of_the_sizes_that_are_generated(monkeypatch: pytest.MonkeyPatch, theirs: Any) -> None:
    monkeypatch.setattr(kandinsky_prompts, "LARGEST_PX", 48 * 24)
    (ours,) = tiny_edit().encode_prompts(["make it red"], [[pixels_of(picture(1, (96, 48)))]])
    small = picture(1, (96, 48)).resize((48, 24), Image.Resampling.LANCZOS)
    assert torch.equal(ours["embeds"], theirs.encode_prompt("make it red", image=[small], device=CPU)[0][0])


def test_embeddings_with_and_without_the_part_for_images_are_told_apart(tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "hashes.jsonl")
    assert tiny_edit().text_fingerprint(hashes) != tiny_kandinsky().text_fingerprint(hashes)


def bare_network() -> Kandinsky5Transformer3DModel:
    return Kandinsky5Transformer3DModel.from_pretrained(tiny_model(NAME, flavour=EDIT), subfolder="transformer").train()


def losses(family: Kandinsky5Image, network: nn.Module, bare: nn.Module) -> tuple[Tensor, Tensor]:
    """Ours, and that of diffusers alone, of three prompts with a reference each."""
    latents, noise, reference = (fixed(3, 16, 8, 10, seed=seed) for seed in (1, 2, 3))
    prompts = [{"embeds": fixed(length, 32, seed=length), "pooled": fixed(32, seed=length + 1)} for length in (9, 5, 14)]
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    noisy = objective.add_noise(latents, noise, SIGMAS)
    batch = family.collate_prompts(prompts)
    given = StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=batch, references=(reference,))
    loss = objective.loss(family.predict(network, given), objective.target(latents, noise, SIGMAS), SIGMAS).mean()

    sigma = SIGMAS.view(-1, 1, 1, 1)
    seen = torch.cat([(1 - sigma) * latents + sigma * noise, reference, torch.ones(3, 1, 8, 10)], dim=1)
    rows = zip(seen, prompts, 1000 * SIGMAS, strict=True)
    output = torch.cat([called(bare, one, prompt["embeds"], prompt["pooled"], time[None]) for one, prompt, time in rows])
    return loss, mse_loss(output, noise - latents)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers_with_a_reference(gradient_checkpointing: bool) -> None:
    family, bare = tiny_edit(gradient_checkpointing=gradient_checkpointing), bare_network()
    network = family.load_network()
    loss, wanted = losses(family, network, bare)
    assert_same_gradients(loss, network, wanted, bare)


def test_an_adapter_has_the_loss_and_gradients_of_its_definition_with_a_reference() -> None:
    family = tiny_edit(**LORA)
    assert_adapter_is_its_definition(make_trainable(family, None), bare_network(), partial(losses, family))


@pytest.mark.parametrize(("sampler", "guidance"), [(None, 3.5), (None, 1.0), ("unipc", 3.5)])
@pytest.mark.parametrize("size", [(64, 96), (96, 64)], ids=["of the reference", "another"])
def test_images_equal_those_of_the_pipeline_bit_for_bit(sampler: str | None, guidance: float, size: tuple[int, int]) -> None:
    """The pipeline is given the most likely latents of the reference in the place of a sample."""
    family, image, (width, height) = tiny_edit(), picture(1), size
    prompt, negative = family.encode_prompts(["make it red", "blue"], [[pixels_of(image)]] * 2)
    network = family.load_network().eval()
    pipeline, steps = family.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    more = {"width": width, "height": height, "steps": 3, "guidance": guidance, "seed": 5, "reference": image}
    ours = family.generate(pipeline, GenerationRequest(prompt=prompt, negative=negative, **more), on_step=steps.append)
    theirs = laid_out_alike(pipeline_in(tiny_model(NAME, flavour=EDIT), scheduler=pipeline.scheduler))
    theirs.resolutions = [size]
    noise = randn_tensor((1, 1, height // 8, width // 8, 16), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        pixels = theirs.image_processor.preprocess(image, height=height, width=width).contiguous(memory_format=torch.channels_last)
        reference = theirs.vae.encode(pixels).latent_dist.mode() * theirs.vae.config.scaling_factor
    beside = torch.cat([noise, reference.permute(0, 2, 3, 1)[:, None], torch.ones_like(noise[..., :1])], dim=-1)
    given = {"negative_prompt": "blue", "height": height, "width": width, "num_inference_steps": 3, "guidance_scale": guidance}
    wanted = theirs(image=image, prompt="make it red", latents=beside.clone(), **given).image[0]
    assert [step.latents.shape for step in steps] == [(1, 16, height // 8, width // 8)] * 3
    assert not torch.equal(steps[0].latents, steps[2].latents), "a step keeps what it was"
    assert ours.size == size and ours.tobytes() == wanted.tobytes() == family.preview(steps[-1].latents).tobytes()


def test_the_latents_of_a_reference_are_nearly_a_sample_of_the_pipeline(theirs: Any) -> None:
    family, image = tiny_edit(), picture(1)
    noise = {"generator": torch.Generator().manual_seed(5), "device": CPU, "dtype": torch.float32}
    with torch.no_grad():
        latents = theirs.prepare_latents(image, 1, 16, 96, 64, **noise)
    request = GenerationRequest(prompt={}, negative={}, width=64, height=96, steps=1, guidance=1.0, seed=5, reference=image)
    pipeline = family.make_pipeline(family.load_network())
    assert torch.allclose(family._seen(pipeline, request)["latents"], latents, atol=1e-4)


def test_each_flavour_takes_the_network_with_its_inputs_alone() -> None:
    for flavour, other in ((EDIT, "t2i-lite-sft"), ("t2i-lite-sft", EDIT)):
        network = {"pretrained_transformer_model_name_or_path": str(tiny_model(NAME, flavour=other))}
        options = options_with(
            model_family=NAME, model_flavour=flavour, pretrained_model_name_or_path=str(tiny_model(NAME, flavour=flavour)), **network
        )
        with pytest.raises(ModelUnavailable, match=f"{flavour} has other inputs"):
            load_family(options, resolve_devices(options, CPU)).load_network()


def entries(place: Path, kind: str = "reference_strict") -> list[dict[str, Any]]:
    for name in ("edited", "originals"):
        generate_images(place / name, count=3, size=(64, 64))
    images = {"id": "edits", "type": "local", "dataset_type": "image", "instance_data_dir": str(place / "edited"), "resolution": 64}
    images |= {"resolution_type": "pixel", "caption_strategy": "filename", "conditioning_data": ["originals"], "crop": True}
    references = {"id": "originals", "type": "local", "dataset_type": "conditioning", "conditioning_type": kind}
    texts = {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True}
    return [images, {**references, "instance_data_dir": str(place / "originals")}, texts]


USUAL: dict[str, Any] = {"model_family": NAME, "model_flavour": EDIT, "resolution": 64, "train_batch_size": 1}


def test_validate_wants_one_reference_of_the_size_of_each_image(tmp_path: Path) -> None:
    given = {
        **USUAL,
        "pretrained_model_name_or_path": str(tiny_model(NAME, flavour=EDIT)),
        "model_type": "lora",
        "validation_disable": False,
    }
    assert checked(tmp_path, datasets=entries(tmp_path), **given).errors == []
    assert "reference_of_any_size" in codes(checked(tmp_path, datasets=entries(tmp_path, "reference_loose"), **given))
    assert "references_needed" in codes(checked(tmp_path, **given))
    assert "no_reference" in codes(checked(tmp_path, datasets=entries(tmp_path), **given, validation_using_datasets=False))
    wrong = {**given, "pretrained_model_name_or_path": str(tiny_model(NAME))}
    assert "other_flavour" in codes(checked(tmp_path, datasets=entries(tmp_path), **wrong))
    assert SPEC.edits_in_place(EDIT) and not SPEC.edits_in_place(None)


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_with_references_resumes_exactly_and_shows_edits(tmp_path: Path, model_type: str) -> None:
    shown = {"validation_disable": False, "validation_step_interval": 4, "validation_resolution": "64x96", "num_eval_images": 1}
    shown |= {"validation_prompt": "make it red", "validation_num_inference_steps": 2, "validation_guidance": 2.0}
    usual = {**USUAL, **shown, "model": str(tiny_model(NAME, flavour=EDIT)), "model_type": model_type, "max_train_steps": 4}
    straight = assert_resumes_exactly(tmp_path, datasets=entries(tmp_path), **usual)
    made = list((straight.output_dir / "validation_images").glob("*.png"))
    assert made and {Image.open(path).size for path in made} == {(64, 96)}
    if model_type == "full":
        pipeline = pipeline_in(straight.output_dir / "pipeline")
        pipeline.resolutions = [(64, 64)]
        assert pipeline(image=picture(1, (64, 64)), prompt="a cat", num_inference_steps=2).image[0].size == (64, 64)
