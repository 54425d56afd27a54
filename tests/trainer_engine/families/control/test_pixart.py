"""PixArt Sigma with control images: numbers beside diffusers alone, and the pipeline that diffusers lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.gradients import trainable_of
from tests.helpers.models import options_with, tiny_model
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import HereRun, train_here
from tests.trainer_engine.families.control.test_flux import assert_same
from tests.trainer_engine.families.controlnet.runs import controlled_datasets
from trainer_engine.config.families import specs
from trainer_engine.contract.events import ImageEvent
from trainer_engine.export.__main__ import main
from trainer_engine.families.base import Family
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.load import load_family
from trainer_engine.families.pixart_sigma.control import PixArtSigmaControlPipeline
from trainer_engine.objectives.build import make_objective
from trainer_engine.runtime.devices import resolve_devices

LORA: dict[str, Any] = {"model_type": "lora", "lora_type": "standard", "lora_rank": 4, "lora_dropout": 0.0}
FULL: dict[str, Any] = {"model_type": "full"}
TIMESTEPS = torch.tensor([3, 821])
LAYER = "pos_embed.proj.weight"
ADAPTER = "pytorch_lora_weights.safetensors"
EDGES = Image.linear_gradient("L").resize((96, 64)).convert("RGB")


def controlled(**values: Any) -> Family:
    options = options_with(
        model_family="pixart_sigma", pretrained_model_name_or_path=str(tiny_model("pixart_sigma")), **{"control": True, **values}
    )
    return load_family(options, resolve_devices(options, torch.device("cpu")))


def fixed_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise, and the latents of control images."""
    generator = torch.Generator().manual_seed(11)
    latents, noise, control = (torch.randn(2, 4, 8, 12, generator=generator) for _ in range(3))
    return latents, noise, control


def padded() -> PixArtTransformer2DModel:
    """The small transformer for twice the channels, made by diffusers from its configuration."""
    plain: Any = PixArtTransformer2DModel.from_pretrained(tiny_model("pixart_sigma") / "transformer")
    made: Any = PixArtTransformer2DModel.from_config({**plain.config, "in_channels": 8, "out_channels": 8})
    state = plain.state_dict()
    state[LAYER] = torch.cat([state[LAYER], torch.zeros_like(state[LAYER])], dim=1)
    made.load_state_dict(state)
    return made  # type: ignore[no-any-return]


def awaken(network: nn.Module) -> None:
    """Gives the new channels weights that are not zero."""
    with torch.no_grad():
        weight = next(
            one for name, one in network.named_parameters() if "pos_embed.proj" in name and "weight" in name and "lora" not in name
        )
        weight[:, 4:] = torch.randn(weight[:, 4:].shape, generator=torch.Generator().manual_seed(3)) * 0.2


def our_loss(family: Family, network: nn.Module) -> Tensor:
    latents, noise, control = fixed_batch()
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    inputs = StepInputs(
        noisy_latents=objective.add_noise(latents, noise, TIMESTEPS),
        timesteps=TIMESTEPS,
        prompts=family.collate_prompts(family.encode_prompts(["a red circle", "two small stars"])),
        control=control,
    )
    return objective.loss(family.predict(network, inputs), objective.target(latents, noise, TIMESTEPS), TIMESTEPS).mean()


def their_loss(family: Family, network: PixArtTransformer2DModel) -> Tensor:
    latents, noise, control = fixed_batch()
    scheduler: Any = DDPMScheduler.from_pretrained(tiny_model("pixart_sigma") / "scheduler")
    prompts = family.collate_prompts(family.encode_prompts(["a red circle", "two small stars"]))
    output = network(
        torch.cat([scheduler.add_noise(latents, noise, TIMESTEPS), control], dim=1),
        encoder_hidden_states=prompts["embeds"],
        encoder_attention_mask=prompts["mask"],
        timestep=TIMESTEPS,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]
    return mse_loss(output.chunk(2, dim=1)[0], noise)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_of_a_full_run_equal_those_of_diffusers(gradient_checkpointing: bool) -> None:
    family = controlled(**FULL, gradient_checkpointing=gradient_checkpointing)
    network, theirs = family.load_network(), padded().train()
    awaken(network)
    awaken(theirs)
    ours = our_loss(family, network)
    assert_same(ours, dict(network.named_parameters()), their_loss(family, theirs), dict(theirs.named_parameters()))
    assert network.get_parameter(LAYER).grad[:, 4:].any()  # type: ignore[index]


