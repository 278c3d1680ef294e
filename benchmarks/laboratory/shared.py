"""What the processes of a run share, so that only the first of them makes it: texts, expected results, exported models.

Engines' processes are started in turns and prepare one at a time, so that nothing is made twice.
"""

import contextlib
import functools
import os
import pickle
import tempfile
from pathlib import Path

#: The environment variable with the folder of the run, which engines' processes inherit.
VARIABLE = "FASTATTN_BENCHMARK_FOLDER"


@contextlib.contextmanager
def run():
    """Share with the processes started from now on, in a temporary folder; it is removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[VARIABLE]


def made(name, make):
    """The path of a file or folder, after `make(path)` if the run has none yet; outside a run, this process's own."""
    path = Path(os.environ.get(VARIABLE) or _own().name, name)
    if not path.exists():
        unfinished = path.with_name(f"{name}, unfinished")
        make(unfinished)
        unfinished.rename(path)
    return path


@functools.cache
def _own():
    """A temporary folder that is removed when the process ends."""
    return tempfile.TemporaryDirectory()


def cache(function):
    """Like functools.cache, and in a run also across its processes; arguments are told apart by their repr."""

    @functools.cache
    @functools.wraps(function)
    def cached(*arguments):
        if VARIABLE not in os.environ:
            return function(*arguments)
        name = f"{function.__name__}{arguments!r}"
        return pickle.loads(made(name, lambda path: path.write_bytes(pickle.dumps(function(*arguments)))).read_bytes())

    return cached
