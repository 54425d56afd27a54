"""Validations inside whole runs: when they come, what is announced, and that training does not notice them."""

from __future__ import annotations

import gc
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers.models import tiny_model
from tests.helpers.params import first_fast
from tests.helpers.pictures import levels_apart
from tests.helpers.tiny_run import HereRun, RunFiles, run_in_this_process, run_of_ranks, train_here, write_job
from trainer_engine.contract import commands
from trainer_engine.contract.checkpoint_files import list_checkpoints, verify
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import DiskFull, ExitCode
from trainer_engine.contract.events import ErrorEvent, ImageEvent, Notification, ProgressEvent, Severity, StageEvent, StageStatus
from trainer_engine.contract.run import RunFolder
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.pixart_sigma.family import PixArtSigma
from trainer_engine.loop.callbacks.progress import resident_bytes
from trainer_engine.optim.ema import MovingAverage
from trainer_engine.runtime.control import LOOK_AGAIN_SECONDS
from trainer_engine.validation.failures import GenerationFailed
from trainer_engine.validation.gather import GeneratedImages, pack_or_say, unpack
from trainer_engine.validation.generate import ValidationImage

LIBRARY = json.dumps(
    {"plain": "a red circle", "weak one": {"prompt": "a dog", "adapter_strength": 0.5}, "off": {"tags": "x", "adapter_strength": 0}}
)
DRAWING: dict[str, Any] = {
    "validation_disable": False,
    "validation_resolution": "64x64",
    "validation_num_inference_steps": 2,
    "validation_prompt": "a cat",
    "validation_disable_unconditional": True,
    "disable_benchmark": True,
}
DRAWING_A_LOT: dict[str, Any] = {
    **DRAWING,
    "validation_resolution": "64x64,96x64",
    "validation_disable_unconditional": False,
    "disable_benchmark": False,
    "validation_on_startup": True,
    "validation_step_interval": 1,
    "validation_noise_scheduler": "euler-a",
    "validation_image_format": "webp",
    "user_prompt_library": LIBRARY,
}


def lycoris(place: Path, algo: str) -> dict[str, Any]:
    place.mkdir(parents=True, exist_ok=True)
    path = place / "adapter.json"
    document = {"algo": algo, "multiplier": 1.0, "linear_dim": 2, "linear_alpha": 1, "apply_preset": {"target_module": ["Attention"]}}
    path.write_text(json.dumps(document))
    return {"model_type": "lora", "lora_type": "lycoris", "lycoris_config": str(path)}


STANDARD: dict[str, Any] = {"model_type": "lora", "lora_rank": 2, "lora_dropout": 0.1}
REPEATED = (
    "full, schedule-free",
    "full, stepping over passes",
    "full in bf16",
    "standard",
    "standard, schedule-free",
    "dora",
    "lokr",
    "lokr on a quantised base",
)
"""Kinds that the slow tests train."""
KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "full": lambda place: {},
    "full with an average": lambda place: {"use_ema": True},
    "full, schedule-free": lambda place: {"optimizer": "adamw_schedulefree", "lr_scheduler": "constant", "use_ema": True},
    "full, stepping over passes": lambda place: {
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "optimizer": "optimi-lion",
    },
    "full in bf16": lambda place: {"mixed_precision": "bf16", "use_ema": True},
    "standard": lambda place: {**STANDARD, "use_ema": True},
    "standard, schedule-free": lambda place: {**STANDARD, "optimizer": "adamw_schedulefree", "lr_scheduler": "constant"},
    "dora": lambda place: {**STANDARD, "use_dora": True},
    "standard on a quantised base": lambda place: {**STANDARD, "base_model_precision": "int8-quanto"},
    "lokr": lambda place: {**lycoris(place, "lokr"), "use_ema": True},
    "lokr on a quantised base": lambda place: {**lycoris(place, "lokr"), "base_model_precision": "int8-quanto"},
}


def losses(run: HereRun) -> list[float]:
    return [event.loss for event in run.heard.of(ProgressEvent)]


def steps_drawn(run: HereRun) -> list[int]:
    """Optimizer step of each finished image."""
    return [event.global_step for event in run.heard.of(ImageEvent)]


