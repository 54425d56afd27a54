"""Calls that are made at the same moment, each in a thread with a database connection of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from django.db import connection


def at_once(*calls: Callable[[], object]) -> list[Any]:
    """What each call gives, or the exception that it raises."""
    gate, results = threading.Barrier(len(calls)), dict.fromkeys(range(len(calls)), object())

    def run(number: int) -> None:
        gate.wait()
        try:
            results[number] = calls[number]()
        except Exception as error:  # noqa: BLE001 - it is the result
            results[number] = error
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return list(results.values())
