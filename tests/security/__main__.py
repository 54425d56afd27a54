"""``python -m tests.security [NAME ...] [--json FILE]``: sends every attack, prints what got through and how quickly status was answered
meanwhile, and ends with 1 where anything got through or an answer took longer than ANSWER_SECONDS."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.security.attacks import Attack, collect
from tests.security.names import NameServer, can_isolate, enter, is_isolated
from tests.security.target import Target

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("simpletuner_site", "environments", "training", "trainer_engine")
ANSWER_SECONDS = 0.2


@dataclass
class Result:
    """What became of one attack."""

    name: str
    through: list[str]
    slowest_seconds: float
    median_seconds: float
    unanswered: int

    @property
    def held(self) -> bool:
        return not self.through and not self.unanswered


def install_copy(person: Path) -> Path:
    """The packages as somebody installs them in their home: writable, and below an allowed root."""
    installation = person / "simpletuner"
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, installation / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "manage.py", installation / "manage.py")
    return installation


def send(name: str, attack: Attack, target: Target) -> Result:
    """One attack, with the watch beside it. A server that is dead afterwards is started again for the next."""
    with target.watched() as watch:
        try:
            through = attack(target)
        except Exception as error:  # noqa: BLE001 - an attack that breaks says nothing of the server: it counts as not held
            traceback.print_exc()
            through = [f"the attack broke: {error!r}"]
    if target.revive():
        through.append("the server answered nobody any more")
    target.end_runs()
    seconds = sorted(watch.seconds)
    return Result(name, through, seconds[-1], seconds[len(seconds) // 2], len(watch.failures))


def run(names: Sequence[str]) -> list[Result]:
    chosen = {name: attack for name, attack in collect().items() if not names or any(one in name for one in names)}
    place = Path(tempfile.mkdtemp(prefix="simpletuner-attacked-"))
    person = place / "person"
    person.mkdir()
    if is_isolated():
        NameServer().start()
    target = Target.start(place, HOME=str(person), PYTHONPATH=str(install_copy(person)))
    results = []
    try:
        for name, attack in chosen.items():
            results.append(send(name, attack, target))
            print(line(results[-1]), flush=True)
    finally:
        target.stop()
    return results


def line(result: Result) -> str:
    milliseconds = f"status p50 {result.median_seconds * 1000:.0f} ms, slowest {result.slowest_seconds * 1000:.0f} ms"
    what = "held" if result.held else "GOT THROUGH"
    more = [
        f"    {one}" for one in (*result.through[:20], *([f"{result.unanswered} questions without an answer"] if result.unanswered else []))
    ]
    return "\n".join([f"{what:12} {result.name:45} {milliseconds}", *more])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.security", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names of attacks; all of them where none is given")
    parser.add_argument("--json", type=Path, help="also write the results here")
    chosen = parser.parse_args(arguments)
    if not is_isolated() and can_isolate():
        enter(list(arguments))
    if not is_isolated():
        print("Without root there is no network to attack: inner addresses are left out.", file=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the server ends with this program
    results = run(chosen.names)
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    slow = [result for result in results if result.slowest_seconds > ANSWER_SECONDS]
    broken = [result for result in results if not result.held]
    print(f"{len(results)} attacks, {len(broken)} got through, {len(slow)} with an answer that took over {ANSWER_SECONDS * 1000:.0f} ms")
    return 1 if broken or slow else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
