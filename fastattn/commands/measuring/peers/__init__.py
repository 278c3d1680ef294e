"""How each engine runs each operation.

A row of :data:`PEERS` names a module with

``start(threads)``
    sets up the engine before anything runs,
``VARIANTS``
    for each operation, the variants that the engine offers: name → ``build(case, arguments)``, which returns the call
    to time and a function that converts its result to NumPy arrays. A variant that does not support a case raises an
    exception.

Preparation outside the timing favours the engine: arrays are converted, laid out and bound as it prefers. The module is
imported in the engine's own process, :mod:`fastattn.commands.measuring.worker`. Other engines may add their rows to the
table.
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
