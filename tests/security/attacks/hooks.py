"""Commands without permission: what a run fetched or wrote becomes a program that a run starts."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.helpers.live_server import start_server
from tests.helpers.loopback import served_by
from tests.security.target import Target, store_at

CHECKPOINT = "checkpoint-5"


@contextmanager
def _bucket(folder: Path) -> Iterator[str]:
    """Serves a folder as a public bucket."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: Any) -> None:
            return

    with served_by(Handler) as address:
        yield address


def _poisoned_checkpoint(folder: Path, canary: Path, name: str) -> None:
    """A remote checkpoint that also holds a program."""
    files = {name: f"#!/usr/bin/env python3\nopen({str(canary)!r}, 'w').close()\n".encode(), "training_state.json": b"{}"}
    home = folder / CHECKPOINT
    manifest: dict[str, Any] = {"version": 1, "step": 5, "model_family": "pixart_sigma", "model_type": "full", "files": {}}
    for path, content in files.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(content)
        manifest["files"][path] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (home / "manifest.json").write_text(json.dumps(manifest))


def _samples(target: Target) -> Path:
    """The shipped programs of the installation that the server runs from."""
    return target.place / "person/simpletuner/environments/examples/external-validation"


def attack_a_fetched_program(target: Target) -> list[str]:
    """A checkpoint with a program is fetched into every place whose programs may run, and started from there."""
    through = []
    for number, folder in enumerate((_samples(target), target.server.home / "state/hooks", target.place / "anywhere")):
        for name in ("run.py", "transformer/run.py", "run.sh"):
            canary, bucket = target.canary("fetched"), target.place / f"bucket-{number}"
            shutil.rmtree(bucket, ignore_errors=True)
            _poisoned_checkpoint(bucket, canary, name)
            with _bucket(bucket) as address:
                how = {"resume_from_checkpoint": f"{address}/{CHECKPOINT}", "publishing_config": store_at(address)}
                target.start_run("fetched", output_dir=str(folder), **how)
            left = folder / CHECKPOINT / name
            if left.exists():
                through.append(f"{name} was fetched into {folder}")
            target.start_run("starter", post_checkpoint_script=str(left), checkpoint_step_interval=1, max_train_steps=1)
            if canary.exists():
                through.append(f"{name} ran from {folder}")
            shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    return through


def attack_writing_where_programs_lie(target: Target) -> list[str]:
    """Every option that names a folder to write to, pointed at hooks, the installation, the state and dot folders."""
    person = target.place / "person"
    closed = {
        "the samples": _samples(target),
        "a folder of the installation": person / "simpletuner/training/new",
        "state": target.server.home / "state/new",
        "hooks": target.server.home / "state/hooks",
        "a dot folder": person / ".config/autostart",
        "a dot file's folder": person / ".local/bin",
    }
    link = target.place / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(_samples(target))
    closed["a link to the samples"] = link
    through = []
    for what, folder in closed.items():
        for option in ("output_dir", "cache_dir", "cache_dir_vae", "cache_dir_text", "logging_dir"):
            if target.validate("closed", **{option: str(folder)}).status_code != 422:
                through.append(f"{option} may be {what}")
        datasets = json.loads(Path(target.form("x")["data_backend_config"]).read_text())
        for index, field in ((0, "cache_dir_vae"), (1, "cache_dir")):
            changed = [dict(one) for one in datasets]
            changed[index][field] = str(folder)
            file = target.place / "closed.json"
            file.write_text(json.dumps(changed))
            if target.validate("closed", data_backend_config=str(file)).status_code != 422:
                through.append(f"{field} of a dataset may be {what}")
    return through


def attack_a_folder_swapped_in_the_queue(target: Target) -> list[str]:
    """The result's folder becomes a link into the hooks while its job waits behind another."""
    first = target.runs.start("first", max_train_steps=1_000_000)
    target.runs.wait_for_step(first, 1)
    waiting = target.runs.start("swapped", max_train_steps=1)
    output, hooks = target.runs.output("swapped"), target.server.home / "state/hooks"
    shutil.rmtree(output, ignore_errors=True)
    output.symlink_to(hooks)
    before = set(hooks.rglob("*"))
    target.runs.cancel(first)
    target.runs.wait_for_end(waiting)
    written = set(hooks.rglob("*")) - before
    output.unlink()
    return [f"a run wrote {sorted(path.name for path in written)[:5]} into state/hooks"] if written else []


def attack_hooks_below_a_writable_root(target: Target) -> list[str]:
    """A server whose hooks folder lies where runs may write does not start."""
    hooks = target.place / "open-hooks"
    hooks.mkdir(exist_ok=True)
    try:
        server = start_server(target.place / "unsafe", environment={"SIMPLETUNER_HOOKS": str(hooks), "HOME": str(target.place / "person")})
    except RuntimeError:
        return []
    code = server.post(
        "/api/training/validate", data=target.form("x", output_dir=str(hooks)), headers={"Accept": "application/json"}
    ).status_code
    server.stop()
    return [] if code == 422 else ["a hooks folder is an output_dir"]