def assert_same_training(one: HereRun, other: HereRun) -> None:
    """The same losses, and the same bytes of weights, optimizer and averages."""
    assert losses(one) == losses(other)
    ours, theirs = one.files(), other.files()
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in REPEATED else []) for kind in KINDS])
def test_training_is_the_same_with_validations_and_without(kind: str, tmp_path: Path) -> None:
    options = {**KINDS[kind](tmp_path), "max_train_steps": 3, "learning_rate": 1e-2}
    plain = train_here(tmp_path, output_dir=str(tmp_path / "plain"), **options)
    drawn = train_here(tmp_path, output_dir=str(tmp_path / "drawn"), **options, **DRAWING_A_LOT)
    assert_same_training(plain, drawn)
    assert not drawn.heard.of(ErrorEvent)
    assert set(steps_drawn(drawn)) == {0, 1, 2, 3}


def failing(monkeypatch: pytest.MonkeyPatch, number: int, error: Exception, *, at_step: int = 2) -> None:
    """From now on image ``number`` (from 1) of the process fails at a step of its sampler."""
    drawn, draw = [], PixArtSigma.generate

    def draw_or_fail(
        self: PixArtSigma, pipeline: Any, drawing: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Any:
        drawn.append(drawing)

        def heard(taken: SamplerStep) -> None:
            if len(drawn) == number and taken.number == at_step:
                torch.rand(3)
                raise error
            if on_step:
                on_step(taken)

        return draw(self, pipeline, drawing, on_step=heard)

    monkeypatch.setattr(PixArtSigma, "generate", draw_or_fail)


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (torch.OutOfMemoryError("Tried to allocate 20.00 GiB"), "validation_out_of_memory", "validation_resolution"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "validation_out_of_memory", "validation_resolution"),
        (RuntimeError("shapes do not match"), "validation_failed", "validation options"),
        (ValueError("height has to be divisible by 8"), "validation_failed", "validation options"),
    ],
)
@pytest.mark.parametrize("kind", first_fast(["standard", "lokr", "full with an average"]))
def test_an_image_that_fails_is_a_warning_and_later_ones_are_generated(
    kind: str, error: Exception, code: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**KINDS[kind](tmp_path), "max_train_steps": 3, "learning_rate": 1e-2}
    plain = train_here(tmp_path, output_dir=str(tmp_path / "plain"), **options)
    images = 8 if options.get("use_ema") else 4
    failing(monkeypatch, images - 1, error)
    drawing = {**DRAWING, "user_prompt_library": LIBRARY, "validation_step_interval": 1}
    run = train_here(tmp_path, output_dir=str(tmp_path / "failing"), **options, **drawing)
    assert run.code is ExitCode.COMPLETED
    assert_same_training(plain, run)
    (told,) = run.heard.of(ErrorEvent)
    assert (told.code, told.severity, told.details["step"]) == (code, Severity.WARNING, 1)
    assert "step 1" in told.message and told.details["prompt"] == "x" and "'x'" in told.message and str(error) in told.message
    assert word in told.hint and "training goes on" in told.hint
    assert [steps_drawn(run).count(step) for step in (1, 2, 3)] == [images - 2, images, images]
    (failed,) = [event for event in run.heard.of(StageEvent) if event.status is StageStatus.FAILED]
    assert failed.severity is Severity.WARNING


