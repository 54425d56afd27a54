"""Small requests that would cost the server much memory or time."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import psutil

from tests.security.target import Target

MEBIBYTE = 1024**2
MOST_GROWTH = 200 * MEBIBYTE
MOST_SECONDS = 20
MOST_ANSWER = 1 * MEBIBYTE


def _costs(target: Target, what: str, method: str, path: str, **how: Any) -> list[str]:
    """What one request cost more than it may: resident memory, size of the answer, and seconds (far above what any machine needs)."""
    process = psutil.Process(target.server.pid)
    before = process.memory_info().rss
    started = time.monotonic()
    try:
        with target.client(30) as client:
            answer = client.request(method, path, **how)
    except httpx.TransportError as error:
        return [f"{what}: {error!r}"]
    seconds, growth = time.monotonic() - started, process.memory_info().rss - before
    found = {
        f"{answer.status_code}": answer.status_code >= 500,
        f"{growth // MEBIBYTE} MiB more": growth > MOST_GROWTH,
        f"{seconds:.0f} s": seconds > MOST_SECONDS,
        f"an answer of {len(answer.content) // MEBIBYTE} MiB": len(answer.content) > MOST_ANSWER,
    }
    return [f"{what}: {word}" for word, is_so in found.items() if is_so]


def attack_files_that_are_huge(target: Target) -> list[str]:
    """A sparse file of 1.5 GB in every option that names a text file."""
    huge = target.place / "huge.json"
    with huge.open("wb") as file:
        file.truncate(1_500_000_000)
    through = []
    for option, more in {
        "accelerate_config": {},
        "lycoris_config": {"model_type": "lora", "lora_type": "lycoris"},
        "data_backend_config": {},
        "user_prompt_library": {"validation_disable": "false"},
        "webhook_config": {},
        "publishing_config": {},
        "validation_adapter_config": {"validation_disable": "false"},
    }.items():
        form = target.form("huge", **{option: str(huge), **more})
        through += _costs(target, option, "POST", "/api/training/validate", data=form)
    huge.unlink()
    return through


def attack_aliases_of_yaml(target: Target) -> list[str]:
    """Nested aliases grow nine times a level."""
    bomb = target.place / "bomb.yaml"
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    bomb.write_text("\n".join([*levels, "num_processes: *a8", ""]))
    form = target.form("bomb", accelerate_config=str(bomb))
    return _costs(target, "aliases", "POST", "/api/training/validate", data=form)


def attack_many_unknown_names(target: Target) -> list[str]:
    """Twenty thousand names that nobody knows, in an adapter file, an environment and a form."""
    names = {f"unknown_{number}": 1 for number in range(20_000)}
    through = _costs(target, "adapter keys", "POST", "/api/configs/lycoris/validate", json={"algo": "lokr", **names})
    through += _costs(target, "options", "POST", "/api/training/validate", json=target.form("many") | names)
    name = target.environment()
    body = {"name": name, "config": {f"--{key}": value for key, value in names.items()}}
    return through + _costs(target, "options of an environment", "PUT", f"/api/configs/{name}", json=body)


def attack_a_picture_of_one_byte(target: Target) -> list[str]:
    """30 MB of 0xFF that calls itself a JPEG."""
    folder = target.place / "ones"
    folder.mkdir(exist_ok=True)
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(b"\xff" * 30_000_000)
    datasets = [
        {"id": "ones", "type": "local", "instance_data_dir": str(folder), "cache_dir_vae": str(target.place / "c"), "resolution": 64},
        {"id": "t", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": str(target.place / "t")},
    ]
    file = target.place / "ones.json"
    file.write_text(json.dumps(datasets))
    return _costs(target, "four pictures", "POST", "/api/training/validate", data=target.form("ones", data_backend_config=str(file)))
