"""One process of ``tests.bench.adapters``: takes a few steps, then says how much memory that took."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil

from tests.bench import adapters
from tests.bench.table import highest_resident_bytes
from trainer_engine.config.families import find_spec
from trainer_engine.datasets.examine import examine
from training.preflight.estimates import estimate_memory
from training.preflight.network import count_parameters, network_tensors

STEPS = 6


def main(place: Path, kind: str, who: str, batch_size: int) -> None:
    baseline = psutil.Process().memory_info().rss
    options = adapters.options_of(place, kind, batch_size)
    options = options.model_copy(update={"run": options.run.model_copy(update={"max_train_steps": STEPS})})
    trainer = adapters.assembled(place, options)
    if who == "engine":
        trainer.fit()
    else:
        batch = trainer.loader.load(0).passes[0]
        del trainer
        adapters.bare_loop(place, kind, options, batch)(STEPS)
    peak = highest_resident_bytes()
    spec = find_spec("flux")
    assert spec is not None
    report = examine(adapters.datasets(place, options), options, spec)
    tensors = network_tensors(options.model, spec, Path("no-cache")) or {}
    estimate = estimate_memory(options, count_parameters(tensors), report, spec, tensors)
    print(json.dumps({"peak": max(1, peak - baseline), "estimate": estimate.counted + estimate.modelled}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
