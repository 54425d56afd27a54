"""Tiny runs that upload. Whatever a provider does, training continues and completes."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.object_store import ObjectServer, stubborn_server
from tests.helpers.tiny_run import Listener, RunFiles, fork_run, run_in_this_process, train_here, write_job
from tests.trainer_engine.loop.test_saving import After, run_of, with_callback
from trainer_engine.config.options.secrets import for_engine, hide_options, secrets_of
from trainer_engine.contract.checkpoint_files import verify
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import CheckpointUnusable, ExitCode, NonFiniteLoss
from trainer_engine.contract.events import ErrorEvent, Notification, ProgressEvent, Severity, StageEvent, StageKey
from trainer_engine.publishing.uploads import Patience

ENDLESS = 1_000_000
DEAD = {"provider": "s3", "bucket": "trained", "endpoint_url": "http://127.0.0.1:9", "access_key": "k", "secret_key": "s"}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two attempts; ``test_uploads`` tests how long they are."""
    monkeypatch.setattr(Patience, "pause", lambda *_, **__: 0.05)


def codes(heard: Any) -> list[str]:
    return [event.code for event in heard.of(Notification)]


def test_run_uploads_its_checkpoints_and_result_and_reports_them(tmp_path: Path, store: ObjectServer) -> None:
    config = json.dumps(store.entry(base_path="runs", public_base_url="https://files.example.com"))
    run = train_here(tmp_path, publishing_config=config, checkpoint_step_interval=2, checkpoints_total_limit=1, tracker_project_name="demo")
    uploaded = [event.details for event in run.heard.of(Notification) if event.code == "uploaded"]
    assert [(one["what"], one["step"], one["address"]) for one in uploaded] == [
        ("checkpoint-2", 2, "https://files.example.com/runs/demo/checkpoint-2"),
        ("checkpoint-4", 4, "https://files.example.com/runs/demo/checkpoint-4"),
        ("result", 4, "https://files.example.com/runs/demo"),
    ]
    stages = [event.status.value for event in run.heard.of(StageEvent) if event.key is StageKey.PUBLISHING]
    assert (stages[0], stages[-1]) == ("running", "completed")
    names = store.names()
    assert {"runs/demo/checkpoint-2/manifest.json", "runs/demo/model_index.json", "runs/demo/README.md"} <= set(names)
    assert store.content("runs/demo/transformer/diffusion_pytorch_model.safetensors") == run.weights()
    assert run.heard.of(ErrorEvent) == []

    store.clear()
    again = train_here(tmp_path, publishing_config=config, checkpoint_step_interval=2, tracker_project_name="demo")
    assert again.code is ExitCode.COMPLETED and store.names() == [] and "already_finished" in codes(again.heard)

    more = train_here(tmp_path, publishing_config=config, checkpoint_step_interval=2, max_train_steps=6, tracker_project_name="demo")
    assert more.code is ExitCode.COMPLETED
    assert {name.split("/")[2] for name in store.names() if "checkpoint" in name} == {"checkpoint-6"}


def test_adapter_is_uploaded_with_its_model_card_and_images(tmp_path: Path, store: ObjectServer) -> None:
    train_here(
        tmp_path,
        model_type="lora",
        max_train_steps=2,
        use_ema=True,
        publishing_config=json.dumps(store.entry()),
        validation_disable=False,
        validation_prompt="a red square",
        validation_num_inference_steps=1,
        validation_resolution="64x64",
        disable_benchmark=True,
    )
    result = {name.removeprefix("output/") for name in store.names() if "checkpoint" not in name}
    assert {"pytorch_lora_weights.safetensors", "README.md", "ema/pytorch_lora_weights.safetensors"} <= result
    spec = store.content("output/README.md").decode()
    pictures = {name for name in result if name.startswith("validation_images/")}
    assert pictures and all(name in spec for name in pictures)


def test_unreachable_provider_is_a_warning_and_the_run_completes(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=2, publishing_config=json.dumps(DEAD))
    assert run.code is ExitCode.COMPLETED
    warnings = run.heard.of(ErrorEvent)
    assert {event.code for event in warnings} == {"upload_failed", "upload_gave_up"}
    assert all(event.severity is Severity.WARNING and event.hint for event in warnings)
    assert "uploads_left" in codes(run.heard)


@pytest.mark.slow
def test_training_continues_during_a_slow_upload(tmp_path: Path) -> None:
    with stubborn_server(200, seconds=600) as slow:
        config = json.dumps({**DEAD, "endpoint_url": slow.url})

        def stop(run: RunFiles) -> None:
            while not slow.asked:
                run.wait_for("training.progress", count=len(run.of_type("training.progress")) + 1)
            run.wait_for("training.progress", count=len(run.of_type("training.progress")) + 5)
            run.request(Command.STOP)

        job = write_job(tmp_path, publishing_config=config, checkpoint_step_interval=2, max_train_steps=ENDLESS)
        run = run_in_this_process(job, stop)
        assert run.code == ExitCode.STOPPED
    assert not any(entry.data["code"] == "uploaded" for entry in run.of_type("notification"))
    left = [entry for entry in run.of_type("notification") if entry.data["code"] == "uploads_left"]
    assert len(left) == 1 and "checkpoint-2" in left[0].message


