"""What the odd family must be able to do; run by ``tests/trainer_engine/families/test_odd_family.py`` with the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from tests.helpers.models import options_with, tiny_model
from tests.helpers.pictures import generate_images
from tests.helpers.tiny_run import HereRun, tiny_datasets, train_here
from trainer_engine.config.family_problems import family_problems
from trainer_engine.contract.events import EVALUATION
from trainer_engine.families.base import load_family
from trainer_engine.families.inputs import SampleFacts
from trainer_engine.runtime.devices import resolve_devices

LORA = {"model_type": "lora", "lora_rank": 2}
VALIDATION = {"validation_disable": False, "validation_prompt": "a red circle", "validation_resolution": "64x64"}


def run(place: Path, **options: Any) -> HereRun:
    """Four steps on images that have references."""
    sets = tiny_datasets(place)
    references = place / "references"
    if not references.exists():
        for image in (place / "images").rglob("*.*"):
            target = references / image.relative_to(place / "images")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(image.read_bytes())
    sets[0]["conditioning_data"] = ["refs"]
    sets.append(
        {
            "id": "refs",
            "type": "local",
            "dataset_type": "conditioning",
            "instance_data_dir": str(references),
            "cache_dir_vae": str(place / "cache/refs"),
        }
    )
    held = place / "held-out"
    if not held.exists():
        generate_images(held, count=2, size=(96, 96))
    sets.append(
        {"id": "eval", "type": "local", "dataset_type": "eval", "instance_data_dir": str(held), "cache_dir_vae": str(place / "cache/eval")}
    )
    return train_here(place, datasets=sets, model_family="odd", model=str(tiny_model("odd")), max_train_steps=4, **options)


def entry(name: str, kind: str, folder: Path, place: Path) -> dict[str, Any]:
    return {
        "id": name,
        "type": "local",
        "dataset_type": kind,
        "instance_data_dir": str(folder),
        "cache_dir_vae": str(place / "cache" / name),
    }


def test_the_folder_satisfies_the_interface() -> None:
    assert list(family_problems("odd")) == []


@pytest.mark.parametrize("kind", [{}, LORA], ids=["full", "lora"])
def test_a_run_resumes_to_the_same_bytes(tmp_path: Path, kind: dict[str, Any]) -> None:
    straight = run(tmp_path / "straight", **kind)
    run(tmp_path / "resumed", stop_after=2, **kind)
    resumed = run(tmp_path / "resumed", **kind)
    assert straight.code == resumed.code == 0
    files = sorted(
        path.relative_to(straight.output_dir) for path in straight.output_dir.rglob("*.safetensors") if "cache" not in path.parts
    )
    assert files
    for file in files:
        assert (straight.output_dir / file).read_bytes() == (resumed.output_dir / file).read_bytes(), file


def test_a_full_fine_tune_saves_both_networks(tmp_path: Path) -> None:
    result = run(tmp_path).output_dir / "pipeline"
    for name in ("transformer", "transformer_2"):
        trained = WanTransformer3DModel.from_pretrained(result, subfolder=name).state_dict()
        base = WanTransformer3DModel.from_pretrained(tiny_model("odd"), subfolder=name).state_dict()
        assert any(not torch.equal(trained[key], base[key]) for key in base), name


def test_an_adapter_has_the_keys_of_both_networks(tmp_path: Path) -> None:
    keys = load_file(run(tmp_path, **LORA).output_dir / "pytorch_lora_weights.safetensors")
    assert {key.split(".")[0] for key in keys} == {"transformer", "transformer_2"}
    assert not any(".to_v." in key for key in keys if key.startswith("transformer_2.")), "its own targets"


def test_a_run_is_evaluated_and_generates_images(tmp_path: Path) -> None:
    result = run(tmp_path, eval_steps_interval=2, **VALIDATION)
    assert list((result.output_dir / "validation_images").glob("*.png"))
    measured = [event for event in result.heard.events if getattr(event, "code", "") == EVALUATION]
    assert result.code == 0 and len(measured) >= 2


def test_prompts_see_images_and_samples_reach_the_network() -> None:
    options = options_with(model_family="odd", pretrained_model_name_or_path=str(tiny_model("odd")))
    family = load_family(options, resolve_devices(options, torch.device("cpu")))
    (dark,), (bright,) = (family.encode_prompts(["a cat"], [[torch.full((3, 8, 8), level)]]) for level in (-1.0, 1.0))
    assert torch.equal(dark["embeds"][:-1], bright["embeds"][:-1]) and not torch.equal(dark["embeds"], bright["embeds"])
    facts = SampleFacts(original_size=(100, 50), crop_corner=(0, 0), target_size=(64, 64))
    assert family.conditions([facts])["edges"].tolist() == [[1.0, 0.5]]
