"""Saving, pruning and choosing checkpoints, on a real disk and a full one."""

from __future__ import annotations

import errno
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer_engine.checkpointing.retention import prune, remove, set_aside_later
from trainer_engine.checkpointing.save import Content, FixedFile, save_checkpoint
from trainer_engine.config.resuming.choice import SavedRun, choose, differences, refuse_other_run
from trainer_engine.contract.checkpoint_files import STATE_FILE, list_checkpoints, newest_verified, verify
from trainer_engine.contract.errors import CheckpointUnusable, DiskFull

ROOT = Path(__file__).resolve().parents[3]


def content(step: int, *, size: int = 100, **changes: Any) -> Content:
    def save_weights(folder: Path) -> None:
        (folder / "transformer").mkdir()
        (folder / "transformer" / "weights.safetensors").write_bytes(b"w" * size)

    values: dict[str, Any] = {
        "step": step,
        "epoch": 1,
        "loss": 0.5,
        "learning_rate": 1e-4,
        "model_family": "tiny",
        "model_type": "full",
        "save_weights": save_weights,
        "weights_bytes": size,
        "documents": {STATE_FILE: {"step": step, "identity": {"model_family": "tiny"}, "layout": {"seed": 1}}},
        "tensors": {"optimizer.safetensors": {"a": torch.ones(3)}, "ema/weights.safetensors": {"b": torch.zeros(2)}},
    }
    return Content(**(values | changes))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_saved_checkpoint_verifies_and_nothing_is_left_beside(tmp_path: Path) -> None:
    info = save_checkpoint(tmp_path / "new", content(7))
    assert verify(info.path) == [] and info.step == 7 and info.verified
    assert names(tmp_path / "new") == ["checkpoint-7"]
    assert names(info.path) == ["ema", "manifest.json", "optimizer.safetensors", "training_state.json", "transformer"]


def test_no_file_of_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    info = save_checkpoint(tmp_path, content(1))
    assert {path.suffix for path in info.path.rglob("*") if path.is_file()} <= {".safetensors", ".json"}


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, content(1, size=10))
    info = save_checkpoint(tmp_path, content(1, size=20))
    assert names(tmp_path) == ["checkpoint-1"] and verify(info.path) == []
    assert (info.path / "transformer/weights.safetensors").stat().st_size == 20


def test_the_next_save_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-3.tmp-12345678/transformer").mkdir(parents=True)
    save_checkpoint(tmp_path, content(4))
    assert names(tmp_path) == ["checkpoint-4"]


def test_a_save_that_fails_leaves_the_old_ones_alone(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, content(1))

    def fail(folder: Path) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        save_checkpoint(tmp_path, content(2, save_weights=fail))
    assert names(tmp_path) == ["checkpoint-1"] and verify(tmp_path / "checkpoint-1") == []


def test_too_little_space_is_reported_in_numbers_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"needs about \d+ MB, and .* MB left"):
        save_checkpoint(tmp_path, content(1, weights_bytes=1 << 60))
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_while_saving_keeps_the_old_checkpoint(tmp_path: Path, number: int) -> None:
    save_checkpoint(tmp_path, content(1))

    def fill(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError(number, "No space left on device")

    with pytest.raises(DiskFull, match="the ones before it are untouched"):
        save_checkpoint(tmp_path, content(2, save_weights=fill))
    assert names(tmp_path) == ["checkpoint-1"] and verify(tmp_path / "checkpoint-1") == []


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses larger files, as a full quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_tensors_that_the_system_does_not_take_leave_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, content(1))
    with files_of_at_most(100_000), pytest.raises(Exception, match=r"large|code: 27"):
        save_checkpoint(tmp_path, content(2, tensors={"optimizer.safetensors": {"a": torch.ones(1_000_000)}}))
    assert names(tmp_path) == ["checkpoint-1"] and verify(tmp_path / "checkpoint-1") == []


