"""Caches over HTTP: only those of the server's own jobs and environments, and long work in a process of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from django_q.models import OrmQ
from rest_framework.test import APIClient

from environments import services as environments
from environments.create.plan import NewEnvironment
from tests.helpers.jobs import make_job
from tests.trainer_engine.datasets.shards.entries import address, content, only
from tests.training.conftest import Training
from trainer_engine.datasets.shards.folder import SHARDS
from trainer_engine.datasets.shards.shard import SHARD
from trainer_engine.datasets.shards.uses import note_use
from trainer_engine.datasets.shards.writer import Entry, ShardWriter
from training import tasks
from training.jobs import reconciler
from training.models import Status
from training.upkeep import caches

pytestmark = pytest.mark.django_db
LONG_AGO = 1_500_000_000


def cache_at(folder: Path, numbers: range = range(5)) -> Path:
    """A cache whose entries were last used long ago."""
    writer = ShardWriter(folder / SHARDS)
    writer.append(Entry(address(number), content(number), 0, LONG_AGO) for number in numbers)
    writer.close()
    listed = note_use(folder, [address(number).hex() for number in numbers], {"kind": "latents", "family": "flux", "model": "a/b"})
    os.utime(listed, (LONG_AGO, LONG_AGO))
    return folder


def with_cache(home: Path, name: str = "one") -> Path:
    """A cache that a job has used."""
    folder = cache_at(home / "caches" / name)
    make_job(home / "state", Status.COMPLETED, datasets=[{"id": "a", "cache_dir_vae": str(folder)}])
    return folder


def get(path: str = "") -> Any:
    return APIClient().get(f"/api/cache{path}")


def post(path: str, **fields: Any) -> Any:
    return APIClient().post(f"/api/cache{path}", fields, format="json")


def finished(answer: Any) -> dict[str, Any]:
    """The answer of a long job once it has ended, after a worker has taken it up."""
    assert answer.status_code == 200 and answer.json()["status"] == "queued"
    task_id = answer.json()["task_id"]
    assert tasks.care_for_caches(task_id) == task_id
    assert tasks.care_for_caches(task_id) == "not needed", "a task that is delivered twice does nothing"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found: dict[str, Any] = get(f"/tasks/{task_id}").json()
        if found["status"] not in ("queued", "running"):
            return found
        time.sleep(0.1)
    raise AssertionError("the job did not end")


def test_the_list_counts_the_caches_of_jobs(home: Path) -> None:
    assert get().json() == {"caches": [], "entries": 0, "bytes": 0}
    folder = with_cache(home)
    (found,) = get().json()["caches"]
    assert (found["folder"], found["entries"], found["files"]) == (str(folder), 5, 2)
    assert found["uses"] == [{"kind": "latents", "family": "flux", "model": "a/b", "entries": 5, "last_used": LONG_AGO}]
    assert get().json()["bytes"] == found["bytes"] > sum(len(content(number)) for number in range(5))


def test_the_list_counts_the_caches_of_environments(training: Training) -> None:
    environments.create_environment(
        NewEnvironment(name="demo", model_family="pixart_sigma", model_type="full", description=""), actor="test"
    )
    config = {name.lstrip("-"): value for name, value in training.form.items() if not name.startswith("__")}
    environments.update_environment("demo", config=config, actor="test")
    cache_at(training.home / "cache/text")
    cache_at(training.home / "elsewhere")
    assert [found["folder"] for found in get().json()["caches"]] == [str(training.home / "cache/text")]


def test_folders_that_the_path_rule_closes_are_never_touched(home: Path, tmp_path: Path) -> None:
    state = cache_at(home / "state" / "cache")
    link = home / "linked"
    link.symlink_to(state)
    for folder in (state, link, Path("/etc"), home / "nowhere", Path("relative")):
        make_job(home / "state", Status.COMPLETED, datasets=[{"id": "a", "cache_dir_vae": str(folder), "cache_dir": 7}])
    assert caches.known_caches() == [] and get().json()["caches"] == []


def test_verify_reads_every_entry_in_a_process_of_its_own(home: Path) -> None:
    folder = with_cache(home)
    shard = only(folder / SHARDS, SHARD)
    changed = bytearray(shard.read_bytes())
    changed[-2] ^= 1
    shard.write_bytes(changed)
    answer = post("/verify")
    assert OrmQ.objects.count() == 1
    found = finished(answer)
    assert (found["status"], found["action"]) == ("done", "verify")
    assert found["result"]["caches"] == [
        {"folder": str(folder), "entries": 5, "bytes": found["result"]["caches"][0]["bytes"], "damaged": [address(4).hex()]}
    ]
    assert finished(post("/verify"))["result"]["caches"][0]["damaged"] == []


def test_gc_counts_first_and_removes_on_request(home: Path) -> None:
    folder = with_cache(home)
    planned = finished(post("/gc", unused_days=30))["result"]
    assert (planned["entries"], planned["is_done"]) == (5, False) and get().json()["entries"] == 5
    done = finished(post("/gc", unused_days=30, remove=True))["result"]
    assert (done["entries"], done["bytes"], done["is_done"]) == (5, planned["bytes"], True)
    assert not list((folder / SHARDS).glob(f"*{SHARD}"))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"remove": True},
        {"unused_days": -1},
        {"unused_days": "many"},
        {"unused_days": True},
        {"keep_gb": [1]},
        {"keep_gb": 1e300},
        {"unused_days": 1, "remove": "perhaps"},
        {"unused_days": 1, "remove": 0},
        {"unused_days": 1, "remove": "1"},
        {"unused_days": 1, "folder": "/"},
    ],
)
def test_a_wrong_request_removes_nothing_and_says_why(home: Path, fields: dict[str, Any]) -> None:
    answer = post("/gc", **fields)
    assert answer.status_code == 422 and answer.json()["problems"], answer.content
    assert OrmQ.objects.count() == 0


@pytest.mark.parametrize("task_id", ["nonsense", "..", "00000000-0000-0000-0000-000000000000"])
def test_an_unknown_task_is_not_found(home: Path, task_id: str) -> None:
    assert get(f"/tasks/{task_id}").status_code == 404


def test_a_task_whose_process_is_gone_has_failed(home: Path) -> None:
    task_id = post("/verify").json()["task_id"]
    path = home / "state/upkeep" / f"{task_id}.json"
    path.write_text(path.read_text().replace("queued", "running"))
    assert get(f"/tasks/{task_id}").json()["status"] == "running"
    os.utime(path, (LONG_AGO, LONG_AGO))
    found = get(f"/tasks/{task_id}").json()
    assert found["status"] == "failed" and found["message"]


def test_tasks_do_not_pile_up(home: Path, settings: Any) -> None:
    with_cache(home)
    first = post("/verify").json()
    assert {post("/verify").json()["task_id"] for _ in range(5)} == {first["task_id"]} and OrmQ.objects.count() == 1
    answers = [post("/gc", unused_days=days) for days in range(1, 9)]
    assert [answer.status_code for answer in answers] == [200] * (caches.MOST_AT_ONCE - 1) + [409] * (9 - caches.MOST_AT_ONCE)
    assert "wait or run" in answers[-1].content.decode() and OrmQ.objects.count() == caches.MOST_AT_ONCE
    settings.PRUNE = {"keep_cache_days": 30}
    tasks.prune_ended_runs()
    assert OrmQ.objects.count() == caches.MOST_AT_ONCE
    for path in (home / "state/upkeep").glob("*.json"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert post("/gc", unused_days=9).status_code == 200, "tasks that a lost worker never took up make no room"


def test_a_task_that_runs_is_not_begun_again(home: Path) -> None:
    with_cache(home)
    task_id = post("/verify").json()["task_id"]
    folder = home / "state/upkeep"
    (folder / f"{task_id}.job").rename(folder / f"{task_id}.taken")
    path = folder / f"{task_id}.json"
    path.write_text(path.read_text().replace("queued", "running"))
    assert post("/verify").json() == {**get(f"/tasks/{task_id}").json(), "status": "running"} and OrmQ.objects.count() == 1
    path.write_text(path.read_text().replace("running", "done"))
    assert post("/verify").json()["task_id"] != task_id


def test_old_answers_are_forgotten(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "KEPT_ANSWERS", 2)
    for number in range(4):
        task_id = post("/verify").json()["task_id"]
        os.utime(home / "state/upkeep" / f"{task_id}.json", (LONG_AGO + number,) * 2)
    post("/verify")
    assert len(list((home / "state/upkeep").glob("*.json"))) == 3


def test_a_worker_prunes_once_a_day(home: Path, settings: Any) -> None:
    assert not reconciler.prune_is_due(), "a new home has nothing to prune"
    mark = home / "state" / reconciler.PRUNED
    assert mark.stat().st_mode & 0o777 == 0o600, "nobody else reads anything in the state"
    os.utime(mark, (LONG_AGO, LONG_AGO))
    assert [reconciler.prune_is_due() for _ in range(3)] == [True, False, False]
    os.utime(mark, (LONG_AGO, LONG_AGO))
    reconciler.reconcile()
    assert OrmQ.objects.count() == 1
    folder = with_cache(home)
    settings.PRUNE = {"keep_cache_days": 30}
    tasks.prune_ended_runs()
    (job,) = (home / "state/upkeep").glob("*.job")
    assert str(folder) in job.read_text() and '"remove_now":true' in job.read_text()