@pytest.mark.parametrize("lost", ["latents", "pixels"])
def test_an_image_that_is_not_finite_is_reported_and_not_written_as_a_black_one(
    lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, drawn = Autoencoder.decode, []

    def decode_or_lose(self: Autoencoder, latents: torch.Tensor) -> torch.Tensor:
        drawn.append(None)
        if len(drawn) == 2 and lost == "latents":
            latents[0, 0, 1, 1] = math.nan
        elif len(drawn) == 2:
            monkeypatch.setattr(Autoencoder, "_decode", lambda *_: torch.full((1, 3, 64, 64), math.inf))
        try:
            return decode(self, latents)
        finally:
            monkeypatch.setattr(Autoencoder, "_decode", one_decode)

    one_decode = Autoencoder._decode
    monkeypatch.setattr(Autoencoder, "decode", decode_or_lose)
    run = train_here(tmp_path, max_train_steps=1, **{**DRAWING, "user_prompt_library": LIBRARY})
    names = ["step_1_plain_0_64x64", "step_1_off_0_64x64", "step_1_validation_0_64x64"]
    assert [Path(event.images[0].file).stem for event in run.heard.of(ImageEvent)] == names
    assert sorted(path.stem for path in (run.output_dir / "validation_images").iterdir()) == sorted(names)
    (told,) = run.heard.of(ErrorEvent)
    assert (told.code, told.severity, told.details["image"]) == ("validation_not_finite", Severity.WARNING, "step_1_weak_one_0_64x64")
    assert lost in told.message and "other images are generated" in told.hint


def test_no_room_for_the_average_beside_the_live_weights_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place, calls = MovingAverage.in_place, []

    def without_room(self: MovingAverage) -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
        return in_place(self)

    monkeypatch.setattr(MovingAverage, "in_place", without_room)
    run = train_here(tmp_path, use_ema=True, max_train_steps=2, **{**DRAWING, "validation_step_interval": 1})
    assert [event.code for event in run.heard.of(ErrorEvent)] == ["validation_out_of_memory"]
    assert steps_drawn(run) == [1, 2, 2]


def test_images_that_cannot_be_written_are_reported_and_training_continues(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "validation_images").write_text("a file where a folder should be")
    run = train_here(tmp_path, max_train_steps=2, **DRAWING)
    assert (run.code, steps_drawn(run)) == (ExitCode.COMPLETED, [])
    assert [(event.code, event.severity) for event in run.heard.of(ErrorEvent)] == [("validation_not_written", Severity.WARNING)]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), DiskFull("The disk is full")])
def test_a_failed_image_names_a_full_disk(error: Exception) -> None:
    told = GenerationFailed("step_3_validation_0_64x64", "a cat", error).as_event(3)
    assert (told.code, told.severity) == ("validation_disk_full", Severity.WARNING)
    assert "checkpoint" in told.hint


def test_an_error_without_a_message_is_named_by_its_class() -> None:
    told = GenerationFailed("step_3_validation_0_64x64", "a cat", AssertionError()).as_event(3)
    assert told.message.endswith("prompt 'a cat': AssertionError")


def live_tensors() -> tuple[int, int]:
    """(how many, bytes)"""
    gc.collect()
    found = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    return len(found), sum(one.nbytes for one in found)


@pytest.mark.parametrize("kind", first_fast(["lokr", "full with an average"]))
def test_ten_validations_leave_no_tensor_behind(kind: str, tmp_path: Path) -> None:
    seen: dict[int, tuple[tuple[int, int], int]] = {}

    def look(step: int) -> None:
        if step in (8, 18):  # from the second epoch on every latent has been read once, and stays
            seen[step] = live_tensors(), resident_bytes()

    options = {**KINDS[kind](tmp_path), **DRAWING, "validation_step_interval": 1, "max_train_steps": 19, "dataloader_prefetch": False}
    train_here(tmp_path, on_step=look, **options)
    (before, resident_before), (after, resident_after) = seen[8], seen[18]
    assert after == before
    assert resident_after - resident_before < 8e6


def test_files_and_events_of_a_run_with_everything(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=1, use_ema=True, **{**DRAWING_A_LOT, "validation_resolution": "64x64"})
    told = [(event.global_step, event.validation_type, Path(event.images[0].file).name) for event in run.heard.of(ImageEvent)]
    names = ["unconditional", "plain", "weak_one", "off", "validation"]
    assert told == [
        *((0, "base_model", f"step_0_{name}_0_64x64.webp") for name in names),
        *((0, "final", f"step_0_{name}_startup_0_64x64.webp") for name in names),
        *((0, "final", f"step_0_{name}_ema_0_64x64.webp") for name in names),
        *((1, "final", f"step_1_{name}_0_64x64.webp") for name in names),
        *((1, "final", f"step_1_{name}_ema_0_64x64.webp") for name in names),
    ]
    assert {event.images[0].mime_type for event in run.heard.of(ImageEvent)} == {"image/webp"}
    assert run.heard.of(ImageEvent)[2].title == "Validation (step 2/2): weak one"
    assert all(Path(event.images[0].file).is_file() for event in run.heard.of(ImageEvent))


