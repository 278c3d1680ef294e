"""Finds the compiled package when Python runs in a checkout, whose modules are not compiled unless built in place.

``python -m fastattn`` looks into the current folder first, so in a checkout it finds the sources, not the installed
package that is meant. The package then takes all its modules from the installed one: a mix of both would be worse.
"""

import itertools
import sys
from importlib.machinery import PathFinder


def compiled(path):
    """`path`, the package's ``__path__``, if its modules are compiled; else that of the next fastattn on sys.path."""
    specs = (PathFinder.find_spec("fastattn", [entry]) for entry in sys.path)
    others = (folder for spec in specs if spec for folder in spec.submodule_search_locations or ())
    for folder in itertools.chain(path, others):
        if PathFinder.find_spec("targets", [f"{folder}/_core"]):
            return [folder]
    raise ImportError("fastattn is not compiled yet: run `pip install .` in its checkout")
