"""What is looked at before a run: model, disk, memory, folders; always by the truth on disk, never by writing."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.checked_runs import memory_of_training
from tests.training.conftest import Training, write_model
from trainer_engine.config.families import specs
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.contract.errors import Level, Problem
from training.preflight import base_model, estimates, run
from training.preflight.base_model import HubSettings
from training.preflight.network import count_parameters, network_tensors


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as is asked: ``/<repo>/resolve/<revision>/model_index.json``."""

    ANSWERS = {"a/open": (200, ""), "a/gated": (401, "GatedRepo"), "a/bare": (404, "EntryNotFound"), "a/gone": (401, "RepoNotFound")}

    def do_HEAD(self) -> None:
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        status, code = self.ANSWERS.get(repository, (500, ""))
        if rest.startswith("nowhere"):
            status, code = 404, "RevisionNotFound"
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def hub(tmp_path: Path, **variables: str) -> HubSettings:
    return HubSettings.of({"HF_HOME": str(tmp_path / "hf"), **variables})


def code_of(problem: Problem | None) -> str | None:
    return problem.code if problem else None


def test_the_hub_is_asked_and_its_answer_is_reported(tmp_path: Path, endpoint: str) -> None:
    reached = hub(tmp_path, HF_ENDPOINT=endpoint)
    expected = {"a/open": None, "a/bare": None, "a/gated": "model_gated", "a/gone": "model_not_found", "a/ill": "hub_not_reached"}
    for repository, code in expected.items():
        problem = base_model.check_access("pretrained_model_name_or_path", repository, None, reached)
        assert code_of(problem) == code
        assert problem is None or repository in problem.message
    assert code_of(base_model.check_access("x", "a/open", "nowhere", reached)) == "revision_not_found"


def test_a_hub_that_does_not_answer_keeps_nobody_from_starting(tmp_path: Path) -> None:
    problem = base_model.check_access("x", "a/open", None, hub(tmp_path, HF_ENDPOINT="http://127.0.0.1:9"))
    assert problem is not None and problem.level is Level.NOTE


def test_the_cache_is_enough_and_without_it_offline_is_an_error(tmp_path: Path) -> None:
    offline = hub(tmp_path, HF_HUB_OFFLINE="1")
    assert code_of(base_model.check_access("x", "a/model", None, offline)) == "model_not_cached"
    folder = tmp_path / "hf" / "hub" / "models--a--model"
    write_model(folder / "snapshots" / "abc", numbers=77)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert base_model.check_access("x", "a/model", None, offline) is None
    assert base_model.check_access("x", "a/model", "abc", offline) is None
    found = base_model.find_weights("a/model", None, offline)
    assert found is not None and parameters_of(found) == 77


def test_the_token_comes_from_the_variable_or_the_file(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("from-file\n")
    assert hub(tmp_path).token == "from-file"
    assert hub(tmp_path, HF_TOKEN="given").token == "given"


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[]", b'\x09\0\0\0\0\0\0\0{"a": {}}'])
def test_a_file_that_is_no_safetensors_counts_for_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "model.safetensors").write_bytes(content)
    assert parameters_of(tmp_path) is None


def parameters_of(folder: Path) -> int | None:
    """What a full fine-tune of the PixArt Sigma in a folder would train, from the headers of its weights; None if it is not known."""
    model = ModelOptions(model_family="pixart_sigma", model_type="full", pretrained_model_name_or_path=str(folder))
    tensors = network_tensors(model, specs()["pixart_sigma"], Path("no-cache"))
    return count_parameters(tensors) if tensors else None


def examine(training: Training, **changes: Any) -> Any:
    form = {name.lstrip("-"): value for name, value in {**training.form, **changes}.items() if not name.startswith("__")}
    home = Home(training.home)
    return run.examine_run(resolve_run(home, {}, form), home, {"CUDA_VISIBLE_DEVICES": ""})


def codes(report: Any) -> set[str]:
    return {problem.code for problem in report.problems}


