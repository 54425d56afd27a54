"""How the network of Lumina-Image 2.0 computes, what a run caches for it, and what ``validate`` says of its adapters."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Lumina2Transformer2DModel
from diffusers.models.transformers.transformer_lumina2 import Lumina2AttnProcessor2_0
from PIL import Image
from torch import nn

from tests.helpers.checked_runs import checked
from tests.helpers.models import fixed, laid_out_alike, tiny_model
from tests.helpers.tiny_run import train_here
from tests.trainer_engine.families.lumina2.test_lumina2 import PROMPTS, SIGMAS, their_pipeline, tiny_lumina2
from trainer_engine.config.parse import check_options
from trainer_engine.contract.errors import Level
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.lumina2.attention import DispatchedAttention
from trainer_engine.families.lumina2.family import Lumina2, with_mask
from trainer_engine.families.lumina2.refiners import BlockBody
from trainer_engine.families.lumina2.spec import SPEC


def inputs_of(family: Lumina2) -> StepInputs:
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    return StepInputs(noisy_latents=fixed(3, 16, 8, 10, seed=1), timesteps=SIGMAS, prompts=prompts)


@torch.no_grad()
def test_attention_is_that_of_diffusers_bit_for_bit() -> None:
    family = tiny_lumina2()
    network: Any = family.load_network().eval()
    inputs = inputs_of(family)
    ours = family.predict(network, inputs)
    for module in network.modules():
        if hasattr(module, "set_processor"):
            assert type(module.processor) is DispatchedAttention
            module.set_processor(Lumina2AttnProcessor2_0())
    assert torch.equal(ours, family.predict(network, inputs))


def passes_of(block: nn.Module) -> list[int]:
    """Gets a number for each forward pass of a block."""
    seen: list[int] = []
    block.feed_forward.register_forward_hook(lambda *_: seen.append(len(seen)))
    return seen


@pytest.mark.parametrize(
    ("values", "recomputed"),
    [
        ({}, {"noise_refiner": False, "context_refiner": False, "layers": False}),
        ({"gradient_checkpointing": True}, {"noise_refiner": True, "context_refiner": True, "layers": True}),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_interval": 2},
            {"noise_refiner": True, "context_refiner": False, "layers": True},
        ),
    ],
)
def test_refiners_are_recomputed_as_every_other_block(values: dict[str, Any], recomputed: dict[str, bool]) -> None:
    family = tiny_lumina2(**{"gradient_checkpointing": False, **values})
    network: Any = family.load_network()
    passes = {name: passes_of(getattr(network, name)[0]) for name in recomputed}
    family.predict(network, inputs_of(family)).square().mean().backward()
    assert {name: len(seen) == 2 for name, seen in passes.items()} == recomputed
    with torch.no_grad():
        before = {name: len(seen) for name, seen in passes.items()}
        family.predict(network, inputs_of(family))
        assert {name: len(seen) for name, seen in passes.items()} == {name: number + 1 for name, number in before.items()}


def test_a_copy_of_the_network_recomputes_its_own_blocks() -> None:
    family = tiny_lumina2(gradient_checkpointing=True)
    network: Any = family.load_network()
    other = copy.deepcopy(network)
    inputs = inputs_of(family)
    family.predict(other, inputs).square().mean().backward()
    assert all(parameter.grad is not None for parameter in other.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_body_of_a_block_stands_for_its_block_in_a_set() -> None:
    block, other = nn.Linear(2, 2), nn.Linear(2, 2)
    body = BlockBody(block, block.forward)
    assert body in {block} and body not in {other} and body == body


def test_prompts_are_padded_to_the_longest_with_a_mask_on_the_host() -> None:
    embeds, mask = with_mask([torch.ones(3, 4), torch.ones(1, 4)])
    assert embeds.shape == (2, 3, 4) and embeds.sum(dim=(1, 2)).tolist() == [12, 4]
    assert mask.tolist() == [[True] * 3, [True, False, False]]
    embeds, mask = with_mask([torch.ones(3, 4)] * 2, 5)
    assert embeds.shape == (2, 5, 4) and mask.sum(dim=1).tolist() == [3, 3]


@pytest.mark.parametrize(("tokens", "fits"), [(SPEC.prompts.token_limit, True), (300, False)])
def test_the_longest_prompt_has_positions_in_the_published_network(tokens: int, fits: bool) -> None:
    """The positions of prompts end at 299, which is also the place of the image behind the longest one."""
    with torch.device("meta"):
        lengths = Lumina2Transformer2DModel(num_layers=0, num_refiner_layers=0).config.axes_lens
    assert (tokens < lengths[0]) is fits


def test_a_run_shows_what_the_pipeline_generates_with_its_negative_prompt(tmp_path: Path) -> None:
    shown = {"validation_prompt": "a red circle", "validation_negative_prompt": "blue", "validation_resolution": "64x96"}
    shown |= {"validation_num_inference_steps": 2, "validation_guidance": 4.0, "validation_seed": 5, "validation_on_startup": True}
    usual = {"model_family": "lumina2", "model": str(tiny_model("lumina2")), "model_type": "lora", "max_train_steps": 1}
    run = train_here(tmp_path, validation_disable=False, validation_disable_unconditional=True, disable_benchmark=True, **usual, **shown)
    assert run.code == 0
    ours = Image.open(run.output_dir / "validation_images" / "step_0_validation_0_64x96.png")
    given = {"negative_prompt": "blue", "height": 96, "width": 64, "num_inference_steps": 2, "guidance_scale": 4.0}
    theirs = laid_out_alike(their_pipeline())("a red circle", generator=torch.Generator().manual_seed(5), **given).images[0]
    assert ours.tobytes() == theirs.tobytes()


def problems_of(**values: Any) -> list[str]:
    usual: dict[str, Any] = {
        "model_family": "lumina2",
        "model_type": "lora",
        "output_dir": "o",
        "data_backend_config": "d",
        "max_train_steps": 1,
    }
    _, problems = check_options({**usual, "lora_format": "comfyui", **values})
    return [problem.code for problem in problems if problem.option == "lora_format"]


def test_validate_refuses_weight_decomposed_adapters_for_it_first(tmp_path: Path) -> None:
    assert problems_of(use_dora=True) == ["not_with_joined_layers"]
    assert problems_of(use_dora=False) == problems_of(use_dora=True, lora_format="diffusers") == []
    assert problems_of(use_dora=True, model_family="krea2") == []
    config = tmp_path / "lycoris.json"
    config.write_text(json.dumps({**SPEC.adapters.lycoris_start, "weight_decompose": True}, default=dict))
    usual = {"model_family": "lumina2", "model_type": "lora", "lora_type": "lycoris", "lycoris_config": str(config)}
    model = {"pretrained_model_name_or_path": str(tiny_model("lumina2"))}
    for form, refused in (("comfyui", True), ("diffusers", False)):
        (tmp_path / form).mkdir()
        errors = checked(tmp_path / form, **usual, **model, lora_format=form).errors
        assert any("query, key and value" in str(error) for error in errors) is refused


def test_validate_names_what_to_train_instead_of_distilled_weights(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model("lumina2"), tmp_path / "lumina-image-2-lightning")
    report = checked(tmp_path, model_family="lumina2", model_type="lora", model=str(folder))
    (warning,) = [problem for problem in report.problems if problem.code == "distilled_weights"]
    assert SPEC.flavours["2.0"] in str(warning) + warning.hint


def test_validate_refuses_a_text_encoder_of_another_model(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model("lumina2"), tmp_path / "model")
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "gemma"}))
    report = checked(tmp_path, model_family="lumina2", model_type="lora", model=str(folder))
    assert report.errors and "gemma" in str(report.errors[0])


def test_a_token_limit_of_the_options_is_noted() -> None:
    usual = {"model_family": "lumina2", "model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}
    _, problems = check_options({**usual, "tokenizer_max_length": 512})
    assert [(one.code, one.level) for one in problems if one.option == "tokenizer_max_length"] == [("no_effect", Level.NOTE)]
