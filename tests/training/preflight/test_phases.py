"""The memory estimate is that of the phase which needs the most, and a phase that does not fit is named with what helps."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.checked_runs import checked, memory_of_training
from tests.helpers.models import options_with
from tests.training.conftest import Training
from trainer_engine.config.families import specs
from trainer_engine.contract.errors import Level, Problem
from trainer_engine.datasets.buckets import Effective
from trainer_engine.datasets.report import DatasetReport
from training.preflight.estimates import HELD_ON_CPU, Memory, memory_numbers
from training.preflight.on_device import CAPTIONS, LATENTS, EstimatedRun
from training.preflight.phases import Phase, memory_answer, memory_problems, peak_of, phases
from training.preflight.run import examine_run

NOTHING = DatasetReport([], Effective(1, 1, 1))
BOTH = frozenset({CAPTIONS, LATENTS})
WEIGHTS = {"w.weight": (1000, 1000)}


def known(**values: Any) -> EstimatedRun:
    options = options_with(optimizer="torch-adamw", ema_device="accelerator", **values)
    return EstimatedRun(options=options, spec=specs()["pixart_sigma"], parameters=1_000_000, tensors=WEIGHTS, first=BOTH)


def by_name(run: EstimatedRun) -> dict[str, Memory]:
    return {phase.name: phase.memory for phase in phases(run, NOTHING)}


def test_a_run_has_the_phases_that_it_goes_through() -> None:
    assert list(by_name(known())) == ["captions", "latents", "training", "validation"]
    assert list(by_name(replace(known(), first=frozenset()))) == ["training", "validation"], "everything is in the caches"
    assert list(by_name(known(validation_disable=True))) == ["captions", "latents", "training"]


def test_a_validation_keeps_weights_and_state_but_no_gradients() -> None:
    autoencoder = 4 * specs()["pixart_sigma"].latents.autoencoder.parameters
    assert by_name(known())["training"].counted == 16_000_000
    assert by_name(known())["validation"].counted == 12_000_000 + autoencoder
    averaged = by_name(known(use_ema=True))["validation"].counted
    assert averaged == 12_000_000 + 4_000_000 + 4_000_000 + autoencoder, "the average, and the weights that wait for their place"


WIDE = 100_000


def validation_of(family: str, **values: Any) -> Memory:
    """Of a network so wide that its largest moment is in it, and not in the autoencoder."""
    options = options_with(model_family=family, model_type="lora", **values)
    run = EstimatedRun(
        options=options, spec=specs()[family], parameters=WIDE**2, tensors={"transformer_blocks.0.attn.to_q.weight": (WIDE, WIDE)}
    )
    return by_name(run)["validation"]


def test_a_second_network_is_there_while_images_are_generated() -> None:
    option = specs()["ideogram"].second_network_option
    with_it, without = (validation_of("ideogram", **{option: chosen}) for chosen in (True, False))
    assert with_it.counted - without.counted == 4 * WIDE**2 and with_it.modelled == without.modelled


def test_a_network_that_pads_images_is_estimated_with_its_padding() -> None:
    square, oblong, whole = (validation_of("hidream", validation_resolution=size) for size in ("512x512", "512x768", "1024x1024"))
    assert square.modelled < oblong.modelled == whole.modelled


def test_a_flavour_with_other_blocks_has_its_own_share() -> None:
    newer, older = (validation_of("sana", model_flavour=flavour).modelled for flavour in ("sana1.5-1.6b-1024", "sana1.0-1.6b-1024"))
    assert older < newer


def test_encoders_that_encode_while_training_stay_in_every_phase_after_them() -> None:
    usual, kept = by_name(known()), by_name(replace(known(), first=frozenset(), meanwhile=BOTH))
    encoders = usual["captions"].counted + usual["latents"].counted
    assert kept["training"].counted == usual["training"].counted + encoders
    assert kept["validation"].counted == usual["validation"].counted + usual["captions"].counted, "which has the autoencoder anyway"


def test_an_assistant_adapter_stays_on_the_device() -> None:
    usual, assisted = by_name(known()), by_name(replace(known(), assistant=1000))
    assert {name: assisted[name].counted - usual[name].counted for name in ("captions", "training", "validation")} == {
        "captions": 0,
        "training": 4000,
        "validation": 4000,
    }


def test_on_a_cpu_the_allocator_may_hold_more_in_each_phase() -> None:
    assert {memory.slack for memory in by_name(replace(known(), on_cpu=True)).values()} == {HELD_ON_CPU}


FOUND = [Phase("captions", Memory(900, 10)), Phase("latents", Memory(10, 500, least=100)), Phase("training", Memory(600, 100))]


def test_the_answer_is_that_of_the_largest_phase_and_lists_them_all() -> None:
    answer = memory_answer(FOUND)
    assert peak_of(FOUND).name == answer["decides"] == "captions"
    assert (answer["bytes"], answer["low_bytes"]) == (910, 906)
    assert [(phase["name"], phase["bytes"]) for phase in answer["phases"]] == [("captions", 910), ("latents", 510), ("training", 700)]
    assert "the captions (906 B to" in answer["text"] and "latents 510 B, training 700 B" in answer["text"]
    assert memory_numbers({"memory": answer}) == {"bytes": 910, "low_bytes": 906, "high_bytes": answer["high_bytes"]}


def test_smaller_batches_of_the_autoencoder_are_no_reason_to_refuse() -> None:
    assert Memory(10, 500, least=100).low == 75 and Memory(10, 500).low == 335


@pytest.fixture
def small_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``nvidia-smi`` reports a GPU of 1 MiB."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("small_gpu")
def test_every_phase_that_does_not_fit_is_named_and_a_validation_only_warned_of() -> None:
    large = [Phase(name, Memory(2 << 20, 0)) for name in ("captions", "latents", "training", "validation")]
    problems = list(memory_problems(large, 1, {"CUDA_VISIBLE_DEVICES": "0"}))
    named = {problem.option: problem.level for problem in problems}
    assert named == {
        "text_encoder_1_precision": Level.ERROR,
        "vae_batch_size": Level.ERROR,
        "train_batch_size": Level.ERROR,
        "validation_resolution": Level.WARNING,
    }
    assert {problem.code for problem in problems} == {"memory_too_small"} and all(problem.hint for problem in problems)
    small: list[Problem] = list(memory_problems([Phase("training", Memory(1 << 20, 0))], 1, {"CUDA_VISIBLE_DEVICES": "0"}))
    assert small == []


def test_validate_shows_the_phases_of_a_run_and_leaves_out_what_is_cached(tmp_path: Path) -> None:
    memory = checked(tmp_path).understood["memory"]
    assert [phase["name"] for phase in memory["phases"]] == ["captions", "latents", "training"]
    assert memory["bytes"] == max(phase["bytes"] for phase in memory["phases"])
    never = checked(tmp_path, vae_cache_disable=True).understood["memory"]
    assert [phase["name"] for phase in never["phases"]] == ["captions", "training"]
    assert memory_of_training({"memory": never})["bytes"] > memory_of_training({"memory": memory})["bytes"]


def test_a_base_model_without_text_encoders_is_not_counted_as_the_published_one(training: Training) -> None:
    form = {name: value for name, value in training.form.items() if not name.startswith("__")}
    home = Home(training.home)
    memory = examine_run(resolve_run(home, {}, form), home, {"CUDA_VISIBLE_DEVICES": ""}).understood["memory"]
    [captions] = [phase for phase in memory["phases"] if phase["name"] == "captions"]
    assert captions["bytes"] < 1 << 30
