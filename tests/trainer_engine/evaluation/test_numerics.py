"""The evaluation loss equals what diffusers alone computes on the same latents, embeddings, noise and timesteps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FluxPipeline, FluxTransformer2DModel, PixArtSigmaPipeline
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.models import fixed, tiny_family, tiny_model, tiny_pixart
from tests.trainer_engine.families.flux.models import tiny_flux
from trainer_engine.batches.batch import BatchBuilder
from trainer_engine.batches.sampler import Item
from trainer_engine.datasets.samples import CropPlan, Sample
from trainer_engine.datasets.sources.local import LocalSource
from trainer_engine.evaluation.measure import Measuring, evaluation_noise, mean, means
from trainer_engine.families.base import Family
from trainer_engine.objectives.build import make_objective
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.environment import read_environment
from trainer_engine.runtime.groups import Group

POINTS = 6
SIZES = {"a.png": (8, 12), "b.png": (8, 8)}


def item(name: str, source: str = "held-out") -> Item:
    return Item(
        source,
        Sample(
            source=LocalSource("/nowhere"),
            name=name,
            size_bytes=1,
            version=1,
            width=8,
            height=8,
            resized=(8, 8),
            target=(8, 8),
            crop=CropPlan("center", 1.0),
            bucket="1",
            captions=(f"caption of {name}",),
        ),
    )


def measuring(
    family: Family,
    latents: Mapping[str, Tensor],
    prompts: Mapping[str, dict[str, Tensor]],
    read_latents: Callable[[str, Sample], Tensor] | None = None,
    **changes: Any,
) -> Measuring:
    network = family.load_network().eval()
    values: dict[str, Any] = {
        "family": family,
        "objective": make_objective(family.prediction_type, family.scheduler_config(), family.options.objective),
        "processes": Processes(read_environment({})),
        "network": network,
        "builder": BatchBuilder(
            family=family,
            read_latents=read_latents or (lambda source, sample: latents[sample.name]),
            read_prompt=lambda source, caption, references: prompts[caption],
            crop_seed=0,
        ),
        "images": [item(name) for name in latents],
        "points": POINTS,
    }
    return Measuring(**(values | changes))


def measured(how: Measuring) -> Tensor:
    losses = how.local_losses(lambda done, total: None, lambda: False)
    assert losses is not None
    return losses


def noise(name: str, latents: Tensor, point: int) -> Tensor:
    return evaluation_noise(name, point, latents.shape)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_losses_of_pixart_equal_those_of_diffusers_alone(prediction_type: str) -> None:
    family = tiny_family(prediction_type=prediction_type, snr_gamma=5, loss_type="huber")
    latents = {name: fixed(4, *size, seed=number) for number, (name, size) in enumerate(SIZES.items())}
    captions = [f"caption of {name}" for name in SIZES]
    ours = measured(measuring(family, latents, dict(zip(captions, family.encode_prompts(captions), strict=True))))

    pipeline = PixArtSigmaPipeline.from_pretrained(tiny_pixart())
    scheduler = DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", num_train_timesteps=1000)
    timesteps = torch.tensor([83, 250, 416, 583, 750, 916])
    for row, (name, data) in zip(ours, latents.items(), strict=True):
        embeds, mask, _, _ = pipeline.encode_prompt([f"caption of {name}"], do_classifier_free_guidance=False)
        for point, t in enumerate(timesteps):
            eps = noise(name, data, point)
            with torch.no_grad():
                output = pipeline.transformer(
                    scheduler.add_noise(data[None], eps, t[None]),
                    encoder_hidden_states=embeds,
                    encoder_attention_mask=mask,
                    timestep=t[None],
                    added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                ).sample[:, :4]
            wanted = eps if prediction_type == "epsilon" else scheduler.get_velocity(data[None], eps, t[None])
            assert row[point].item() == pytest.approx(mse_loss(output, wanted).item(), rel=1e-5)


def flux_case() -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    latents = {name: fixed(16, *size, seed=number) for number, (name, size) in enumerate(SIZES.items())}
    prompts = {
        f"caption of {name}": {"embeds": fixed(512, 32, seed=5), "pooled": fixed(32, seed=7), "mask": (torch.arange(512) < 20).long()}
        for name in SIZES
    }
    return latents, prompts


def test_losses_of_flux_equal_those_of_diffusers_alone() -> None:
    family, (latents, prompts) = tiny_flux(flow_schedule_shift=3, flow_use_beta_schedule=True), flux_case()
    ours = measured(measuring(family, latents, prompts))
    network = FluxTransformer2DModel.from_pretrained(tiny_model("flux", flavour="dev"), subfolder="transformer").eval()
    for row, (name, data) in zip(ours, latents.items(), strict=True):
        prompt = prompts[f"caption of {name}"]
        for point in range(POINTS):
            sigma, eps = (point + 0.5) / POINTS, noise(name, data, point)
            packed = FluxPipeline._pack_latents((1 - sigma) * data[None] + sigma * eps, 1, *data.shape)
            with torch.no_grad():
                output = network(
                    hidden_states=packed,
                    timestep=torch.tensor([sigma]),
                    guidance=torch.ones(1),
                    pooled_projections=prompt["pooled"][None],
                    encoder_hidden_states=prompt["embeds"][None],
                    txt_ids=torch.zeros(512, 3),
                    img_ids=FluxPipeline._prepare_latent_image_ids(1, data.shape[1] // 2, data.shape[2] // 2, "cpu", torch.float32),
                ).sample
            wanted = FluxPipeline._pack_latents(eps - data[None], 1, *data.shape)
            assert row[point].item() == pytest.approx(mse_loss(output, wanted).item(), rel=1e-5)


def test_several_processes_measure_what_one_does_bit_for_bit() -> None:
    family, (latents, prompts) = tiny_flux(flux_guidance_mode="random-range", flux_guidance_min=1, flux_guidance_max=4), flux_case()
    alone = measured(measuring(family, latents, prompts))
    together = torch.zeros_like(alone)
    for rank in range(2):
        share = type("Share", (), {"together": Group(rank, 2)})()
        together += measured(measuring(family, latents, prompts, processes=share))
    assert torch.equal(alone, together)
    assert torch.equal(alone, measured(measuring(family, latents, prompts)))


def test_the_order_of_images_and_other_images_change_no_number() -> None:
    family, (latents, prompts) = tiny_flux(), flux_case()
    both = measured(measuring(family, latents, prompts))
    assert torch.equal(both[1:], measured(measuring(family, latents, prompts, images=[item("b.png")])))


def test_noise_differs_between_images_and_timesteps_and_never_changes() -> None:
    noises = {(name, point): evaluation_noise(name, point, (4, 8, 8)) for name in SIZES for point in range(3)}
    assert all(not torch.equal(noises[one], noises[other]) for one in noises for other in noises if one != other)
    assert all(torch.equal(noises[name, point], evaluation_noise(name, point, (4, 8, 8))) for name, point in noises)
    assert evaluation_noise("a.png", 0, (4, 8, 8)).flatten()[:3].tolist() == pytest.approx([0.7467108, -0.4752048, 1.6084783], abs=1e-6)


def test_means_are_by_dataset_and_by_quarter_of_the_schedule() -> None:
    losses = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8], [3.0, 4, 5, 6, 7, 8, 9, 10], [0.0, 0, 0, 0, 0, 0, 0, 16]])
    images = [item("a", "one"), item("b", "one"), item("c", "two")]
    found = means(losses, images, pooled=False)
    assert found == {
        "eval_loss/one": 5.5,
        "eval_loss/one/q1": 2.5,
        "eval_loss/one/q2": 4.5,
        "eval_loss/one/q3": 6.5,
        "eval_loss/one/q4": 8.5,
        "eval_loss/two": 2.0,
        "eval_loss/two/q1": 0.0,
        "eval_loss/two/q2": 0.0,
        "eval_loss/two/q3": 0.0,
        "eval_loss/two/q4": 8.0,
    }
    pooled = means(losses, images, pooled=True, label="_ema")
    assert pooled["eval_loss_ema/all"] == mean(losses) and len(pooled) == 5


def test_quarters_without_timesteps_and_losses_that_are_not_finite_have_no_mean() -> None:
    found = means(torch.tensor([[1.0, float("nan")]]), [item("a")], pooled=False)
    assert found == {"eval_loss/held-out": None, "eval_loss/held-out/q2": 1.0, "eval_loss/held-out/q4": None}


def test_the_noise_of_a_thousand_timesteps_is_not_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []
    most = 0

    def noted(name: str, point: int, shape: Sequence[int]) -> Tensor:
        nonlocal most
        made_now = evaluation_noise(name, point, shape)
        made.append(weakref.ref(made_now))
        most = max(most, sum(one() is not None for one in made))
        return made_now

    monkeypatch.setattr("trainer_engine.evaluation.measure.evaluation_noise", noted)
    family, (latents, prompts) = tiny_flux(), flux_case()
    measured(measuring(family, latents, prompts, points=12))
    assert len(made) == 24 and most <= 2


def test_an_evaluation_stops_on_request() -> None:
    family, (latents, prompts) = tiny_flux(), flux_case()
    assert measuring(family, latents, prompts).local_losses(lambda done, total: None, lambda: True) is None
    how, passes = measuring(family, latents, prompts, points=50), []
    how.network.register_forward_hook(lambda *_: passes.append(None))
    assert how.local_losses(lambda done, total: None, lambda: len(passes) == 2) is None
    assert len(passes) == 2


def test_latents_come_from_the_reader_that_is_given(tmp_path: Path) -> None:
    family, (latents, prompts) = tiny_flux(), flux_case()

    def gone(source: str, sample: Sample) -> Tensor:
        raise FileNotFoundError(sample.name)

    with pytest.raises(FileNotFoundError):
        measured(measuring(family, latents, prompts, read_latents=gone))
