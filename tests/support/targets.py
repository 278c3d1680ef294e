"""What the current target does."""

import platform

from fastattn._core import targets as _targets


def multiplies_and_adds_at_once():
    """Whether the current target rounds once, not twice, for a product and its addition to a sum."""
    return _targets.current() != "portable" or platform.machine().lower() not in ("x86_64", "amd64")


def widens_int8():
    """Whether the current target is known to multiply int8 weights as reals; others may round x to 8 bits, too."""
    return _targets.current() in ("portable", "avx2", "avx512", "neon")