def test_a_prompts_own_strength_counts_for_its_image_alone(tmp_path: Path) -> None:
    options = {**STANDARD, "learning_rate": 0.1, "max_train_steps": 2, "validation_image_format": "png"}
    run = train_here(tmp_path, **{**DRAWING_A_LOT, **options, "validation_on_startup": False, "validation_resolution": "64x64"})
    images = run.output_dir / "validation_images"

    def changed(name: str) -> bool:
        return (images / f"step_0_{name}_0_64x64.png").read_bytes() != (images / f"step_2_{name}_0_64x64.png").read_bytes()

    assert not changed("off")
    assert changed("plain") and changed("weak_one") and changed("validation")


def test_intervals_of_steps_and_epochs_begin_at_their_start_step(tmp_path: Path) -> None:
    options = {"validation_step_interval": 3, "validation_epoch_interval": 1, "validate_after_step": 4, "max_train_steps": 10}
    run = train_here(tmp_path, asked={1: [Command.VALIDATE]}, **DRAWING, **options)
    assert steps_drawn(run) == [1, 4, 6, 8, 9, 10]


def test_a_resumed_run_does_not_generate_its_step_again(tmp_path: Path) -> None:
    options = {**DRAWING, "disable_benchmark": False, "validation_step_interval": 2, "max_train_steps": 5}
    first = train_here(tmp_path, stop_after=3, **options)
    second = train_here(tmp_path, **options, resume_from_checkpoint="latest")
    assert (steps_drawn(first), steps_drawn(second)) == ([0, 2], [4, 5])


def test_a_requested_validation_comes_once_after_the_next_step(tmp_path: Path) -> None:
    asked = {0: [Command.VALIDATE], 3: [Command.VALIDATE, Command.VALIDATE, Command.CHECKPOINT]}
    run = train_here(tmp_path, asked=asked, max_train_steps=6, validate_after_step=5, **DRAWING)
    assert steps_drawn(run) == [1, 3, 6]
    assert not [event for event in run.heard.of(Notification) if event.code == "nothing_to_draw"]


@pytest.mark.parametrize(
    ("options", "word"),
    [({"validation_disable": True}, "validation_disable"), ({"validation_prompt": ""}, "no prompt")],
)
def test_a_request_for_images_without_prompts_is_answered_with_a_notification(options: dict[str, Any], word: str, tmp_path: Path) -> None:
    run = train_here(tmp_path, asked={1: [Command.VALIDATE]}, max_train_steps=2, **{**DRAWING, **options})
    (told,) = [event for event in run.heard.of(Notification) if event.code == "nothing_to_draw"]
    assert told.severity is Severity.WARNING and word in told.message
    assert steps_drawn(run) == []


def test_a_stop_does_not_wait_for_the_image_in_progress(tmp_path: Path) -> None:
    drawing = {**DRAWING, "validation_num_inference_steps": 1000, "validation_resolution": "256x256", "validation_on_startup": True}

    def stop(run: RunFiles) -> None:
        for count in itertools.count(1):
            stage = run.wait_for("lifecycle.stage", count=count).extra["stage"]
            assert stage["status"] != "completed" or stage["key"] != "validation"
            if stage["key"] == "validation" and stage["progress"]["eta_seconds"] is not None:
                break
        assert stage["status"] == "running" and stage["progress"]["total"] == 1000
        run.request(Command.STOP)

    run = run_in_this_process(write_job(tmp_path, max_train_steps=10_000, **drawing), stop)
    assert run.code == ExitCode.STOPPED, run.log()
    assert run.of_type("validation.image") == []
    assert list((run.output_dir / "validation_images").glob("*")) == []
    (checkpoint,) = list_checkpoints(run.output_dir)
    assert verify(checkpoint.path) == []


