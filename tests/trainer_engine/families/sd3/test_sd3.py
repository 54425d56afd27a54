"""Stable Diffusion 3.5 beside diffusers, with and without T5: prompts, losses, gradients, images and the result of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.checked_runs import checked
from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, laid_out_alike, tiny_model, tiny_of
from tests.helpers.params import first_rows_fast
from tests.helpers.resuming import assert_resumes_exactly
from trainer_engine.config.parse import check_options
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.sd3.family import StableDiffusion3
from trainer_engine.families.sd3.spec import SPEC
from trainer_engine.objectives.build import make_objective

PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])
LIMIT = 154
both = pytest.mark.parametrize("with_t5", [True, False], ids=["T5", "without T5"])


def folder_of(with_t5: bool) -> Path:
    return tiny_model("sd3") if with_t5 else tiny_model("sd3", with_t5=False)


def tiny_sd3(with_t5: bool = True, **values: Any) -> StableDiffusion3:
    """The micro model on the CPU."""
    return tiny_of(StableDiffusion3, folder_of(with_t5), **values)


def pipeline_in(folder: Path, with_t5: bool, **parts: Any) -> StableDiffusion3Pipeline:
    """The pipeline in a folder; the library wants to be told that there is no T5."""
    missing = {} if with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    return StableDiffusion3Pipeline.from_pretrained(folder, **missing, **parts)


def their_prompts(with_t5: bool, prompts: list[str]) -> tuple[Tensor, Tensor]:
    pipeline = pipeline_in(folder_of(with_t5), with_t5)
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=LIMIT)
    return embeds, pooled


@both
def test_prompts_equal_those_of_the_pipeline(with_t5: bool) -> None:
    family = tiny_sd3(with_t5)
    batch = family.collate_prompts(family.encode_prompts(PROMPTS))
    embeds, pooled = their_prompts(with_t5, PROMPTS)
    assert embeds.shape == (3, 77 + LIMIT, 80)
    assert torch.allclose(family.joint_states(batch, 80), embeds, atol=1e-5)
    assert torch.allclose(batch["pooled"], pooled, atol=1e-5)


@both
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(with_t5: bool, gradient_checkpointing: bool) -> None:
    family = tiny_sd3(with_t5, gradient_checkpointing=gradient_checkpointing)
    network = family.load_network()
    theirs = SD3Transformer2DModel.from_pretrained(folder_of(with_t5), subfolder="transformer").train()
    latents, noise = fixed(3, 16, 8, 10, seed=1), fixed(3, 16, 8, 10, seed=2)
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, SIGMAS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=prompts))
    loss = objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()
    sigma = SIGMAS.view(-1, 1, 1, 1)
    embeds, pooled = their_prompts(with_t5, PROMPTS)
    output = theirs((1 - sigma) * latents + sigma * noise, embeds, pooled, SIGMAS * 1000, return_dict=False)[0]
    wanted = mse_loss(output, noise - latents)
    assert_same_gradients(loss, network, wanted, theirs)


SKIPPED = {"validation_guidance_skip_layers": "[1]", "validation_guidance_skip_layers_stop": 0.9, "validation_guidance_skip_scale": 2.0}


@pytest.mark.parametrize(
    ("sampler", "with_t5", "options"),
    [(None, True, {}), (None, False, {}), ("unipc", True, {}), ("dpm++", True, {}), (None, True, SKIPPED)],
)
def test_images_equal_those_of_the_pipeline(sampler: str | None, with_t5: bool, options: dict[str, Any]) -> None:
    family = tiny_sd3(with_t5, **options)
    network = family.load_network().eval()
    (prompt,), (negative,) = (family.encode_prompts([text]) for text in ("a red circle", "blue"))
    pipeline, steps = family.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(
        prompt=prompt,
        negative=negative,
        width=64,
        height=96,
        steps=3,
        guidance=4.0,
        seed=5,
        skipped_layers=family.options.validation.skipped_layers,
    )
    ours = family.generate(pipeline, request, on_step=steps.append)
    theirs = laid_out_alike(pipeline_in(folder_of(with_t5), with_t5, scheduler=pipeline.scheduler))
    given = {"negative_prompt": "blue", "height": 96, "width": 64, "num_inference_steps": 3, "guidance_scale": 4.0}
    skipped = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.9, "skip_layer_guidance_scale": 2.0} if options else {}
    wanted = theirs("a red circle", generator=torch.Generator().manual_seed(5), max_sequence_length=LIMIT, **given, **skipped).images[0]
    assert [step.number for step in steps] == [1, 2, 3]
    assert {step.latents.shape for step in steps} == {(1, 16, 12, 8)}
    assert isinstance(ours, Image.Image)
    assert ours.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("options", "zeroed"),
    [
        ({}, set()),
        ({"sd3_clip_uncond_behaviour": "zero"}, {"clip", "pooled", "embeds"}),
        ({"sd3_clip_uncond_behaviour": "zero", "sd3_t5_uncond_behaviour": "empty_string"}, {"clip", "pooled"}),
        ({"sd3_t5_uncond_behaviour": "zero"}, {"embeds"}),
    ],
)
def test_an_empty_prompt_is_zero_where_the_options_say_so(options: dict[str, Any], zeroed: set[str], tmp_path: Path) -> None:
    family = tiny_sd3(**options)
    empty, other = family.encode_prompts(["", "a red circle"])
    assert {name for name, tensor in empty.items() if not tensor.any()} == zeroed
    assert all(tensor.any() for tensor in other.values())
    hashes = FileHashes(tmp_path / "hashes.jsonl")
    assert (family.text_fingerprint(hashes) == tiny_sd3().text_fingerprint(hashes)) is not bool(options)


def test_zero_padding_of_t5_takes_no_place_and_is_zero_for_the_network(tmp_path: Path) -> None:
    family = tiny_sd3(t5_padding="zero")
    (stored,) = family.encode_prompts(["a red circle"])
    joint = family.joint_states(family.collate_prompts([stored]), 80)
    length = len(stored["embeds"])
    assert length < 10 and joint.shape == (1, 77 + LIMIT, 80)
    assert not joint[0, 77 + length :].any() and torch.equal(joint[0, 77 : 77 + length], stored["embeds"])
    hashes = FileHashes(tmp_path / "hashes.jsonl")
    assert family.text_fingerprint(hashes) != tiny_sd3().text_fingerprint(hashes)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"validation_guidance_skip_layers": "[7, 8, 9]"}, None),
        ({"validation_guidance_skip_layers": "[7, 24]"}, ("validation_guidance_skip_layers", "no_such_layer")),
        ({"validation_guidance_skip_layers": "[37]", "model_flavour": "large"}, None),
        ({"validation_guidance_skip_layers": '["seven"]'}, ("validation_guidance_skip_layers", "not_a_whole_number")),
        ({"validation_guidance_skip_layers": "[-1]"}, ("validation_guidance_skip_layers", "not_a_whole_number")),
        ({"validation_guidance_skip_layers": "[7]", "validation_guidance": 1}, ("validation_guidance_skip_layers", "no_effect")),
        (
            {"validation_guidance_skip_layers": "[7]", "validation_guidance_skip_layers_start": 0.5},
            ("validation_guidance_skip_layers_start", "above_maximum"),
        ),
        ({"validation_guidance_skip_scale": 3}, ("validation_guidance_skip_scale", "no_effect")),
    ],
)
def test_blocks_that_are_left_out_are_checked(options: dict[str, Any], found: tuple[str, str] | None) -> None:
    usual = {"model_family": "sd3", "model_type": "full", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}
    _, problems = check_options({**usual, **options})
    about = [(problem.option, problem.code) for problem in problems if problem.option.startswith("validation_guidance")]
    assert about == ([found] if found else [])


@pytest.mark.parametrize(("with_t5", "model_type"), first_rows_fast([(True, "full"), (False, "full"), (True, "lora")]))
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, with_t5: bool, model_type: str) -> None:
    usual = {"model_family": "sd3", "model": str(folder_of(with_t5)), "max_train_steps": 4, "model_type": model_type}
    straight = assert_resumes_exactly(tmp_path, **usual)
    if model_type == "full":
        pipeline = pipeline_in(straight.output_dir / "pipeline", with_t5)
        assert (pipeline.text_encoder_3 is not None) is with_t5
        assert pipeline("a cat", height=32, width=32, num_inference_steps=2).images[0].size == (32, 32)


def test_edges_beyond_the_positions_of_the_network_are_refused_as_diffusers_does(tmp_path: Path) -> None:
    shown = {"validation_disable": False, "validation_prompt": "a cat"}
    usual = {"model_family": "sd3", "model_type": "lora", "model": str(folder_of(True))}
    network: Any = tiny_sd3().load_network()
    most = network.config.pos_embed_max_size * SPEC.sampling.multiple_px
    assert checked(tmp_path, **usual, **shown, validation_resolution=f"64x{most}").errors == []
    (problem,) = checked(tmp_path, **usual, **shown, validation_resolution=f"64x{most + SPEC.sampling.multiple_px}").errors
    assert (problem.option, problem.code) == ("validation_resolution", "beyond_positions")
    with pytest.raises(ValueError, match="pos_embed_max_size"):
        network.pos_embed(fixed(1, 16, 8, most // 8 + 2, seed=1))


def test_beside_a_controlnet_the_frozen_network_says_how_many_positions_there_are(tmp_path: Path) -> None:
    shown = {"validation_disable": False, "validation_prompt": "a cat", "validation_resolution": "64x1024"}
    report = checked(tmp_path, model_family="sd3", model_type="full", model=str(folder_of(True)), controlnet=True, **shown)
    assert ("validation_resolution", "beyond_positions") in {(problem.option, problem.code) for problem in report.errors}


def test_the_published_networks_have_positions_for_these_edges() -> None:
    assert SPEC.positions is not None
    edges = {flavour: SPEC.positions.along_an_edge(flavour, {}) * SPEC.sampling.multiple_px for flavour in SPEC.flavours}
    assert edges == {"medium": 6144, "large": 3072}