def test_loss_and_every_gradient_of_an_adapter_equal_those_of_its_file_in_diffusers(tmp_path: Path) -> None:
    family = controlled(**LORA)
    trainable = trainable_of(family)
    trainable.save(tmp_path)
    theirs: Any = padded().train()
    targets = ["to_q", "to_k", "to_v", "to_out.0", "pos_embed.proj"]
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=targets), theirs, "default")
    tensors = load_file(tmp_path / ADAPTER)
    set_peft_model_state_dict(theirs, {name.removeprefix("transformer."): one for name, one in tensors.items()}, adapter_name="default")
    others = {name: one.requires_grad_() for name, one in theirs.named_parameters() if "lora_" in name}
    mine = {name: one for name, one in trainable.network.named_parameters() if one.requires_grad}
    assert "pos_embed.proj.lora_A.default.weight" in mine
    assert_same(our_loss(family, trainable.network), mine, their_loss(family, theirs), others)


def request_of(family: Family, **values: Any) -> GenerationRequest:
    prompt, negative = family.encode_prompts(["a cat", ""])
    return GenerationRequest(
        prompt=prompt, negative=negative, width=64, height=96, steps=3, guidance=4.0, seed=5, **{"control": EDGES, **values}
    )


def test_a_new_network_generates_what_the_plain_pipeline_does() -> None:
    family, plain = controlled(), controlled(control=False)
    ours = family.generate(family.make_pipeline(family.load_network().eval()), request_of(family))
    theirs = plain.generate(plain.make_pipeline(plain.load_network().eval()), request_of(plain, control=None))
    assert ours.tobytes() == theirs.tobytes()  # type: ignore[union-attr]


def test_a_generated_image_equals_that_of_steps_taken_with_diffusers_alone() -> None:
    family = controlled()
    network: Any = family.load_network().eval()
    awaken(network)
    pipeline, request = family.make_pipeline(network), request_of(family, control=EDGES.resize((64, 96)))
    ours: Any = family.generate(pipeline, request)
    pixels = pipeline.image_processor.preprocess(EDGES.resize((64, 96)))
    batch = family.collate_prompts([request.negative, request.prompt])
    scheduler: Any = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(3)
    with torch.no_grad():
        control = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
        latents = torch.randn(1, 4, 12, 8, generator=request.generator())
        for step in scheduler.timesteps:
            noisy = torch.cat([torch.cat([latents] * 2), control.expand(2, -1, -1, -1)], dim=1)
            sizes = {"resolution": None, "aspect_ratio": None}
            prompts = {"encoder_hidden_states": batch["embeds"], "encoder_attention_mask": batch["mask"]}
            output = network(noisy, timestep=step.expand(2), added_cond_kwargs=sizes, return_dict=False, **prompts)[0]
            low, high = output.chunk(2, dim=1)[0].chunk(2)
            latents = scheduler.step(low + 4.0 * (high - low), step, latents, return_dict=False)[0]
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    assert ours.tobytes() == pipeline.image_processor.postprocess(decoded, output_type="pil")[0].tobytes()


def test_the_pipeline_takes_an_image_or_its_latents_and_leaves_the_network_as_it_was() -> None:
    pipeline: Any = PixArtSigmaControlPipeline.from_pretrained(tiny_model("pixart_sigma"))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.widen()
    pipeline.widen()
    assert pipeline.transformer.config.in_channels == 8, "what is wide is not widened again"
    awaken(pipeline.transformer)
    how: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 2, "use_resolution_binning": False, "output_type": "latent"}
    fitted = EDGES.resize((64, 64))
    with torch.no_grad():
        latents = pipeline.vae.encode(pipeline.image_processor.preprocess(fitted)).latent_dist.mode() * pipeline.vae.config.scaling_factor
    made = [
        pipeline("a cat", control_image=shown, generator=torch.Generator().manual_seed(1), **how).images
        for shown in (fitted, latents, Image.new("RGB", (64, 64)))
    ]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert not pipeline.transformer._forward_pre_hooks and not pipeline.transformer._forward_hooks


