"""The flavours of Qwen-Image that edit, beside the pipelines of diffusers: prompts that see references, losses, images and runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.adapter_gradients import LORA, assert_adapter_is_its_definition
from tests.helpers.checked_runs import checked, codes
from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import options_with, tiny_model
from tests.helpers.params import first_fast
from tests.helpers.pictures import generate_images
from tests.helpers.references import picture, pixels_of, processor_in, tell_images
from tests.helpers.resuming import assert_resumes_exactly
from trainer_engine.adapters.build import make_trainable
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.load import load_family
from trainer_engine.families.qwen_image.family import QwenImage
from trainer_engine.families.qwen_image.spec import EDITS, SPEC
from trainer_engine.objectives.build import make_objective
from trainer_engine.runtime.devices import resolve_devices

SIGMAS = torch.tensor([0.1, 0.5, 0.9])
ONE, PLUS, ZERO_TIME = "edit-v1", "edit-v2", "edit-v3"
AREA = 64 * 64
every_edit = pytest.mark.parametrize("flavour", [ONE, PLUS, ZERO_TIME])


def tiny_edit(flavour: str, **values: Any) -> QwenImage:
    model = str(tiny_model("qwen_image", flavour=flavour))
    options = options_with(**{"model_family": "qwen_image", "model_flavour": flavour, "pretrained_model_name_or_path": model, **values})
    family = load_family(options, resolve_devices(options, torch.device("cpu")))
    assert isinstance(family, QwenImage)
    return family


def pipeline_in(folder: Path, flavour: str) -> Any:
    """The pipeline, whose text encoder is given what its processor knows of the tokens: diffusers does not pass it on."""
    kind = QwenImageEditPipeline if flavour == ONE else QwenImageEditPlusPipeline
    pipeline: Any = kind.from_pretrained(folder, processor=processor_in(folder / "processor"))
    pipeline.set_progress_bar_config(disable=True)
    tell_images(pipeline.text_encoder)
    return pipeline


@pytest.fixture(scope="module")
def pipelines() -> dict[str, Any]:
    return {flavour: pipeline_in(tiny_model("qwen_image", flavour=flavour), flavour) for flavour in (ONE, PLUS, ZERO_TIME)}


@pytest.fixture(autouse=True)
def small_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipelines scale references to 64 x 64 pixels for the autoencoder, not to a million pixels."""
    usual = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: usual(AREA, ratio))
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", AREA)


def seen_by(flavour: str, pipeline: Any, images: list[Image.Image], area: int) -> Any:
    """References as the pipeline shows them to its text encoder."""
    sizes = [pipeline_qwenimage_edit_plus.calculate_dimensions(area, image.width / image.height) for image in images]
    scaled = [pipeline.image_processor.resize(image, height, width) for image, (width, height) in zip(images, sizes, strict=True)]
    return scaled[0] if flavour == ONE else scaled


def images_for(flavour: str) -> list[Image.Image]:
    return [picture(1)] if flavour == ONE else [picture(1), picture(2, (96, 64))]


@every_edit
def test_prompts_see_references_as_in_the_pipeline(flavour: str, pipelines: dict[str, Any]) -> None:
    family, images = tiny_edit(flavour), images_for(flavour)
    assert family.prompts_see_references and family.pipeline_name == type(pipelines[flavour]).__name__
    (ours,) = family.encode_prompts(["make it red"], [[pixels_of(image) for image in images]])
    with torch.no_grad():
        seen = seen_by(flavour, pipelines[flavour], images, family.task.seen_area_px)
        wanted, mask = pipelines[flavour].encode_prompt(["make it red"], image=seen)
    assert mask is None and torch.allclose(ours["embeds"], wanted[0], atol=1e-6)
    others = [pixels_of(picture(7, image.size)) for image in images]
    (changed,) = family.encode_prompts(["make it red"], [others])
    assert changed["embeds"].shape == ours["embeds"].shape and not torch.allclose(changed["embeds"], ours["embeds"], atol=1e-3)


def test_the_place_of_an_image_is_not_that_of_as_many_words(pipelines: dict[str, Any]) -> None:
    family, images = tiny_edit(PLUS), images_for(PLUS)
    (ours,) = family.encode_prompts(["make it red"], [[pixels_of(image) for image in images]])
    pipeline = pipelines[PLUS]
    hooks = dict(pipeline.text_encoder._forward_pre_hooks)
    pipeline.text_encoder._forward_pre_hooks.clear()
    try:
        with torch.no_grad():
            plain, _ = pipeline.encode_prompt(["make it red"], image=seen_by(PLUS, pipeline, images, family.task.seen_area_px))
    finally:
        pipeline.text_encoder._forward_pre_hooks.update(hooks)
    assert plain.shape[1:] == ours["embeds"].shape and not torch.allclose(plain[0], ours["embeds"], atol=1e-4)


