"""FLUX.3 in runs: images beside the pipeline of diffusers, exact resumption, results in the modular layout, distilled weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ClassifierFreeGuidance, Flux3ModularPipeline, Flux3Transformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from tests.helpers.models import fixed, tiny_of
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import train_here
from tests.trainer_engine.families.flux3.their_blocks import folder_of, original_state, pipeline_of
from trainer_engine.config.distillation import DistillationSpec
from trainer_engine.families.flux3.family import Flux3
from trainer_engine.families.flux3.spec import BASE, DISTILLED, FLAVOURS, SHIFT, SPEC
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.objectives.build import make_objective

ADAPTER = "pytorch_lora_weights.safetensors"
SHAPES = ((3, 4), (2, 5))


def tiny_flux3(flavour: str = BASE, **values: Any) -> Flux3:
    return tiny_of(Flux3, folder_of(flavour), **{"model_flavour": flavour, **values})


def linear_layers(network: nn.Module) -> set[str]:
    """Names of those in the blocks, without the layers of an adapter."""
    found = (name.removesuffix(".base_layer") for name, module in network.named_modules() if isinstance(module, nn.Linear))
    return {name for name in found if "blocks." in name and ".lora_" not in name}


def options_of(flavour: str = BASE, **values: Any) -> dict[str, Any]:
    return {"model_family": "flux3", "model_flavour": flavour, "model": str(folder_of(flavour)), **values}


@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize(
    ("flavour", "sampler", "guidance"), [(BASE, None, 3.0), (BASE, "unipc", 3.0), (BASE, "dpm++", 1.0), (DISTILLED, None, 1.0)]
)
def test_images_equal_those_of_the_pipeline_bit_for_bit(flavour: str, sampler: str | None, guidance: float, references: int) -> None:
    family = tiny_flux3(flavour)
    network = family.load_network().eval()
    latents = tuple(fixed(128, *shape, seed=number) for number, shape in enumerate(SHAPES[:references]))
    prompt, negative = family.encode_prompts(["a red circle", "blue"])
    pipeline, steps = family.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(
        prompt=prompt, negative=negative, width=64, height=96, steps=3, guidance=guidance, seed=5, references=latents
    )
    ours = family.generate(pipeline, request, on_step=steps.append)

    theirs = pipeline_of(flavour, family.autoencoder.model)
    given: dict[str, Any] = {} if flavour == DISTILLED else {"negative_prompt": "blue"}
    theirs.update_components(
        scheduler=pipeline.scheduler, **({} if flavour == DISTILLED else {"guider": ClassifierFreeGuidance(guidance_scale=guidance)})
    )
    given |= {"image_cond_latents": [one[None] for one in latents]} if references else {}
    how = {"height": 96, "width": 64, "num_inference_steps": 3, "generator": torch.Generator().manual_seed(5)}
    wanted = theirs(prompt="a red circle", **given, **how, output=["images", "latents"])
    assert [step.number for step in steps] == [1, 2, 3]
    assert {step.latents.shape for step in steps} == {(1, 128, 6, 4)}
    assert torch.equal(steps[-1].latents, wanted["latents"])
    assert np.array_equal(np.asarray(ours), np.asarray(wanted["images"][0]))
    assert np.array_equal(np.asarray(family.preview(steps[-1].latents)), np.asarray(ours))


def test_two_pipelines_report_to_their_own_images() -> None:
    family = tiny_flux3()
    network = family.load_network().eval()
    (prompt,) = family.encode_prompts(["a red circle"])
    request = GenerationRequest(prompt=prompt, negative=prompt, width=32, height=32, steps=2, guidance=1.0, seed=5)
    seen: list[list[int]] = [[], []]
    for number in range(2):
        family.generate(family.make_pipeline(network), request, on_step=lambda step, own=seen[number]: own.append(step.number))
    assert seen == [[1, 2], [1, 2]]
    assert len(pipeline_of(BASE).blocks.sub_blocks["denoise"].sub_blocks["text2image"].sub_blocks["denoise"].sub_blocks) == 2


def test_the_schedule_is_the_pipelines_own_at_every_size_and_needs_no_folder() -> None:
    family = tiny_flux3()
    assert not (folder_of(BASE) / "scheduler").exists() and "scheduler" not in SPEC.base_folders
    pipeline = pipeline_of(BASE)
    assert pipeline.scheduler.config.shift == SHIFT == family.options.objective.flow_schedule_shift
    ours: Any = family.parts.make_scheduler()
    for scheduler in (ours, pipeline.scheduler):
        scheduler.set_timesteps(sigmas=[1.0, 0.5])
    assert torch.equal(ours.sigmas, pipeline.scheduler.sigmas)
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    assert {objective.shift_of(family.token_count((128, edge, edge))) for edge in (32, 128)} == {SHIFT}  # type: ignore[attr-defined]


def test_distilled_weights_are_recognised_by_flavour_repository_and_configuration() -> None:
    facts = SPEC.distillation
    assert isinstance(facts, DistillationSpec)
    for flavour, repository in FLAVOURS.items():
        config = json.loads((folder_of(flavour) / "transformer" / "config.json").read_text(encoding="utf-8"))
        found = [
            facts.reason(flavour=flavour, name=repository, scheduler={}, network={}),
            facts.reason(flavour=BASE, name=repository, scheduler={}, network={}),
            facts.reason(flavour=BASE, name="my/own", scheduler={}, network=config),
        ]
        assert list(map(bool, found)) == [flavour == DISTILLED] * 3


def test_a_run_on_distilled_weights_is_warned(tmp_path: Path) -> None:
    run = train_here(tmp_path, **options_of(DISTILLED), model_type="lora", max_train_steps=1)
    assert run.code == 0
    assert "distilled" in json.dumps([event.message for event in run.heard.events if hasattr(event, "message")])


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    straight = assert_resumes_exactly(tmp_path, **options_of(model_type=model_type, max_train_steps=4, train_batch_size=2))
    if model_type == "lora":
        return
    folder = straight.output_dir / "pipeline"
    assert not (folder / "model_index.json").exists()
    pipeline = Flux3ModularPipeline.from_pretrained(folder)
    pipeline.load_components(["transformer", "vae", "scheduler"])
    trained = Flux3Transformer2DModel.from_pretrained(folder / "transformer")
    for one, other in zip(pipeline.transformer.parameters(), trained.parameters(), strict=True):
        assert torch.equal(one, other)
    assert pipeline.scheduler.config.shift == SHIFT


def test_the_result_says_processor_where_the_base_model_has_one(tmp_path: Path) -> None:
    model = shutil.copytree(folder_of(BASE), tmp_path / "model")
    (model / "tokenizer" / "preprocessor_config.json").write_text('{"image_processor_type": "Qwen2VLImageProcessor"}', encoding="utf-8")
    for place, reader in ((folder_of(BASE), "Qwen2Tokenizer"), (model, "Qwen3VLProcessor")):
        assert tiny_of(Flux3, place).parts.copied()["tokenizer"].cls == reader


def test_an_adapter_in_the_keys_of_comfyui_has_the_publishers_names_and_loads_in_diffusers(tmp_path: Path) -> None:
    targets = '["to_q", "to_k", "to_v", "to_out.0", "linear_in", "linear_out"]'
    usual = options_of(model_type="lora", max_train_steps=2, lora_rank=4, lora_alpha=2, learning_rate=0.05)
    run = train_here(tmp_path, **usual, peft_lora_target_modules=targets, lora_format="comfyui")
    tensors = load_file(run.output_dir / ADAPTER)
    pipeline = pipeline_of(BASE)
    # The rule: the names that the publisher's weights have, which diffusers converts, behind diffusion_model.
    theirs = original_state(pipeline.transformer)
    layers = {key.removeprefix("diffusion_model.").rpartition(".lora_")[0] for key in tensors}
    assert len(layers) == 8 * 6 and {f"{layer}.weight" for layer in layers} <= theirs.keys()
    pipeline.load_lora_weights(run.output_dir, weight_name=ADAPTER)
    loaded = {name.removesuffix(".lora_A") for name, _ in pipeline.transformer.named_modules() if name.endswith(".lora_A")}
    assert len(loaded) == len(layers) and loaded == {
        name for name in linear_layers(pipeline.transformer) if "blocks." in name and "lora_" not in name
    }


def test_the_network_is_loaded_from_one_file_with_the_publishers_names(tmp_path: Path) -> None:
    own = Flux3Transformer2DModel.from_pretrained(folder_of(BASE), subfolder="transformer")
    save_file(original_state(own), tmp_path / "flux3.safetensors")
    network = tiny_flux3(pretrained_transformer_model_name_or_path=str(tmp_path / "flux3.safetensors")).load_network()
    for one, other in zip(network.parameters(), own.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_image_of_a_validation_is_one_of_the_result(tmp_path: Path) -> None:
    shown: dict[str, Any] = {"validation_step_interval": 1, "validation_prompt": "a red circle", "validation_num_inference_steps": 2}
    shown |= {"validation_disable": False, "validation_resolution": "64x96", "max_train_steps": 1}
    run = train_here(tmp_path, **options_of(model_type="full"), **shown)
    sizes = {Image.open(path).size for path in (run.output_dir / "validation_images").glob("*.png")}
    assert sizes == {(64, 96)}