def test_retention_removes_the_oldest_and_keeps_the_one_just_saved(tmp_path: Path) -> None:
    for step in (10, 20, 30, 5):
        save_checkpoint(tmp_path, content(step))
    assert prune(tmp_path, 2, "checkpoint-5") == ["checkpoint-10", "checkpoint-20"]
    assert [info.step for info in list_checkpoints(tmp_path)] == [30, 5]


def test_retention_without_a_limit_removes_no_checkpoint(tmp_path: Path) -> None:
    for step in range(1, 5):
        save_checkpoint(tmp_path, content(step))
    assert prune(tmp_path, 0, "checkpoint-4") == []


def test_a_protected_checkpoint_stays_and_counts_towards_the_limit(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, content(step))
    assert prune(tmp_path, 2, "checkpoint-4", protected=["checkpoint-1"]) == ["checkpoint-2", "checkpoint-3"]
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4"]
    assert prune(tmp_path, 1, "checkpoint-4", protected=["checkpoint-1"]) == []


def test_nothing_is_removed_while_the_new_one_does_not_verify(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, content(step))
    (tmp_path / "checkpoint-2/optimizer.safetensors").unlink()
    assert prune(tmp_path, 1, "checkpoint-2") == []
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_folders_without_our_manifest_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1/precious.txt").write_text("mine")
    for step in (2, 3):
        save_checkpoint(tmp_path, content(step))
    prune(tmp_path, 1, "checkpoint-3")
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3"]


def test_a_checkpoint_that_another_process_removes_meanwhile_is_no_error(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, content(1))
    remove(tmp_path / "checkpoint-1")
    remove(tmp_path / "checkpoint-1")
    assert names(tmp_path) == []


def chosen(output_dir: Path, wanted: str, bad: list[str] | None = None) -> SavedRun | None:
    reported = [] if bad is None else bad
    return choose(output_dir, wanted, on_bad=lambda name, problems: reported.append(name))


def test_latest_walks_back_to_the_newest_that_verifies(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, content(step))
    (tmp_path / "checkpoint-3/manifest.json").unlink()
    (tmp_path / "checkpoint-2/optimizer.safetensors").write_bytes(b"x")
    bad: list[str] = []
    saved = chosen(tmp_path, "latest", bad)
    assert saved is not None and saved.step == 1 and bad == ["checkpoint-3", "checkpoint-2"]


def test_latest_without_any_and_the_empty_word_are_fresh_starts(tmp_path: Path) -> None:
    assert chosen(tmp_path, "latest") is None
    save_checkpoint(tmp_path, content(1))
    assert chosen(tmp_path, "") is None


@pytest.mark.parametrize("wanted", ["checkpoint-1", "s3://bucket/of/another/checkpoint-1", "hf://owner/name/checkpoint-1/"])
def test_a_name_or_an_address_means_the_checkpoint_of_the_output_folder(tmp_path: Path, wanted: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, content(step))
    saved = chosen(tmp_path, wanted)
    assert saved is not None and saved.step == 1 and saved.folder == tmp_path / "checkpoint-1"


