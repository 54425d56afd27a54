"""The cost of watching: what subscribers, webhooks that nobody answers, previews and validations take from training.

Two processors hold everything: the engine, the server, and the clients, which would be elsewhere in life.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.bench.audience import audience
from tests.bench.table import Table, milliseconds, percentile, ratio_of
from tests.helpers.live_server import start_server
from tests.helpers.ports import free_port
from tests.helpers.served_runs import ENDLESS, ServedRuns
from trainer_engine.contract.events import JournalEntry, decode
from trainer_engine.families.pixart_sigma.tiny import make_tiny
from trainer_engine.tiny_models.autoencoders import build_preview_decoder
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache

SECTION = "watching"
SUBSCRIBERS, ROUNDS, SECONDS_A_ROUND = 200, 4, 12.0
WARM_UP = 8
"""Steps at the beginning of a run that are not counted."""
WEBHOOK_PAIRS = 6
PREVIEW_PAIRS, BETWEEN_VALIDATIONS, VALIDATIONS = 3, 4, 12
SMALL_MODEL: dict[str, Any] = {
    "resolution": 128,
    "train_batch_size": 4,
    "dataloader_prefetch": True,
    "checkpoint_step_interval": 100_000,
}
DRAWING: dict[str, Any] = {
    "validation_disable": False,
    "validation_prompt": "a boat",
    "validation_disable_unconditional": True,
    "validation_resolution": "128x128",
    "validation_num_inference_steps": 8,
    "validation_step_interval": BETWEEN_VALIDATIONS,
    "validation_preview_steps": 2,
    "disable_benchmark": True,
    "max_train_steps": BETWEEN_VALIDATIONS * VALIDATIONS + 2,
}


@dataclass
class Bench:
    """A live server with a model that takes a noticeable time for a step."""

    runs: ServedRuns
    model: Path

    def start(self, name: str, **options: Any) -> str:
        chosen = {**SMALL_MODEL, **options}
        return self.runs.start(name, pretrained_model_name_or_path=str(self.model), **chosen)

    def told(self, job_id: str) -> list[JournalEntry]:
        """Every whole line of a run's journal."""
        content = self.runs.folder(job_id).journal.read_bytes()
        return [decode(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]

    def seconds_of_steps(self, job_id: str) -> list[float]:
        """What each step took, without what came between two, from the first that counts."""
        steps = [entry.data["seconds_per_step"] for entry in self.told(job_id) if entry.type == "training.progress"]
        return steps[WARM_UP:]

    def finished(self, name: str, **options: Any) -> str:
        """A run that has ended well."""
        job_id = self.start(name, **options)
        assert self.runs.wait_for_end(job_id, 300)["status"] == "completed"
        return job_id


def steps_a_second(seconds: list[float]) -> float:
    return len(seconds) / sum(seconds)


@dataclass(frozen=True)
class Pace:
    """How a run went for some seconds."""

    steps_a_second: float
    """By the engine's own clock."""
    processor_seconds: float
    """That the engine used for a step: of this, other work on the machine takes nothing."""


def subscribers(table: Table, bench: Bench, count: int = SUBSCRIBERS, *, section: str = SECTION) -> None:
    """One run, watched by nobody and by many in turn."""
    job_id = bench.start("subscribers", max_train_steps=ENDLESS)
    bench.runs.wait_for_step(job_id, WARM_UP)
    alone, watched, lags = [], [], []
    for _ in range(ROUNDS):
        alone.append(_pace_now(bench, job_id))
        told = len(bench.runs.events(job_id))
        with audience(bench.runs.server.port, job_id, count, told) as listeners:
            watched.append(_pace_now(bench, job_id))
        lags += listeners.lags
    bench.runs.cancel(job_id)
    step = milliseconds(1 / statistics.median(pace.steps_a_second for pace in alone))
    table.add(section, "a step of the engine (small PixArt, batch 4, 128 px, float32)", step)
    what = f"{count} subscribers (WebSocket and SSE) beside none"
    _add_paces(table, what, watched, alone, note=", clients on the same two cores", section=section)
    text = f"{milliseconds(percentile(lags, 50))} / {milliseconds(percentile(lags, 99))}"
    table.add(section, f"engine's write to each of {count} subscribers, p50 / p99 over {len(lags):,} events", text)


def _pace_now(bench: Bench, job_id: str) -> Pace:
    (engine,) = bench.runs.engine(job_id)
    before, used = len(bench.told(job_id)), sum(engine.cpu_times()[:2])
    time.sleep(SECONDS_A_ROUND)
    used = sum(engine.cpu_times()[:2]) - used
    told = [datetime.fromisoformat(entry.timestamp) for entry in bench.told(job_id)[before:] if entry.type == "training.progress"]
    return Pace((len(told) - 1) / (told[-1] - told[0]).total_seconds(), used / len(told))


def dead_webhook(table: Table, bench: Bench) -> None:
    """The first seconds of runs, when retries are most frequent, with a webhook to a port where nobody listens and without, in turn."""
    paces: dict[bool, list[Pace]] = {False: [], True: []}
    for _ in range(WEBHOOK_PAIRS):
        for has_webhook in paces:
            target = f'[{{"webhook_type": "raw", "callback_url": "http://127.0.0.1:{free_port()}/", "log_level": "debug"}}]'
            hooks = {"webhook_config": target, "webhook_reporting_interval": 1} if has_webhook else {}
            job_id = bench.start("webhook", resume_from_checkpoint="", max_train_steps=ENDLESS, **hooks)
            bench.runs.wait_for_step(job_id, WARM_UP)
            paces[has_webhook].append(_pace_now(bench, job_id))
            bench.runs.cancel(job_id)
    _add_paces(table, "a webhook to a dead address beside none", paces[True], paces[False])


def _add_paces(table: Table, what: str, disturbed: list[Pace], alone: list[Pace], note: str = "", section: str = SECTION) -> None:
    """What it costs by the clock, and by the time that the engine itself was given."""
    ratio = ratio_of([pace.steps_a_second for pace in disturbed], [pace.steps_a_second for pace in alone])
    table.add(section, f"steps a second with {what}{note}", ratio, aim="99 % or better")
    ratio = ratio_of([pace.processor_seconds for pace in disturbed], [pace.processor_seconds for pace in alone])
    table.add(section, f"the engine's processor time a step with {what}", ratio, aim="101 % or less")


def previews(table: Table, bench: Bench) -> None:
    """Runs that validate often, with and without previews, in turn; and what ten validations leave in memory."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    drawing: dict[bool, list[float]] = {False: [], True: []}
    grown: dict[bool, list[str]] = {False: [], True: []}
    for _ in range(PREVIEW_PAIRS):
        for shown in rates:
            job_id = bench.finished("previews", resume_from_checkpoint="", validation_preview=shown, **DRAWING)
            told = bench.told(job_id)
            rates[shown].append(steps_a_second(bench.seconds_of_steps(job_id)))
            summary = next(entry.data for entry in told if entry.type == "training.summary")
            drawing[shown].append(summary["time_split"]["validation"] / VALIDATIONS)
            grown[shown].append(_memory_in_words(told))
    table.add(SECTION, "steps a second between validations with previews", ratio_of(rates[True], rates[False]), aim="99 % or better")
    text = f"{milliseconds(min(drawing[True]))}, {milliseconds(min(drawing[False]))}"
    table.add(SECTION, "a validation of 8 sampler steps with 5 previews, without", text)
    for shown, name in ((False, "before and after ten validations"), (True, "the same with previews")):
        table.add(SECTION, f"resident memory {name}", "; ".join(grown[shown]), aim="equal")


def _memory_in_words(told: list[JournalEntry]) -> str:
    """Resident bytes at a step after the second validation, and ten validations later."""
    at = {entry.data["step"]: entry.data["memory"]["resident"] for entry in told if entry.type == "training.progress"}
    before, after = at[2 * BETWEEN_VALIDATIONS + 2], at[VALIDATIONS * BETWEEN_VALIDATIONS + 2]
    return f"{before / 1e6:.0f} and {after / 1e6:.0f} MB ({100 * (after / before - 1):+.1f} %)"


def run(table: Table) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-watching-") as folder:
        place = Path(folder)
        make_tiny(place / "model", size="demo")
        build_preview_decoder().save_pretrained(place / "decoder")
        place_in_hub_cache(place / "decoder", "madebyollin/taesdxl", place / "hub")
        with start_server(place / "home", environment={"HF_HOME": str(place / "hub"), "HF_HUB_OFFLINE": "1"}) as server:
            bench = Bench(ServedRuns(server, place), place / "model")
            try:
                for part in (subscribers, dead_webhook, previews):
                    part(table, bench)
            finally:
                bench.runs.end_all()
