"""The chosen target, whose table of kernels every other compiled module uses."""

import os

from fastattn._core.targets cimport (
    FA_BF16,
    FA_F32,
    FA_F64,
    FA_I8,
    fa_kernels,
    fa_linear_kernel,
    fa_matrix,
    fa_panels,
    fa_type,
)


cdef extern from "abi/table.h" nogil:
    ctypedef struct fa_target:
        const char *name
        int emulated
        const fa_kernels *kernels[FA_TYPES]
        const fa_linear_kernel *linear_int8
    const fa_target *fa_targets[]
    int fa_target_count
    bint fa_is_supported(const fa_target *target)
    void *fa_scratch(size_t size)

cdef extern from "abi/panels.h" nogil:
    void fa_pack_panel(const fa_panels *, ptrdiff_t, fa_matrix, fa_matrix, char *)
    void fa_unpack_panel(const fa_panels *, ptrdiff_t, char *, fa_matrix, fa_matrix)

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
    const char *FA_FLAGS  # of the build: setup.py
    const int CYTHON_HEX_VERSION


cdef const fa_target *chosen = NULL


def _cache_size() -> int:
    """Size of the last-level cache in bytes; 32 MiB if the system does not report it."""
    try:
        return os.sysconf("SC_LEVEL3_CACHE_SIZE") or 1 << 25
    except (AttributeError, ValueError, OSError):
        return 1 << 25


cdef ptrdiff_t cache_size = _cache_size()

compiler = fa_compiler().decode().strip()
flags = FA_FLAGS.decode()
cython = ".".join(str(CYTHON_HEX_VERSION >> shift & 0xFF) for shift in (24, 16, 8))


cdef const void *current_target() noexcept nogil:
    """The chosen target, to compare with another one."""
    return chosen


cdef void move_panel(const fa_panels *form, ptrdiff_t panel, char *data, fa_matrix weight, fa_matrix gate,
                     bint back) noexcept nogil:
    """Move rows of a weight, and of its gate, to their panel or back."""
    if back:
        fa_unpack_panel(form, panel, data, weight, gate)
    else:
        fa_pack_panel(form, panel, weight, gate, data)


cdef const fa_kernels *kernels_of(fa_type type) noexcept nogil:
    return chosen.kernels[<int>type]


cdef const fa_linear_kernel *linear_kernel(fa_type x, fa_type weight) noexcept nogil:
    """The kernel of x's type if the weight has it, too; else that of the type to which both are converted."""
    if weight == FA_I8 and x != FA_F64:
        return chosen.linear_int8
    if x == FA_BF16 and weight != FA_BF16:
        return kernels_of(FA_F32).linear
    return kernels_of(x).linear


cdef void *scratch(size_t size) noexcept nogil:
    """Scratch memory of the calling thread; NULL if there is none left."""
    return fa_scratch(size)


cdef bint beyond_cache(ptrdiff_t size) noexcept nogil:
    """Whether an output of `size` bytes should use non-temporal stores.

    An input of the same size and other processes share the cache. Measured for softmax with a cache of 32 MB: 12 MB ran
    at 48 GB/s with non-temporal stores and at 27 with normal ones; 8 MB ran at 54 with normal ones.
    """
    return size > cache_size / 4


def assume_cache(size: int) -> int:
    """Set the assumed size of the last-level cache; return the previous one.

    For tests: with 0, every large enough row uses non-temporal stores, as otherwise only arrays of many megabytes do.
    """
    global cache_size
    former = cache_size
    cache_size = size
    return former


def built() -> tuple:
    """Names of all targets of this build, best first."""
    return tuple(fa_targets[i].name.decode() for i in range(fa_target_count))


def supported() -> tuple:
    """Names of the targets that this machine can run, best first."""
    return tuple(fa_targets[i].name.decode() for i in range(fa_target_count) if fa_is_supported(fa_targets[i]))


def emulated() -> tuple:
    """Names of the targets whose instructions are emulated, for tests; see kernels/simd/emulation.h."""
    return tuple(fa_targets[i].name.decode() for i in range(fa_target_count) if fa_targets[i].emulated)


def current() -> str:
    return chosen.name.decode()


def use(str name):
    """Use this target's kernels from now on; `name` is one of supported()."""
    global chosen
    for i in range(fa_target_count):
        if fa_targets[i].name.decode() == name and fa_is_supported(fa_targets[i]):
            chosen = fa_targets[i]
            return
    raise ValueError(name)


if not supported():
    raise ImportError(f"fastattn was built for {', '.join(built())} only, and this processor can run none of them")
use(min(supported(), key=emulated().__contains__))
