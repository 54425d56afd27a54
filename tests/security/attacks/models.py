"""Base models that hold code, pickles or settings that load some."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.helpers.models import tiny_pixart
from tests.security.target import Target


class _Touch:
    """What unpickling this makes happen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (open, (str(self.path), "w"))


def _with_settings(file: str, **settings: object) -> Callable[[Path, Path], None]:
    def change(model: Path, _: Path) -> None:
        path = model / file
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def _index_to_a_pickle(folder: str) -> Callable[[Path, Path], None]:
    def change(model: Path, canary: Path) -> None:
        for weights in (model / folder).glob("*.safetensors"):
            index = {"metadata": {}, "weight_map": {"x": "payload.bin"}}
            (model / folder / f"{weights.stem}.safetensors.index.json").write_text(json.dumps(index))
            weights.unlink()
        (model / folder / "payload.bin").write_bytes(pickle.dumps(_Touch(canary)))

    return change


def _only_a_pickle(folder: str, name: str) -> Callable[[Path, Path], None]:
    def change(model: Path, canary: Path) -> None:
        for weights in (model / folder).glob("*.safetensors"):
            weights.unlink()
        (model / folder / name).write_bytes(pickle.dumps(_Touch(canary)))

    return change


def _custom_code(model: Path, canary: Path) -> None:
    (model / "text_encoder/evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    _with_settings("text_encoder/config.json", auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"})(model, canary)


HOSTILE: dict[str, Callable[[Path, Path], None]] = {
    "an index that names a pickle (transformer)": _index_to_a_pickle("transformer"),
    "an index that names a pickle (text encoder)": _index_to_a_pickle("text_encoder"),
    "an index that names a pickle (autoencoder)": _index_to_a_pickle("vae"),
    "a pickle alone (transformer)": _only_a_pickle("transformer", "diffusion_pytorch_model.bin"),
    "a pickle alone (text encoder)": _only_a_pickle("text_encoder", "pytorch_model.bin"),
    "a quantiser": _with_settings("text_encoder/config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
    "a kernel": _with_settings("text_encoder/config.json", _attn_implementation="evil/kernel"),
    "code beside the weights": _custom_code,
}


def attack_base_models(target: Target) -> list[str]:
    """Nothing of a base model is executed or unpickled, and validate says what the run would meet."""
    through = []
    for what, change in HOSTILE.items():
        canary, model = target.canary("model"), target.place / "hostile-model"
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(tiny_pixart(), model)
        change(model, canary)
        said = target.validate("hostile", pretrained_model_name_or_path=str(model)).status_code
        _, job = target.start_run("hostile", pretrained_model_name_or_path=str(model), max_train_steps=1)
        if canary.exists():
            through.append(f"{what}: code ran")
        info = job.get("job_info", {})
        words = f"{info.get('error') or ''} {info.get('message') or ''}"
        if "weights_only" in words or "Unpickl" in words:
            through.append(f"{what}: reached an unpickler: {words[:120]}")
        if said == 200 and job.get("status") == "error":
            through.append(f"{what}: validate said 200, and the run ended: {words[:120]}")
    return through
