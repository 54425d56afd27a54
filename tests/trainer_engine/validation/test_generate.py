from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PixArtSigmaPipeline
from PIL import Image
from torch import nn

from tests.helpers.models import tiny_family, tiny_pixart
from trainer_engine.families.base import Family
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.pixart_sigma.components import PixArtParts
from trainer_engine.families.pixart_sigma.family import PixArtSigma
from trainer_engine.runtime.groups import Group
from trainer_engine.runtime.reproducibility import preserve_training_state
from trainer_engine.validation.failures import GenerationFailed
from trainer_engine.validation.generate import (
    Edit,
    ValidationImage,
    ValidationPrompt,
    first_seed,
    render,
    texts_to_encode,
    validation_prompts,
)

USUAL: dict[str, Any] = {
    "validation_prompt": "a red circle",
    "validation_negative_prompt": "blurry",
    "validation_resolution": "64x64",
    "validation_num_inference_steps": 2,
    "validation_guidance": 3.0,
    "validation_seed": 7,
}


def rendered(tmp_path: Path, network: nn.Module | None = None, step: int = 5, **values: Any) -> tuple[Family, list[ValidationImage]]:
    named = ("edits", "eval_prompts", "label", "group", "on_image", "on_progress", "should_stop")
    how = {name: values.pop(name) for name in named if name in values}
    family = tiny_family(output_dir=str(tmp_path), **{**USUAL, **values})

    def read(prompt: str) -> dict[str, torch.Tensor]:
        return family.encode_prompts([prompt])[0]

    return family, render(family, network or family.load_network(), read, family.options, step, **how)


def test_prompts_are_the_unconditional_one_and_the_validation_prompt() -> None:
    options = tiny_family(**USUAL).options
    assert [(prompt.shortname, prompt.text) for prompt in validation_prompts(options)] == [
        ("unconditional", ""),
        ("validation", "a red circle"),
    ]
    assert texts_to_encode(options) == ["", "a red circle", "blurry"]


def test_a_negative_prompt_is_read_under_the_text_that_the_family_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    usual = PixArtSigma.encode_prompts
    monkeypatch.setattr(PixArtSigma, "encode_prompts", lambda self, texts: read.extend(texts) or usual(self, texts))
    monkeypatch.setattr(PixArtSigma, "negative_text", lambda self, text: f"not {text}")
    family, _ = rendered(tmp_path, validation_disable_unconditional=True)
    assert read == ["a red circle", "not blurry"] == texts_to_encode(family.options, family.negative_text)


def test_validation_without_prompts_generates_nothing(tmp_path: Path) -> None:
    assert validation_prompts(tiny_family(**USUAL, validation_disable=True).options) == []
    family = tiny_family(validation_disable_unconditional=True)
    assert (validation_prompts(family.options), texts_to_encode(family.options)) == ([], [])
    assert rendered(tmp_path, validation_prompt="", validation_disable_unconditional=True)[1] == []


def test_files_are_named_by_step_prompt_number_and_size(tmp_path: Path) -> None:
    _, images = rendered(tmp_path, validation_resolution="64x64,128x64", num_validation_images=2, validation_disable_unconditional=True)
    names = [
        "step_5_validation_0_64x64.png",
        "step_5_validation_1_64x64.png",
        "step_5_validation_0_128x64.png",
        "step_5_validation_1_128x64.png",
    ]
    assert [image.path.name for image in images] == names
    assert sorted(path.name for path in (tmp_path / "validation_images").iterdir()) == sorted(names)
    assert [image.seed for image in images] == [7, 8, 7, 8]
    for image in images:
        with Image.open(image.path) as picture:
            assert picture.size == image.resolution


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_processes_share_the_images_in_their_order_and_each_its_sizes(tmp_path: Path, processes: int) -> None:
    few = {"user_prompt_library": json.dumps({"a": "a"}), "validation_resolution": "64x64,96x64", "validation_num_inference_steps": 1}
    _, alone = rendered(tmp_path, **few)
    parts = [rendered(tmp_path, group=Group(which, processes), **few)[1] for which in range(processes)]
    assert [image for part in parts for image in part] == alone and len(alone) == 6
    lengths = {len(part) for part in parts}
    assert max(lengths) - min(lengths) <= 1
    if processes <= 3:
        assert all({image.resolution for image in part} == {(64, 64), (96, 64)} for part in parts)


@pytest.mark.parametrize("guidance", [0, 0.5, 1])
def test_a_guidance_of_one_or_less_means_no_guidance(tmp_path: Path, guidance: float) -> None:
    few = {"validation_disable_unconditional": True, "validation_guidance": guidance}
    (one,) = rendered(tmp_path / "one", **few)[1]
    (other,) = rendered(tmp_path / "other", **few, validation_negative_prompt="a green square")[1]
    assert one.path.read_bytes() == other.path.read_bytes()


