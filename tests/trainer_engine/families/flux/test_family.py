"""What the family makes of prompts, images and options, beside the pipelines of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxControlNetModel, FluxKontextPipeline, FluxPipeline, FluxTransformer2DModel
from PIL import Image

from tests.helpers.models import laid_out_alike, tiny_model
from tests.helpers.tiny_run import train_here
from tests.trainer_engine.families.flux.models import tiny_flux
from trainer_engine.contract.errors import InvalidOptions, ModelUnavailable
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.common.latent_squares import attention_mask, pack, positions, unpack
from trainer_engine.families.flux.spec import CONTROL_LAYERS, SPEC
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.inputs import SampleFacts
from trainer_engine.objectives.randomness import sample_generators

FACTS = SampleFacts(original_size=(64, 64), crop_corner=(0, 0), target_size=(64, 64))


def pipeline(flavour: str = "dev") -> FluxPipeline:
    made = FluxPipeline.from_pretrained(tiny_model("flux", flavour=flavour))
    made.set_progress_bar_config(disable=True)
    return made


def test_packing_and_positions_are_those_of_diffusers() -> None:
    latents = torch.randn(2, 16, 8, 12)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 16, 8, 12))
    assert torch.equal(unpack(pack(latents), 8, 12), latents)
    assert torch.equal(positions(8, 12), FluxPipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32))
    assert positions(4, 4, 2)[:, 0].tolist() == [2.0] * 4


def test_the_mask_lets_every_image_token_through() -> None:
    mask = attention_mask(torch.tensor([[1, 1, 0]]), 2)
    assert mask.shape == (1, 1, 1, 5)
    assert mask.flatten().tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("flavour", ["dev", "schnell"])
def test_embeddings_are_those_of_the_pipeline(flavour: str) -> None:
    family, theirs = tiny_flux(flavour), pipeline(flavour)
    (ours,) = family.encode_prompts(["A red circle, softly lit"])
    embeds, pooled, _ = theirs.encode_prompt("A red circle, softly lit", None, max_sequence_length=family.token_limit)
    assert ours["embeds"].shape[0] == (256 if flavour == "schnell" else 512)
    assert torch.allclose(ours["embeds"], embeds[0], atol=1e-4)
    assert torch.allclose(ours["pooled"], pooled[0], atol=1e-6)
    assert 0 < int(ours["mask"].sum()) < 40


def test_clip_skip_takes_the_pooled_output_of_an_earlier_layer(tmp_path: Path) -> None:
    (plain,), (skipped,) = (tiny_flux(clip_skip=skip).encode_prompts(["a cat"]) for skip in (0, 2))
    assert torch.equal(plain["embeds"], skipped["embeds"])
    clip, tokenizer = pipeline().text_encoder, pipeline().tokenizer
    ids = tokenizer(["a cat"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    hidden = clip(ids, output_hidden_states=True).hidden_states[-3]
    end = (ids[0] == tokenizer.eos_token_id).int().argmax()
    assert torch.allclose(skipped["pooled"], clip.final_layer_norm(hidden)[0, end], atol=1e-6)
    assert not torch.allclose(skipped["pooled"], plain["pooled"])
    hashes = FileHashes(tmp_path / "hashes")
    assert tiny_flux(clip_skip=2).text_fingerprint(hashes) != tiny_flux().text_fingerprint(hashes)


def test_a_clip_skip_beyond_the_encoder_is_refused() -> None:
    with pytest.raises(InvalidOptions, match="clip_skip=3"):
        tiny_flux(clip_skip=3).encode_prompts([""])


def test_images_come_back_from_their_latents() -> None:
    family, pixels = tiny_flux(), torch.full((1, 3, 64, 64), 0.5)
    latents = family.encode_images(pixels)
    assert latents.shape == (1, 16, 8, 8)
    assert family.autoencoder.decode(latents)[0, :, 20:40, 20:40].mean().item() == pytest.approx(0.5, abs=0.05)


def test_a_generated_image_equals_that_of_the_pipeline() -> None:
    family = tiny_flux()
    network, (prompt,) = family.load_network().eval(), family.encode_prompts(["a cat"])
    heard: list[int] = []
    ours = family.generate(
        family.make_pipeline(network),
        GenerationRequest(prompt=prompt, negative=prompt, width=64, height=96, steps=3, guidance=3.5, seed=5),
        on_step=lambda taken: heard.append(taken.number),
    )
    theirs = laid_out_alike(pipeline())
    how: dict[str, Any] = {"width": 64, "height": 96, "num_inference_steps": 3, "guidance_scale": 3.5}
    wanted = theirs(
        prompt_embeds=prompt["embeds"][None],
        pooled_prompt_embeds=prompt["pooled"][None],
        generator=torch.Generator().manual_seed(5),
        **how,
    ).images[0]
    assert heard == [1, 2, 3]
    assert isinstance(ours, Image.Image)
    assert ours.tobytes() == wanted.tobytes()


def test_every_reference_changes_the_image() -> None:
    family = tiny_flux("kontext")
    network, (prompt,) = family.load_network().eval(), family.encode_prompts(["a cat"])
    pipe = family.make_pipeline(network)
    generator = torch.Generator().manual_seed(0)
    references = (torch.randn(16, 8, 8, generator=generator), torch.randn(16, 8, 12, generator=generator))
    images = [
        family.generate(
            pipe,
            GenerationRequest(
                prompt=prompt, negative=prompt, width=64, height=64, steps=2, guidance=2.5, seed=1, references=references[:count]
            ),
        ).tobytes()
        for count in range(3)
    ]
    assert len(set(images)) == 3


@pytest.mark.parametrize("flavour", ["dev", "schnell", "kontext"])
@pytest.mark.parametrize("sampler", ["unipc", "dpm++"])
def test_samplers_follow_the_shifted_schedule_of_the_base_model(sampler: str, flavour: str) -> None:
    family = tiny_flux(flavour)
    network, (prompt,) = family.load_network(), family.encode_prompts(["a cat"])
    walked = []
    for chosen in (None, sampler):
        pipeline = family.make_pipeline(network, sampler=chosen)
        family.generate(pipeline, GenerationRequest(prompt=prompt, negative=prompt, width=64, height=96, steps=4, guidance=3.5, seed=1))
        walked.append(pipeline.scheduler.sigmas)
    assert torch.allclose(walked[0], walked[1], atol=2e-3)


@pytest.mark.parametrize("sampler", ["euler", "unipc", "dpm++"])
def test_samplers_of_flow_matching_generate_images(sampler: str) -> None:
    family = tiny_flux()
    network, (prompt,) = family.load_network().eval(), family.encode_prompts([""])
    image = family.generate(
        family.make_pipeline(network, sampler=sampler),
        GenerationRequest(prompt=prompt, negative=prompt, width=64, height=64, steps=2, guidance=3.5, seed=1),
    )
    assert image.size == (64, 64)


def test_a_sampler_of_diffusion_is_refused() -> None:
    with pytest.raises(InvalidOptions, match="cannot generate images with the sampler ddim"):
        tiny_flux(validation_noise_scheduler="ddim")


def drawn_with_true_guidance(**how: Any) -> bytes:
    family = tiny_flux()
    network, (prompt, negative) = family.load_network().eval(), family.encode_prompts(["a cat", "blurry"])
    return family.generate(
        family.make_pipeline(network),
        GenerationRequest(prompt=prompt, negative=negative, width=64, height=64, steps=3, guidance=3.5, seed=5, **how),
    ).tobytes()


def test_true_guidance_equals_that_of_the_pipeline() -> None:
    prompt, negative = tiny_flux().encode_prompts(["a cat", "blurry"])
    theirs = laid_out_alike(pipeline())
    wanted = theirs(
        prompt_embeds=prompt["embeds"][None],
        pooled_prompt_embeds=prompt["pooled"][None],
        negative_prompt_embeds=negative["embeds"][None],
        negative_pooled_prompt_embeds=negative["pooled"][None],
        true_cfg_scale=2.5,
        generator=torch.Generator().manual_seed(5),
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=3.5,
    ).images[0]
    assert drawn_with_true_guidance(true_guidance=2.5) == wanted.tobytes()


def test_true_guidance_begins_after_the_steps_without_it() -> None:
    without, whole = drawn_with_true_guidance(), drawn_with_true_guidance(true_guidance=2.5)
    assert drawn_with_true_guidance(true_guidance=2.5, unguided_steps=3) == without != whole
    assert drawn_with_true_guidance(true_guidance=2.5, unguided_steps=2) not in (without, whole)


def test_each_prompt_is_attended_to_with_its_own_mask() -> None:
    family = tiny_flux(flux_attention_masked_training=True)
    network, (prompt, negative) = family.load_network().eval(), family.encode_prompts(["a cat on a mat in a hat", ""])
    seen: list[int] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(int(kwargs["joint_attention_kwargs"]["attention_mask"].sum()))

    pipe = family.make_pipeline(network)
    looking = network.register_forward_hook(lambda module, args, kwargs, output: look(module, args, kwargs), with_kwargs=True)
    family.generate(
        pipe, GenerationRequest(prompt=prompt, negative=negative, width=64, height=64, steps=1, guidance=3.5, seed=5, true_guidance=2.0)
    )
    looking.remove()
    image_tokens = 16
    assert seen == [int(one["mask"].sum()) + image_tokens for one in (prompt, negative)]
    assert seen[0] > seen[1]
    assert not network._forward_pre_hooks


def test_random_guidance_stays_in_its_range_and_follows_the_seed() -> None:
    family = tiny_flux(flux_guidance_mode="random-range", flux_guidance_min=2.0, flux_guidance_max=3.0)

    def guidance(*indices: int) -> torch.Tensor:
        return family.conditions([FACTS] * len(indices), sample_generators(7, 0, indices, "condition"))["guidance"]

    first = guidance(*range(50))
    assert torch.equal(first, torch.cat([guidance(*range(20)), guidance(*range(20, 50))]))
    assert first[:3].tolist() == pytest.approx([2.0517037, 2.6977539, 2.7869172]), "a resumed run samples other values"
    assert 2 <= float(first.min()) < float(first.max()) <= 3
    assert family.conditions([FACTS] * 3) == {}
    assert tiny_flux().conditions([FACTS] * 3, sample_generators(7, 0, range(3))) == {}


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder_2", "tokenizer"])
def test_a_missing_part_is_named(part: str, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model("flux", flavour="dev"), folder)
    shutil.rmtree(folder / part)
    with pytest.raises(ModelUnavailable, match=f"no folder {part}"):
        tiny_flux(model=folder).parts.find(part)


def test_named_targets_of_the_real_network_match_modules() -> None:
    with torch.device("meta"):
        network = FluxTransformer2DModel(guidance_embeds=True)
        largest = FluxControlNetModel(guidance_embeds=True, num_layers=19, num_single_layers=38)
        usual = FluxControlNetModel(guidance_embeds=True, num_layers=4, num_single_layers=10)
    assert SPEC.controlnet is not None
    assert sum(parameter.numel() for parameter in usual.parameters()) == SPEC.controlnet.parameters["dev"]
    names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    of_controlnet = {name for name, module in largest.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(CONTROL_LAYERS) == {name for name in of_controlnet if name.startswith("controlnet_")}
    for target, endings in SPEC.adapters.lora_targets.items():
        for ending in set(endings) - set(CONTROL_LAYERS):
            assert any(name == ending or name.endswith(f".{ending}") for name in names), f"{target}: {ending}"
    classes = {type(module).__name__ for module in network.modules()}
    assert set(SPEC.adapters.module_classes) <= classes
    assert sum(parameter.numel() for parameter in network.parameters()) == SPEC.parameters["dev"]


def test_diffusers_generates_with_the_result_of_a_full_run(tmp_path: Path) -> None:
    model = str(tiny_model("flux", flavour="dev"))
    run = train_here(tmp_path, model_family="flux", model_flavour="dev", model=model, max_train_steps=2)
    theirs = FluxPipeline.from_pretrained(run.output_dir / "pipeline")
    theirs.set_progress_bar_config(disable=True)
    image = theirs("a cat", width=64, height=64, num_inference_steps=1).images[0]
    assert image.size == (64, 64)
    assert isinstance(theirs.transformer, FluxTransformer2DModel)


def test_the_kontext_result_names_its_own_pipeline(tmp_path: Path) -> None:
    family = tiny_flux("kontext")
    family.save_pipeline(tmp_path / "pipeline", family.load_network())
    assert isinstance(FluxKontextPipeline.from_pretrained(tmp_path / "pipeline"), FluxKontextPipeline)


def test_states_of_padding_depend_on_the_prompt_and_are_stored() -> None:
    """T5 attends to its padding, so the states of padding are no constants that could be stored once."""
    one, other = tiny_flux().encode_prompts(["a red cat", "a big dog"])
    length = int(one["mask"].sum())
    assert length == int(other["mask"].sum()) and one["embeds"].shape == (512, 32)
    assert not torch.allclose(one["embeds"][length:], other["embeds"][length:], rtol=1e-3)


def test_zero_padding_reaches_the_network_and_the_images_as_zeros(tmp_path: Path) -> None:
    zero, plain = tiny_flux(t5_padding="zero"), tiny_flux()
    texts = ["a red cat", "a very long story of a very long snake"]
    ours, theirs = (family.collate_prompts(family.encode_prompts(texts)) for family in (zero, plain))
    assert ours["embeds"].shape == theirs["embeds"].shape and torch.equal(ours["mask"], theirs["mask"])
    assert torch.equal(ours["embeds"], theirs["embeds"] * theirs["mask"][..., None])
    assert not torch.equal(ours["embeds"], theirs["embeds"])
    assert zero._attention(ours["mask"], 16) is None  # the network attends to the zeros
    hashes = FileHashes(tmp_path / "hashes")
    assert zero.text_fingerprint(hashes) != plain.text_fingerprint(hashes)
    assert zero.text_fingerprint(hashes) == tiny_flux(flux_attention_masked_training=True).text_fingerprint(hashes)


def test_an_image_with_zero_padding_equals_that_of_the_pipeline_with_zeroed_states() -> None:
    family = tiny_flux(t5_padding="zero")
    network, (prompt,) = family.load_network().eval(), family.encode_prompts(["a red cat"])
    request = GenerationRequest(prompt=prompt, negative=prompt, width=64, height=64, steps=2, guidance=3.5, seed=5)
    image = family.generate(family.make_pipeline(network), request)
    (whole,) = tiny_flux().encode_prompts(["a red cat"])
    pipeline = tiny_flux().make_pipeline(network)
    theirs = pipeline(
        prompt_embeds=(whole["embeds"] * whole["mask"][:, None])[None],
        pooled_prompt_embeds=whole["pooled"][None],
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=3.5,
        generator=request.generator(),
    ).images[0]
    assert image.tobytes() == theirs.tobytes()


def test_masked_training_stores_the_states_of_real_tokens_alone(tmp_path: Path) -> None:
    masked, plain = tiny_flux(flux_attention_masked_training=True), tiny_flux()
    texts = ["a red cat", "", "a very long story of a very long snake"]
    for ours, theirs in zip(masked.encode_prompts(texts), plain.encode_prompts(texts), strict=True):
        length = int(theirs["mask"].sum())
        assert torch.equal(ours["embeds"], theirs["embeds"][:length]) and length < 51
        assert torch.equal(ours["pooled"], theirs["pooled"]) and torch.equal(ours["mask"], theirs["mask"])
    hashes = FileHashes(tmp_path / "hashes")
    assert masked.text_fingerprint(hashes) != plain.text_fingerprint(hashes)