def test_a_stop_loads_nothing_for_images_that_are_not_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, make_pipeline = [], PixArtSigma.make_pipeline

    def make_and_stop(self: PixArtSigma, denoiser: Any, **how: Any) -> Any:
        made.append(None)
        commands.request(RunFolder(tmp_path / "run-here"), Command.STOP)
        time.sleep(LOOK_AGAIN_SECONDS)
        return make_pipeline(self, denoiser, **how)

    monkeypatch.setattr(PixArtSigma, "make_pipeline", make_and_stop)
    run = train_here(tmp_path, use_ema=True, **{**DRAWING_A_LOT, "disable_benchmark": True})
    assert (run.code, run.step, len(made), steps_drawn(run)) == (ExitCode.STOPPED, 1, 1, [])


@pytest.mark.parametrize("how", ["batch-parallel", pytest.param("single-gpu", marks=pytest.mark.slow)])
def test_two_processes_generate_what_one_does(how: str, tmp_path: Path) -> None:
    drawing = {**DRAWING, "user_prompt_library": LIBRARY, "disable_benchmark": False, "validation_step_interval": 100}
    options = {**STANDARD, "base_model_precision": "int8-quanto", "lora_dropout": 0, "use_ema": True, "max_train_steps": 2}
    alone = train_here(tmp_path, output_dir=str(tmp_path / "alone"), **options, **drawing)
    run = run_of_ranks(tmp_path, asked=[Command.VALIDATE], validation_multigpu=how, **options, **drawing)
    told = [(entry.data["global_step"], Path(entry.extra["images"][0]["file"]).name) for entry in run.of_type("validation.image")]
    wanted = [(event.global_step, Path(event.images[0].file).name) for event in alone.heard.of(ImageEvent)]
    asked_for = [(1, name.replace("step_2", "step_1")) for step, name in wanted if step == 2]
    assert sorted(told) == sorted([*wanted, *asked_for])
    for _, name in wanted:
        if name.startswith("step_0_"):
            ours, theirs = (one.output_dir / "validation_images" / name for one in (alone, run))
            with Image.open(ours) as one_process, Image.open(theirs) as two_processes:
                # Not bit for bit: kernels round by how memory lies, which differs between processes.
                assert levels_apart(one_process, two_processes) <= 1


def test_images_and_failures_of_another_process_are_gathered_with_their_files(tmp_path: Path) -> None:
    paths = [tmp_path / "images" / f"step_1_a_{index}_64x96.png" for index in (0, 1)]
    images = [
        ValidationImage(path=path, shortname="a b", prompt="ä\nb", resolution=(64, 96), index=index, seed=7, sampler_steps=2)
        for index, path in enumerate(paths)
    ]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(b"\n{}\n" + path.name.encode())
    failure = GenerationFailed("step_1_c_0_64x96", "c", torch.OutOfMemoryError("full")).as_event(1)
    packed = GeneratedImages(images, failure).pack()
    paths[1].unlink()
    paths[0].write_bytes(b"of an earlier run")
    other = unpack(packed)
    assert (list(other.images), other.failure) == (images, failure)
    assert [path.read_bytes() for path in paths] == [b"\n{}\n" + path.name.encode() for path in paths]
    assert unpack(GeneratedImages().pack()) == GeneratedImages([])
    paths[0].unlink()
    other = unpack(pack_or_say(GeneratedImages(images, failure), 1))
    assert other.failure is not None and (other.images, other.failure.code) == ([], "validation_not_written")
    assert paths[0].name in other.failure.message


@pytest.mark.slow
def test_another_family_generates_with_true_guidance_and_trains_the_same(tmp_path: Path) -> None:
    options = {"model_family": "flux", "model_flavour": "dev", "max_train_steps": 2, **STANDARD}
    plain = train_here(tmp_path, model=str(tiny_model("flux")), output_dir=str(tmp_path / "plain"), **options)
    guided = {"validation_guidance_real": 3.0, "validation_no_cfg_until_timestep": 1, "validation_noise_scheduler": "unipc"}
    drawing = {**DRAWING_A_LOT, **guided, "validation_num_inference_steps": 3}
    drawn = train_here(tmp_path, model=str(tiny_model("flux")), output_dir=str(tmp_path / "drawn"), **options, **drawing)
    assert_same_training(plain, drawn)
    assert not drawn.heard.of(ErrorEvent)
    assert steps_drawn(drawn).count(1) == 10