def test_a_label_distinguishes_images_of_the_average(tmp_path: Path) -> None:
    _, images = rendered(tmp_path, label="ema", validation_disable_unconditional=True)
    assert images[0].path.name == "step_5_validation_ema_0_64x64.png"


def test_prompts_of_datasets_get_file_names_that_no_other_image_has(tmp_path: Path) -> None:
    few = {"user_prompt_library": json.dumps({"a cat": "a cat"}), "use_ema": True, "validation_num_inference_steps": 1}
    lent = [ValidationPrompt(name, f"number {number}") for number, name in enumerate(("a_cat", "validation_ema", "dog", "dog"))]
    _, images = rendered(tmp_path, eval_prompts=lent, **few)
    names = ["unconditional", "a cat", "validation", "a_cat-2", "validation_ema-2", "dog", "dog-2"]
    assert [image.shortname for image in images] == names and len({image.path for image in images}) == len(names)
    encode = tiny_family().encode_prompts
    pairs = [Edit("1", f"make it number {number}", tuple, lambda text: encode([text])[0]) for number in range(2)]
    _, images = rendered(tmp_path, edits=pairs, **few)
    assert [image.shortname for image in images] == ["validation_1", "1", "validation_1-2", "1-2"]


def test_libraries_stand_between_the_unconditional_prompt_and_the_validation_prompt() -> None:
    library = json.dumps({"mine": {"caption": "a dog", "adapter_strength": 0.5}})
    family = tiny_family(**USUAL, user_prompt_library=library, validation_prompt_library="people")
    options = family.options
    prompts = validation_prompts(options)
    shortnames = [prompt.shortname for prompt in prompts]
    assert shortnames[:2] == ["unconditional", "face"]
    assert shortnames[-2:] == ["mine", "validation"]
    assert prompts[-2] == ValidationPrompt("mine", "a dog", 0.5)
    assert texts_to_encode(options) == [*(prompt.text for prompt in prompts), "blurry"]
    named = validation_prompts(tiny_family(validation_prompt_library="general").options)
    assert named == validation_prompts(tiny_family(validation_prompt_library=True).options)
    assert validation_prompts(tiny_family(user_prompt_library=library, validation_disable=True).options) == []


@pytest.mark.parametrize(("format", "ending", "read_as"), [("png", "png", "PNG"), ("webp", "webp", "WEBP"), ("jpeg", "jpg", "JPEG")])
def test_images_are_written_in_the_format_of_the_option(tmp_path: Path, format: str, ending: str, read_as: str) -> None:
    _, images = rendered(tmp_path, validation_image_format=format, validation_disable_unconditional=True)
    assert images[0].path.name == f"step_5_validation_0_64x64.{ending}"
    with Image.open(images[0].path) as picture:
        assert (picture.format, picture.size) == (read_as, (64, 64))
    if format != "png":
        small = rendered(tmp_path / "small", validation_image_format=format, validation_image_quality=5)[1][1].path
        assert small.stat().st_size < images[0].path.stat().st_size


def test_every_image_keeps_its_seed_unless_the_option_changes_it(tmp_path: Path) -> None:
    network = tiny_family().load_network()
    fixed = [rendered(tmp_path / name, network, num_validation_images=2, validation_seed_source="gpu")[1] for name in "ab"]
    assert [image.path.read_bytes() for image in fixed[0]] == [image.path.read_bytes() for image in fixed[1]]
    assert [image.seed for image in fixed[0]] == [7, 8, 7, 8]
    state = torch.get_rng_state()
    free = [image for name in "cd" for image in rendered(tmp_path / name, network, validation_randomize=True)[1]]
    assert len({image.seed for image in free}) == len(free) == 4
    assert torch.equal(state, torch.get_rng_state())
    assert free[1].path.read_bytes() != free[3].path.read_bytes()


def test_the_spacing_of_timesteps_changes_the_image(tmp_path: Path) -> None:
    how = {"validation_noise_scheduler": "ddim", "validation_num_inference_steps": 3, "validation_disable_unconditional": True}
    images_by_spacing = {
        spacing: rendered(tmp_path / spacing, inference_scheduler_timestep_spacing=spacing, **how)[1][0].path.read_bytes()
        for spacing in ("trailing", "leading", "linspace")
    }
    assert len(set(images_by_spacing.values())) == 3
    assert rendered(tmp_path / "usual", **how)[1][0].path.read_bytes() == images_by_spacing["linspace"]


@pytest.mark.parametrize("prompt", ["a red circle", ""])
def test_the_image_equals_that_of_the_bare_pipeline(tmp_path: Path, prompt: str) -> None:
    _, images = rendered(tmp_path)
    pipeline = PixArtSigmaPipeline.from_pretrained(tiny_pixart())
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        prompt,
        negative_prompt="blurry",
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=3.0,
        clean_caption=False,
        use_resolution_binning=False,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    with Image.open(next(image.path for image in images if image.prompt == prompt)) as ours:
        difference = np.abs(np.asarray(ours, dtype=int) - np.asarray(wanted, dtype=int))
    assert difference.max() <= 1


