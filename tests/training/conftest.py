"""A home with a small dataset and something that looks like a model, for calls that start runs."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from tests.helpers.pictures import generate_images


def write_model(folder: Path, numbers: int = 1000) -> Path:
    """A model as far as the web looks at one: a layout, and headers that say how large it is."""
    for part in ("transformer", "vae", "text_encoder"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
    for part in ("tokenizer", "scheduler"):
        (folder / part).mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(b"")
    (folder / "model_index.json").write_text("{}")
    header = json.dumps({"weight": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(4 * numbers)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    return folder


@dataclass
class Training:
    """``/api/training`` as curl sees it. An exception in a view fails the test instead of becoming a 500."""

    home: Path
    client: APIClient
    form: dict[str, Any]
    """A form that is complete and right."""

    def post(self, path: str, form: dict[str, Any] | None = None, *, accept: str = "application/json", **extra: Any) -> Any:
        """As multipart, unless ``extra`` says otherwise."""
        extra.setdefault("format", "multipart")
        return self.client.post(f"/api/training{path}", form, HTTP_ACCEPT=accept, **extra)

    def get(self, path: str, *, accept: str = "application/json") -> Any:
        return self.client.get(f"/api/training{path}", HTTP_ACCEPT=accept)

    def start(self, **changes: Any) -> Any:
        answer = self.post("/start", {**self.form, **changes})
        assert answer.status_code == 200, answer.content
        return answer.json()


@pytest.fixture
def training(home: Path, db: None) -> Training:
    generate_images(home / "pictures", count=6)
    entries = [
        {
            "id": "pictures",
            "type": "local",
            "dataset_type": "image",
            "instance_data_dir": "pictures",
            "caption_strategy": "filename",
            "resolution": 64,
            "resolution_type": "pixel",
            "crop": True,
        },
        {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"},
    ]
    (home / "config" / "datasets.json").write_text(json.dumps(entries))
    form = {
        "__active_tab__": "model",
        "--model_family": "pixart_sigma",
        "--model_type": "full",
        "--pretrained_model_name_or_path": str(write_model(home / "model")),
        "--output_dir": "output/run",
        "--data_backend_config": "config/datasets.json",
        "--train_batch_size": "1",
        "--max_train_steps": "20",
        "--num_train_epochs": "0",
        "--mixed_precision": "no",
        "--seed": "7",
    }
    return Training(home, APIClient(), form)
