"""Prior preservation: on samples of such a set an adapter learns what the network without it predicts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FluxPipeline
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.models import tiny_family
from tests.helpers.pictures import generate_images
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import HereRun, run_of_ranks, tiny_datasets, tiny_options, train_here
from tests.trainer_engine.adapters import test_numerics as pixart
from tests.trainer_engine.adapters.test_runs import ADAPTERS, LOKR, STANDARD, lycoris
from tests.trainer_engine.families.flux import test_numerics as flux
from tests.trainer_engine.families.flux.models import tiny_flux
from trainer_engine.adapters.base import Trainable
from trainer_engine.adapters.build import make_trainable
from trainer_engine.batches.batch import Batch
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.contract.errors import CheckpointUnusable, Level
from trainer_engine.contract.events import ProgressEvent
from trainer_engine.families.base import Family
from trainer_engine.loop.step import Step
from trainer_engine.objectives.build import make_objective
from trainer_engine.optim.lr_schedules import Schedule
from trainer_engine.optim.updates import make_update
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.environment import read_environment


def step_of(family: Family, trainable: Trainable) -> Step:
    options = family.options
    return Step(
        family=family,
        objective=make_objective(family.prediction_type, family.scheduler_config(), options.objective),
        devices=family.devices,
        processes=Processes(read_environment({})),
        network=trainable.network,
        update=make_update(options.optimizer, [trainable.parameters], family.devices.device),
        schedules=(Schedule(options.schedule, 1e-4, 10),),
        seed=1,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        parent=trainable.base_model,
    )


def set_alike(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    """Adapters that change the network: a new one predicts what its parent does, and would have no loss."""
    with torch.no_grad():
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            one.copy_(pixart.fixed(*one.shape, seed=number) * 0.5 + (1 if one.dim() == 1 else 0))
            other.copy_(one)


def assert_alike(ours: Tensor, mine: list[nn.Parameter], theirs: Tensor, others: list[nn.Parameter]) -> None:
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert ours.item() > 1e-6
    ours.backward()
    theirs.backward()
    for one, other in zip(mine, others, strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.linalg.norm(one.grad - other.grad) <= 1e-4 * torch.linalg.norm(other.grad)


@pytest.mark.parametrize("name", ["standard", "dora", "lycoris"])
def test_diffusion_learns_the_prediction_of_the_library_without_an_adapter(name: str, tmp_path: Path) -> None:
    family = tiny_family(**pixart.options_of(name, tmp_path), gradient_checkpointing=False)
    trainable = make_trainable(family, None)
    network, parameters = pixart.their_network(name)
    parent = pixart.PixArtTransformer2DModel.from_pretrained(pixart.tiny_pixart(), subfolder="transformer").eval()
    set_alike(trainable.parameters, parameters)
    latents, noise, embeds = pixart.batch()
    prompts = family.collate_prompts([{"embeds": one} for one in embeds])
    batch = Batch(latents=latents, noise=noise, timesteps=pixart.TIMESTEPS, prompts=prompts, files=("a", "b"), toward_parent=True)
    noisy = DDPMScheduler.from_pretrained(pixart.tiny_pixart(), subfolder="scheduler").add_noise(latents, noise, pixart.TIMESTEPS)

    def predict(model: nn.Module) -> Tensor:
        mask, conditions = torch.ones(2, 5), {"resolution": None, "aspect_ratio": None}
        found = model(noisy, embeds, pixart.TIMESTEPS, added_cond_kwargs=conditions, encoder_attention_mask=mask).sample
        return found.chunk(2, dim=1)[0]

    with torch.no_grad():
        target = predict(parent)
    ours = step_of(family, trainable).loss(batch)
    assert_alike(ours, trainable.parameters, mse_loss(predict(network), target), parameters)


def test_flow_matching_learns_the_prediction_of_diffusers_without_an_adapter() -> None:
    from peft import LoraConfig

    family = tiny_flux("dev", model_type="lora", lora_rank=4, lora_dropout=0)
    trainable, network = make_trainable(family, None), flux.their_network("dev").requires_grad_(False)
    parent = copy.deepcopy(network).eval()
    network.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(family.adapter_targets("transformer"))))
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    set_alike(trainable.parameters, parameters)
    prompts = family.collate_prompts(flux.PROMPTS)
    batch = Batch(latents=flux.LATENTS, noise=flux.NOISE, timesteps=flux.SIGMAS, prompts=prompts, files=("a", "b"), toward_parent=True)
    sigma = flux.SIGMAS.view(-1, 1, 1, 1)
    packed = flux.their_packed(sigma * flux.NOISE + (1 - sigma) * flux.LATENTS)

    def predict(model: nn.Module) -> Tensor:
        found: Tensor = model(
            hidden_states=packed,
            timestep=flux.SIGMAS,
            guidance=torch.full((2,), 1.0),
            pooled_projections=torch.stack([prompt["pooled"] for prompt in flux.PROMPTS]),
            encoder_hidden_states=torch.stack([prompt["embeds"] for prompt in flux.PROMPTS]),
            txt_ids=torch.zeros(512, 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32),
            return_dict=False,
        )[0]
        return found

    with torch.no_grad():
        target = predict(parent)
    ours = step_of(family, trainable).loss(batch)
    assert_alike(ours, trainable.parameters, mse_loss(predict(network), target), parameters)


def test_the_parent_changes_neither_random_numbers_nor_modes_nor_what_is_trained(tmp_path: Path) -> None:
    family = tiny_family(**lycoris(tmp_path, **{**LOKR, "algo": "dylora", "linear_dim": 4, "block_size": 2}))
    trainable = make_trainable(family, None)
    names, modes = trainable.names, [module.training for module in trainable.network.modules()]
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    with trainable.base_model() as network:
        assert not network.training and not torch.is_grad_enabled()
        pixart.our_loss(family, network)
    assert torch.equal(torch.rand(4), wanted)
    assert trainable.names == names and [module.training for module in trainable.network.modules()] == modes


def with_prior(place: Path, **fields: Any) -> list[dict[str, Any]]:
    """The usual datasets, and a set of other images for prior preservation."""
    generate_images(place / "prior", count=4, size=(80, 96))
    prior = {"id": "prior", "instance_data_dir": str(place / "prior"), "cache_dir_vae": str(place / "cache/prior")}
    return [*tiny_datasets(place), {**prior, "is_regularisation_data": True, **fields}]


def trained(place: Path, **options: Any) -> HereRun:
    return train_here(place, datasets=with_prior(place), max_train_steps=6, checkpoint_step_interval=3, **options)


QUANTISED_EMA: dict[str, Any] = {**STANDARD, "base_model_precision": "int8-quanto", "use_ema": True}
RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "standard": lambda place: STANDARD,
    "lokr": ADAPTERS["lokr"],
    "dylora": ADAPTERS["dylora"],
    "quantised with an average": lambda place: QUANTISED_EMA,
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_equals_the_straight_one(name: str, tmp_path: Path) -> None:
    assert_resumes_exactly(tmp_path, trained, after=3, **RUNS[name](tmp_path))


@pytest.mark.slow
def test_two_ranks_train_what_one_does_with_twice_the_batch(tmp_path: Path) -> None:
    quiet = {**STANDARD, "lora_dropout": 0.0, "max_train_steps": 6}
    alone = train_here(tmp_path / "alone", datasets=with_prior(tmp_path / "alone"), train_batch_size=2, **quiet)
    place = tmp_path / "shared"
    run = run_of_ranks(place, datasets=with_prior(place), **quiet)
    wanted, found = (load_file(at / "pytorch_lora_weights.safetensors") for at in (alone.output_dir, run.output_dir))
    assert all(torch.allclose(found[key], wanted[key], rtol=1e-3, atol=1e-6) for key in wanted)


def losses(place: Path, datasets: list[dict[str, Any]], **options: Any) -> list[float]:
    run = train_here(place, datasets=datasets, max_train_steps=6, **options)
    return [event.loss for event in run.heard.of(ProgressEvent) if event.loss is not None]


def test_a_new_adapter_has_no_loss_on_the_prior_and_one_that_changes_images_has(tmp_path: Path) -> None:
    alone = with_prior(tmp_path)[1:]
    assert losses(tmp_path, alone, **STANDARD) == [0.0] * 6, "a new adapter predicts what its parent does"
    learned = trained(tmp_path / "other", **STANDARD, learning_rate=1e-2).output_dir / "pytorch_lora_weights.safetensors"
    changed = losses(tmp_path / "again", with_prior(tmp_path / "again")[1:], **STANDARD, init_lora=str(learned), learning_rate=1e-2)
    assert all(loss > 0 for loss in changed)
    assert changed[-1] < changed[0], "it is drawn back to its parent"


def test_a_full_fine_tune_trains_on_the_images_of_such_a_set(tmp_path: Path) -> None:
    plain = [{**entry, "is_regularisation_data": False} if entry["id"] == "prior" else entry for entry in with_prior(tmp_path)]
    assert losses(tmp_path, with_prior(tmp_path)) == losses(tmp_path / "plain", plain)
    [note] = problems_of(tmp_path, with_prior(tmp_path), model_type="full")
    assert (note.code, note.level, note.option) == ("trained_as_images", Level.NOTE, "dataloader[2].is_regularisation_data")


def problems_of(place: Path, datasets: list[dict[str, Any]], **options: Any) -> list[Any]:
    return parse_dataloader(datasets, tiny_options(place, **options))[1]


def test_both_spellings_mean_the_same_and_two_values_are_an_error(tmp_path: Path) -> None:
    entries = with_prior(tmp_path)
    entries[2]["is_regularization_data"] = entries[2].pop("is_regularisation_data")
    found, problems = parse_dataloader(entries, tiny_options(tmp_path, **STANDARD))
    assert found.image_sets[1].is_regularisation_data and not problems
    entries[2]["is_regularisation_data"] = False
    assert [problem.code for problem in problems_of(tmp_path, entries, **STANDARD)] == ["conflicting_values"]


def test_validate_warns_if_an_adapter_has_nothing_but_its_prior(tmp_path: Path) -> None:
    [warning] = problems_of(tmp_path, with_prior(tmp_path)[1:], **STANDARD)
    assert (warning.code, warning.level) == ("nothing_to_learn", Level.WARNING)


def test_an_eval_set_is_never_regularisation(tmp_path: Path) -> None:
    entries = with_prior(tmp_path, dataset_type="eval")
    [note] = problems_of(tmp_path, entries, **STANDARD)
    assert (note.code, note.option) == ("no_effect", "dataloader[2].is_regularisation_data")


def test_a_run_does_not_resume_with_a_set_that_has_changed_its_purpose(tmp_path: Path) -> None:
    trained(tmp_path, **STANDARD)
    with pytest.raises(CheckpointUnusable, match="is_regularisation_data was"):
        entries = with_prior(tmp_path, is_regularisation_data=False)
        train_here(tmp_path, datasets=entries, max_train_steps=6, resume_from_checkpoint="latest", **STANDARD)
