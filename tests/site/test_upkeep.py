"""``simpletuner cache`` and ``simpletuner prune``, from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simpletuner_site import cli
from tests.site.test_cli import simpletuner
from tests.trainer_engine.datasets.shards.entries import address, content, only
from trainer_engine.datasets.shards.folder import SHARDS
from trainer_engine.datasets.shards.shard import SHARD
from trainer_engine.datasets.shards.uses import note_use
from trainer_engine.datasets.shards.writer import Entry, ShardWriter


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache whose second half no run has noted."""
    writer = ShardWriter(tmp_path / "cache" / SHARDS)
    writer.append(Entry(address(number), content(number), 0, 1_500_000_000) for number in range(10))
    writer.close()
    note_use(tmp_path / "cache", [address(number).hex() for number in range(5)], {"kind": "latents", "family": "flux", "model": "a/b"})
    return tmp_path / "cache"


def test_stats_name_what_was_used_and_what_was_not(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cache", "stats", str(cache)]) == 0
    shown = capsys.readouterr().out
    assert f"{cache}: 10 entries" in shown and "5 latents flux a/b" in shown and "5 that no run has noted" in shown
    assert cli.main(["cache", "stats", str(cache), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["entries"], found["unused"], found["uses"][0]["entries"]) == (10, 5, 5)


def test_verify_names_what_is_damaged_by_its_exit_code_too(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cache", "verify", str(cache)]) == 0
    shard = only(cache / SHARDS, SHARD)
    changed = bytearray(shard.read_bytes())
    changed[-2] ^= 1
    shard.write_bytes(changed)
    assert cli.main(["cache", "verify", str(cache)]) == 1
    assert address(9).hex() in capsys.readouterr().out
    assert cli.main(["cache", "verify", str(cache), "--json"]) == 0


def test_gc_removes_nothing_without_yes(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = only(cache / SHARDS, SHARD).read_bytes()
    assert cli.main(["cache", "gc", str(cache)]) == 2 and "--unused-days" in capsys.readouterr().err
    assert cli.main(["cache", "gc", str(cache), "--unused-days", "30"]) == 0
    assert "5 entries" in capsys.readouterr().out and only(cache / SHARDS, SHARD).read_bytes() == before
    assert cli.main(["cache", "gc", str(cache), "--unused-days", "30", "--yes", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["entries"], done["kept_entries"]) == (5, 5)


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    for folder in (tmp_path / "pictures", tmp_path / "nowhere"):
        assert cli.main(["cache", "gc", str(folder), "--keep-gb", "0", "--yes"]) == 2
        assert "holds no cache" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["cache"], ["cache", "clean"], ["cache", "gc", "--keep-gb", "-1"], ["prune", "--keep-runs-gb", "x"]])
def test_a_wrong_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(arguments)


def test_a_home_is_pruned_and_its_caches_are_found(tmp_path: Path) -> None:
    runs = tmp_path / "state/runs"
    (runs / "ended").mkdir(parents=True)
    (runs / "ended/exit.json").write_text('{"exit_code": 0}')
    planned = simpletuner("prune", "--keep-runs-days", "0.0000001", "--json", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["removed_folders"] == 1 and (runs / "ended").exists()
    done = simpletuner("prune", "--keep-runs-days", "0.0000001", "--yes", cwd=tmp_path)
    assert "1 run folders" in done.stdout and not (runs / "ended").exists()
    assert "0 caches" in simpletuner("cache", "stats", cwd=tmp_path).stdout
    wrong = simpletuner("prune", cwd=tmp_path, SIMPLETUNER_KEEP_RUNS_DAYS="soon")
    assert wrong.returncode == 2 and "SIMPLETUNER_KEEP_RUNS_DAYS" in wrong.stderr
