"""Loss and gradients equal those of the libraries alone, on the same batch, noise and timesteps; nothing below the adapter moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, PixArtTransformer2DModel
from lycoris import LycorisNetwork, create_lycoris
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.models import fixed, tiny_family, tiny_pixart
from tests.trainer_engine.adapters.test_runs import LOKR, STANDARD, lycoris
from trainer_engine.adapters.base import ADAPTER_FILE
from trainer_engine.adapters.build import make_trainable
from trainer_engine.contract.errors import CheckpointUnusable, InvalidOptions
from trainer_engine.families.base import Family
from trainer_engine.families.inputs import StepInputs
from trainer_engine.objectives.build import make_objective

TIMESTEPS = torch.tensor([17, 800])
STILL = {**STANDARD, "lora_dropout": 0.0}


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """(latents, noise, embeddings)"""
    return fixed(2, 4, 8, 8, seed=1), fixed(2, 4, 8, 8, seed=2), fixed(2, 5, 32, seed=3)


def our_loss(family: Family, network: nn.Module) -> Tensor:
    latents, noise, embeds = batch()
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    noisy = objective.add_noise(latents, noise, TIMESTEPS)
    prompts = family.collate_prompts([{"embeds": one} for one in embeds])
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=TIMESTEPS, prompts=prompts))
    return objective.loss(prediction, objective.target(latents, noise, TIMESTEPS), TIMESTEPS).mean()


def their_loss(network: PixArtTransformer2DModel) -> Tensor:
    latents, noise, embeds = batch()
    noisy = DDPMScheduler.from_pretrained(tiny_pixart(), subfolder="scheduler").add_noise(latents, noise, TIMESTEPS)
    conditions = {"resolution": None, "aspect_ratio": None}
    output = network(noisy, embeds, TIMESTEPS, added_cond_kwargs=conditions, encoder_attention_mask=torch.ones(2, 5)).sample
    return mse_loss(output.chunk(2, dim=1)[0], noise)


def their_network(name: str) -> tuple[PixArtTransformer2DModel, list[nn.Parameter]]:
    network = PixArtTransformer2DModel.from_pretrained(tiny_pixart(), subfolder="transformer").requires_grad_(False).train()
    if name == "lycoris":
        preset = {"target_module": ["Attention", "FeedForward"], "module_algo_map": {}, "name_algo_map": {}, "target_name": []}
        LycorisNetwork.apply_preset(preset)
        adapter = create_lycoris(network, 1.0, linear_dim=2, linear_alpha=1, algo="lokr", factor=4)
        adapter.apply_to()
        return network, list(adapter.parameters())
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=targets, use_dora=name == "dora"), network)
    return network, [parameter for parameter in network.parameters() if parameter.requires_grad]


def options_of(name: str, place: Path) -> dict[str, Any]:
    decomposed = {**LOKR, "algo": "lora", "weight_decompose": True}
    return {
        "standard": lambda: STILL,
        "dora": lambda: {**STILL, "use_dora": True},
        "lycoris": lambda: lycoris(place, **LOKR),
        "decomposed": lambda: lycoris(place, **decomposed),
        "full": lambda: lycoris(place, **{**LOKR, "algo": "full"}),
    }[name]()


@pytest.mark.parametrize("name", ["standard", "dora", "lycoris"])
def test_loss_and_gradients_equal_those_of_the_library_alone(name: str, tmp_path: Path) -> None:
    family = tiny_family(**options_of(name, tmp_path), gradient_checkpointing=False)
    trainable = make_trainable(family, None)
    network, parameters = their_network(name)
    assert len(parameters) == len(trainable.parameters) > 0
    with torch.no_grad():
        for number, (ours, theirs) in enumerate(zip(trainable.parameters, parameters, strict=True)):
            ours.copy_(fixed(*ours.shape, seed=number) * 0.1 + (1 if ours.dim() == 1 else 0))
            theirs.copy_(ours)
    ours, theirs = our_loss(family, trainable.network), their_loss(network)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    ours.backward()
    theirs.backward()
    for mine, other in zip(trainable.parameters, parameters, strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.allclose(mine.grad, other.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["standard", "dora", "lycoris"])
def test_a_saved_adapter_gives_the_same_answer_bit_for_bit(name: str, tmp_path: Path) -> None:
    family = tiny_family(**options_of(name, tmp_path))
    trainable = make_trainable(family, None)
    state = trainable.network.state_dict()
    base = {key: value.clone() for key, value in state.items() if "lora" not in key and "lycoris" not in key}
    our_loss(family, trainable.network).backward()
    torch.optim.AdamW(trainable.parameters, lr=0.01).step()
    trainable.save(tmp_path / "saved")
    again = make_trainable(family, tmp_path / "saved")
    for one in (trainable, again):
        one.network.eval()
    with torch.no_grad():
        assert torch.equal(our_loss(family, trainable.network), our_loss(family, again.network))
    after = trainable.network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in base.items())


@pytest.mark.parametrize("name", ["standard", "dora", "lycoris", "decomposed", "full"])
def test_an_adapter_of_strength_zero_is_the_base_model_bit_for_bit(name: str, tmp_path: Path) -> None:
    family = tiny_family(**options_of(name, tmp_path))
    trainable, bare = make_trainable(family, None), tiny_family().load_network().eval()
    with torch.no_grad():
        for number, parameter in enumerate(trainable.parameters):
            parameter.add_(fixed(*parameter.shape, seed=number))
    learning = trainable.names
    trainable.network.eval()
    with torch.no_grad():
        wanted, strong = our_loss(family, bare), our_loss(family, trainable.network)
        with trainable.at_strength(0.0):
            assert torch.equal(our_loss(family, trainable.network), wanted)
        assert torch.equal(our_loss(family, trainable.network), strong)
    assert not torch.equal(strong, wanted)
    assert trainable.names == learning


def test_another_adapters_file_is_refused(tmp_path: Path) -> None:
    make_trainable(tiny_family(**STILL), None).save(tmp_path / "saved")
    with pytest.raises(CheckpointUnusable, match="of the algorithm LoRA, and the run trains LoKr"):
        make_trainable(tiny_family(**lycoris(tmp_path, **LOKR)), tmp_path / "saved")
    with pytest.raises(CheckpointUnusable, match="has rank 4, and the run has 8"):
        make_trainable(tiny_family(**{**STILL, "lora_rank": 8}), tmp_path / "saved")


def test_init_lora_starts_from_another_adapter(tmp_path: Path) -> None:
    first = make_trainable(tiny_family(**STILL), None)
    with torch.no_grad():
        for parameter in first.parameters:
            parameter.fill_(0.5)
    first.save(tmp_path / "saved")
    second = make_trainable(tiny_family(**STILL, init_lora=str(tmp_path / "saved")), None)
    assert all(bool((parameter == 0.5).all()) for parameter in second.parameters)
    with pytest.raises(InvalidOptions, match="init_lora"):
        make_trainable(tiny_family(**{**STILL, "lora_rank": 2}, init_lora=str(tmp_path / "saved")), None)


@pytest.mark.parametrize("name", ["standard", "lycoris"])
def test_init_lora_takes_any_file_of_the_same_strength(name: str, tmp_path: Path) -> None:
    make_trainable(tiny_family(**options_of(name, tmp_path)), None).save(tmp_path / "saved")
    path = (tmp_path / "saved" / ADAPTER_FILE).rename(tmp_path / "mine.safetensors")
    make_trainable(tiny_family(**options_of(name, tmp_path), init_lora=str(path)), None)
    stronger = {**STILL, "lora_alpha": 8.0} if name == "standard" else lycoris(tmp_path, **{**LOKR, "linear_alpha": 2})
    with pytest.raises(InvalidOptions, match="another alpha"):
        make_trainable(tiny_family(**stronger, init_lora=str(path)), None)


def test_init_lokr_norm_moves_lokr_off_its_start(tmp_path: Path) -> None:
    still = make_trainable(tiny_family(**lycoris(tmp_path, **LOKR)), None)
    moved = make_trainable(tiny_family(**lycoris(tmp_path, **LOKR), init_lokr_norm=1e-3), None)
    zeros = [name for name, parameter in still.named_parameters if not parameter.any()]
    assert zeros
    found = dict(moved.named_parameters)
    assert all(0 < found[name].std() < 3e-3 for name in zeros)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({**STILL, "peft_lora_target_modules": '["nowhere"]'}, "nowhere"),
        ({**STILL, "lora_rank": 64}, "larger than the rank"),
        ({"file": {**LOKR, "apply_preset": {"target_module": ["FeedForward"], "exclude_name": [".*"]}}}, "BasicTransformerBlock"),
        ({"file": {**LOKR, "apply_preset": {"target_module": ["FeedForward"], "exclude_name": [r"(.*)*(.*)*(.*)*!"]}}}, "takes too long"),
        ({"file": {**LOKR, "algo": "lora", "linear_dim": 64}}, "larger than the rank"),
        (
            {"file": {**LOKR, "apply_preset": {"target_module": ["FeedForward"], "target_name": ["nowhere"]}}},
            "matches nowhere",
        ),
        ({"file": {**LOKR, "algo": "tlora", "apply_preset": {}}}, "names a convolution"),
        ({"file": {**LOKR, "algo": "boft"}, "base_model_precision": "int8-quanto"}, "needs the exact weights"),
        ({"file": {**LOKR, "algo": "ia3"}, "lora_format": "comfyui"}, "cannot be saved with ComfyUI's keys"),
    ],
)
def test_adapters_that_do_not_fit_the_network_are_refused(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    if "file" in options:
        options = {**lycoris(tmp_path, **options["file"]), **{name: value for name, value in options.items() if name != "file"}}
    with pytest.raises(InvalidOptions) as refused:
        make_trainable(tiny_family(**options), None)
    assert told in " ".join(f"{problem.message} {problem.expected} {problem.got}" for problem in refused.value.problems)


def test_linear_layers_are_found_where_they_have_been_quantised(tmp_path: Path) -> None:
    on_all = {**LOKR, "apply_preset": {"target_module": ["Linear"]}}
    plain = make_trainable(tiny_family(**lycoris(tmp_path, **on_all)), None)
    quantised = make_trainable(tiny_family(**lycoris(tmp_path, **on_all), base_model_precision="int8-quanto"), None)
    assert quantised.names == plain.names


def test_tlora_gives_each_sample_the_ranks_of_its_own_noise(tmp_path: Path) -> None:
    """On layers of either rank, and on those that see (B, width): the batch answers as its samples do alone."""
    preset = {"target_module": ["FeedForward"], "module_algo_map": {"Attention": {"dim": 3}}, "target_name": [r"adaln_single\.linear"]}
    family = tiny_family(**lycoris(tmp_path, **{**LOKR, "algo": "tlora", "linear_dim": 6, "apply_preset": preset}))
    trainable = make_trainable(family, None)
    with torch.no_grad():
        for number, parameter in enumerate(trainable.parameters):
            parameter.add_(0.1 * fixed(*parameter.shape, seed=number))
    latents, _, embeds = batch()

    def answer(rows: slice) -> Tensor:
        prompts = family.collate_prompts([{"embeds": one} for one in embeds[rows]])
        with torch.no_grad():
            inputs = StepInputs(noisy_latents=latents[rows], timesteps=TIMESTEPS[rows], prompts=prompts)
            return family.predict(trainable.network.eval(), inputs)

    together = answer(slice(None))
    for row in (0, 1):
        assert torch.allclose(together[row], answer(slice(row, row + 1))[0], atol=1e-6)
    with trainable.at_strength(0.0):
        assert not torch.allclose(together, answer(slice(None)), atol=1e-4)
