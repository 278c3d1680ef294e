"""A checkout is not a package: its modules are not compiled, unless they were built in place.

Yet commands typed in it find it first, for ``python -m`` looks into the current folder before all others. They are
meant for the installed package. So a checkout hands over to that, whole: half of each would be worse than either.
"""

import itertools
import sys
from importlib.machinery import PathFinder


def compiled(path):
    """`path`, a package's ``__path__``, if its modules are compiled; else that of the next fastattn on ``sys.path``."""
    specs = (PathFinder.find_spec("fastattn", [entry]) for entry in sys.path)
    others = (folder for spec in specs if spec for folder in spec.submodule_search_locations or ())
    for folder in itertools.chain(path, others):
        if PathFinder.find_spec("targets", [f"{folder}/_core"]):
            return [folder]
    raise ImportError("fastattn is not compiled yet: run `pip install .` in its checkout")
