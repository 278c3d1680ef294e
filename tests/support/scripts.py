"""The scripts of benchmarks/ as modules."""

import contextlib
import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name):
    """A script of benchmarks/, which finds the others there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module(name)


@contextlib.contextmanager
def pages_in(folder):
    """Let scripts write their pages there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script("report"), "FOLDER", folder)
        yield