def test_a_path_means_that_folder_and_never_one_of_the_same_name(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        save_checkpoint(folder, content(1))
    (tmp_path / "link").symlink_to(ours)
    for wanted in (theirs / "checkpoint-1", tmp_path / "ours/../theirs/checkpoint-1", theirs / "checkpoint-1/"):
        saved = chosen(ours, str(wanted))
        assert saved is not None and saved.folder == theirs / "checkpoint-1" and not saved.is_of(ours)
    for wanted in (ours / "checkpoint-1", tmp_path / "link/checkpoint-1"):
        saved = chosen(ours, str(wanted))
        assert saved is not None and saved.folder == ours / "checkpoint-1" and saved.is_of(ours)


@pytest.mark.parametrize(
    ("wanted", "said", "hint"),
    [
        ("gone/checkpoint-1", "There is no folder", "use the folder of a checkpoint"),
        ("theirs", "is not a checkpoint", "use one of those in it: checkpoint-1"),
        ("empty/checkpoint-1", "is not a checkpoint", "use the folder of a checkpoint"),
        ("broken/checkpoint-1", "optimizer.safetensors has 0 bytes", "choose another"),
    ],
)
def test_a_path_that_is_no_checkpoint_is_refused_with_the_reason(tmp_path: Path, wanted: str, said: str, hint: str) -> None:
    for name in ("ours", "theirs", "broken"):
        save_checkpoint(tmp_path / name, content(1))
    (tmp_path / "broken/checkpoint-1/optimizer.safetensors").write_bytes(b"")
    (tmp_path / "empty/checkpoint-1").mkdir(parents=True)
    bad: list[str] = []
    with pytest.raises(CheckpointUnusable, match=said) as refused:
        chosen(tmp_path / "ours", str(tmp_path / wanted), bad)
    assert refused.value.hint.startswith(hint)
    assert bad == []  # whoever removes broken checkpoints of the output folder does not hear of one elsewhere


def test_a_name_that_is_missing_or_broken_is_refused_with_those_there_are(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, content(step))
    with pytest.raises(CheckpointUnusable) as missing:
        chosen(tmp_path, "checkpoint-9")
    assert missing.value.hint == "there are: checkpoint-2, checkpoint-1"
    (tmp_path / "checkpoint-2/optimizer.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointUnusable, match=r"optimizer.safetensors has 0 bytes"):
        chosen(tmp_path, "checkpoint-2")


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, content(1))
    saved = chosen(tmp_path, "latest")
    assert saved is not None
    refuse_other_run(saved, {"model_family": "tiny"})
    with pytest.raises(CheckpointUnusable, match=r"model_family was tiny and is large"):
        refuse_other_run(saved, {"model_family": "large"})


def test_differences_of_the_data_are_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, content(1))
    saved = chosen(tmp_path, "latest")
    assert saved is not None
    old = {"a": {"1.png": "x", "2.png": "x", "3.png": "x"}, "gone": {}}
    new = {"a": {"1.png": "x", "2.png": "y", "4.png": "x"}, "b": {}}
    assert differences(saved, {"seed": 1}, old, old) == []
    assert differences(saved, {"seed": 2}, old, new) == [
        "seed was 1 and is 2",
        "dataset a: 1 added (4.png)",
        "dataset a: 1 removed (3.png)",
        "dataset a: 1 changed (2.png)",
        "dataset b is new",
        "dataset gone is gone",
    ]


