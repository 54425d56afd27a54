"""Slider sets: the strength of the adapter while it learns them, the turns that they take, and the layers of a slider."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers.models import options_with, tiny_family, tiny_model
from tests.helpers.params import first_fast
from tests.helpers.resuming import assert_same_checkpoints
from tests.helpers.tiny_run import HereRun, tiny_datasets, tiny_options, train_here
from tests.trainer_engine.adapters import test_numerics as pixart
from tests.trainer_engine.adapters.test_runs import ADAPTERS, LOKR, STANDARD, lycoris
from tests.trainer_engine.loop.test_regularisation import set_alike, step_of
from trainer_engine.adapters.build import make_trainable
from trainer_engine.batches.batch import Batch
from trainer_engine.batches.loader import StepBatches
from trainer_engine.batches.order import alternating
from trainer_engine.batches.sampler import Sampler
from trainer_engine.batches.sources import data_source, make_sampler, trained_sets
from trainer_engine.caches.decoding import pixels_of
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import check_options, parse_options
from trainer_engine.config.resuming.identity import adapter_targets
from trainer_engine.contract.errors import CheckpointUnusable, ExitCode, Level, Problem
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.report import DatasetReport
from trainer_engine.datasets.summary import summarise
from trainer_engine.families.base import Family
from trainer_engine.families.load import load_family
from trainer_engine.loop.step import Step
from trainer_engine.runtime.devices import resolve_devices

STRENGTHS = {"more": 0.5, "less": -2.0}


def paint(folder: Path, *, brightness: int) -> None:
    """Four images whose names and patterns do not depend on their brightness."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        image = Image.new("RGB", (64, 64), (brightness, brightness, brightness))
        image.paste((brightness + 30, brightness, brightness + 40), (8 * number, 8, 8 * number + 24, 40))
        image.save(folder / f"a_pattern_{number}.png")


def with_sides(place: Path, strengths: dict[str, float] | None = None, **fields: Any) -> list[dict[str, Any]]:
    """The usual set, which is neutral, and a set of four images for each side of a slider."""
    sets = tiny_datasets(place)
    for name, strength in (STRENGTHS if strengths is None else strengths).items():
        paint(place / name, brightness=200 if strength > 0 else 20)
        side = {"id": name, "instance_data_dir": str(place / name), "cache_dir_vae": str(place / "cache" / name)}
        sets.append({**side, "slider_strength": strength, **fields})
    return sets


def batch_of(family: Family, strength: float) -> Batch:
    latents, noise, embeds = pixart.batch()
    prompts = family.collate_prompts([{"embeds": one} for one in embeds])
    return Batch(latents=latents, noise=noise, timesteps=pixart.TIMESTEPS, prompts=prompts, files=("a", "b"), adapter_strength=strength)


def passed(step: Step, batch: Batch) -> float:
    """The loss of a micro-batch, after forward and backward."""
    return step._pass(StepBatches(0, 0, (batch,), 2), 0).item()


