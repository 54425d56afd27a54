"""Secrets in the environment of an engine and of its helpers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer_engine.__main__ import read_job
from trainer_engine.config.secrets import VARIABLE
from trainer_engine.contract.run import JobSpec, RunFolder
from trainer_engine.runtime.environment import helper_environment, read_environment

PROGRAM = """
import os, subprocess, sys
from trainer_engine.runtime.environment import read_environment
assert read_environment().secrets == {"webhook_config": "hunter2"}
print(subprocess.run([sys.executable, "-c", "import os; print(dict(os.environ))"], capture_output=True, text=True).stdout)
"""


def test_read_environment_removes_the_secrets() -> None:
    environment = os.environ | {VARIABLE: json.dumps({"webhook_config": "hunter2"})}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert "PATH" in done.stdout
    assert "hunter2" not in done.stdout
    found = read_environment({VARIABLE: json.dumps({"webhook_config": "hunter2"})})
    assert "hunter2" not in repr(found)


def test_secrets_replace_the_masked_values_of_the_job(tmp_path: Path) -> None:
    options = {"model_family": "pixart_sigma", "model_type": "full", "output_dir": "/o", "data_backend_config": "/d", "max_train_steps": 1}
    hidden, whole = ([{"webhook_type": "discord", "webhook_url": url}] for url in ("***", "https://example.com/hunter2"))
    images = {"id": "a", "type": "local", "dataset_type": "image", "instance_data_dir": "/pictures", "resolution": 64}
    texts = {"id": "t", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "/c"}
    folder = RunFolder(tmp_path).create()
    JobSpec(job_id="j", options={**options, "webhook_config": json.dumps(hidden)}, datasets=[images, texts]).write(folder)
    found, _, _ = read_job(folder, {"webhook_config": json.dumps(whole)})
    assert json.loads(found.hooks.webhook_config) == whole
    assert "hunter2" not in str(found.non_default())  # what trackers are given


def test_proc_environ_shows_no_secret() -> None:
    program = """
import os
from trainer_engine.runtime.environment import read_environment
assert read_environment().secrets == {"webhook_config": "hunter2"}
print(open("/proc/self/environ", "rb").read().decode(), open(f"/proc/{os.getpid()}/cmdline").read())
"""
    environment = os.environ | {VARIABLE: json.dumps({"webhook_config": "hunter2"}), "AFTER": "seen"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "AFTER=seen" in done.stdout and "PATH=" in done.stdout
    assert "hunter2" not in done.stdout.partition("import os")[0]


def test_helper_environment_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"HF_TOKEN": "a", "HUGGING_FACE_HUB_TOKEN": "b", "WANDB_API_KEY": "c", "REPLICATE_API_TOKEN": "d", "AWS_SECRET_ACCESS_KEY": "e"}
    others = {
        "HF_HOME": "/hf",
        "HTTPS_PROXY": "http://u:p@proxy",
        "http_proxy": "http://proxy",
        "AWS_PROFILE": "me",
        "OMP_NUM_THREADS": "1",
    }
    for name, value in {**keys, **others}.items():
        monkeypatch.setenv(name, value)
    alone, uploading = helper_environment(), helper_environment(with_network=True)
    assert not keys.keys() & {*alone, *uploading}
    assert "PATH" in alone and not {"HTTPS_PROXY", "http_proxy"} & alone.keys()
    assert others.items() <= uploading.items()
    assert keys.keys() & helper_environment(with_network=True, with_hub=True).keys() == {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}