@pytest.mark.faults
def test_a_process_killed_while_it_saves_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; import torch\n"
        "from trainer_engine.checkpointing.save import Content, save_checkpoint\n"
        "def weights(folder): (folder / 'w').write_bytes(b'w' * 3_000_000)\n"
        "for step in range(1, 10_000):\n"
        "    save_checkpoint(Path(sys.argv[1]), Content(step, 1, 0.5, 1e-4, 'tiny', 'full', weights, 10,\n"
        "        tensors={'optimizer.safetensors': {'a': torch.ones(500_000)}}))\n"
        "    print(step, flush=True)\n"
    )
    for attempt in range(8):
        output_dir = tmp_path / str(attempt)
        process = subprocess.Popen([sys.executable, "-c", code, str(output_dir), str(ROOT)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        announced = [process.stdout.readline() for _ in range(2)]
        time.sleep(0.011 * attempt)
        process.kill()
        announced += process.stdout.read().splitlines()
        process.wait()
        found = list_checkpoints(output_dir)
        assert all(verify(info.path) == [] for info in found)
        assert found[0].step >= max(int(step) for step in announced if step.strip())


def test_checkpoints_beyond_the_step_that_a_run_begins_at_are_moved_and_not_removed(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        save_checkpoint(tmp_path, content(step))
    (tmp_path / "checkpoint-99").mkdir()  # not ours: it must not be overwritten either
    aside = set_aside_later(tmp_path, 4)
    assert aside is not None and aside.parent == tmp_path
    assert names(aside) == ["checkpoint-10", "checkpoint-99"] and verify(aside / "checkpoint-10") == []
    assert [info.step for info in list_checkpoints(tmp_path)] == [4, 2]
    assert set_aside_later(tmp_path, 4) is None and set_aside_later(tmp_path / "nowhere", 0) is None


def test_rolling_checkpoints_have_a_limit_of_their_own(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, content(step))
        save_checkpoint(tmp_path, content(step + 5, rolling=True))
    assert prune(tmp_path, 2, "checkpoint-35-rolling", rolling_limit=1) == [
        "checkpoint-10",
        "checkpoint-15-rolling",
        "checkpoint-25-rolling",
    ]
    assert [info.name for info in list_checkpoints(tmp_path)] == ["checkpoint-35-rolling", "checkpoint-30", "checkpoint-20"]
    assert [info.is_rolling for info in list_checkpoints(tmp_path)] == [True, False, False]
    assert prune(tmp_path, 0, "checkpoint-30", rolling_limit=0) == prune(tmp_path, -1, "checkpoint-30", rolling_limit=-1) == []


def test_retention_keeps_the_one_just_saved_even_with_the_lowest_step(tmp_path: Path) -> None:
    for step in (10, 20, 5):
        save_checkpoint(tmp_path, content(step, rolling=True))
    assert prune(tmp_path, 1, "checkpoint-5-rolling", rolling_limit=1) == ["checkpoint-10-rolling", "checkpoint-20-rolling"]


def test_retention_never_removes_the_last_checkpoint_that_verifies(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, content(step))
    (tmp_path / "checkpoint-3/optimizer.safetensors").write_bytes(b"x")
    assert prune(tmp_path, 1, "checkpoint-3") == [], "of what is left, no other might verify"
    save_checkpoint(tmp_path, content(4, rolling=True))
    assert prune(tmp_path, 1, "checkpoint-4-rolling", rolling_limit=1) == ["checkpoint-1", "checkpoint-2"]
    assert newest_verified(tmp_path) is not None


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, content(step))
    assert prune(tmp_path, 2, "checkpoint-100") == ["checkpoint-9"]


def test_a_rolling_checkpoint_is_verified_chosen_and_moved_like_any_other(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, content(2))
    info = save_checkpoint(tmp_path, content(2, rolling=True))
    assert verify(info.path) == [] and info.name == "checkpoint-2-rolling"
    assert [info.name for info in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-2-rolling"]
    save_checkpoint(tmp_path, content(3, rolling=True))
    latest, named = chosen(tmp_path, "latest"), chosen(tmp_path, "checkpoint-2-rolling")
    assert latest is not None and latest.folder.name == "checkpoint-3-rolling" and latest.step == 3
    assert named is not None and named.step == 2
    aside = set_aside_later(tmp_path, 2)
    assert aside is not None and names(aside) == ["checkpoint-3-rolling"]


def test_a_snapshot_keeps_its_values_when_the_tensors_change(tmp_path: Path) -> None:
    tensor = torch.ones(4)
    held = content(1, tensors={"optimizer.safetensors": {"a": tensor}}).held()
    tensor.zero_()
    assert held.tensors["optimizer.safetensors"]["a"].tolist() == [1, 1, 1, 1]


def test_a_file_that_never_changes_is_encoded_once_and_verifies_in_every_checkpoint(tmp_path: Path) -> None:
    fixed = FixedFile.of_json({"set": {"b.png": "1", "a\udcff.png": "2"}})
    infos = [save_checkpoint(tmp_path, content(step, fixed={"samples.json": fixed})) for step in (1, 2)]
    for info in infos:
        assert verify(info.path) == []
        assert json.loads((info.path / "samples.json").read_bytes()) == {"set": {"a\udcff.png": "2", "b.png": "1"}}
    (infos[0].path / "samples.json").write_bytes(fixed.content.replace(b"1", b"3"))
    assert verify(infos[0].path) and verify(infos[1].path) == []
    assert content(1, fixed={"samples.json": fixed}).size_bytes == content(1).size_bytes + len(fixed.content)
