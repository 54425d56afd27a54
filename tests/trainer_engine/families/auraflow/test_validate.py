"""What ``validate`` and the engine say of AuraFlow: images beyond its positions, networks in one file, token limits, distilled weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.checked_runs import checked
from tests.helpers.models import fixed, tiny_model
from tests.helpers.tiny_run import tiny_datasets, train_here
from tests.trainer_engine.families.auraflow.test_auraflow import PROMPTS, their_network, tiny_auraflow
from trainer_engine.config.adapters.other_names import renamed
from trainer_engine.config.families import specs
from trainer_engine.config.one_file.contents import contents_of, file_problem
from trainer_engine.config.one_file.header import read_header
from trainer_engine.config.parse import check_options
from trainer_engine.contract.errors import DatasetUnusable, Level
from trainer_engine.families.auraflow.spec import ORIGINAL_NAMES, REGISTERS, SPEC
from trainer_engine.families.auraflow.tiny import SQUARE
from trainer_engine.families.inputs import StepInputs

NETWORK = "pretrained_transformer_model_name_or_path"
LORA = {"model_family": "auraflow", "model_type": "lora", "model": str(tiny_model("auraflow"))}
BEYOND = {"positional_encoding": "pos_embed.pos_embed", "register_tokens": "register_tokens", "modF.1.weight": "norm_out.linear.weight"}


def in_one_file(path: Path, prefix: str = "") -> Path:
    """The network of the micro model with the names of the publisher's code."""
    (weights,) = (tiny_model("auraflow") / "transformer").glob("*.safetensors")
    tensors, found = load_file(weights), dict[str, Tensor]()
    for original, name in BEYOND.items():
        tensor = tensors.pop(name)
        found[original] = torch.cat(tensor.chunk(2)[::-1]) if original.startswith("modF") else tensor
    for key, tensor in tensors.items():
        module, _, kind = key.rpartition(".")
        found[f"{renamed(module, ORIGINAL_NAMES.names)}.{kind}"] = tensor
    save_file({prefix + key: tensor.contiguous() for key, tensor in found.items()}, path)
    return path


# ---- positions ----


def test_the_published_networks_have_positions_for_these_edges() -> None:
    assert SPEC.positions is not None
    edges = {flavour: SPEC.positions.along_an_edge(flavour, {}) * SPEC.sampling.multiple_px for flavour in SPEC.flavours}
    assert edges == {"v0.3": 1536, "v0.2": 1024, "v0.1": 1024, "pony": 1536}


def test_diffusers_takes_the_positions_of_other_rows_beyond_the_square() -> None:
    """If this fails, diffusers refuses such images itself."""
    embed = their_network().pos_embed
    assert embed.pe_selection_index_based_on_dim(2 * SQUARE, 2 * SQUARE).tolist() == list(range(SQUARE**2))
    beyond = embed.pe_selection_index_based_on_dim(2 * SQUARE, 2 * SQUARE + 4)
    assert len(set(beyond.tolist())) < len(beyond)


@pytest.mark.parametrize(("resolution", "refused"), [(512, False), (576, True)])
def test_validate_and_the_engine_refuse_images_beyond_the_positions(tmp_path: Path, resolution: int, refused: bool) -> None:
    datasets = tiny_datasets(tmp_path, images=2, resolution=resolution, crop=True, crop_aspect="square")
    found = list(checked(tmp_path, datasets=datasets, **LORA).errors)
    assert [problem.code for problem in found] == ["beyond_positions"] * refused
    if refused:
        assert "512 pixels at most" in found[0].message and found[0].option.endswith("resolution")
        with pytest.raises(DatasetUnusable) as unusable:
            train_here(tmp_path, datasets=datasets, max_train_steps=1, **LORA)
        assert list(unusable.value.problems) == found


def test_validation_images_beyond_the_positions_are_refused(tmp_path: Path) -> None:
    shown = {"validation_disable": False, "validation_prompt": "a cat", "validation_resolution": "528x64"}
    (problem,) = checked(tmp_path, **LORA, **shown).errors
    assert (problem.option, problem.code) == ("validation_resolution", "beyond_positions")


