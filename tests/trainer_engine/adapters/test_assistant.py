"""The assistant adapter acts while a run trains, and is in nothing that the run saves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers.models import fixed, options_with, tiny_family
from tests.helpers.params import first_fast
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import HereRun, run_of_ranks, train_here
from tests.trainer_engine.adapters.test_numerics import our_loss, their_loss, their_network
from tests.trainer_engine.adapters.test_runs import LOKR, STANDARD, lycoris
from tests.trainer_engine.adapters.test_validation_adapter import answer, standard_file
from trainer_engine.adapters.assistant import Assistant, attach_assistant
from trainer_engine.adapters.build import make_trainable
from trainer_engine.config.adapters.assistant import INFERENCE_STRENGTH, PATH, STRENGTH
from trainer_engine.config.parse import check_options
from trainer_engine.contract.errors import CheckpointUnusable, ExitCode
from trainer_engine.contract.events import ProgressEvent
from trainer_engine.families.base import Family

STILL = {**STANDARD, "lora_dropout": 0.0}
RANK, ALPHA = 4, 2.0
"""Of the adapter that ``standard_file`` writes."""
HOSTS: dict[str, Any] = {
    "standard": lambda _: STILL,
    "dora": lambda _: {**STILL, "use_dora": True},
    "lycoris": lambda at: lycoris(at, **LOKR),
}


def attached(family: Family, network: nn.Module) -> Assistant:
    found = attach_assistant(network, family.options, torch.device("cpu"), torch.float32, family.spec.key_prefixes)
    assert found is not None
    return found


def merged_by_hand(network: nn.Module, path: Path, strength: float) -> None:
    tensors = load_file(path)
    for key in (key for key in tensors if key.endswith("lora_A.weight")):
        layer = network.get_submodule(key.removeprefix("transformer.").removesuffix(".lora_A.weight"))
        weight = next(getattr(one, "weight") for one in (layer, getattr(layer, "base_layer", layer)) if isinstance(one.weight, Tensor))
        weight.data += strength * ALPHA / RANK * (tensors[key.replace("lora_A", "lora_B")] @ tensors[key])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("host", ["standard", "lycoris"])
def test_loss_and_gradients_equal_those_of_a_base_with_the_assistant_merged(host: str, checkpointing: bool, tmp_path: Path) -> None:
    path = standard_file(tmp_path)
    chosen = {**HOSTS[host](tmp_path), PATH: str(path), STRENGTH: 0.7, "gradient_checkpointing": checkpointing}
    family = tiny_family(**chosen)
    trainable = make_trainable(family, None)
    attached(family, trainable.network)
    network, parameters = their_network(host)
    merged_by_hand(network, path, 0.7)
    with torch.no_grad():
        for number, (ours, theirs) in enumerate(zip(trainable.parameters, parameters, strict=True)):
            ours.copy_(fixed(*ours.shape, seed=number) * 0.1)
            theirs.copy_(ours)
    ours, theirs = our_loss(family, trainable.network), their_loss(network)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    ours.backward()
    theirs.backward()
    for mine, other in zip(trainable.parameters, parameters, strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.allclose(mine.grad, other.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("host", [*HOSTS, "quantised"])
def test_images_are_made_with_the_strength_for_images(host: str, tmp_path: Path) -> None:
    path = standard_file(tmp_path)
    given = {**STILL, "base_model_precision": "int8-quanto"} if host == "quantised" else HOSTS[host](tmp_path)
    family = tiny_family(**given, **{PATH: str(path)})
    network = make_trainable(family, None).network.eval()
    plain = answer(family, network)
    assistant = attached(family, network)
    training = answer(family, network)
    assert (training - plain).abs().max() > 1e-3
    with assistant.in_images():
        assert torch.equal(answer(family, network), plain)
    with pytest.raises(KeyboardInterrupt), assistant.in_images():
        raise KeyboardInterrupt
    assert torch.equal(answer(family, network), training)
    assistant.images = 1.0
    with assistant.in_images():
        assert torch.equal(answer(family, network), training)


@pytest.mark.slow
def test_a_compiled_network_follows_the_strength(tmp_path: Path) -> None:
    family = tiny_family(**STILL, **{PATH: str(standard_file(tmp_path))})
    network = make_trainable(family, None).network.eval()
    plain = answer(family, network)
    assistant = attached(family, network)
    training = answer(family, network)
    compiled = torch.compile(network, backend="eager")
    torch.testing.assert_close(answer(family, compiled), training, rtol=1e-5, atol=1e-6)
    with assistant.in_images():
        torch.testing.assert_close(answer(family, compiled), plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(answer(family, compiled), training, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("host", first_fast(["standard", "lycoris"]))
def test_a_run_with_an_assistant_resumes_exactly_and_saves_nothing_of_it(host: str, tmp_path: Path) -> None:
    options = {**HOSTS[host](tmp_path), PATH: str(standard_file(tmp_path)), "use_ema": True, "checkpoint_step_interval": 2}
    straight = assert_resumes_exactly(tmp_path, **options)
    bare = train_here(tmp_path / "bare", **{**options, PATH: None})
    assert sorted(bare.files()) == sorted(straight.files())
    names = "pytorch_lora_weights.safetensors"
    ours, theirs = load_file(straight.output_dir / names), load_file(bare.output_dir / names)
    assert sorted(ours) == sorted(theirs)
    assert any(not torch.equal(ours[key], theirs[key]) for key in ours), "the assistant changed no gradient"
    moved = Path(shutil.copytree(Path(options[PATH]).parent, tmp_path / "moved"))
    shutil.rmtree(Path(options[PATH]).parent)
    options |= {PATH: str(moved), "output_dir": str(straight.output_dir)}
    again = train_here(tmp_path, **{**options, "max_train_steps": 5})
    assert (again.code, again.step) == (ExitCode.COMPLETED, 5), "a file that was moved is the same assistant"
    save_file({key: 1.5 * tensor for key, tensor in load_file(moved / names).items()}, moved / names)
    with pytest.raises(CheckpointUnusable, match=PATH):
        train_here(tmp_path, **{**options, "max_train_steps": 6})
    with pytest.raises(CheckpointUnusable, match=PATH):
        train_here(tmp_path, **{**options, PATH: None, "max_train_steps": 6})
    with pytest.raises(CheckpointUnusable, match=STRENGTH):
        train_here(tmp_path, **{**options, STRENGTH: 0.5, "max_train_steps": 6})


def images(run: HereRun) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run.output_dir / "validation_images").glob("*.png"))}


@pytest.mark.slow
def test_validation_images_show_the_assistant_only_if_they_are_to(tmp_path: Path) -> None:
    drawn = {
        **STILL,
        "max_train_steps": 1,
        "learning_rate": 1e-12,
        "validation_disable": False,
        "validation_prompt": "a cat",
        "validation_resolution": "64x64",
        "validation_num_inference_steps": 2,
        "validation_disable_unconditional": True,
        "validation_preview": False,
    }
    path = {PATH: str(standard_file(tmp_path))}
    plain = images(train_here(tmp_path / "plain", **drawn))
    without = images(train_here(tmp_path / "without", **drawn, **path))
    with_it = images(train_here(tmp_path / "with", **drawn, **path, **{INFERENCE_STRENGTH: 1.0}))
    assert plain and plain == without
    assert all(plain[name] != with_it[name] for name in plain)


@pytest.mark.parametrize(
    ("values", "option", "code"),
    [
        ({PATH: "owner/name:weights.bin"}, PATH, "not_safetensors"),
        ({PATH: "owner/name", STRENGTH: 0}, STRENGTH, "no_strength"),
        ({STRENGTH: 0.5}, STRENGTH, "no_effect"),
        ({INFERENCE_STRENGTH: 0.5}, INFERENCE_STRENGTH, "no_effect"),
        ({PATH: "owner/name", "disable_assistant_lora": True, STRENGTH: 0.5}, STRENGTH, "no_effect"),
        ({"disable_assistant_lora": True}, "disable_assistant_lora", "no_effect"),
        ({PATH: "owner/name", "model_type": "full"}, PATH, "no_adapter"),
        ({PATH: "owner/name", STRENGTH: 11}, STRENGTH, "out_of_range"),
    ],
)
def test_options_of_the_assistant_are_checked(values: dict[str, Any], option: str, code: str) -> None:
    usual = {"model_family": "pixart_sigma", "data_backend_config": "x.json", "output_dir": "o", "max_train_steps": 1, "model_type": "lora"}
    _, found = check_options({**usual, **values})
    assert [(one.option, one.code) for one in found if one.option == option] == [(option, code)]


def test_disabling_the_assistant_trains_without_it(tmp_path: Path) -> None:
    options = options_with(**STILL, **{PATH: "owner/name", "disable_assistant_lora": True})
    network = tiny_family(**STILL).load_network()
    assert attach_assistant(network, options, torch.device("cpu"), torch.float32, {}) is None
    assert ExitCode.COMPLETED is train_here(tmp_path, **STILL, **{PATH: "owner/name", "disable_assistant_lora": True}).code


@pytest.mark.slow
def test_blocks_that_are_compiled_alone_follow_the_strength(tmp_path: Path) -> None:
    family = tiny_family(**STILL, **{PATH: str(standard_file(tmp_path))})
    network: Any = make_trainable(family, None).network.eval()
    plain = answer(family, network)
    assistant = attached(family, network)
    training = answer(family, network)
    for block in network.transformer_blocks:
        block.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(answer(family, network), training, rtol=1e-5, atol=1e-6)
    with assistant.in_images():
        torch.testing.assert_close(answer(family, network), plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(answer(family, network), training, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_processes_train_beside_an_assistant_what_one_does(tmp_path: Path) -> None:
    usual = {**STILL, "max_train_steps": 2, PATH: str(standard_file(tmp_path))}
    alone = train_here(tmp_path, output_dir=str(tmp_path / "alone"), train_batch_size=2, **usual)
    together = run_of_ranks(tmp_path, **usual)
    losses = [event.loss for event in alone.heard.of(ProgressEvent)]
    assert [entry.data["loss"] for entry in together.of_type("training.progress")] == pytest.approx(losses, rel=1e-5)
