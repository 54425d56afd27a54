"""Held-out images for runs of tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.pictures import generate_images
from tests.helpers.tiny_run import tiny_datasets


def with_held_out(place: Path, *names: str, images: int = 3, size: tuple[int, int] = (128, 96), **fields: Any) -> list[dict[str, Any]]:
    """The usual datasets, and an eval set of every name, with ``images`` pictures of its own."""
    entries = tiny_datasets(place)
    for name in names or ("held-out",):
        folder = place / name
        if not folder.exists():
            generate_images(folder, count=images, size=size)
        cache = str(place / "cache/vae-held-out" / name)
        entries.append({"id": name, "dataset_type": "eval", "instance_data_dir": str(folder), "cache_dir_vae": cache, **fields})
    return entries
