"""What the current target does."""

import platform
import re

from fastattn._core import targets as _targets

#: Of targets that have most kernels from another one, the tests of their own ones, by name: of int8 weights.
OWN = dict.fromkeys(("avx512_vnni", "neon_dot"), re.compile(r"test_(linear|capi|nn_\w+)\.py|test_packed\.py.*int8"))


def runs(target, test):
    """Whether a test, by its name, runs kernels on this target that are not those of another one."""
    return target not in OWN or bool(OWN[target].search(test))


def multiplies_and_adds_at_once():
    """Whether the current target rounds once, not twice, for a product and its addition to a sum."""
    return _targets.current() != "portable" or platform.machine().lower() not in ("x86_64", "amd64")


def widens_int8():
    """Whether the current target is known to multiply int8 weights as reals; others may round x to 8 bits, too."""
    return _targets.current() in ("portable", "avx2", "avx512", "neon")
