"""Losses that are weighted by masks: beside diffusers alone, with a probability, over ranks and after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FluxPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers.caches import entries_of
from tests.helpers.models import tiny_family
from tests.helpers.pictures import generate_images
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import HereRun, Listener, tiny_datasets, train_here
from tests.trainer_engine.adapters import test_numerics as pixart
from tests.trainer_engine.families.flux import test_numerics as flux
from tests.trainer_engine.families.flux.models import tiny_flux
from tests.trainer_engine.loop.test_regularisation import assert_alike, step_of
from tests.trainer_engine.loop.test_saving import run_of
from trainer_engine.adapters.build import make_trainable
from trainer_engine.batches.batch import Batch
from trainer_engine.batches.collate import Share
from trainer_engine.contract.errors import CheckpointUnusable
from trainer_engine.contract.events import Notification, StageEvent


def mask_of(height: int, width: int) -> Tensor:
    """(2, 1, h, w): a part of one sample, and shades of the other."""
    mask = torch.zeros(2, 1, height, width)
    mask[0, :, :3, 2:] = 1
    mask[1] = torch.rand(1, height, width, generator=torch.Generator().manual_seed(3))
    return mask


def weighted(error: Tensor, mask: Tensor) -> Tensor:
    """The mean of the squared error of each sample, weighted by its mask; then the mean of the samples."""
    each = [(error[row].square() * mask[row]).sum() / (mask[row].sum() * error.shape[1]) for row in range(len(error))]
    return torch.stack(each).mean()


def test_a_masked_loss_of_diffusion_equals_that_of_diffusers() -> None:
    family = tiny_family(gradient_checkpointing=False)
    trainable = make_trainable(family, None)
    network = pixart.PixArtTransformer2DModel.from_pretrained(pixart.tiny_pixart(), subfolder="transformer").train()
    latents, noise, embeds = pixart.batch()
    prompts = family.collate_prompts([{"embeds": one} for one in embeds])
    mask = mask_of(8, 8)
    batch = Batch(latents=latents, noise=noise, timesteps=pixart.TIMESTEPS, prompts=prompts, files=("a", "b"), loss_mask=mask)
    noisy = DDPMScheduler.from_pretrained(pixart.tiny_pixart(), subfolder="scheduler").add_noise(latents, noise, pixart.TIMESTEPS)
    conditions = {"resolution": None, "aspect_ratio": None}
    found = network(noisy, embeds, pixart.TIMESTEPS, added_cond_kwargs=conditions, encoder_attention_mask=torch.ones(2, 5)).sample
    theirs = weighted(found.chunk(2, dim=1)[0] - noise, mask)
    moved = [(one, other) for one, other in zip(trainable.parameters, network.parameters(), strict=True)]
    compare(step_of(family, trainable).loss(batch), theirs, moved)


def compare(ours: Tensor, theirs: Tensor, parameters: list[tuple[nn.Parameter, nn.Parameter]]) -> None:
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    ours.backward()
    theirs.backward()
    for one, other in parameters:
        if other.grad is not None:
            assert one.grad is not None
            assert torch.linalg.norm(one.grad - other.grad) <= 1e-4 * torch.linalg.norm(other.grad) + 1e-9


def test_a_masked_loss_of_flow_matching_equals_that_of_diffusers() -> None:
    from peft import LoraConfig

    family = tiny_flux("dev", model_type="lora", lora_rank=4, lora_dropout=0)
    trainable, network = make_trainable(family, None), flux.their_network("dev").requires_grad_(False)
    network.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(family.adapter_targets("transformer"))))
    others = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for number, (one, other) in enumerate(zip(trainable.parameters, others, strict=True)):
            one.copy_(flux.fixed(*one.shape, seed=number))
            other.copy_(one)
    mask, sigma = mask_of(8, 12), flux.SIGMAS.view(-1, 1, 1, 1)
    prompts = family.collate_prompts(flux.PROMPTS)
    batch = Batch(latents=flux.LATENTS, noise=flux.NOISE, timesteps=flux.SIGMAS, prompts=prompts, files=("a", "b"), loss_mask=mask)
    output = network(
        hidden_states=flux.their_packed(sigma * flux.NOISE + (1 - sigma) * flux.LATENTS),
        timestep=flux.SIGMAS,
        guidance=torch.full((2,), 1.0),
        pooled_projections=torch.stack([prompt["pooled"] for prompt in flux.PROMPTS]),
        encoder_hidden_states=torch.stack([prompt["embeds"] for prompt in flux.PROMPTS]),
        txt_ids=torch.zeros(512, 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32),
        return_dict=False,
    )[0]
    prediction = FluxPipeline._unpack_latents(output, height=64, width=96, vae_scale_factor=8)
    theirs = weighted(prediction - (flux.NOISE - flux.LATENTS), mask)
    assert_alike(step_of(family, trainable).loss(batch), trainable.parameters, theirs, others)


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.*") if path.suffix != ".txt")


def masked(place: Path, kind: str = "mask", **fields: Any) -> list[dict[str, Any]]:
    """The usual datasets with masks of which the left part counts, further for each image."""
    entries = tiny_datasets(place, conditioning_data=["masks"], **fields)
    for number, file in enumerate(pictures(place / "images")):
        with Image.open(file) as image:
            mask = Image.new("L", image.size)
        mask.paste(200, (mask.width // 3, 0, mask.width // 3 + 20 + 3 * number, mask.height))
        path = place / "masks" / file.relative_to(place / "images").with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
    folder, cache = str(place / "masks"), str(place / "cache/masks")
    return [*entries, {"id": "masks", "conditioning_type": kind, "instance_data_dir": folder, "cache_dir_vae": cache}]


def trained(place: Path, datasets: list[dict[str, Any]] | None = None, **options: Any) -> HereRun:
    return train_here(place, datasets=datasets or masked(place), max_train_steps=6, checkpoint_step_interval=3, **options)


@pytest.mark.parametrize("kind", ["mask", "segmentation"])
def test_a_run_weights_its_loss_by_the_masks_of_its_images(kind: str, tmp_path: Path) -> None:
    trainer, *_ = run_of(tmp_path, Listener(), datasets=masked(tmp_path, kind, crop=True, crop_style="random"))
    step, batch = trainer.step, trainer.loader.load(0).passes[0]
    assert batch.loss_mask is not None and batch.loss_mask.shape == (2, 1, *batch.latents.shape[2:])
    for mask in batch.loss_mask:
        assert 0 < mask.mean() < 1
        assert (set(np.unique(mask.numpy()).tolist()) == {0.0, 1.0}) is (kind == "segmentation")
    noisy = step.objective.add_noise(batch.latents, batch.noise, batch.timesteps)
    with torch.no_grad():
        error = step.family.predict(step.network, batch.inputs(noisy)) - batch.noise
        assert float(step.loss(batch)) == pytest.approx(float(weighted(error, batch.loss_mask)), rel=1e-6)


@pytest.mark.parametrize("probability", [1.0, 0.5])
def test_a_resumed_run_equals_the_straight_one(probability: float, tmp_path: Path) -> None:
    assert_resumes_exactly(tmp_path, trained, after=3, masked_loss_probability=probability)


def test_masks_apply_with_their_probability_to_each_sample_whichever_rank_takes_it(tmp_path: Path) -> None:
    trainer, *_ = run_of(tmp_path, Listener(), datasets=masked(tmp_path), masked_loss_probability=0.5, max_train_steps=40)
    loader = trainer.loader
    alone = [one for number in range(40) for one in used(loader.load(number).passes[0].loss_mask)]
    assert 0.3 < sum(alone) / len(alone) < 0.7
    shared: list[list[bool]] = []
    for rank in range(2):
        object.__setattr__(loader.collator, "share", Share(rank, 2))
        shared.append([one for number in range(40) for one in used(loader.load(number).passes[0].loss_mask)])
    assert [one for pair in zip(*shared, strict=True) for one in pair] == alone


def used(masks: Tensor | None) -> list[bool]:
    assert masks is not None
    return [bool(mask.min() < 1) for mask in masks]


def test_probability_zero_trains_what_a_run_without_masks_does(tmp_path: Path) -> None:
    never = trained(tmp_path / "never", masked_loss_probability=0.0)
    without = trained(tmp_path / "without", tiny_datasets(tmp_path / "without"))
    always = trained(tmp_path / "always")
    weights = [
        load_file(run.output_dir / "checkpoint-6/transformer/diffusion_pytorch_model.safetensors") for run in (never, without, always)
    ]
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-6) for key in weights[0])
    assert not all(torch.allclose(weights[0][key], weights[2][key], atol=1e-6) for key in weights[0])


def test_no_mask_is_encoded_and_its_caching_is_a_stage(tmp_path: Path) -> None:
    run = trained(tmp_path)
    latents, masks = (entries_of(tmp_path / "cache" / name) for name in ("vae", "masks"))
    assert (len(latents), len(masks)) == (8, 8)
    stages = {event.label for event in run.heard.of(StageEvent)}
    assert "masks of pictures" in stages
    shapes = {tuple(entry["mask"].shape) for entry in masks.values()}
    assert shapes == {(1, *entry["latents"].shape[1:]) for entry in latents.values()}


def test_black_masks_are_named_and_torn_ones_leave_their_image_out(tmp_path: Path) -> None:
    datasets = masked(tmp_path)
    files = sorted((tmp_path / "masks").rglob("*.png"))
    with Image.open(files[0]) as image:
        Image.new("L", image.size).save(files[0])
    content = bytearray(files[1].read_bytes())
    content[content.index(b"IDAT") + 5] ^= 255
    files[1].write_bytes(content)
    run = trained(tmp_path, datasets)
    told = {event.code: event.message for event in run.heard.of(Notification)}
    assert files[0].name in told["masks_empty"] and files[1].name in told["files_left_out"]


def test_a_run_does_not_resume_with_other_masks(tmp_path: Path) -> None:
    datasets = masked(tmp_path)
    trained(tmp_path, datasets)
    file = next((tmp_path / "masks").rglob("*.png"))
    with Image.open(file) as image:
        Image.new("L", image.size, 255).save(file)
    with pytest.raises(CheckpointUnusable, match="1 changed"):
        trained(tmp_path, datasets, resume_from_checkpoint="latest")


def test_an_eval_set_is_measured_over_its_masks(tmp_path: Path) -> None:
    generate_images(tmp_path / "held-out", count=2, size=(96, 96))
    (tmp_path / "held-masks").mkdir()
    for file in pictures(tmp_path / "held-out"):
        Image.new("L", (96, 96), 30).save(tmp_path / "held-masks" / f"{file.stem}.png")
    held = {
        "id": "held",
        "dataset_type": "eval",
        "instance_data_dir": str(tmp_path / "held-out"),
        "cache_dir_vae": str(tmp_path / "c/held"),
    }
    masks = {"id": "held-masks", "conditioning_type": "mask", "instance_data_dir": str(tmp_path / "held-masks")}

    def losses(name: str, *more: dict[str, Any], **fields: Any) -> list[float]:
        entries = [*tiny_datasets(tmp_path), {**held, **fields}, *more]
        run = train_here(tmp_path, datasets=entries, output_dir=str(tmp_path / name), max_train_steps=1, eval_timesteps=2)
        return [event.details["loss"] for event in run.heard.of(Notification) if event.code == "evaluation"]

    plain, even = losses("plain"), losses("even", masks, conditioning_data=["held-masks"])
    assert even == pytest.approx(plain, rel=1e-6), "a mask of one shade changes nothing"
    for file in (tmp_path / "held-masks").glob("*.png"):
        mask = Image.new("L", (96, 96))
        mask.paste(255, (0, 0, 40, 40))
        mask.save(file)
    assert losses("part", masks, conditioning_data=["held-masks"]) != pytest.approx(plain, rel=1e-3)
