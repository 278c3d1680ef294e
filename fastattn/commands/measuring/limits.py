"""What this machine can do at most, measured by the compiled probes: arithmetic and memory.

Memory is probed at the size of the work itself, so that data in a cache is held to the cache's speed.
"""

import functools
import math
import time

from fastattn._core import probe

#: How many buffers of its size a probe of memory passes through.
BUFFERS = {"read": 1, "copy": 2}

#: Smaller buffers would measure the start of the threads; larger ones only take longer.
SMALLEST, LARGEST = 2**18, 2**28

#: A probe is repeated for so long: something else may disturb all of a short one.
SECONDS = 0.03

#: The types that some processors have a dot product for, of AVX512_BF16; its probe says 0 where the target has not.
DOTTED = ("bfloat16",)


@functools.cache
def arithmetic(dtype, threads):
    """Operations per second of multiply-adds in registers, by the best instruction that the target has for the type.

    Where it has none for 16 bits, they are widened and multiplied in float32.
    """
    dotted = _best(probe.dot, dtype, threads) if dtype in DOTTED and hasattr(probe, "dot") else 0
    return dotted or _best(probe.fma, dtype if dtype == "float64" else "float32", threads)


def memory(kind, traffic, threads):
    """Bytes per second of a ``read`` or a ``copy`` that moves about `traffic` bytes."""
    size = 2 ** math.ceil(math.log2(max(traffic / BUFFERS[kind], 1)))
    return _memory(kind, min(max(size, SMALLEST), LARGEST), threads)


@functools.cache
def _memory(kind, size, threads):
    return _best(getattr(probe, kind), size, threads)


def _best(measure, what, threads):
    """The best of what the probe measures in a while; the probes count in billions."""
    end = time.perf_counter() + SECONDS
    best = measure(what, num_threads=threads)
    while time.perf_counter() < end:
        best = max(best, measure(what, num_threads=threads))
    return 1e9 * best
