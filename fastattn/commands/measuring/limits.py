"""Peak speed of this machine, measured by the compiled probes: arithmetic and memory.

Memory is probed at the size of the work itself, so that data in a cache is compared with the cache's speed.
"""

import functools
import math
import time

from fastattn._core import probe

#: Number of buffers that a memory probe goes through.
BUFFERS = {"read": 1, "copy": 2}

#: Limits of buffer sizes: smaller ones would measure the start of the threads, larger ones only take longer.
SMALLEST, LARGEST = 2**18, 2**28

#: A probe is repeated for this long, as a short one may be disturbed as a whole.
SECONDS = 0.03

#: The types for which some processors have a dot product (AVX512_BF16, BF16 of arm64); the probe returns 0 if the
#: target has none.
DOTTED = ("bfloat16",)


@functools.cache
def arithmetic(dtype, threads):
    """Operations per second of multiply-adds in registers, by the target's best instruction for the type.

    Without one for a 16-bit type, numbers are converted and multiplied in float32.
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
    """The best of several measurements; the probes count in billions."""
    end = time.perf_counter() + SECONDS
    best = measure(what, num_threads=threads)
    while time.perf_counter() < end:
        best = max(best, measure(what, num_threads=threads))
    return 1e9 * best
