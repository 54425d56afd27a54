"""Datasets with control images, and runs of ControlNets on small models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from tests.helpers.models import tiny_model
from tests.helpers.tiny_run import HereRun, tiny_datasets, train_here


def controlled_datasets(place: Path, **fields: Any) -> list[dict[str, Any]]:
    """Images of two sizes, each with its negative as a control image. ``fields`` of the set of control images."""
    pictures, texts = tiny_datasets(place)
    folder = place / "controls"
    for path in sorted(Path(pictures["instance_data_dir"]).rglob("*.*")):
        target = (folder / path.relative_to(pictures["instance_data_dir"])).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.convert("RGB").point(lambda value: 255 - value).save(target)
    controls = {"id": "controls", "conditioning_type": "controlnet", "instance_data_dir": str(folder), "cache_dir_vae": str(place / "c")}
    return [{**pictures, "conditioning_data": ["controls"]}, texts, {**controls, **fields}]


def generated_datasets(place: Path) -> list[dict[str, Any]]:
    """The same images, with edges that are found in them."""
    pictures, texts = tiny_datasets(place)
    return [{**pictures, "conditioning": [{"type": "canny"}]}, texts]


def model_of(family: str, options: dict[str, Any]) -> Path:
    """The small model of the flavour that the options name."""
    return tiny_model(family, flavour=options["model_flavour"]) if "model_flavour" in options else tiny_model(family)


def controlled_run(place: Path, family: str = "sd1x", **options: Any) -> HereRun:
    datasets = options.pop("datasets", None) or controlled_datasets(place)
    chosen = {"max_train_steps": 4, **options}
    return train_here(place, datasets=datasets, model_family=family, model=str(model_of(family, options)), controlnet=True, **chosen)
