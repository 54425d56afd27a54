"""Keys of the server reach the engines that have a use for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.engine.test_command_line import options
from trainer_engine.contract.run import RunFolder
from training.engine import process
from training.engine.keys import keys_without_use

LOCAL = {"pretrained_model_name_or_path": "/models/base"}
HUB = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@pytest.mark.parametrize(
    ("values", "withheld"),
    [
        (LOCAL, ("WANDB_API_KEY", *HUB)),
        ({**LOCAL, "report_to": "tensorboard"}, ("WANDB_API_KEY", *HUB)),
        ({**LOCAL, "report_to": "wandb"}, HUB),
        ({}, ("WANDB_API_KEY",)),
        ({"pretrained_model_name_or_path": "owner/name"}, ("WANDB_API_KEY",)),
        ({**LOCAL, "pretrained_vae_model_name_or_path": "owner/name"}, ("WANDB_API_KEY",)),
        ({**LOCAL, "push_to_hub": True, "report_to": "tensorboard,wandb"}, ()),
        ({**LOCAL, "resume_from_checkpoint": "hf://owner/name/checkpoint-5"}, ("WANDB_API_KEY",)),
        ({**LOCAL, "evaluation_type": "clip", "validation_prompt": "a cat"}, ("WANDB_API_KEY",)),
        ({**LOCAL, "validation_adapter_path": "owner/name:file.safetensors"}, ("WANDB_API_KEY",)),
    ],
)
def test_a_key_is_withheld_from_a_run_that_speaks_to_no_such_service(values: dict[str, Any], withheld: tuple[str, ...]) -> None:
    assert keys_without_use(options(**values)) == withheld


def test_an_engine_is_started_without_what_is_withheld(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "SLURM_JWT", "HF_HOME"):
        monkeypatch.setenv(name, "hunter2")
    folder = RunFolder(tmp_path).create()
    identity = process.start(folder, ["env"], withheld=("HF_TOKEN", "WANDB_API_KEY"))
    assert process.wait_until_gone(identity, folder, seconds=30)
    told = folder.log.read_text()
    assert "HF_HOME=hunter2" in told and not any(f"{name}=" in told for name in ("HF_TOKEN", "WANDB_API_KEY", "SLURM_JWT"))
