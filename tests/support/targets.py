"""Which kernels a test runs."""

import contextlib
import platform

from fastattn import _runtime
from fastattn._core import targets as _targets


@contextlib.contextmanager
def on_target(name):
    """Run this instruction set's kernels meanwhile."""
    former = _runtime.use_target(name)
    try:
        yield
    finally:
        _runtime.use_target(former)


def multiplies_and_adds_at_once():
    """Whether the current target rounds once, not twice, for a product and its addition to a sum."""
    return _targets.current() != "portable" or platform.machine().lower() not in ("x86_64", "amd64")


def widens_int8():
    """Whether the current target is known to multiply int8 weights as reals; others may round x to 8 bits, too."""
    return _targets.current() in ("portable", "avx2", "avx512")
