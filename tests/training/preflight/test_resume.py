"""What the engine would say of a checkpoint is said before: which one it is, whether it is of such a run, and what is left to train."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.checked_runs import checked, codes, refusal
from tests.helpers.models import tiny_model, tiny_pixart
from tests.helpers.tiny_run import train_here
from tests.training.api.test_reads import write_checkpoint
from tests.training.conftest import Training
from tests.training.preflight.test_engine_refusals import IDENTITY, NO_GPU
from trainer_engine.config.resuming.identity import ORDER_KEY, ORDER_VERSION
from trainer_engine.contract.checkpoint_files import list_checkpoints
from trainer_engine.contract.errors import CheckpointUnusable
from trainer_engine.contract.events import Notification
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache
from training.preflight.run import examine_run

LORA = {"model_type": "lora", "lora_rank": 2, "max_train_steps": 2}
LONGER = {**LORA, "max_train_steps": 3}


def model_in(folder: Path, seed: int = 0) -> str:
    if not folder.exists():
        shutil.copytree(tiny_model("pixart_sigma", seed=seed), folder)
    return str(folder)


def retouch(part: Path) -> None:
    """Other numbers in a file of the same size."""
    file = next(part.glob("*.safetensors"))
    tensors = {name: tensor * 1.01 for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


def refused_by_both(place: Path, said: str, **options: Any) -> None:
    """``validate`` refuses with the words of the engine."""
    problem = refusal(checked(place, **options))
    assert (problem.option, problem.code) == ("resume_from_checkpoint", "other_run") and said in problem.message
    assert "output_dir" in problem.hint
    with pytest.raises(CheckpointUnusable) as refused:
        train_here(place, **options)
    assert refused.value.message == problem.message


def test_validate_says_which_checkpoint_a_name_and_a_path_mean(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        train_here(tmp_path, output_dir=str(tmp_path / name), max_train_steps=2)
    here = {"output_dir": str(tmp_path / "ours"), "max_train_steps": 5}
    for wanted in ("latest", "checkpoint-2", str(tmp_path / "ours/checkpoint-2"), "ours/checkpoint-2"):
        report = checked(tmp_path, **here, resume_from_checkpoint=wanted)
        (note,) = [problem.message for problem in report.notes if problem.code == "goes_on"]
        assert (
            note == f"The run continues from checkpoint-2: 3 of 5 steps left. The checkpoint is in {tmp_path / 'ours'}."
            and not report.errors
        )
    report = checked(tmp_path, **here, resume_from_checkpoint=str(tmp_path / "theirs/checkpoint-2"))
    assert any(one.message.endswith(f"The checkpoint is in {tmp_path / 'theirs'}.") for one in report.notes)
    assert "will_be_set_aside" in codes(report)


def test_a_path_is_gone_on_from_there_and_the_folder_s_own_checkpoints_lie_aside(tmp_path: Path) -> None:
    theirs = train_here(tmp_path, output_dir=str(tmp_path / "theirs"), max_train_steps=2)
    train_here(tmp_path, output_dir=str(tmp_path / "ours"), max_train_steps=2, learning_rate=1e-2)
    wanted = str(tmp_path / "theirs/checkpoint-2")
    straight = train_here(tmp_path, output_dir=str(tmp_path / "straight"), max_train_steps=4)
    run = train_here(tmp_path, output_dir=str(tmp_path / "ours"), resume_from_checkpoint=wanted, max_train_steps=4)
    assert run.weights() == straight.weights()
    assert [info.name for info in list_checkpoints(run.output_dir)] == ["checkpoint-4"]
    assert [path.name for path in run.output_dir.glob("earlier-*/*")] == ["checkpoint-2"]
    assert any(wanted in event.message for event in run.heard.of(Notification) if event.code == "resumed")
    assert [info.name for info in list_checkpoints(theirs.output_dir)] == ["checkpoint-2"]


@pytest.mark.parametrize("wanted", ["other/checkpoint-2", "/nowhere/checkpoint-2", "checkpoint-9", "Checkpoint-2", "output"])
def test_a_path_or_name_that_is_no_checkpoint_is_refused(tmp_path: Path, wanted: str) -> None:
    train_here(tmp_path, max_train_steps=2)
    problem = refusal(checked(tmp_path, max_train_steps=5, resume_from_checkpoint=wanted))
    assert problem.option == "resume_from_checkpoint"


def test_a_path_outside_of_the_roots_is_closed(tmp_path: Path) -> None:
    assert refusal(checked(tmp_path, resume_from_checkpoint="/etc/checkpoint-1")).code == "outside_roots"


def test_a_checkpoint_that_is_passed_over_is_named(tmp_path: Path) -> None:
    train_here(tmp_path, max_train_steps=2, checkpoint_step_interval=1)
    (tmp_path / "output/checkpoint-2/optimizer.safetensors").write_bytes(b"")
    report = checked(tmp_path, max_train_steps=5)
    assert not report.errors and [one.code for one in report.warnings] == ["checkpoint_broken"]
    assert "checkpoint-1: 4 of 5" in next(one.message for one in report.notes if one.code == "goes_on")


def test_a_finished_run_has_a_warning_that_nothing_is_left(tmp_path: Path) -> None:
    train_here(tmp_path, max_train_steps=2)
    (warning,) = checked(tmp_path, max_train_steps=2).warnings
    assert warning.code == "already_finished" and "continues from checkpoint-2: 0 of 2 steps left" in warning.message
    assert "max_train_steps" in warning.hint and "resume_from_checkpoint" in warning.hint
    assert not checked(tmp_path, max_train_steps=2, resume_from_checkpoint="").warnings


@pytest.mark.parametrize("kind", [LORA, {"model_type": "full", "max_train_steps": 2}])
def test_another_base_model_is_refused_for_adapters_and_full_fine_tunes(tmp_path: Path, kind: dict[str, Any]) -> None:
    first, other = model_in(tmp_path / "first"), model_in(tmp_path / "other", seed=1)
    train_here(tmp_path, model=first, **kind)
    longer = {**kind, "max_train_steps": 3}
    refused_by_both(tmp_path, f"was {first} and is {other}", model=other, **longer)
    for option, part in (("pretrained_vae_model_name_or_path", "vae"), ("pretrained_t5_model_name_or_path", "text_encoder")):
        retouch(Path(other) / part)
        refused_by_both(tmp_path, f"{part}", model=first, **{option: other}, **longer)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_folder_whose_weights_were_replaced_is_another_model(tmp_path: Path, part: str) -> None:
    base = model_in(tmp_path / "base")
    train_here(tmp_path, model=base, **LORA)
    retouch(tmp_path / "base" / part)
    refused_by_both(tmp_path, f"the files of {part} were replaced", model=base, **LONGER)


def moved(place: Path) -> None:
    shutil.move(place / "base", place / "elsewhere")


def saved_again(place: Path) -> None:
    """By another version of the library, into a copy of other times."""
    shutil.copytree(place / "base", place / "elsewhere", copy_function=shutil.copyfile)
    for config in (place / "elsewhere").glob("*/*config.json"):
        if config.name != "tokenizer_config.json":
            document = {**json.loads(config.read_text()), "_diffusers_version": "99.0", "_name_or_path": "/elsewhere"}
            config.write_text(json.dumps(document, indent=7))


@pytest.mark.parametrize("how", [moved, saved_again])
def test_the_same_model_elsewhere_is_the_same(tmp_path: Path, how: Callable[[Path], None]) -> None:
    train_here(tmp_path, model=model_in(tmp_path / "base"), **LORA)
    how(tmp_path)
    report = checked(tmp_path, model=str(tmp_path / "elsewhere"), **LONGER)
    assert not report.errors and "base_moved" in codes(report)
    assert train_here(tmp_path, model=str(tmp_path / "elsewhere"), **LONGER).step == 3


def test_repositories_and_revisions_are_distinguished_by_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hf_home = tmp_path / "hf"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hf_home / "hub"))
    for repository in ("a/first", "a/copy"):
        place_in_hub_cache(tiny_model("pixart_sigma"), repository, hf_home)
    train_here(tmp_path, model=model_in(tmp_path / "base"), **LORA)
    report = checked(tmp_path, hf_home=hf_home, model="a/copy", **LONGER)
    assert not report.errors and "base_moved" in codes(report)
    snapshot = place_in_hub_cache(tiny_model("pixart_sigma", seed=1), "a/second", hf_home)
    shutil.copytree(snapshot, hf_home / "hub/models--a--first/snapshots/changed", symlinks=True)
    assert "a/second" in refusal(checked(tmp_path, hf_home=hf_home, model="a/second", **LONGER)).message
    assert "a/first at changed" in refusal(checked(tmp_path, hf_home=hf_home, model="a/first", revision="changed", **LONGER)).message
    # Remote checkpoints are recognised by their names.
    assert "a/nowhere" in {one.message.split(" is ")[-1][:9] for one in checked(tmp_path, model="a/nowhere", **LONGER).errors}


def test_another_flavour_is_refused(tmp_path: Path) -> None:
    train_here(tmp_path, **LORA)
    refused_by_both(tmp_path, "model_flavour was 900M-1024-v0.6 and is 600M-512", model_flavour="600M-512", **LONGER)


def test_other_targets_are_refused_before_they_are_looked_for_in_the_file(tmp_path: Path) -> None:
    train_here(tmp_path, **LORA)
    targets = json.dumps(["to_q", "to_k", "to_v", "to_out.0"])
    assert not checked(tmp_path, peft_lora_target_modules=targets, **LONGER).errors
    said = "the adapted layers differ: 1 added (ff.net.2), 3 removed (to_k, to_out.0, to_v)"
    refused_by_both(tmp_path, said, peft_lora_target_modules=json.dumps(["to_q", "ff.net.2"]), **LONGER)


def test_a_checkpoint_of_an_older_version_continues_with_a_note(tmp_path: Path) -> None:
    train_here(tmp_path, **LORA)
    state = tmp_path / "output/checkpoint-2/training_state.json"
    document = json.loads(state.read_text())
    for name in ("model_flavour", "clip_skip", "lora_targets"):
        del document["identity"][name]
    del document["base"]
    state.write_text(json.dumps(document))
    manifest = state.with_name("manifest.json")
    listed = json.loads(manifest.read_text())
    del listed["files"]["training_state.json"]
    manifest.write_text(json.dumps(listed))
    report = checked(tmp_path, model=model_in(tmp_path / "other", seed=1), **LONGER)
    assert not report.errors and "base_not_compared" in codes(report)
    run = train_here(tmp_path, **LONGER)
    assert "base_not_compared" in {event.code for event in run.heard.of(Notification)}
    assert json.loads((tmp_path / "output/checkpoint-3/training_state.json").read_text())["base"]["vae"]["digest"]


def test_the_card_names_every_source_that_an_adapter_was_trained_beside(tmp_path: Path) -> None:
    other = model_in(tmp_path / "other", seed=1)
    run = train_here(tmp_path, pretrained_vae_model_name_or_path=other, **LORA)
    spec = (run.output_dir / "README.md").read_text()
    assert f"- base weights from `{other}`: vae " in spec and f"- base weights from `{tiny_pixart()}`: transformer " in spec


def notes_on_order(training: Training, state: dict[str, Any]) -> list[str]:
    folder = write_checkpoint(training.home / "output" / "run", 20)
    (folder / "training_state.json").write_text(json.dumps({"identity": IDENTITY, **state}))
    home, form = Home(training.home), {name: value for name, value in training.form.items() if not name.startswith("__")}
    report = examine_run(resolve_run(home, {}, {**form, "--resume_from_checkpoint": "checkpoint-20"}), home, NO_GPU)
    return [problem.message for problem in report.notes if problem.code == "order_changed"]


@pytest.mark.parametrize("state", [{}, {ORDER_KEY: ORDER_VERSION + 1}])
def test_a_checkpoint_of_another_order_is_noted(training: Training, state: dict[str, int]) -> None:
    [message] = notes_on_order(training, state)
    assert "some samples are seen twice" in message


def test_a_checkpoint_of_this_order_is_not_mentioned(training: Training) -> None:
    assert notes_on_order(training, {ORDER_KEY: ORDER_VERSION}) == []
