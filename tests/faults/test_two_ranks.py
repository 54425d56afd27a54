"""A run of two processes: what one with twice the batch trains, and no process more than it when it ends."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.served_runs import ENDLESS, ServedRuns, wait_until
from tests.helpers.tiny_run import with_held_out

WITHOUT_GRADIENT = ".to_k.bias"
"""Softmax does not feel it: its gradient is rounding alone, and Adam makes whole steps of that."""


def losses(runs: ServedRuns, job_id: str) -> list[float]:
    return [event["data"]["loss"] for event in runs.wait_for_event(job_id, "training.progress")]


def weights(runs: ServedRuns, output: str, step: int) -> dict[str, torch.Tensor]:
    return load_file(runs.output(output) / f"checkpoint-{step}/transformer/diffusion_pytorch_model.safetensors")


def test_two_ranks_train_what_one_does_with_twice_the_batch(runs: ServedRuns) -> None:
    one = runs.start("one", max_train_steps=4, train_batch_size=4)
    two = runs.start("two", max_train_steps=4, train_batch_size=2, num_processes=2)
    for job_id in (one, two):
        assert runs.wait_for_end(job_id)["status"] == "completed", runs.log(job_id)
        runs.check_log(job_id)
    torch.testing.assert_close(losses(runs, two), losses(runs, one), rtol=1e-4, atol=1e-6)
    alone, together = weights(runs, "one", 4), weights(runs, "two", 4)
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        if name.endswith(WITHOUT_GRADIENT):
            continue
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    runs.check_nothing_left(two)


@pytest.mark.parametrize("precision", ["int8-quanto", "int8-torchao", "fp8-native"])
def test_two_ranks_train_an_adapter_on_a_quantised_base_as_one_does(precision: str, runs: ServedRuns) -> None:
    adapter = {"model_type": "lora", "lora_rank": 4, "lora_dropout": 0, "base_model_precision": precision, "max_train_steps": 4}
    one = runs.start(f"{precision}-one", train_batch_size=4, **adapter)
    two = runs.start(f"{precision}-two", train_batch_size=2, num_processes=2, **adapter)
    for job_id in (one, two):
        assert runs.wait_for_end(job_id)["status"] == "completed", runs.log(job_id)
    torch.testing.assert_close(losses(runs, two), losses(runs, one), rtol=1e-4, atol=1e-6)
    runs.check_nothing_left(two)


def test_two_ranks_share_the_eval_sets_and_measure_what_one_does(runs: ServedRuns) -> None:
    runs.place.mkdir(parents=True, exist_ok=True)
    datasets = runs.place / "with-held-out.json"
    datasets.write_text(json.dumps(with_held_out(runs.place)))
    options = {"data_backend_config": str(datasets), "max_train_steps": 4, "eval_steps_interval": 2, "eval_timesteps": 4}
    one = runs.start("measured-by-one", train_batch_size=4, **options)
    two = runs.start("measured-by-two", train_batch_size=2, num_processes=2, early_stop_patience=9, use_ema=False, **options)
    reported = {}
    for job_id in (one, two):
        assert runs.wait_for_end(job_id)["status"] == "completed", runs.log(job_id)
        notes = [event["data"] for event in runs.events(job_id) if event["type"] == "notification"]
        reported[job_id] = [note["details"]["metrics"] for note in notes if note["code"] == "evaluation"]
    assert len(reported[one]) == len(reported[two]) == 3
    # The same arithmetic in three processes: only the kernels' rounding may differ, by how memory lies and by the number of threads.
    assert reported[one][0] == pytest.approx(reported[two][0], rel=1e-5)
    torch.testing.assert_close(list(reported[two][-1].values()), list(reported[one][-1].values()), rtol=1e-3, atol=1e-5)
    runs.check_nothing_left(two)


def test_stop_reaches_every_rank_and_cancel_leaves_none(runs: ServedRuns) -> None:
    stopped = runs.start("ranks-stopped", max_train_steps=ENDLESS, num_processes=2)
    runs.wait_for_step(stopped, 3)
    assert len(runs.engine(stopped)) == 3, "launcher and two ranks"
    runs.stop(stopped)
    assert runs.wait_for_end(stopped)["status"] == "stopped", runs.log(stopped)
    assert runs.check_announced(stopped, "ranks-stopped") == f"checkpoint-{runs.steps(stopped)[-1]}"
    runs.check_nothing_left(stopped)

    cancelled = runs.start("ranks-cancelled", max_train_steps=ENDLESS, num_processes=2)
    runs.wait_for_step(cancelled, 3)
    assert runs.cancel(cancelled)["status"] == "cancelled"
    runs.check_nothing_left(cancelled)
    runs.check_log(cancelled)


def test_a_run_that_lost_one_rank_ends_with_the_reason_and_leaves_none(runs: ServedRuns) -> None:
    job_id = runs.start("ranks-lost", max_train_steps=ENDLESS, num_processes=2, checkpoint_step_interval=10)
    runs.wait_for_checkpoint(job_id)
    ranks = sorted(runs.engine(job_id), key=lambda process: process.create_time())[1:]
    ranks[-1].kill()
    wait_until(lambda: runs.status(job_id) == "error", "the end")
    assert runs.job(job_id)["job_info"]["error"]
    runs.check_announced(job_id, "ranks-lost")
    runs.check_nothing_left(job_id)
