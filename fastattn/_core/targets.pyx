"""Which kernels run: the table of the chosen target, for every other compiled module."""

import os

from fastattn._core.targets cimport fa_kernels, fa_type


cdef extern from "abi/table.h" nogil:
    ctypedef struct fa_target:
        const char *name
        int emulated
        const fa_kernels *kernels[FA_TYPES]
    const fa_target *fa_targets[]
    int fa_target_count
    bint fa_is_supported(const fa_target *target)
    void *fa_scratch(size_t size)

cdef extern from *:
    """
    static const char *fa_compiler(void) {
    #if defined(__clang__)
        return "clang " __clang_version__;
    #else
        return "gcc " __VERSION__;
    #endif
    }
    """
    const char *fa_compiler()


cdef const fa_target *chosen = NULL


def _cache_size() -> int:
    """Bytes of the last-level cache; 32 MiB where the system does not say."""
    try:
        return os.sysconf("SC_LEVEL3_CACHE_SIZE") or 1 << 25
    except (AttributeError, ValueError, OSError):
        return 1 << 25


cdef ptrdiff_t cache_size = _cache_size()

compiler = fa_compiler().decode().strip()


cdef const fa_kernels *kernels_of(fa_type type) noexcept nogil:
    return chosen.kernels[<int>type]


cdef void *scratch(size_t size) noexcept nogil:
    """Memory of the calling thread; NULL where there is none left."""
    return fa_scratch(size)


cdef bint beyond_cache(ptrdiff_t size) noexcept nogil:
    """Whether an output of so many bytes had better be stored around the cache than through it.

    It comes with an input of its size, and the cache has other users: at 12 MB of 32 softmax ran at 48 GB/s around it
    and at 27 through it; at 8 MB at 54 through it.
    """
    return size > cache_size / 4


def assume_cache(size: int) -> int:
    """Take the last-level cache to have so many bytes from now on; return what it was taken for.

    For tests: with 0 every large enough row is stored around the cache, as only arrays of many megabytes are otherwise.
    """
    global cache_size
    former = cache_size
    cache_size = size
    return former


def built() -> tuple:
    """Names of all targets of this build, best first."""
    return tuple(fa_targets[i].name.decode() for i in range(fa_target_count))


def supported() -> tuple:
    """Names of those that this machine can run, best first."""
    return tuple(fa_targets[i].name.decode() for i in range(fa_target_count) if fa_is_supported(fa_targets[i]))


def emulated() -> tuple:
    """Names of those whose instructions are emulated, for tests; see kernels/simd/emulation.h."""
    return tuple(fa_targets[i].name.decode() for i in range(fa_target_count) if fa_targets[i].emulated)


def current() -> str:
    return chosen.name.decode()


def use(str name):
    """Run this target's kernels from now on; `name` is one of supported()."""
    global chosen
    for i in range(fa_target_count):
        if fa_targets[i].name.decode() == name and fa_is_supported(fa_targets[i]):
            chosen = fa_targets[i]
            return
    raise ValueError(name)


if not supported():
    raise ImportError(f"fastattn was built for {', '.join(built())} alone, and this processor can run none of them")
use(min(supported(), key=emulated().__contains__))
