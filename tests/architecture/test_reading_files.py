"""A file that a user names is read by ``contract/files.py``, with a limit; these modules read files of the product's own."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.architecture.test_shape import ROOT, modules, nodes

OWN_FILES = {
    "environments/examples/__init__.py": "shipped examples",
    "environments/examples/external-validation/hosted_service.py": "a program of its own",
    "environments/files/own_files.py": "state/written",
    "environments/secrets/store.py": "state/secrets",
    "environments/resolve/webhook_targets.py": "a shipped sample",
    "simpletuner_site/demo/processes.py": "the demo's log",
    "simpletuner_site/security/secret_key.py": "state/secret_key",
    "simpletuner_site/security/token.py": "state/access.json",
    "simpletuner_site/train/report.py": "the log of a run",
    "simpletuner_site/server/state.py": "state",
    "trainer_engine/adapters/adapter.py": "checkpoints, of which every byte was verified",
    "trainer_engine/caches/store.py": "the engine's cache",
    "trainer_engine/config/datasets/names.py": "a shipped list",
    "trainer_engine/config/options/registry.py": "a shipped list",
    "trainer_engine/config/prompt_library.py": "shipped libraries",
    "trainer_engine/contract/run.py": "the run folder",
    "trainer_engine/checkpointing/cgroups.py": "/proc and /sys",
    "trainer_engine/datasets/hashes.py": "the engine's cache",
    "trainer_engine/datasets/index.py": "the engine's cache",
    "trainer_engine/datasets/shards/__main__.py": "state/upkeep",
    "trainer_engine/datasets/shards/older.py": "the engine's cache",
    "trainer_engine/loop/callbacks/progress.py": "/proc",
    "trainer_engine/loop/restore.py": "checkpoints, of which every byte was verified",
    "trainer_engine/validation/gather.py": "images that the run made",
    "trainer_engine/media.py": "a clip that was just encoded",
    "trainer_engine/trackers/tensorboard.py": "a clip that the run made",
    "trainer_engine/publishing/base.py": "a checkpoint that the run wrote",
    "trainer_engine/publishing/fetch.py": "the folder that is fetched into",
    "trainer_engine/publishing/hub.py": "what was just fetched, up to its limit",
    "trainer_engine/publishing/ledger.py": "the run's list of uploads",
    "trainer_engine/publishing/staging.py": "a model card that the run wrote",
    "trainer_engine/tiny_models/hub_cache.py": "models of the tests",
    "training/engine/process.py": "/proc",
    "training/api/media.py": "images that a run made",
    "training/upkeep/caches.py": "state/upkeep",
    "training/upkeep/thinning.py": "the run folder",
    "training/preflight/run.py": "/proc/cpuinfo",
    "training/webhooks/messages.py": "images that a run made",
}


def test_no_module_reads_a_whole_file_of_a_user() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for path in modules()
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "read_bytes")
    }
    assert readers - set(OWN_FILES) == set(), "read it with trainer_engine.contract.files"
    assert {name for name in OWN_FILES if not Path(ROOT, name).exists()} == set()
