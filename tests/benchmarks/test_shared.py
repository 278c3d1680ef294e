"""What the processes of a benchmark's run share is made once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from laboratory import shared


def test_a_folder_is_made_once_for_all_processes():
    def make(path):
        path.mkdir()
        (path / "file").write_text("content")

    with shared.run():
        path = shared.made("models", make)
        assert shared.made("models", None) == path
        code = "from laboratory import shared; print(shared.made('models', None))"
        home = str(Path(shared.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([home, os.environ.get("PYTHONPATH", "")])}
        other = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
        assert other == f"{path}\n"
        assert (path / "file").read_text() == "content"
    assert not path.exists()
    assert shared.VARIABLE not in os.environ


def test_what_fails_is_tried_again():
    def fail(path):
        path.touch()
        raise RuntimeError

    with shared.run():
        with pytest.raises(RuntimeError):
            shared.made("file", fail)
        assert shared.made("file", lambda path: path.write_text("whole")).read_text() == "whole"


def counting():
    """A function that remembers its calls, and the calls."""
    calls = []

    @shared.cache
    def double(number):
        calls.append(number)
        return 2 * number

    return double, calls


def test_results_are_cached_across_a_runs_processes():
    """Two functions of the same name stand for one in two processes."""
    (first, of_first), (second, of_second) = counting(), counting()
    with shared.run():
        assert [first(1), first(1), second(1), second(2)] == [2, 2, 2, 4]
    assert (of_first, of_second) == ([1], [2])


def test_outside_a_run_only_the_process_caches():
    (first, of_first), (second, of_second) = counting(), counting()
    assert [first(1), first(1), second(1)] == [2, 2, 2]
    assert (of_first, of_second) == ([1], [1])
