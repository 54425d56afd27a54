"""Processes that tests fork are processes of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers.forked import run_forked

SHOW = """
import json, os, sys
from huggingface_hub import constants
print(json.dumps([os.getpid(), os.getsid(0), os.getcwd(), os.environ["SHOWN"], constants.HF_HOME, sys.argv[1:], "torch" in sys.modules]))
"""


def test_a_forked_program_has_its_own_session_folder_variables_and_arguments(tmp_path: Path) -> None:
    printed = run_forked(SHOW, "one", "two", place=tmp_path, variables={"SHOWN": "here", "HF_HOME": "/somewhere"})
    pid, session, *others = json.loads(printed.splitlines()[-1])
    assert pid == session != os.getpid()
    assert others == [str(tmp_path), "here", "/somewhere", ["one", "two"], True]
    assert "SHOWN" not in os.environ and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["raise ValueError('broken')", "print('broken'); raise SystemExit(3)"])
def test_a_forked_program_that_fails_shows_what_it_printed(ending: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="broken"):
        run_forked(ending, place=tmp_path)


def test_a_forked_program_waits_for_its_threads_and_last_calls(tmp_path: Path) -> None:
    program = """
import atexit, threading, time
atexit.register(print, "at the end")
threading.Thread(target=lambda: (time.sleep(0.1), print("in a thread"))).start()
"""
    assert run_forked(program, place=tmp_path).splitlines()[-2:] == ["in a thread", "at the end"]
