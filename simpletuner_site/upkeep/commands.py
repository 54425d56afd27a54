"""``simpletuner cache`` and ``simpletuner prune``: what caches and ended runs take, and what of it can go."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from environments.moments import moment_text
from trainer_engine.datasets.shards.collect import collect
from trainer_engine.datasets.shards.stock import is_cache, stats, verify

GB = 1_000_000_000
EXIT_DAMAGED = 1
EXIT_USAGE = 2


def show_caches(folders: Sequence[Path], *, as_json: bool) -> int:
    """Print what caches hold."""
    found = [stats(folder) for folder in folders]
    if as_json:
        print(json.dumps([one.as_dict() for one in found]))
        return 0
    for one in found:
        print(f"{one.folder}: {one.entries:,} entries, {_size(one.bytes)} in {one.files:,} files, last used {_moment(one.newest)}")
        for use in one.uses:
            what = " ".join(filter(None, (use["kind"], use["family"], use["model"])))
            print(f"    {use['entries']:,} {what}, last used {_moment(use['last_used'])}")
        if one.unused:
            print(f"    {one.unused:,} that no run has noted; the oldest were written on {_moment(one.oldest)}")
    print(f"{len(found)} caches: {sum(one.entries for one in found):,} entries, {_size(sum(one.bytes for one in found))}")
    return 0


def verify_caches(folders: Sequence[Path], *, as_json: bool) -> int:
    """Read every entry and print which are damaged. Returns 1 if any is."""
    verdicts = [verify(folder) for folder in folders]
    if as_json:
        print(json.dumps([one.as_dict() for one in verdicts]))
    for one in verdicts if not as_json else ():
        print(f"{one.folder}: {one.entries:,} entries, {_size(one.bytes)} read, {len(one.damaged)} damaged")
        for address in one.damaged:
            print(f"    {address} is not read again; a run that needs it computes it again")
    return EXIT_DAMAGED if any(one.damaged for one in verdicts) else 0


def clean_caches(folders: Sequence[Path], *, unused_days: float | None, keep_gb: float | None, remove: bool, as_json: bool) -> int:
    """Remove entries that were not used for long, or, without ``remove``, print what would go."""
    if unused_days is None and keep_gb is None:
        print("simpletuner cache gc: say what may go: --unused-days, --keep-gb or both", file=sys.stderr)
        return EXIT_USAGE
    keep_bytes = None if keep_gb is None else int(keep_gb * GB)
    done = collect(folders, unused_days=unused_days, keep_bytes=keep_bytes, remove_now=remove)
    if as_json:
        print(json.dumps(done.as_dict()))
        return 0
    words = "removed" if remove else "would be removed; --yes removes them"
    print(f"{done.entries:,} entries, {_size(done.bytes)}: {words}")
    print(f"{done.kept_entries:,} entries, {_size(done.kept_bytes)} stay")
    if done.busy:
        print(f"{done.busy:,} entries stay for now: a run is writing to their shards")
    return 0


def prune_runs(changes: dict[str, float | None], *, remove: bool, as_json: bool) -> int:
    """Thin and remove what ended runs left in ``state/``, or, without ``remove``, print what would go. Django is set up."""
    from dataclasses import replace

    from training.upkeep.prune import PrunePolicy, prune

    policy = replace(PrunePolicy.of_settings(), **{name: value for name, value in changes.items() if value is not None})
    done = prune(policy, remove_now=remove)
    if as_json:
        print(json.dumps(done.as_dict()))
        return 0
    if remove:
        print(
            f"{done.removed_folders} run folders were removed, {done.thinned_events:,} progress events of {done.thinned_runs} runs thinned"
        )
        print(f"{_size(done.bytes)} of files are free again")
    else:
        print(
            f"{done.removed_folders} run folders ({_size(done.bytes)}) would be removed, and progress of {done.thinned_runs} runs thinned"
        )
        print("--yes does so. Checkpoints, results and caches stay.")
    return 0


def caches_of(home: Path, named: Sequence[Path]) -> list[Path]:
    """The caches that a command works on: the named ones, else those that the home's jobs and environments use. Raises ValueError."""
    wrong = [folder for folder in named if not is_cache(folder)]
    if wrong:
        raise ValueError(f"{wrong[0]} holds no cache")
    if named:
        return [folder.absolute() for folder in named]
    from simpletuner_site.server.boot import boot
    from simpletuner_site.server.migrations_state import migrate_if_needed

    boot(home)
    migrate_if_needed()
    from training.upkeep.caches import known_caches

    return known_caches()


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.2f} TB"


def _moment(seconds: Any) -> str:
    return moment_text(seconds) if seconds else "never"