def test_the_stated_number_of_weights_counts_the_new_channels() -> None:
    control = specs()["pixart_sigma"].control
    assert control is not None
    with torch.device("meta"):
        plain, wide = (nn.Conv2d(channels, 1152, kernel_size=2, stride=2) for channels in (4, 8))
    more = sum(one.numel() for one in wide.parameters()) - sum(one.numel() for one in plain.parameters())
    assert control.parameters["600M-1024"] == specs()["pixart_sigma"].parameters["600M-1024"] + more


def controlled_run(place: Path, **options: Any) -> HereRun:
    datasets = options.pop("datasets", None) or controlled_datasets(place)
    chosen = {"max_train_steps": 4, "learning_rate": 1e-2, "max_grad_norm": 2.0, **options}
    return train_here(place, datasets=datasets, model_family="pixart_sigma", model=str(tiny_model("pixart_sigma")), control=True, **chosen)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> HereRun:
    shown = {"validation_disable": False, "validation_num_inference_steps": 2, "validation_resolution": "64x64", "num_eval_images": 1}
    return controlled_run(tmp_path_factory.mktemp("control"), **LORA, **shown, validation_step_interval=4, seed=3)


@pytest.mark.parametrize("kind", [FULL, LORA])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(kind: dict[str, Any], tmp_path: Path) -> None:
    straight = assert_resumes_exactly(tmp_path, controlled_run, **kind)
    if kind is LORA:
        assert load_file(straight.output_dir / ADAPTER)["transformer.pos_embed.proj.lora_A.weight"].shape == (4, 8, 2, 2)
        return
    theirs: Any = PixArtSigmaControlPipeline.from_pretrained(straight.output_dir / "pipeline")
    theirs.set_progress_bar_config(disable=True)
    assert isinstance(theirs, PixArtSigmaPipeline) and theirs.transformer.pos_embed.proj.weight[:, 4:].any()
    image = theirs("a cat", control_image=EDGES, width=64, height=64, num_inference_steps=1, use_resolution_binning=False).images[0]
    assert image.size == (64, 64)
    card = (straight.output_dir / "pipeline" / "README.md").read_text()
    assert "from trainer_engine.families.pixart_sigma.control import PixArtSigmaControlPipeline" in card


def test_validation_images_are_generated_from_control_images(trained: HereRun) -> None:
    assert len(trained.heard.of(ImageEvent)) == len(list((trained.output_dir / "validation_images").iterdir())) > 0


def test_the_lines_of_the_model_card_load_the_adapter(trained: HereRun, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (trained.output_dir / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(trained.output_dir)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    loaded = dict(names["pipeline"].transformer.named_parameters())
    stored = load_file(trained.output_dir / ADAPTER)
    assert torch.equal(loaded["pos_embed.proj.lora_B.default.weight"], stored["transformer.pos_embed.proj.lora_B.weight"])


def test_a_merged_export_has_the_weights_of_base_and_adapter(trained: HereRun, tmp_path: Path) -> None:
    assert main([str(trained.output_dir), "--to", "merged", "--output", str(tmp_path / "merged")]) == 0
    merged: Any = PixArtTransformer2DModel.from_pretrained(tmp_path / "merged" / "transformer")
    stored, theirs = load_file(trained.output_dir / ADAPTER), padded().state_dict()
    down, up = (stored[f"transformer.pos_embed.proj.lora_{part}.weight"] for part in "AB")
    wanted = theirs[LAYER] + (up.flatten(1) @ down.flatten(1)).view(theirs[LAYER].shape)
    assert torch.allclose(merged.state_dict()[LAYER], wanted, atol=1e-6) and merged.config.in_channels == 8


def test_an_export_for_comfyui_is_refused(trained: HereRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(trained.output_dir), "--to", "comfyui", "--output", str(tmp_path / "x.safetensors")]) != 0
    assert "ComfyUI does not generate" in capsys.readouterr().err and not (tmp_path / "x.safetensors").exists()
