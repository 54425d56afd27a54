"""A resumed run of many samples whose caches are warm: from the command to its first step, stage by stage.

``make bench`` takes 100,000 images with captions. Encoding them would take an hour, so their entries are written into the caches directly.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.bench.discovery import FOLDERS, IMAGES, configuration, make_set
from tests.bench.table import Table
from trainer_engine.caches.latents import LatentCache
from trainer_engine.caches.prompts import PromptCache
from trainer_engine.caches.store import CacheStore
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.parse import parse_options
from trainer_engine.config.run_paths import index_folder
from trainer_engine.contract.events import JournalEntry
from trainer_engine.contract.run import RunFolder
from trainer_engine.datasets.examine import examine
from trainer_engine.families.load import load_family
from trainer_engine.families.pixart_sigma.tiny import make_tiny
from trainer_engine.runtime.devices import resolve_devices
from training.engine.journal import BrokenLine, read_entries

SECTION = "warm"
AIM = "under 10 s"
WRITTEN_TOGETHER = 4096
LATENTS = (4, 8, 8)
WAIT_SECONDS, LOOK_SECONDS = 300, 0.02


@dataclass(frozen=True)
class FirstStep:
    """A run's way to its first step, in seconds from the command on."""

    seconds: float
    processor: float
    """Processor time of the command and the engine together."""
    stages: Mapping[str, tuple[float, float]]
    """Key of a stage -> when it began and when it ended."""
    resident: int
    """Bytes of the engine's process."""


def fill_caches(values: Mapping[str, Any]) -> int:
    """Write an entry for each sample and each caption of a configuration; returns how many samples there are."""
    options = parse_options(values)
    family = load_family(options, resolve_devices(options, torch.device("cpu")))
    dataloader, _ = parse_dataloader(json.loads(Path(options.data.data_backend_config).read_text()), options)
    report = examine(dataloader, options, family.spec, index_dir=index_folder(options))
    [found] = report.sets
    latents = LatentCache(family, CacheStore(Path(found.entry.vae_cache)), options.run.seed)
    latents.take_stock(found.samples, workers=2)
    _write(latents.store, latents.addresses.values(), {"latents": torch.zeros(LATENTS)})
    prompts = PromptCache(family, CacheStore(Path(dataloader.default_text_set.text_cache)), options.run.seed)
    captions = dict.fromkeys(caption for sample in found.samples for caption in ("", *sample.captions))
    [embedding] = family.encode_prompts(["a caption of some words"], [[]])
    _write(prompts.store, map(prompts.address, captions), embedding)
    return len(found.samples)


def _write(store: CacheStore, addresses: Iterable[str], entry: Mapping[str, torch.Tensor]) -> None:
    wanted = list(addresses)
    for start in range(0, len(wanted), WRITTEN_TOGETHER):
        store.put_all(dict.fromkeys(wanted[start : start + WRITTEN_TOGETHER], entry))


def start(config: Path, home: Path) -> FirstStep:
    """Start ``simpletuner train``, and end it kindly after the first step, so that it saves a checkpoint to resume from."""
    runs = home / "state/runs"
    before = set(runs.iterdir()) if runs.exists() else set()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "simpletuner_site.cli", "train", "--config", str(config), "--home", str(home)]
    began = time.time()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        entries = _until_first_step(process, runs, before)
        running = _running(process)
        processor = sum(sum(one.cpu_times()[:2]) for one in running)
        resident = max(one.memory_info().rss for one in running)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAIT_SECONDS)
    finally:
        for one in _running(process) if process.poll() is None else ():
            one.kill()
    ended = _seconds(entries[-1].timestamp, began)
    return FirstStep(ended, processor, dict(_stages(entries, began)), resident)


def _running(process: subprocess.Popen[str]) -> list[psutil.Process]:
    command = psutil.Process(process.pid)
    return [command, *command.children(recursive=True)]


def _until_first_step(process: subprocess.Popen[str], runs: Path, before: set[Path]) -> list[JournalEntry]:
    """The events of the new run up to its first step."""
    entries, offset = list[JournalEntry](), 0
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for folder in set(runs.iterdir()) - before if runs.exists() else ():
            reading = read_entries(RunFolder(folder).journal, offset)
            offset = reading.offset
            for entry in (one for one in reading.entries if not isinstance(one, BrokenLine)):
                entries.append(entry)
                if entry.type == "training.progress":
                    return entries
        time.sleep(LOOK_SECONDS)
    raise RuntimeError(f"the run took no step: {process.communicate()[0] if process.poll() is not None else 'it still prepares'}")


def _stages(entries: Iterable[JournalEntry], began: float) -> Iterator[tuple[str, tuple[float, float]]]:
    first: dict[str, float] = {}
    for entry in entries:
        stage = entry.extra.get("stage")
        if stage:
            at = _seconds(entry.timestamp, began)
            yield stage["key"], (first.setdefault(stage["key"], at), at)


def _seconds(timestamp: str, began: float) -> float:
    return datetime.fromisoformat(timestamp).timestamp() - began


def measure(table: Table, place: Path, *, images: int = IMAGES, folders: int = FOLDERS) -> None:
    make_tiny(place / "model")
    values = configuration(place, make_set(place, images, folders))
    values |= {
        "pretrained_model_name_or_path": str(place / "model"),
        "max_train_steps": 1_000_000,
        "mixed_precision": "no",
        "optimizer": "torch-adamw",
        "resume_from_checkpoint": "latest",
        "checkpoint_step_interval": 1_000_000,
    }
    config = place / "config/config.json"
    config.write_text(json.dumps(values))
    samples = fill_caches(values)
    for name, aim in (("first run", ""), ("resumed run", AIM)):
        took = start(config, place)
        value = f"{took.seconds:.1f} s ({took.processor:.1f} s of a processor, {took.resident / 1e6:.0f} MB resident)"
        table.add(SECTION, f"command to first step of a {name}, {samples:,} samples, caches warm", value, aim=aim)
    for key, (began, ended) in took.stages.items():
        table.add(SECTION, f"of it {key}", f"{ended - began:.2f} s, from {began:.1f} s on")
    table.add(SECTION, "of it the first batch and step", f"{took.seconds - max(end for _, end in took.stages.values()):.2f} s")


def run(table: Table) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-warm-") as folder:
        measure(table, Path(folder))
