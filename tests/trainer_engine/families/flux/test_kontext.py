"""Whole runs of the editing flavour on paired images."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.models import tiny_model
from tests.helpers.params import first_rows_fast
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import HereRun, train_here
from trainer_engine.contract.errors import CheckpointUnusable
from trainer_engine.contract.events import ImageEvent, Notification
from trainer_engine.families.flux.family import Flux
from trainer_engine.families.flux.spec import SPEC
from trainer_engine.families.inputs import PromptEmbedding


def paint(folder: Path, *, shade: int, size: tuple[int, int] = (80, 96), count: int = 4) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = Image.new("RGB", size, (shade, 60 * number, 30))
        picture.paste((255 - shade, 20, 60 * number), (10 + 5 * number, 10, 40, 50))
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"make it number {number}")


def pairs(place: Path, *references: str) -> list[dict[str, Any]]:
    """One set of edits with sets of references of the given types."""
    paint(place / "edits", shade=200)
    entries: list[dict[str, Any]] = [
        {
            "id": "edits",
            "instance_data_dir": str(place / "edits"),
            "caption_strategy": "textfile",
            "crop": True,
            "crop_style": "random",
            "conditioning_data": [f"refs-{number}" for number in range(len(references))],
            "cache_dir_vae": str(place / "cache/edits"),
        },
        {"id": "texts", "dataset_type": "text_embeds", "default": True, "cache_dir": str(place / "cache/text")},
    ]
    for number, kind in enumerate(references):
        loose = kind == "reference_loose"
        paint(place / f"refs-{number}", shade=40 + number, size=(160, 80) if loose else (80, 96))
        folder, cache = str(place / f"refs-{number}"), str(place / f"cache/refs-{number}")
        entry = {"id": f"refs-{number}", "dataset_type": "conditioning", "conditioning_type": kind}
        entries.append({**entry, "instance_data_dir": folder, "cache_dir_vae": cache})
    return entries


def kontext(place: Path, datasets: list[dict[str, Any]], **options: Any) -> HereRun:
    values: dict[str, Any] = {
        "model_family": "flux",
        "model_flavour": "kontext",
        "model": str(tiny_model("flux", flavour="kontext")),
        "model_type": "lora",
        "lora_rank": 2,
        "optimizer": "optimi-lion",
        "validation_guidance": 2.5,
        **options,
    }
    return train_here(place, datasets=datasets, **values)


def adapter(run: HereRun) -> bytes:
    return (run.output_dir / "pytorch_lora_weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("references", "sampling"),
    first_rows_fast(
        [
            (("reference_strict", "reference_loose"), "combined"),
            (("reference_strict", "reference_loose"), "random"),
            (("reference_strict",), "combined"),
            (("reference_loose",), "combined"),
        ]
    ),
)
def test_a_resumed_edit_run_equals_the_straight_one(references: tuple[str, ...], sampling: str, tmp_path: Path) -> None:
    datasets = pairs(tmp_path, *references)
    assert_resumes_exactly(tmp_path, kontext, datasets=datasets, conditioning_multidataset_sampling=sampling)


def test_a_run_learns_from_the_references(tmp_path: Path) -> None:
    first = kontext(tmp_path, pairs(tmp_path, "reference_strict"), output_dir=str(tmp_path / "one"))
    paint(tmp_path / "refs-0", shade=130)
    second = kontext(tmp_path, pairs(tmp_path, "reference_strict"), output_dir=str(tmp_path / "one-again"))
    assert adapter(first) == adapter(second)
    for path in (tmp_path / "refs-0").glob("*.png"):
        Image.new("RGB", (80, 96), (250, 250, 250)).save(path)
    changed = json.loads(json.dumps(pairs_without_painting(tmp_path)))
    third = kontext(tmp_path, changed, output_dir=str(tmp_path / "other"))
    assert adapter(third) != adapter(first)


def pairs_without_painting(place: Path) -> list[dict[str, Any]]:
    kept = {path: path.read_bytes() for path in (place / "refs-0").glob("*.png")}
    entries = pairs(place, "reference_strict")
    for path, content in kept.items():
        path.write_bytes(content)
    return entries


def test_a_run_with_other_references_does_not_resume_the_checkpoint(tmp_path: Path) -> None:
    datasets = pairs(tmp_path, "reference_strict")
    kontext(tmp_path, datasets, stop_after=2)
    Image.new("RGB", (80, 96), (1, 2, 3)).save(tmp_path / "refs-0/0.png")
    with pytest.raises(CheckpointUnusable, match="1 changed"):
        kontext(tmp_path, datasets, resume_from_checkpoint="latest")


def test_validation_generates_with_the_references_of_the_first_pairs(tmp_path: Path) -> None:
    run = kontext(
        tmp_path,
        pairs(tmp_path, "reference_strict"),
        validation_disable=False,
        validation_prompt="a product photo",
        validation_resolution="64x64",
        validation_num_inference_steps=1,
        num_eval_images=2,
        max_train_steps=1,
    )
    final = [event for event in run.heard.of(ImageEvent) if event.validation_type == "final"]
    assert {event.prompt for event in final} == {"a product photo", "make it number 0", "make it number 1"}
    assert len(final) == 4
    images = [Path(event.images[0].file).read_bytes() for event in final if event.images[0].file]
    assert len(set(images)) == 4


def test_held_out_pairs_are_evaluated_and_generated_with_their_references(tmp_path: Path) -> None:
    datasets = pairs(tmp_path, "reference_loose", "reference_strict")
    paint(tmp_path / "held-out", shade=120, size=(80, 112), count=2)
    for number in range(2):
        (tmp_path / f"held-out/{number}.txt").write_text(f"unseen {number}")
        paint(tmp_path / f"held-out-refs-{number}", shade=60 + number, size=(80, 112), count=2)
        folder, cache = str(tmp_path / f"held-out-refs-{number}"), str(tmp_path / f"cache/held-out-refs-{number}")
        entry = {"id": f"held-out-refs-{number}", "conditioning_type": "reference_loose", "crop": True, "cache_dir_vae": cache}
        datasets.append({**entry, "instance_data_dir": folder})
    shared = {"dataset_type": "eval", "instance_data_dir": str(tmp_path / "held-out"), "caption_strategy": "textfile", "crop": True}
    references = ["held-out-refs-0", "held-out-refs-1"]
    datasets.append({"id": "held-out", "conditioning_data": references, "cache_dir_vae": str(tmp_path / "cache/held-out"), **shared})

    def losses(name: str, **options: Any) -> list[float]:
        run = kontext(tmp_path, datasets, output_dir=str(tmp_path / name), eval_timesteps=4, max_train_steps=1, **options)
        measured = [event.details["loss"] for event in run.heard.of(Notification) if event.code == "evaluation"]
        assert len(measured) == 2 and all(measured)
        prompts = [event.prompt for event in run.heard.of(ImageEvent) if event.validation_type == "final"]
        assert prompts == (["unseen 0", "unseen 1"] if options.get("validation_disable") is False else [])
        return measured

    drawing = {"validation_disable": False, "validation_resolution": "64x64", "validation_num_inference_steps": 1}
    together = losses("together", conditioning_multidataset_sampling="combined", **drawing)
    other_seed = losses("other-seed", conditioning_multidataset_sampling="combined", seed=99)
    in_turn = losses("in-turn", conditioning_multidataset_sampling="random")
    assert together[0] == other_seed[0] != in_turn[0]


def test_a_text_encoder_that_sees_references_gets_those_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Flux.encode_prompts
    seen: dict[str, set[tuple[float, ...]]] = defaultdict(set)

    def look(self: Flux, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        for prompt, pixels in zip(prompts, references, strict=True):
            seen[prompt].add(tuple(float(one.mean()) for one in pixels))
        return encode(self, prompts)

    monkeypatch.setattr(Flux, "encode_prompts", look)
    monkeypatch.setattr(Flux, "prompts_see_references", True)
    kontext(
        tmp_path,
        pairs(tmp_path, "reference_strict", "reference_loose"),
        conditioning_multidataset_sampling="random",
        caption_dropout_probability=0.5,
        validation_disable=False,
        validation_disable_unconditional=True,
        validation_resolution="64x64",
        validation_num_inference_steps=1,
        num_eval_images=1,
    )
    singles = {text: {means for means in found if len(means) == 1} for text, found in seen.items()}
    captions = [f"make it number {number}" for number in range(4)]
    assert all(len(singles[caption]) == 2 for caption in captions)
    assert singles[""] == set().union(*(singles[caption] for caption in captions)), "a dropped caption keeps its references"
    assert {len(means) for means in seen[captions[0]]} == {1, 2}, "a validation image sees all references"


def test_the_starting_adapter_file_trains(tmp_path: Path) -> None:
    path = tmp_path / "lycoris_config.json"
    path.write_text(json.dumps(dict(SPEC.adapters.lycoris_start) | {"apply_preset": dict(SPEC.adapters.lycoris_start["apply_preset"])}))
    options = {"lora_type": "lycoris", "lycoris_config": str(path), "base_model_precision": "int8-quanto", "clip_skip": 2}
    run = kontext(tmp_path, pairs(tmp_path, "reference_strict"), learning_rate=1e-3, **options)
    weights = load_file(run.output_dir / "pytorch_lora_weights.safetensors")
    assert len({key.partition(".")[0] for key in weights}) == 30
    assert any(tensor.abs().max() > 0 for key, tensor in weights.items() if key.endswith("lokr_w2"))


def test_a_pair_whose_reference_has_no_latents_is_not_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets, encode = pairs(tmp_path, "reference_strict"), Flux.encode_images
    Image.new("RGB", (80, 96), (0, 0, 0)).save(tmp_path / "refs-0/0.png")

    def encode_or_overflow(self: Flux, pixels: Tensor, *, exact: bool = False) -> Tensor:
        latents = encode(self, pixels, exact=exact)
        latents[pixels.flatten(1).max(dim=1).values < 0] = math.nan
        return latents

    monkeypatch.setattr(Flux, "encode_images", encode_or_overflow)
    drawing = {"validation_disable": False, "validation_resolution": "64x64", "validation_num_inference_steps": 1}
    run = kontext(tmp_path, datasets, max_train_steps=1, num_eval_images=2, disable_benchmark=True, **drawing)
    assert [event.prompt for event in run.heard.of(ImageEvent)] == ["make it number 1"]
    (warning,) = [event for event in run.heard.of(Notification) if event.code == "files_left_out"]
    assert "0.png" in warning.message