def test_prompts_of_a_batch_may_see_different_references() -> None:
    family = tiny_edit(PLUS)
    one, two = [pixels_of(picture(1))], [pixels_of(picture(2, (96, 64))), pixels_of(picture(3))]
    together = family.encode_prompts(["a", "b", "c"], [one, two, []])
    alone = [family.encode_prompts([text], [seen])[0] for text, seen in (("a", one), ("b", two), ("c", []))]
    assert all(torch.equal(first["embeds"], second["embeds"]) for first, second in zip(together, alone, strict=True))
    assert len(together[2]["embeds"]) < len(together[0]["embeds"]) < len(together[1]["embeds"])


def test_a_long_prompt_loses_its_end_and_no_part_of_a_reference() -> None:
    family = tiny_edit(PLUS)
    seen = [[pixels_of(picture(1))]]
    (short,), (long,) = family.encode_prompts(["a"], seen), family.encode_prompts(["a" * 3000], seen)
    of_reference = len("Picture 1: ") + 2 + 36
    assert len(long["embeds"]) == SPEC.prompts.token_limit + of_reference
    assert torch.allclose(long["embeds"][:of_reference], short["embeds"][:of_reference], atol=1e-5)


def bare_network(flavour: str) -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel.from_pretrained(tiny_model("qwen_image", flavour=flavour), subfolder="transformer").train()


