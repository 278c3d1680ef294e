"""Peak speed of this machine, measured with the chosen target's own instructions."""

import time

import numpy as np

cimport numpy as np
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t

from fastattn._core.targets cimport FA_BF16, FA_F32, FA_F64, fa_kernels, kernels_of

np.import_array()

cdef enum:
    REPEATS = 9
    FMA_ROUNDS = 400000  # about 2 milliseconds


def _best(work, done) -> float:
    """The best rate of several tries, per nanosecond: that of the least disturbed one."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return done / min(times) / 1e9


def fma(str dtype, int num_threads) -> float:
    """GFLOP/s of independent multiply-adds in registers."""
    cdef const fa_kernels *kernels = kernels_of(FA_F64 if dtype == "float64" else FA_F32)

    def work():
        cdef int _i
        cdef double flops = 0
        with nogil:
            for _i in prange(num_threads, num_threads=num_threads, schedule="static"):
                flops += kernels.probe_fma(FMA_ROUNDS)
        return flops

    return _best(work, work())


def dot(str dtype, int num_threads) -> float:
    """GFLOP/s of dot products of pairs of that type; 0 if the target has none."""
    cdef const fa_kernels *kernels = kernels_of(FA_BF16 if dtype == "bfloat16" else FA_F32)
    if kernels.probe_dot == NULL:
        return 0.0

    def work():
        cdef int _i
        cdef double flops = 0
        with nogil:
            for _i in prange(num_threads, num_threads=num_threads, schedule="static"):
                flops += kernels.probe_dot(FMA_ROUNDS)
        return flops

    return _best(work, work())


def read(ptrdiff_t nbytes, int num_threads) -> float:
    """GB/s of reading `nbytes` in total, an equal share by each thread."""
    cdef const fa_kernels *kernels = kernels_of(FA_F32)
    cdef np.ndarray memory = np.ones(nbytes // 4, dtype=np.float32)
    cdef const char *data = <const char *>np.PyArray_DATA(memory)
    cdef ptrdiff_t share = nbytes // num_threads // 64 * 64

    def work():
        cdef int i
        cdef double total = 0
        with nogil:
            for i in prange(num_threads, num_threads=num_threads, schedule="static"):
                total += kernels.probe_read(data + i * share, share)
        return total

    work()
    return _best(work, share * num_threads)


def copy(ptrdiff_t nbytes, int num_threads) -> float:
    """GB/s, counting reads and writes, of copying `nbytes` with non-temporal stores."""
    cdef const fa_kernels *kernels = kernels_of(FA_F32)
    cdef np.ndarray source = np.ones(nbytes // 4, dtype=np.float32), sink = np.zeros(nbytes // 4, dtype=np.float32)
    cdef const char *data = <const char *>np.PyArray_DATA(source)
    cdef char *to = <char *>np.PyArray_DATA(sink)
    cdef ptrdiff_t share = nbytes // num_threads // 64 * 64

    def work():
        cdef int i
        with nogil:
            for i in prange(num_threads, num_threads=num_threads, schedule="static"):
                kernels.probe_copy(to + i * share, data + i * share, share)

    work()
    return _best(work, 2 * share * num_threads)