def reference(name: str, strength: float) -> tuple[nn.Module, list[nn.Parameter]]:
    """The library's own adapter with the strength in its own scale: alpha, or the multiplier that it is made with."""
    network = pixart.PixArtTransformer2DModel.from_pretrained(pixart.tiny_pixart(), subfolder="transformer").requires_grad_(False).train()
    if name == "lycoris":
        pixart.LycorisNetwork.apply_preset(
            {"target_module": ["Attention", "FeedForward"], "module_algo_map": {}, "name_algo_map": {}, "target_name": []}
        )
        adapter = pixart.create_lycoris(network, strength, linear_dim=2, linear_alpha=1, algo="lokr", factor=4)
        adapter.apply_to()
        return network, list(adapter.parameters())
    alpha: Any = 4 * strength
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=alpha, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), network)
    return network, [parameter for parameter in network.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("strength", first_fast([-0.5, 0.5, -2.0]))
@pytest.mark.parametrize("name", ["standard", "lycoris"])
def test_loss_and_gradients_are_those_of_the_library_at_this_strength(
    name: str, strength: float, checkpointing: bool, tmp_path: Path
) -> None:
    family = tiny_family(**pixart.options_of(name, tmp_path), gradient_checkpointing=checkpointing)
    trainable = make_trainable(family, None)
    network, parameters = reference(name, strength)
    set_alike(trainable.parameters, parameters)
    step = step_of(family, trainable)
    step.at_strength = trainable.at_strength
    ours, theirs = passed(step, batch_of(family, strength)), pixart.their_loss(network)  # type: ignore[arg-type]
    theirs.backward()
    assert ours == pytest.approx(theirs.item(), rel=1e-6)
    for mine, other in zip(trainable.parameters, parameters, strict=True):
        assert mine.grad is not None and other.grad is not None
        assert torch.linalg.norm(mine.grad - other.grad) <= 1e-4 * torch.linalg.norm(other.grad)
    trainable.network.zero_grad()
    usual, _ = passed(step, batch_of(family, 1.0)), trainable.network.zero_grad()
    assert usual == pytest.approx(pixart.our_loss(family, trainable.network).item(), rel=1e-6), "the strength is the usual one again"


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_kind_of_adapter_has_two_sides(name: str, tmp_path: Path) -> None:
    family = tiny_family(**{**ADAPTERS[name](tmp_path), **({"lora_dropout": 0.0} if name in ("standard", "dora") else {})})
    trainable = make_trainable(family, None)
    with torch.no_grad():
        for number, parameter in enumerate(trainable.parameters):
            parameter.add_(pixart.fixed(*parameter.shape, seed=number) * 0.05)
    step, losses = step_of(family, trainable), {}
    step.at_strength = trainable.at_strength
    for strength in (1.0, 0.5, -0.5):
        trainable.network.zero_grad()
        losses[strength] = passed(step, batch_of(family, strength))
        gradients = [parameter.grad for parameter in trainable.parameters if parameter.grad is not None]
        assert any(bool(gradient.any()) for gradient in gradients)
    assert len({round(loss, 7) for loss in losses.values()}) == 3


@given(sides=st.lists(st.sampled_from([1, -1, 0]), max_size=40))
@settings(max_examples=200, deadline=None)
def test_the_sides_take_turns_until_they_are_used_up(sides: list[int]) -> None:
    order = alternating(np.array(sides, np.int32)).tolist()
    assert sorted(order) == list(range(len(sides)))
    left: dict[int, list[int]] = {side: [place for place, one in enumerate(sides) if one == side] for side in (1, -1, 0)}
    wanted = []
    while any(left.values()):
        wanted += [places.pop(0) for places in left.values() if places]
    assert order == wanted


def sampler_of(place: Path, datasets: list[dict[str, Any]], **options: Any) -> tuple[Sampler, DatasetReport]:
    parsed = parse_options(tiny_options(place, model_type="lora", **options))
    spec = find_spec("pixart_sigma")
    assert spec is not None
    report = examine(parse_dataloader(datasets, parsed)[0], parsed, spec)
    return make_sampler([data_source(found, found.samples) for found in trained_sets(report)], parsed, processes=1), report


def test_batches_of_an_epoch_alternate_and_the_report_says_how_often(tmp_path: Path) -> None:
    found, report = sampler_of(tmp_path, with_sides(tmp_path))
    for epoch in range(3):
        steps = range(found.timeline.start_of(epoch), found.timeline.start_of(epoch + 1))
        owners = [batch[0].source for step in steps for batch in found.step(step)]
        assert owners == ["more", "less", "pictures"] * 2 + ["pictures"] * 2
    shares = {one["id"]: one["share"]["at_start"] for one in summarise(report)["datasets"]}
    assert shares == pytest.approx({"pictures": 1 / 3, "more": 1 / 3, "less": 1 / 3}, abs=1e-5)


def test_sets_of_one_side_share_its_turns_by_their_weights(tmp_path: Path) -> None:
    datasets = with_sides(tmp_path, {"more": 1.0, "most": 2.0, "less": -1.0}, repeats=9)
    found, report = sampler_of(tmp_path, datasets[1:])
    owners = [found.step(step)[0][0].source for step in range(40)]
    assert [owner == "less" for owner in owners] == [False, True] * 20
    assert {"more", "most"} < set(owners)
    shares = {one["id"]: one["share"]["at_start"] for one in summarise(report)["datasets"]}
    assert shares == pytest.approx({"more": 0.25, "most": 0.25, "less": 0.5})


def test_without_sides_the_order_is_as_before(tmp_path: Path) -> None:
    plain = [{name: value for name, value in one.items() if name != "slider_strength"} for one in with_sides(tmp_path)]
    zero = with_sides(tmp_path, {"more": 0.0, "less": 0.0})
    orders = []
    for sets in (plain, zero):
        found, _ = sampler_of(tmp_path, sets)
        orders.append([[item.sample.name for item in batch] for step in range(12) for batch in found.step(step)])
    assert orders[0] == orders[1]


def run(place: Path, name: str, **options: Any) -> HereRun:
    values = {**STANDARD, "max_train_steps": 7, "gradient_accumulation_steps": 2, "output_dir": str(place / name), **options}
    return train_here(place, datasets=with_sides(place), **values)


@pytest.mark.parametrize("kind", ["standard", "lokr"])
def test_a_slider_resumes_exactly(tmp_path: Path, kind: str) -> None:
    options = {} if kind == "standard" else lycoris(tmp_path, **LOKR)
    whole = run(tmp_path, "straight", **options)
    assert whole.code is ExitCode.COMPLETED
    for after in (2, 5):
        assert run(tmp_path, "interrupted", stop_after=after, **options).step == after
        resumed = run(tmp_path, "interrupted", **options)
        assert_same_checkpoints(whole, resumed)
        shutil.rmtree(tmp_path / "interrupted")


def test_another_strength_is_another_run(tmp_path: Path) -> None:
    first = train_here(tmp_path, datasets=with_sides(tmp_path), **STANDARD, max_train_steps=3)
    weights = torch_file(first)
    other = train_here(tmp_path / "other", datasets=with_sides(tmp_path, {"more": 1.0, "less": -2.0}), **STANDARD, max_train_steps=3)
    assert any(not torch.equal(weights[key], tensor) for key, tensor in torch_file(other).items())
    with pytest.raises(CheckpointUnusable, match="slider_strength"):
        train_here(tmp_path, datasets=with_sides(tmp_path, {"more": 1.0, "less": -2.0}), **STANDARD, max_train_steps=4)


def torch_file(done: HereRun) -> dict[str, Tensor]:
    return load_file(done.output_dir / "pytorch_lora_weights.safetensors")


def test_each_side_is_learned_at_its_own_strength(tmp_path: Path) -> None:
    """The images of a side are predicted better at its strength than at the other one."""
    sets = with_sides(tmp_path, {"more": 1.0, "less": -1.0})[1:]
    options = {**STANDARD, "lora_dropout": 0.0, "learning_rate": 1e-2, "caption_dropout_probability": 0}
    done = train_here(tmp_path, datasets=sets, max_train_steps=60, **options)
    family = tiny_family(**STANDARD, init_lora=str(done.output_dir))
    trainable = make_trainable(family, None)
    trainable.network.eval()
    step, losses = step_of(family, trainable), {}
    for side in ("more", "less"):
        pixels = torch.stack([pixels_of(Image.open(path)) for path in sorted((tmp_path / side).iterdir())])
        latents = family.encode_images(pixels).float()
        [prompt] = family.encode_prompts(["a pattern 0"], [[]])
        for strength in (1.0, -1.0):
            with torch.no_grad(), trainable.at_strength(strength):
                losses[side, strength] = sum(step.loss(fixed_batch(family, latents, prompt, seed)).item() for seed in range(12))
    assert losses["more", 1.0] < losses["more", -1.0] and losses["less", -1.0] < losses["less", 1.0], losses


def fixed_batch(family: Family, latents: Tensor, prompt: Any, seed: int) -> Batch:
    return Batch(
        latents=latents,
        noise=pixart.fixed(*latents.shape, seed=seed),
        timesteps=torch.full((len(latents),), 80 * seed + 20),
        prompts=family.collate_prompts([prompt] * len(latents)),
        files=("",) * len(latents),
    )


@pytest.mark.parametrize("name", ["pixart_sigma", "flux", "sd1x", "sdxl", "wan"])
def test_slider_layers_are_in_the_network_and_read_no_prompt(name: str) -> None:
    chosen = {"model_family": name, "model": str(tiny_model(name)), "slider_lora_target": True, "lora_rank": 2}
    options = parse_options(tiny_options(Path("/nowhere"), model_type="lora", **chosen))
    family = load_family(options, resolve_devices(options, torch.device("cpu")))
    assert adapter_targets(options, family.spec) == family.spec.adapters.slider_targets
    trainable = make_trainable(family, None)
    names = {key.split(".lora_")[0] for key in trainable.names}
    assert any("attn" in one and one.endswith("to_v") for one in names)
    assert not [one for one in names if "attn2" in one or "add_" in one or "context" in one or "text" in one]


def problems_of(place: Path, datasets: list[dict[str, Any]], **options: Any) -> list[tuple[str, str, Level]]:
    values = tiny_options(place, **{"model_type": "lora", **options})
    found: list[Problem] = parse_dataloader(datasets, parse_options(values))[1]
    return [(one.option, one.code, one.level) for one in found if one.option.endswith("slider_strength")]


def test_validate_names_every_slider_that_cannot_be_learned(tmp_path: Path) -> None:
    sides = with_sides(tmp_path)
    assert problems_of(tmp_path, sides) == []
    full = [(f"dataloader[{place}].slider_strength", "needs_adapter", Level.ERROR) for place in (2, 3)]
    assert problems_of(tmp_path, sides, model_type="full") == full
    assert problems_of(tmp_path, sides[:3]) == [("dataloader[2].slider_strength", "one_side", Level.WARNING)]
    prior = [*sides[:3], {**sides[3], "is_regularisation_data": True}]
    assert problems_of(tmp_path, prior) == [("dataloader[3].slider_strength", "conflict", Level.ERROR)]
    assert problems_of(tmp_path, with_sides(tmp_path, {"more": 11.0, "less": -1.0}))[0][1] == "out_of_range"
    evaluated = [*sides, {**sides[3], "id": "held-out", "dataset_type": "eval", "cache_dir_vae": str(tmp_path / "held-out")}]
    assert problems_of(tmp_path, evaluated) == [("dataloader[4].slider_strength", "no_effect", Level.NOTE)]


@pytest.mark.parametrize(
    ("values", "option", "code"),
    [
        ({"lora_type": "lycoris"}, "slider_lora_target", "no_effect"),
        ({"model_type": "full"}, "slider_lora_target", "no_adapter"),
        ({"peft_lora_target_modules": '["to_q"]'}, "slider_lora_target", "no_effect"),
        ({"model_family": "flux", "flux_lora_target": "context"}, "flux_lora_target", "no_effect"),
    ],
)
def test_validate_says_which_option_chooses_the_layers(values: dict[str, Any], option: str, code: str) -> None:
    given = {**options_with(model_type="lora").as_values(), "slider_lora_target": True, **values}
    found = [(one.option, one.code) for one in check_options(given)[1]]
    assert (option, code) in found
