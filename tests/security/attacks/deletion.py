"""Readers beside a deletion."""

from __future__ import annotations

import threading
import time

import httpx

from tests.security.target import Target

ENVIRONMENTS = 150
READERS = 6


def attack_readers_beside_deletions(target: Target) -> list[str]:
    """What was deleted stays deleted, however many look at it meanwhile."""
    names = [f"gone-{number}" for number in range(ENVIRONMENTS)]
    done, deleted = threading.Event(), [0]

    def read() -> None:
        with target.client(headers={}) as client:
            while not done.is_set():
                try:
                    client.get(f"/api/configs/{names[min(deleted[0], ENVIRONMENTS - 1)]}")
                except httpx.TransportError:
                    continue

    for name in names:
        target.post(
            "/api/configs/environments", json={"name": name, "model_family": "pixart_sigma", "model_type": "full"}
        ).raise_for_status()
    readers = [threading.Thread(target=read, daemon=True) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    with target.client(headers={}) as client:
        for name in names:
            client.delete(f"/api/configs/{name}")
            deleted[0] += 1
    time.sleep(1)
    done.set()
    for reader in readers:
        reader.join(10)
    return [f"{name} is there again" for name in names if target.get(f"/api/configs/{name}").status_code == 200]
