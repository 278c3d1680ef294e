"""Subinterpreters are refused, and leave the main interpreter as it was."""

import importlib.util

import pytest

from support.processes import output

NAMES = ("_interpreters", "_xxsubinterpreters")  # of Python 3.13 and later, and before
MODULE = next((name for name in NAMES if importlib.util.find_spec(name)), None)
pytestmark = pytest.mark.skipif(MODULE is None, reason="this Python has no subinterpreters")

CODE = f"""
import sys
import {MODULE} as interpreters

def in_another():
    try:
        # One that shares the GIL: NumPy cannot be imported in any other.
        another = interpreters.create("legacy") if sys.version_info >= (3, 13) else interpreters.create()
        said = interpreters.run_string(another, "import fastattn")
    except Exception as error:
        said = error
    print("refused" if "fastattn cannot be imported in a subinterpreter" in str(said) else said)
"""


HERE = """
import numpy, fastattn
print(fastattn.softmax(numpy.zeros(2))[0])
"""


@pytest.mark.parametrize("order", ["here first", "there first"])
def test_subinterpreters_are_refused(order):
    there = "in_another(), in_another()\n"
    lines = output(CODE + (HERE + there if order == "here first" else there + HERE)).splitlines()
    assert sorted(lines) == ["0.5", "refused", "refused"]