def test_error_ends_uploads_and_names_those_left(tmp_path: Path) -> None:
    def fail(step: int) -> None:
        if step == 3:
            raise NonFiniteLoss("no")

    with stubborn_server(200, seconds=600) as slow:
        sink = Listener()
        config = json.dumps({**DEAD, "endpoint_url": slow.url})
        trainer, _, _ = run_of(tmp_path, sink, publishing_config=config, checkpoint_step_interval=2, max_train_steps=ENDLESS)
        with_callback(trainer, After(fail))
        with pytest.raises(NonFiniteLoss):
            trainer.fit()
    (left,) = [event for event in sink.of(Notification) if event.code == "uploads_left"]
    assert "checkpoint-2" in left.message
    assert not [thread for thread in threading.enumerate() if thread.name == "uploads"]


@pytest.mark.slow
def test_checkpoint_removed_before_its_upload_is_a_warning(tmp_path: Path) -> None:
    sink = Listener()
    trainer, saving, _ = run_of(tmp_path, sink, publishing_config=json.dumps(DEAD), checkpoint_step_interval=2, max_train_steps=3)

    def remove(step: int) -> None:
        if step == 2:
            saving._writer.submit(shutil.rmtree, tmp_path / "output/checkpoint-2").result()

    with_callback(trainer, After(remove))
    trainer.fit()
    messages = [event.message for event in sink.of(ErrorEvent) if event.code == "upload_failed"]
    assert "checkpoint-2 cannot be prepared for its upload" in messages[0]


@pytest.mark.slow
def test_stop_ends_the_wait_of_a_finished_run(tmp_path: Path) -> None:
    with stubborn_server(200, seconds=600) as slow:
        config = json.dumps({**DEAD, "endpoint_url": slow.url})

        def stop(run: RunFiles) -> None:
            run.wait_for("training.summary")
            run.request(Command.STOP)

        run = run_in_this_process(write_job(tmp_path, publishing_config=config, max_train_steps=1), stop)
        assert run.code == ExitCode.COMPLETED
    assert [entry.data["code"] for entry in run.of_type("notification")][-1] == "uploads_left"


@pytest.mark.slow
def test_restarted_run_uploads_what_was_left(tmp_path: Path, store: ObjectServer) -> None:
    first = train_here(tmp_path, max_train_steps=2, publishing_config=json.dumps(DEAD))
    assert "uploads_left" in codes(first.heard)
    ledger = tmp_path / "output/.publishing/ledger.json"
    ledger.write_text(ledger.read_text().replace("127.0.0.1:9/", f"{store.url.removeprefix('http://')}/"))
    second = train_here(tmp_path, max_train_steps=2, publishing_config=json.dumps(store.entry()))
    assert second.heard.of(ProgressEvent) == [] and second.code is ExitCode.COMPLETED
    assert {"uploads_taken_up", "uploaded", "already_finished"} <= set(codes(second.heard))
    assert {"output/checkpoint-2/manifest.json", "output/model_index.json"} <= set(store.names())


def test_unusable_provider_is_skipped_with_a_warning(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=1, publishing_config=json.dumps({**DEAD, "secret_key": "***"}))
    assert [event.code for event in run.heard.of(ErrorEvent)] == ["publishing_unusable"]


@pytest.mark.parametrize(("config", "warnings"), [({**DEAD, "secret_key": "***"}, 1), ([], 0)])
def test_upload_hook_runs_once_a_checkpoint_if_every_provider_is_skipped(tmp_path: Path, config: Any, warnings: int) -> None:
    run = train_here(
        tmp_path, checkpoint_step_interval=2, publishing_config=json.dumps(config), post_upload_script="/hooks/tell.sh {global_step}"
    )
    errors = run.heard.of(ErrorEvent)
    assert [event.code for event in errors].count("publishing_unusable") == warnings
    asked = [event.details["step"] for event in errors if event.code == "script_not_allowed"]
    assert sorted(asked) == [2, 4, 4], "each checkpoint, and the result"


def test_engine_gets_its_credentials_from_the_environment(tmp_path: Path, store: ObjectServer) -> None:
    given = {"publishing_config": json.dumps(store.entry())}
    hidden, handed = hide_options(given), for_engine(secrets_of(given))
    run = fork_run(write_job(tmp_path, max_train_steps=1, **hidden), **handed)
    assert run.wait() == 0, run.log()
    assert "output/checkpoint-1/manifest.json" in store.names()
    written = (
        run.folder.job_file.read_text()
        + run.folder.journal.read_text()
        + run.log()
        + (tmp_path / "output/.publishing/ledger.json").read_text()
    )
    assert "testing-secret" not in written and "testing-key" not in written


def test_run_continues_from_a_checkpoint_of_a_provider(tmp_path: Path, store: ObjectServer) -> None:
    config = json.dumps(store.entry(base_path="runs"))
    whole = train_here(tmp_path / "one", publishing_config=config, checkpoint_step_interval=2, tracker_project_name="demo")
    datasets_of = tmp_path / "two"
    (datasets_of).mkdir()
    (tmp_path / "one/images").rename(datasets_of / "images")
    address = "s3://trained/runs/demo/checkpoint-2"
    resumed = train_here(datasets_of, publishing_config=config, resume_from_checkpoint=address, tracker_project_name="other")
    assert [event.step for event in resumed.heard.of(ProgressEvent)] == [3, 4]
    assert resumed.weights() == whole.weights()
    assert verify(resumed.output_dir / "checkpoint-2") == []
    assert not list((resumed.output_dir / ".publishing/incoming").iterdir())

    with pytest.raises(CheckpointUnusable, match="no bucket 'elsewhere'"):
        train_here(datasets_of, publishing_config=config, resume_from_checkpoint="s3://elsewhere/checkpoint-2")
    with pytest.raises(CheckpointUnusable, match="model_type was full and is lora"):
        train_here(datasets_of, publishing_config=config, resume_from_checkpoint=address, model_type="lora")
