"""Many files are examined in order, in this thread where that is quick and in several where a disk is slow."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from trainer_engine.datasets.scanning import CHUNK_FILES, MANY_OBJECTS, QUICK_SECONDS, examine_all

FILES = list(range(3 * CHUNK_FILES + 5))


def slowly(file: int) -> tuple[int, int]:
    time.sleep(2 * QUICK_SECONDS)
    return file, threading.get_ident()


def quickly(file: int) -> tuple[int, int]:
    return file, threading.get_ident()


def test_quick_files_are_examined_in_the_calling_thread() -> None:
    chunks = list(examine_all(FILES, quickly, 8))
    assert [len(chunk) for chunk in chunks] == [CHUNK_FILES] * 3 + [5]
    assert [outcome for chunk in chunks for outcome in chunk] == [(file, threading.get_ident()) for file in FILES]


def test_slow_files_are_shared_out_to_threads_and_keep_their_order() -> None:
    found = [outcome for chunk in examine_all(FILES, slowly, 3) for outcome in chunk]
    assert [file for file, _ in found] == FILES
    here, elsewhere = found[: 2 * CHUNK_FILES], found[2 * CHUNK_FILES :]
    assert {thread for _, thread in here} == {threading.get_ident()}
    assert threading.get_ident() not in {thread for _, thread in elsewhere}


def test_a_chunk_that_waited_for_a_processor_starts_no_threads() -> None:
    def interrupted(file: int) -> tuple[int, int]:
        if file == CHUNK_FILES // 2:  # as on a busy machine: one file of the first chunk takes as long as all of a slow chunk
            time.sleep(2 * QUICK_SECONDS * CHUNK_FILES)
        return quickly(file)

    found = [outcome for chunk in examine_all(FILES, interrupted, 8) for outcome in chunk]
    assert found == [(file, threading.get_ident()) for file in FILES]


def test_one_thread_examines_slow_files_itself() -> None:
    found = [outcome for chunk in examine_all(FILES[: CHUNK_FILES + 3], slowly, 1) for outcome in chunk]
    assert {thread for _, thread in found} == {threading.get_ident()}


def test_the_time_that_the_caller_takes_between_chunks_does_not_count() -> None:
    threads = set[int]()
    for chunk in examine_all(FILES, quickly, 8):
        time.sleep(2 * QUICK_SECONDS * len(chunk))
        threads |= {thread for _, thread in chunk}
    assert threads == {threading.get_ident()}


def test_no_files_have_no_outcomes() -> None:
    assert list(examine_all([], quickly, 8)) == []


@pytest.mark.parametrize("examine", [quickly, slowly])
def test_an_error_of_one_file_reaches_the_caller(examine: object) -> None:
    def fails(file: int) -> int:
        if file == CHUNK_FILES + 1:
            raise PermissionError(f"no access to {file}")
        if examine is slowly:
            slowly(file)
        return file

    with pytest.raises(PermissionError, match=f"no access to {CHUNK_FILES + 1}"):
        list(examine_all(FILES, fails, 4))


def test_the_collector_pauses_while_many_objects_are_made() -> None:
    assert gc.isenabled()
    with MANY_OBJECTS.being_made():
        with MANY_OBJECTS.being_made():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