def losses(family: QwenImage, flavour: str, network: nn.Module, bare: nn.Module) -> tuple[Tensor, Tensor]:
    """Ours, and that of diffusers alone, of three samples with all references that a flavour takes here."""
    made = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(3, 16, 8, 10, generator=made) for _ in range(2))
    beside = [torch.randn(3, 16, 6 + 2 * number, 8, generator=made) for number in range(len(images_for(flavour)))]
    embeds = torch.randn(3, 9, 32, generator=made)
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    noisy = objective.add_noise(latents, noise, SIGMAS)
    given = StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts={"embeds": embeds}, references=tuple(beside))
    loss = objective.loss(family.predict(network, given), objective.target(latents, noise, SIGMAS), SIGMAS).mean()

    sigma, pack = SIGMAS.view(-1, 1, 1, 1), QwenImageEditPlusPipeline._pack_latents
    tokens = [pack(one, 3, 16, *one.shape[-2:]) for one in ((1 - sigma) * latents + sigma * noise, *beside)]
    output = bare(
        hidden_states=torch.cat(tokens, dim=1),
        timestep=SIGMAS,
        encoder_hidden_states=embeds,
        img_shapes=[[(1, 4, 5), *((1, one.shape[-2] // 2, 4) for one in beside)]] * 3,
        return_dict=False,
    )[0][:, :20]
    return loss, mse_loss(QwenImageEditPlusPipeline._unpack_latents(output, 64, 80, 8)[:, :, 0], noise - latents)


@every_edit
def test_loss_and_every_gradient_equal_those_of_diffusers_with_references(flavour: str) -> None:
    family, bare = tiny_edit(flavour), bare_network(flavour)
    network = family.load_network()
    assert bare.config.zero_cond_t == (flavour == ZERO_TIME)
    loss, wanted = losses(family, flavour, network, bare)
    assert_same_gradients(loss, network, wanted, bare, family.unread_parameters(network))


@pytest.mark.parametrize("flavour", first_fast([ONE, PLUS, ZERO_TIME]))
def test_an_adapter_has_the_loss_and_gradients_of_its_definition_with_references(flavour: str) -> None:
    family = tiny_edit(flavour, **LORA)
    assert_adapter_is_its_definition(make_trainable(family, None), bare_network(flavour), partial(losses, family, flavour))


@every_edit
def test_images_equal_those_of_the_pipeline_bit_for_bit(flavour: str, pipelines: dict[str, Any]) -> None:
    family, theirs, images = tiny_edit(flavour), pipelines[flavour], images_for(flavour)
    sizes = [pipeline_qwenimage_edit_plus.calculate_dimensions(AREA, image.width / image.height) for image in images]
    scaled = [image.resize(size, Image.Resampling.LANCZOS) for image, size in zip(images, sizes, strict=True)]
    # edit-v1 shows its text encoder the image that it gives the autoencoder.
    shown = scaled[:1] if flavour == ONE else images
    seen_area = AREA if flavour == ONE else family.task.seen_area_px
    family.text.task = family.task._replace(seen_area_px=seen_area)
    prompt, negative = (family.encode_prompts([text], [[pixels_of(one) for one in shown]])[0] for text in ("make it red", "blue"))
    references = tuple(family.encode_images(pixels_of(one)[None])[0] for one in scaled)
    network = family.load_network().eval()
    request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=96, steps=2, guidance=3.0, seed=5, references=references)
    ours = family.generate(family.make_pipeline(network), request)
    wanted = theirs(
        image=images[0] if flavour == ONE else images,
        prompt="make it red",
        negative_prompt="blue",
        true_cfg_scale=3.0,
        height=96,
        width=64,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert np.array_equal(np.asarray(ours), np.asarray(wanted))
    assert not network._forward_hooks and not network._forward_pre_hooks


@torch.no_grad()
def test_the_weights_of_2509_can_be_trained_with_references_at_time_zero(tmp_path: Path) -> None:
    folder = tiny_model("qwen_image", flavour=PLUS)
    made = torch.Generator().manual_seed(2)
    given = StepInputs(
        noisy_latents=torch.randn(1, 16, 8, 8, generator=made),
        timesteps=torch.tensor([0.7]),
        prompts={"embeds": torch.randn(1, 9, 32, generator=made)},
        references=(torch.randn(1, 16, 8, 8, generator=made),),
    )
    families = [tiny_edit(flavour, pretrained_model_name_or_path=str(folder)) for flavour in (PLUS, "edit-v2+", "edit-v2+")]
    networks = [family.load_network().eval() for family in families[:2]]
    families[1].save_component("transformer", networks[1], tmp_path / "saved/transformer")
    networks.append(families[2].load_network(tmp_path / "saved").eval())
    networks.append(QwenImageTransformer2DModel.from_pretrained(folder, subfolder="transformer", zero_cond_t=True).eval())
    plain, ours, again, theirs = (families[1].predict(network, given) for network in networks)
    assert torch.equal(ours, theirs) and torch.equal(again, theirs) and not torch.allclose(plain, ours, atol=1e-4)
    assert QwenImageTransformer2DModel.from_pretrained(tmp_path / "saved/transformer").config.zero_cond_t


def test_embeddings_of_flavours_that_word_prompts_differently_are_kept_apart(tmp_path: Path) -> None:
    hashes, model = FileHashes(tmp_path / "hashes.json"), str(tiny_model("qwen_image", flavour=ONE))
    kept = {flavour: tiny_edit(flavour, pretrained_model_name_or_path=model).text_fingerprint(hashes) for flavour in SPEC.flavours}
    assert len(set(kept.values())) == 3
    assert kept["v1.0"] == kept["v2.0"] and kept[PLUS] == kept["edit-v2+"] == kept[ZERO_TIME]


def test_a_base_model_without_the_image_processor_is_refused_by_name() -> None:
    family = tiny_edit(PLUS, pretrained_model_name_or_path=str(tiny_model("qwen_image")))
    with pytest.raises(ModelUnavailable, match="no folder processor"):
        family.encode_prompts(["a"], [[pixels_of(picture(1))]])


@pytest.mark.parametrize("flavour", [ONE, PLUS, "v2.0"])
def test_validate_refuses_a_base_model_without_the_image_processor(tmp_path: Path, flavour: str) -> None:
    lacking = checked(tmp_path, model_family="qwen_image", model_flavour=flavour, model=str(tiny_model("qwen_image")), resolution=64)
    named = [problem.message for problem in lacking.errors if problem.code == "component_missing"]
    assert len(named) == (flavour != "v2.0") and all("no folder processor" in message for message in named)
    whole = str(tiny_model("qwen_image", flavour=ONE))
    assert "component_missing" not in codes(checked(tmp_path, model_family="qwen_image", model_flavour=flavour, model=whole, resolution=64))


def test_flavours_that_edit_need_references_and_the_others_take_none() -> None:
    assert SPEC.needs_references == SPEC.takes_references == EDITS == {"edit-v1", "edit-v2", "edit-v2+", "edit-v3"}
    assert not SPEC.other_flavours


def pairs(place: Path) -> list[dict[str, Any]]:
    """Images with two references each, by the names of their files."""
    found = []
    for name in ("after", "before", "style"):
        generate_images(place / name, count=3, size=(64, 64))
        entry = {"id": name, "type": "local", "instance_data_dir": str(place / name), "resolution": 64, "resolution_type": "pixel"}
        found.append(entry if name == "after" else {**entry, "conditioning_type": "reference_strict"})
    found[0] |= {"conditioning_data": ["before", "style"], "caption_strategy": "instanceprompt", "instance_prompt": "make it red"}
    texts = {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": str(place / "texts")}
    return [*({**entry, "cache_dir_vae": str(place / "latents" / entry["id"])} for entry in found), texts]


@pytest.mark.parametrize(("flavour", "model_type"), [(ONE, "lora"), (ZERO_TIME, "full")])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, flavour: str, model_type: str) -> None:
    usual: dict[str, Any] = {
        "model_family": "qwen_image",
        "model_flavour": flavour,
        "model": str(tiny_model("qwen_image", flavour=flavour)),
    }
    usual |= {"max_train_steps": 4, "model_type": model_type, "caption_dropout_probability": 0.5}
    usual |= {"conditioning_multidataset_sampling": "random" if flavour == ONE else "combined"}
    straight = assert_resumes_exactly(tmp_path, datasets=pairs(tmp_path / "sets"), **usual)
    if model_type == "full":
        pipeline = pipeline_in(straight.output_dir / "pipeline", flavour)
        assert pipeline(image=[picture(1)], prompt="red", height=32, width=32, num_inference_steps=2).images[0].size == (32, 32)
