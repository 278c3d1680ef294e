"""Arrays in awkward places: odd strides, unaligned, read-only, in a file, right beside memory that is out of bounds."""

import ctypes
import functools
import mmap
import tempfile

import numpy as np
import pytest

# Every byte around the elements of a laid-out array. Read as a float it is a NaN, so a stray read shows in the result.
POISON = 0xFF

# Sizes around the vectors (4, 8 and 16 float32; 2, 4 and 8 float64), their multiples, and some primes.
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 97, 127, 128, 129, 257)

# Of an array's rows, of their elements, of both. With what it is a view of it shares every address.
REVERSALS = (np.s_[..., ::-1, :], np.s_[..., ::-1], np.s_[..., ::-1, ::-1])


def backwards_over(x, which=REVERSALS):
    """(where, a copy of x, an array of its shape that runs backwards over it), for each of these reversals.

    They share all addresses, or the array begins some elements before or behind x.
    """
    for reversal in which:
        for shift in (0, 1, -1, x.shape[-1], -x.shape[-1], x.size // 2, -(x.size // 2)):
            memory = np.zeros(3 * x.size, x.dtype)
            given, out = (memory[x.size + n : 2 * x.size + n].reshape(x.shape) for n in (0, shift))
            given[...] = x
            yield f"{reversal}, {shift:+} elements", given, out[reversal]


def _poisoned(shape, dtype, offset=64):
    """An array whose memory, and 64 bytes before and after it, is poison."""
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = np.full(offset + size + 64, POISON, np.uint8)
    return buffer[offset : offset + size].view(dtype).reshape(shape)


def _aligned(shape, dtype):
    return _poisoned(shape, dtype)


def _unaligned(shape, dtype):
    return _poisoned(shape, dtype, offset=65)


def _swapped(shape, dtype):
    if len(shape) < 2:
        return _poisoned(shape, dtype)
    return _poisoned((*shape[:-2], *shape[:-3:-1]), dtype).swapaxes(-1, -2)


def _fortran(shape, dtype):
    return _poisoned(shape[::-1], dtype).T


def _heads_inside(shape, dtype):
    """(B, S, H, D) in memory, seen as (B, H, S, D)."""
    if len(shape) < 3:
        return _poisoned(shape, dtype)
    *leading, heads, rows, size = shape
    return _poisoned((*leading, rows, heads, size), dtype).swapaxes(-2, -3)


def _gaps_between_elements(shape, dtype):
    return _poisoned((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2]


def _gaps_between_rows(shape, dtype):
    return _poisoned((*shape[:-1], shape[-1] + 3), dtype)[..., 1:-2]


def _rows_odd_bytes_apart(shape, dtype):
    """Elements side by side, the row pitch no multiple of the element size."""
    row = shape[-1] * dtype.itemsize
    rows = _poisoned((*shape[:-1], row + 3), np.dtype(np.uint8))
    strides = (*rows.strides[:-1], dtype.itemsize)
    return np.ndarray(shape, dtype, buffer=rows.base, offset=64, strides=strides)


def _backwards(shape, dtype):
    return _poisoned(shape, dtype)[(slice(None, None, -1),) * len(shape)]


WRITABLE_LAYOUTS = {
    layout.__name__[1:]: layout
    for layout in (
        _aligned,
        _unaligned,
        _swapped,
        _fortran,
        _heads_inside,
        _gaps_between_elements,
        _gaps_between_rows,
        _rows_odd_bytes_apart,
        _backwards,
    )
}


def laid_out(x, layout):
    """x's elements in a fresh array of that layout, poison around and between them."""
    view = WRITABLE_LAYOUTS[layout](x.shape, x.dtype)
    view[...] = x
    return view


def empty_laid_out(shape, dtype, layout):
    return WRITABLE_LAYOUTS[layout](tuple(shape), np.dtype(dtype))


def rows_at(place, shape, gap, dtype):
    """A poisoned array whose first element is that many elements behind the beginning of a cache line; `gap` elements
    between its rows."""
    dtype = np.dtype(dtype)
    pitch = shape[-1] + gap
    size = (int(np.prod(shape[:-1])) * pitch + place) * dtype.itemsize
    buffer = np.full(size + 128, POISON, np.uint8)
    first = -buffer.ctypes.data % 64 + place * dtype.itemsize
    return (
        buffer[first : first + size - place * dtype.itemsize].view(dtype).reshape(*shape[:-1], pitch)[..., : shape[-1]]
    )


def assert_nothing_written_around(view):
    """That the poison around and between the elements is still there. Overwrites the elements."""
    buffer = view
    while isinstance(buffer.base, np.ndarray):
        buffer = buffer.base
    view[...] = np.frombuffer(bytes([POISON]) * view.itemsize, view.dtype)[0]
    assert (buffer.view(np.uint8) == POISON).all(), "written outside of the array"


def is_poison(x):
    return bool((np.ascontiguousarray(x).view(np.uint8) == POISON).all())


def _read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def _memory_map(x):
    with tempfile.TemporaryFile() as file:
        file.write(b"header..")
        file.write(x.tobytes())
        file.flush()
        return np.memmap(file, x.dtype, mode="r", offset=8, shape=x.shape)


def _one_row_repeated(x):
    return x if x.ndim < 2 else np.broadcast_to(x[..., :1, :], x.shape)


def _one_element_repeated(x):
    return np.broadcast_to(x[..., :1], x.shape)


# Name -> function from an array to one like it, of equal shape and type. The repeating ones change the values, too.
LAYOUTS = {name: (lambda x, name=name: laid_out(x, name)) for name in WRITABLE_LAYOUTS} | {
    layout.__name__[1:]: layout for layout in (_read_only, _memory_map, _one_row_repeated, _one_element_repeated)
}


class FencedPages:
    """Memory between two pages that may not be touched: an access beyond an array's first or last byte is a crash."""

    def __init__(self, size):
        if not hasattr(ctypes.CDLL(None), "mprotect"):
            pytest.skip("needs mprotect")
        page = mmap.PAGESIZE
        inside = -(-size // page) * page
        self._map = mmap.mmap(-1, inside + 2 * page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for fence in (address, address + page + inside):
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
        self._bytes = np.frombuffer(self._map, np.uint8)[page : page + inside]

    def place(self, shape, dtype, at):
        """An uninitialised array against the fence at its "start" or "end"."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        first = 0 if at == "start" else len(self._bytes) - size
        return self._bytes[first : first + size].view(dtype).reshape(shape)


@functools.cache
def fenced(operand):
    """One such pen for each operand of a call, reused."""
    del operand
    return FencedPages(600_000)


def placed(name, array, at):
    """A copy in the operand's pen, at its start or end; of a pair, each part in one of its own."""
    if isinstance(array, tuple):
        return tuple(placed(f"{name} {n}", x, at) for n, x in enumerate(array))
    copy = fenced(name).place(array.shape, array.dtype, at)
    copy[...] = array
    return copy
