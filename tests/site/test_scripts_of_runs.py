"""Scripts of a run from outside: a live server, its rule, a real run, and what is left when it is cancelled."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from tests.helpers.live_server import start_server
from tests.helpers.served_runs import ENDLESS, ServedRuns, wait_until
from trainer_engine.contract.run import JobSpec

TELL = """#!/bin/sh
echo "$SIMPLETUNER_HOOK $1 $2" >> "$SIMPLETUNER_OUTPUT_DIR/told"
env
"""
HANG = "#!/bin/sh\necho $$ > pid\nsleep 600\n"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_listed_scripts_run_and_end_with_a_cancelled_run(tmp_path: Path) -> None:
    opt, home = tmp_path / "opt/hooks", tmp_path / "home"
    program(opt / "tell.sh", TELL)
    opt.chmod(0o555)  # it lies in the folder for temporary files, where runs may write
    program(home / "state/hooks/hang.sh", HANG)
    variables = {
        "SIMPLETUNER_HOOKS": str(opt),
        "SIMPLETUNER_HOOKS_ENV": "LISTED",
        "LISTED": "yes",
        "UNLISTED": "canary",
        "HF_TOKEN": "canary",
    }
    scripts = {
        "validation_method": "external_script",
        "validation_external_script": f"{opt}/tell.sh {{global_step}} {{local_checkpoint_path}}",
        "post_checkpoint_script": "hang.sh {local_checkpoint_path}",
    }
    steps = {"max_train_steps": ENDLESS, "checkpoint_step_interval": ENDLESS, "validation_step_interval": ENDLESS}
    quiet = {"validation_disable": False, "disable_benchmark": True, "validation_disable_unconditional": True}
    with start_server(home, environment=variables) as server:
        runs = ServedRuns(server, tmp_path / "place")
        refused = server.post(
            "/api/training/validate",
            data=runs.form("out", **scripts, post_upload_script="/bin/sh -c reboot"),
            headers={"Accept": "application/json"},
        )
        assert [problem["code"] for problem in refused.json()["problems"]] == ["script_not_allowed"]
        job = runs.start("out", **steps, **quiet, **scripts)
        runs.wait_for_step(job, 1)
        server.post("/api/training/validation/run")
        warned = runs.wait_for_event(job, "error")
        assert warned[0]["data"]["code"] == "no_checkpoint" and warned[0]["severity"] == "warning"
        server.post("/api/training/checkpoint/run")
        name = runs.wait_for_checkpoint(job)
        server.post("/api/training/validation/run")
        reported = runs.output("out") / "told"
        words = wait_until(lambda: reported.exists() and reported.read_text().split(), "an external validation")
        assert words[0] == "validation_external_script" and words[2].endswith(name)
        wait_until(lambda: "[validation_external_script] LISTED=yes" in runs.log(job), "its output in the log")
        assert "canary" not in runs.log(job)
        assert JobSpec.read(runs.folder(job)).scripts.variables == ("LISTED",)
        noted = runs.output("out") / "pid"
        pid = int(wait_until(lambda: noted.exists() and noted.read_text(), "the hook that hangs"))
        assert is_running(pid)
        server.post("/api/training/cancel").raise_for_status()
        wait_until(lambda: not is_running(pid), "the end of the hook")
        left = [
            one.cmdline()
            for one in psutil.process_iter()
            if str(tmp_path) in " ".join(_command(one)) and "supervisor" in " ".join(_command(one))
        ]
        assert left == []


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_the_flag_of_the_server_reaches_the_engine(tmp_path: Path) -> None:
    emit = program(tmp_path / "anywhere/tell.sh", TELL)
    with start_server(tmp_path / "home", arguments=("--allow-scripts",)) as server:
        assert os.listdir(tmp_path / "home/state/hooks") == []
        runs = ServedRuns(server, tmp_path / "place")
        job = runs.start("out", max_train_steps=1, post_checkpoint_script=f"{emit} {{global_step}} x")
        wait_until(runs.folder(job).job_file.exists, "the job of the engine")
        assert JobSpec.read(runs.folder(job)).scripts.anything
        runs.cancel(job)