def test_preflight_asks_the_database_nothing(training: Training, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert not examine(training).errors


def test_a_folder_that_holds_no_model_is_named_with_what_it_should_hold(training: Training) -> None:
    (training.home / "holiday").mkdir()
    (problem,) = [one for one in examine(training, pretrained_model_name_or_path="holiday").problems if one.code == "not_a_model"]
    assert str(training.home / "holiday") in problem.message and "model_index.json" in problem.expected


def test_a_run_that_would_be_logged_offline_is_told_where_the_log_lies(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(training.home))
    monkeypatch.setenv("NETRC", str(training.home / "netrc"))
    (note,) = [one for one in examine(training, report_to="wandb").problems if one.code == "logged_offline"]
    assert note.level is Level.NOTE and str(training.home / "output/run") in note.message
    form = {name.lstrip("-"): value for name, value in training.form.items() if not name.startswith("__")} | {"report_to": "wandb"}
    home = Home(training.home)
    logged_in = run.examine_run(resolve_run(home, {}, form), home, {"CUDA_VISIBLE_DEVICES": "", "WANDB_API_KEY": "k" * 40})
    assert "logged_offline" not in codes(logged_in)


def test_weights_larger_than_the_memory_are_refused(training: Training) -> None:
    (training.home / "model" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    write_model(training.home / "huge")
    header = b'{"w": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 0]}}'
    path = training.home / "huge" / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    report = examine(training, pretrained_model_name_or_path="huge")
    assert {"memory_too_small", "disk_too_small"} <= codes(report)


def test_estimates_grow_with_what_they_depend_on(training: Training) -> None:
    plain = examine(training).understood
    averaged = examine(training, use_ema="true").understood
    assert memory_of_training(averaged)["bytes"] > memory_of_training(plain)["bytes"]
    assert averaged["disk"]["checkpoint_bytes"] > plain["disk"]["checkpoint_bytes"]
    often = examine(training, checkpoint_step_interval="5", checkpoints_total_limit="0").understood
    assert often["disk"]["checkpoints_bytes"] > plain["disk"]["checkpoints_bytes"]
    assert examine(training, max_train_steps="0", num_train_epochs="3").understood["steps"] == 18


def test_a_slow_processor_is_a_note(training: Training, tmp_path: Path) -> None:
    report = examine(training, mixed_precision="bf16")
    slow = not set(Path("/proc/cpuinfo").read_text().split()).intersection(run.FAST_BF16)
    assert ("slow_on_this_cpu" in codes(report)) == slow and not report.warnings


def test_folders_that_cannot_be_made_are_named(training: Training) -> None:
    (training.home / "file").write_text("x")
    report = examine(training, output_dir="file/below")
    assert "output_dir" in {problem.option for problem in report.errors}
    report = examine(training, cache_dir_vae="file/below")
    assert "cache_dir_vae" in {problem.option for problem in report.errors}


def test_more_ranks_than_gpus_are_refused(training: Training) -> None:
    form = {name.lstrip("-"): value for name, value in training.form.items() if not name.startswith("__")} | {"num_processes": "3"}
    home = Home(training.home)
    report = run.examine_run(resolve_run(home, {}, form), home, {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert "too_few_gpus" in codes(report)


def test_sizes_are_written_for_people() -> None:
    assert [estimates.size(number) for number in (0, 1023, 2048, 3 * 1024**2, 5.5 * 1024**3)] == [
        "0 B",
        "1023 B",
        "2 KiB",
        "3 MiB",
        "5.5 GiB",
    ]


def test_a_pipe_in_place_of_weights_blocks_nothing(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    os.mkfifo(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert parameters_of(tmp_path) is None


@pytest.mark.parametrize("use_cpu", [False, True])
def test_a_run_is_shared_only_with_machines_that_the_operator_lists(training: Training, settings: Any, use_cpu: bool) -> None:
    """Machines of a run exchange pickles: whoever names machine 0 could otherwise run programs here."""
    place = {"num_machines": 2, "machine_rank": 1, "main_process_ip": "10.0.0.1", "main_process_port": 29500}
    file = {"compute_environment": "LOCAL_MACHINE", "use_cpu": use_cpu, "num_processes": 2, **place}
    (training.home / "config" / "accelerate.yaml").write_text(json.dumps(file))
    by_file = {"--accelerate_config": "config/accelerate.yaml"}
    by_options = {f"--{name}": value for name, value in place.items()}
    settings.WEBHOOKS_TO_PRIVATE = True
    for given, option in ((by_file, "accelerate_config"), (by_options, "num_machines")):
        closed = training.post("/validate", {**training.form, **given}).json()["problems"]
        [problem] = [problem for problem in closed if problem["code"] == "private_network"]
        assert problem["option"] == option and "10.0.0.1" in problem["message"] and "SIMPLETUNER_MACHINES" in problem["hint"]
    settings.TRAINING_MACHINES = ("10.0.0.0/24",)
    answer = training.post("/validate", {**training.form, **by_file}).json()
    assert not [problem for problem in answer.get("problems", []) if problem["code"] == "private_network"]


@pytest.mark.parametrize("option", ["--accelerate_config", "--data_backend_config", "--user_prompt_library", "--publishing_config"])
def test_huge_files_and_pipes_are_refused_by_their_option(training: Training, option: str) -> None:
    with (training.home / "config" / "huge.json").open("wb") as stream:
        stream.truncate(1 << 40)
    os.mkfifo(training.home / "config" / "pipe.json")
    for name in ("huge.json", "pipe.json"):
        answer = training.post("/validate", {**training.form, option: f"config/{name}"})
        assert answer.status_code == 422
        assert [option.lstrip("-")] == [problem["option"] for problem in answer.json()["problems"]]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("transformer/diffusion_pytorch_model.safetensors.index.json", '{"weight_map": {"a": "diffusion_pytorch_model.bin"}}'),
        ("text_encoder/pytorch_model.bin", ""),
        ("text_encoder/config.json", '{"quantization_config": {"quant_method": "bitsandbytes"}}'),
        ("vae/config.json", '{"quantization_config": {"quant_method": "bitsandbytes"}}'),
    ],
)
def test_a_model_that_asks_for_more_than_safetensors_cannot_be_started(training: Training, file: str, content: str) -> None:
    (training.home / "model" / file).write_text(content)
    answer = training.post("/validate", training.form)
    assert answer.status_code == 422
    (problem,) = answer.json()["problems"]
    assert (problem["option"], problem["code"]) == ("pretrained_model_name_or_path", "unsafe_model")
    assert file.partition("/")[0] in problem["message"] and file.partition("/")[2] in problem["message"]


def test_the_token_of_the_hub_does_not_follow_a_redirect(tmp_path: Path) -> None:
    seen: list[tuple[str, str | None]] = []

    class Redirecting(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(302 if len(seen) == 1 else 200)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, format: str, *args: Any) -> None:
            """Be quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reached = hub(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_TOKEN="hf_secret")
        assert base_model.check_access("pretrained_model_name_or_path", "a/open", None, reached) is None
        server.shutdown()
    assert seen[0][1] == "Bearer hf_secret" and seen[1] == ("/elsewhere", None)


@pytest.mark.parametrize(
    ("stated", "options", "expected"),
    [
        ("v_prediction", {"prediction_type": "epsilon"}, {"prediction_type": "contradicts_base_model"}),
        ("epsilon", {"prediction_type": "v_prediction"}, {"prediction_type": "contradicts_base_model"}),
        ("epsilon", {"rescale_betas_zero_snr": True}, {"rescale_betas_zero_snr": "needs_v_prediction"}),
        ("v_prediction", {"rescale_betas_zero_snr": True}, {}),
        ("v_prediction", {}, {}),
        (None, {"rescale_betas_zero_snr": True}, {"rescale_betas_zero_snr": "needs_v_prediction"}),
        (["odd"], {}, {}),
    ],
)
def test_an_objective_that_contradicts_the_schedule_of_the_base_model_is_reported(
    training: Training, stated: Any, options: dict[str, Any], expected: dict[str, str]
) -> None:
    folder = Path(training.form["--pretrained_model_name_or_path"]) / "scheduler"
    folder.mkdir(exist_ok=True)
    (folder / "scheduler_config.json").write_text(json.dumps({"prediction_type": stated}))
    found = {problem.option: problem.code for problem in examine(training, **options).problems}
    watched = ("prediction_type", "rescale_betas_zero_snr")
    assert {option: code for option, code in found.items() if option in watched} == expected
