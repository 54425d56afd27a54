"""Every family in few figures: its step beside a bare loop, the start of a run with it, and what a caption takes in its cache.

``make bench SECTIONS=families`` measures every family that the engine has, ``python -m tests.bench.families NAME ...`` some of them.
Networks have the depth of the published ones, at a width where operators cost more than their arithmetic.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.bench.gpu_device import WARM_UP
from tests.bench.host import Pair, of_network, operators_of, processor_seconds
from tests.bench.published import NETWORKS
from tests.bench.table import Table, ratio_of
from tests.bench.warm import start
from tests.helpers.models import tiny_family, tiny_model, tokenizer_in
from tests.helpers.pictures import generate_images
from trainer_engine.caches.store import CacheStore
from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec

SECTION = "families"
CAPTION = "a photograph of a small red house with a green door beside a lake, in the morning, a boat and two people in front of it"
FLOAT32_BYTES = 4
CAPTIONS = 16
"""As many equal entries are stored, so that the shard's own bytes count as in a large cache."""


def measure_step(table: Table, pair: Pair) -> None:
    """Steps a second and operators, engine beside bare loop; they take turns, so that both see the same machine."""
    for work in (pair.engine, pair.bare):
        work(WARM_UP)
    ours, bare = operators_of(pair.engine), operators_of(pair.bare)
    times = [(processor_seconds(pair, pair.engine), processor_seconds(pair, pair.bare)) for _ in range(pair.clock.rounds)]
    engine, alone = ([both[side] for both in times] for side in (0, 1))
    table.add(
        SECTION,
        f"steps a second of the processor beside a bare loop ({pair.name})",
        ratio_of(alone, engine),
        aim="98 % or better",
        beside=f"a step: {1000 * statistics.median(engine):.0f} ms",
    )
    more = f"{100 * (ours - bare) / bare:+.2f} %"
    table.add(SECTION, f"operators a step ({pair.name})", f"{ours}", aim="2 % more or fewer", beside=f"bare loop: {bare} ({more})")


@dataclass(frozen=True)
class CachedCaption:
    """What one caption takes."""

    bytes: int
    """In the cache."""
    tokens: int
    """Of the caption, with those of a template that are kept."""
    unpadded: int
    """Bytes of its states in float32 without padding."""


def cached_caption(family: str, place: Path, caption: str = CAPTION) -> CachedCaption:
    """``place``: an empty folder for the cache."""
    model, spec = tiny_model(family), specs()[family]
    made = tiny_family(model_family=family, pretrained_model_name_or_path=str(model))
    (entry,) = made.encode_prompts([caption], [[]])
    store = CacheStore(place)
    store.put_all({f"{number:064x}": entry for number in range(CAPTIONS)})
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) // CAPTIONS
    tokens, unpadded = _unpadded(entry, spec, model, caption)
    return CachedCaption(size, tokens, unpadded)


def _unpadded(entry: dict[str, Tensor], spec: FamilySpec, model: Path, caption: str) -> tuple[int, int]:
    """(tokens of the caption, bytes of its states in float32)"""
    states = {name: tensor for name, tensor in entry.items() if tensor.is_floating_point()}
    rows = max(len(tensor) for tensor in states.values() if tensor.ndim > 1)
    if spec.prompts.stores_padding:
        counts = [len(tokenizer_in(model / folder)(caption).input_ids) for folder in spec.prompts.tokenizer_folders]
        rows = min(rows, max(counts))
    numbers = sum(min(rows, len(tensor)) * tensor[0].numel() if tensor.ndim > 1 else tensor.numel() for tensor in states.values())
    return rows, numbers * FLOAT32_BYTES


def seconds_to_first_step(family: str, place: Path) -> float:
    """From the command to the first step of a run of the smallest model, caches included."""
    generate_images(place / "images", count=4, size=(64, 64))
    for folder in ("config", "state"):
        (place / folder).mkdir()
    (place / "config/sets.json").write_text(json.dumps([{"id": "images", "instance_data_dir": str(place / "images"), "resolution": 64}]))
    values: dict[str, Any] = {
        "model_family": family,
        "model_type": "full",
        "pretrained_model_name_or_path": str(tiny_model(family)),
        "output_dir": str(place / "output"),
        "validation_disable": True,
        "data_backend_config": str(place / "config/sets.json"),
        "max_train_steps": 9,
        "num_train_epochs": 0,
        "mixed_precision": "no",
        "optimizer": "torch-adamw",
    }
    (place / "config/config.json").write_text(json.dumps(values))
    return start(place / "config/config.json", place).seconds


def measure(table: Table, families: Iterable[str]) -> None:
    for family in families:
        for kind in specs()[family].model_types:
            measure_step(table, of_network(NETWORKS[family], kind))
        title = specs()[family].title
        with tempfile.TemporaryDirectory(prefix="bench-families-") as folder:
            place = Path(folder)
            found = cached_caption(family, place / "cache")
            share = f"{found.unpadded} bytes ({100 * found.bytes / found.unpadded:.0f} %)"
            name = f"text cache, a caption of {found.tokens} tokens (small {title})"
            table.add(SECTION, name, f"{found.bytes} bytes", beside=f"unpadded float32: {share}")
            seconds = seconds_to_first_step(family, place)
            table.add(SECTION, f"command to first step (small {title})", f"{seconds:.1f} s", aim="under 12 s")


def run(table: Table, families: Iterable[str] = ()) -> None:
    """Measures every family of the engine, or those that are named."""
    with torch.random.fork_rng():
        measure(table, families or specs())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.families", description="Measure some families, or all of them.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"some of: {', '.join(specs())}")
    named = parser.parse_args().families
    unknown = sorted(set(named) - set(specs()))
    if unknown:
        parser.error(f"unknown families: {', '.join(unknown)}; known: {', '.join(specs())}")
    run(Table(), named)


if __name__ == "__main__":
    main()