def test_generation_leaves_the_training_state_unchanged(tmp_path: Path) -> None:
    family = tiny_family()
    network = family.load_network()
    network.transformer_blocks[0].eval()
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    rendered(tmp_path, network, validation_noise_scheduler="euler-a")
    assert before[0] == random.getstate()
    assert before[1] == np.random.get_state()[1].tolist()
    assert torch.equal(before[2], torch.get_rng_state())
    assert modes == [module.training for module in network.modules()]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_a_failed_generation_leaves_the_training_state_unchanged() -> None:
    network, before = nn.Linear(2, 2), torch.get_rng_state()
    with pytest.raises(KeyError), preserve_training_state(network):
        network.eval()
        torch.rand(5)
        raise KeyError
    assert network.training
    assert torch.equal(before, torch.get_rng_state())


def test_the_same_weights_give_the_same_image_at_every_step(tmp_path: Path) -> None:
    family = tiny_family()
    network = family.load_network()
    first = rendered(tmp_path / "a", network, step=0)[1]
    second = rendered(tmp_path / "b", network, step=50)[1]
    assert [image.path.read_bytes() for image in first] == [image.path.read_bytes() for image in second]


def test_other_weights_give_another_image(tmp_path: Path) -> None:
    network = tiny_family().load_network()
    before = rendered(tmp_path / "a", network)[1][0].path.read_bytes()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    assert rendered(tmp_path / "b", network)[1][0].path.read_bytes() != before


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler", "euler-a", "unipc", "dpm++"])
def test_every_sampler_generates_an_image(tmp_path: Path, sampler: str) -> None:
    _, images = rendered(
        tmp_path, validation_noise_scheduler=sampler, validation_num_inference_steps=4, validation_disable_unconditional=True
    )
    with Image.open(images[0].path) as picture:
        assert picture.size == (64, 64)


@pytest.mark.parametrize("own", ["PNDMScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_every_step_of_the_base_models_own_sampler_has_its_number(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = tiny_family()
    config = {**family.scheduler_config(), "_class_name": own}
    monkeypatch.setattr(PixArtParts, "scheduler_config", lambda _: config)
    prompt, negative = family.encode_prompts(["a cat", "blurry"])
    numbers: list[int] = []
    pipeline = family.make_pipeline(family.load_network())
    family.generate(
        pipeline,
        GenerationRequest(prompt=prompt, negative=negative, width=64, height=64, steps=7, guidance=3.0, seed=1),
        on_step=lambda taken: numbers.append(taken.number),
    )
    assert numbers == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("own", ["RePaintScheduler", "ScoreSdeVeScheduler", "UnCLIPScheduler", "AmusedScheduler"])
def test_a_sampler_that_the_pipeline_cannot_use_fails_the_generation_alone(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**tiny_family().scheduler_config(), "_class_name": own}
    monkeypatch.setattr(PixArtParts, "scheduler_config", lambda _: config)
    with pytest.raises(GenerationFailed, match=own):
        rendered(tmp_path)


@pytest.mark.parametrize(
    "values", [{"mixed_precision": "bf16", "optimizer": "adamw_bf16"}, {"mixed_precision": "bf16", "optimizer": "torch-adamw"}]
)
def test_short_types_generate_about_the_same_image(tmp_path: Path, values: dict[str, str]) -> None:
    exact, short = rendered(tmp_path / "a")[1][1].path, rendered(tmp_path / "b", **values)[1][1].path
    with Image.open(exact) as ours, Image.open(short) as theirs:
        assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).mean() < 12


def test_images_and_sampler_steps_are_announced(tmp_path: Path) -> None:
    announced: list[str] = []
    heard: list[tuple[int, int]] = []
    rendered(
        tmp_path, on_image=lambda image: announced.append(image.shortname), on_progress=lambda done, total: heard.append((done, total))
    )
    assert announced == ["unconditional", "validation"]
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(("stop_at", "images", "steps"), [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 1, 3)])
def test_a_stop_ends_the_generation_after_the_sampler_step(tmp_path: Path, stop_at: int, images: int, steps: int) -> None:
    heard: list[int] = []
    finished = rendered(tmp_path, on_progress=lambda done, total: heard.append(done), should_stop=lambda: len(heard) >= stop_at)[1]
    assert (len(finished), len(heard)) == (images, steps)
    assert len(list((tmp_path / "validation_images").glob("*"))) == images


def test_the_autoencoder_is_freed_after_generation(tmp_path: Path) -> None:
    assert not rendered(tmp_path)[0].autoencoder.is_loaded


def test_the_seed_of_the_run_stands_in_for_an_empty_one() -> None:
    assert first_seed(tiny_family(validation_seed=0, seed=9).options) == 0
    assert first_seed(tiny_family(seed=9).options) == 9