def test_a_network_that_is_not_here_has_the_positions_of_its_flavour(tmp_path: Path) -> None:
    shown = {"validation_disable": False, "validation_prompt": "a cat", "validation_resolution": "1024x1088"}
    usual = {"model_family": "auraflow", "model_type": "lora"}
    for flavour, refused in (("v0.2", True), ("v0.3", False)):
        report = checked(tmp_path, **usual, model=SPEC.flavours[flavour], model_flavour=flavour, **shown)
        assert ("beyond_positions" in {problem.code for problem in report.errors}) is refused


# ---- networks in one file ----


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_network_with_the_names_of_the_publisher_is_loaded(tmp_path: Path, prefix: str) -> None:
    path = in_one_file(tmp_path / "network.safetensors", prefix)
    assert contents_of({key: tensor.shape for key, tensor in read_header(path).tensors.items()}).family == "auraflow"
    ours, theirs = tiny_auraflow(**{NETWORK: str(path)}).load_network().state_dict(), their_network().state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_network_in_one_file_is_named_in_runs_of_others(tmp_path: Path) -> None:
    path = in_one_file(tmp_path / "network.safetensors")
    problem = file_problem(NETWORK, path, specs()["flux"], None)
    assert problem is not None and "AuraFlow" in problem.message and problem.hint.startswith("set model_family=auraflow")
    assert file_problem(NETWORK, path, SPEC, None) is None


# ---- prompts and weights ----


@pytest.mark.parametrize(("flavour", "limit"), [("v0.3", 256), ("pony", 768)])
def test_the_network_sees_its_registers_and_every_token_up_to_the_limit(flavour: str, limit: int) -> None:
    family = tiny_auraflow(model_flavour=flavour)
    network, lengths = family.load_network().eval(), list[int]()
    blocks: Any = network.get_submodule("joint_transformer_blocks")
    blocks[0].register_forward_pre_hook(lambda _, args, given: lengths.append(given["encoder_hidden_states"].shape[1]), with_kwargs=True)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS[:1]))
    with torch.no_grad():
        family.predict(network, StepInputs(noisy_latents=fixed(1, 4, 8, 8, seed=1), timesteps=torch.ones(1), prompts=prompts))
    assert lengths == [limit + REGISTERS] and network.get_parameter("register_tokens").shape[1] == REGISTERS


def test_a_longer_limit_than_that_of_the_flavour_is_noted() -> None:
    usual = {"model_family": "auraflow", "model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}

    def notes(**values: Any) -> list[Any]:
        _, problems = check_options({**usual, **values})
        return [(one.code, one.level) for one in problems if one.option == "tokenizer_max_length"]

    assert notes(tokenizer_max_length=512) == [("above_family", Level.NOTE)]
    assert notes(tokenizer_max_length=512, model_flavour="pony") == notes(tokenizer_max_length=128) == []


def test_options_that_it_does_not_have_are_refused() -> None:
    usual = {"model_family": "auraflow", "model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}
    for name in ("controlnet", "control"):
        _, problems = check_options({**usual, name: True})
        assert [one.level for one in problems if one.option == name] == [Level.ERROR]


def test_validate_refuses_a_text_encoder_of_another_model(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model("auraflow"), tmp_path / "model")
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "t5"}))
    report = checked(tmp_path, model_family="auraflow", model_type="lora", model=str(folder))
    assert report.errors and "umt5" in str(report.errors[0])


def test_validate_names_what_to_train_instead_of_distilled_weights(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model("auraflow"), tmp_path / "auraflow-lightning")
    report = checked(tmp_path, model_family="auraflow", model_type="lora", model=str(folder))
    (warning,) = [problem for problem in report.problems if problem.code == "distilled_weights"]
    assert SPEC.flavours["v0.3"] in str(warning) + warning.hint
