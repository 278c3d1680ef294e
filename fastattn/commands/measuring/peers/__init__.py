"""How each engine runs each operation.

A row of :data:`PEERS` names a module with

``start(threads)``
    what has to be set before anything runs,
``VARIANTS``
    for each operation the ways in which the engine offers it: name → ``build(case, arguments)``, which returns
    the call to time and a function that turns what the call returns into NumPy arrays. A way that cannot do a case
    raises an exception.

What is prepared outside the timing favours the engine: arrays converted, laid out and bound as it likes them best.
The module is imported in the engine's own process, :mod:`fastattn.commands.measuring.worker`. Whoever has further
engines puts their rows into the table.
"""

import importlib
from dataclasses import dataclass
from importlib import util


@dataclass(frozen=True)
class Peer:
    """An engine: its name in tables, its module, and the packages that it needs."""

    label: str
    module: str
    needs: tuple = ()

    @property
    def absent(self):
        """The packages that are not installed."""
        return [name for name in self.needs if util.find_spec(name) is None]

    def load(self):
        """The engine's module."""
        return importlib.import_module(self.module)


#: The engines by name.
PEERS = {
    "fastattn": Peer("fastattn", f"{__name__}.fastattn_itself"),
    "numpy": Peer("NumPy", f"{__name__}.numpy_formulas"),
}
