"""The file format of caches: NumPy's own .npy arrays, one after the other.

The first array is a JSON text, as bytes: the kind of the cache, its parameters, and the names of the small arrays that
follow. After those come the pages and, for int8, their scales. Each array is followed by padding, an array of zeros, so
that the data of the next one begins at a multiple of 64 bytes and can be mapped into memory. Types that the format does
not support are stored as unsigned integers. Pages and rows that are not in use are skipped: the file is sparse there,
if the file system supports it.

Files are not trusted. The text must be exactly what `write` makes for the cache that it describes; before memory is
allocated for an array, its shape and type must match the text, and its size the file's; the cache checks every number
of the small arrays.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from fastattn._dtypes import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fastattn._core.cache import Store

FORMAT = "fastattn cache 1"

_LONGEST_TEXT = 4096  # bytes; no cache needs more
_TYPES = {np.dtype(name).str: np.dtype(name) for name in ("u1", "i1", "u2", "f2", "f4", "f8", "i8")}
_NUMBER = r"(?:0|[1-9]\d{0,18})"
_HEADER = re.compile(
    r"\{'descr': '([<>|]\w\d)', 'fortran_order': False, 'shape': "
    rf"\(({_NUMBER},|{_NUMBER}(?:, {_NUMBER}){{1,4}})\), \}} *\n",
    re.ASCII,
)


def write(path: str | os.PathLike, kind: str, parameters: dict[str, Any], store: Store) -> None:
    """Write a temporary file, then rename it: the old file may be mapped. Devices and pipes are written directly."""
    path, state = os.fspath(path), store.state()
    arrays = [(np.frombuffer(_text(kind, parameters, list(state)), np.uint8), None)]
    arrays += [(np.ascontiguousarray(x), None) for x in state.values()]
    arrays += [(x, store.used_parts()) for x in store.arrays()]
    if _is_special(path):
        with open(path, "wb") as file:
            _write_arrays(file, arrays, with_holes=False)
        return
    path = os.path.realpath(path)  # so that a link is kept
    temporary = os.path.join(os.path.dirname(path), f".{os.urandom(8).hex()}.part")
    with open(temporary, "xb") as file:
        try:
            _write_arrays(file, arrays, with_holes=True)
            file.close()
            os.replace(temporary, path)
        except BaseException:
            file.close()
            os.unlink(temporary)
            raise


def _is_special(path: str) -> bool:
    """Whether the path exists and is not a regular file, so that it must not be replaced."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def _text(kind: str, parameters: dict[str, Any], names: list[str]) -> bytes:
    return json.dumps({"format": FORMAT, "kind": kind, "parameters": parameters, "state": names}).encode()


def _write_arrays(file: BinaryIO, arrays: list[tuple[NDArray, list | None]], with_holes: bool) -> None:
    """Write arrays or, where parts are given, only those: contiguous pieces in ascending order."""
    for x, parts in arrays:
        x = x.view(_in_file(x.dtype))
        npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(x))
        written = 0
        for part in [x] if parts is None else (x[index] for index in parts):
            start = part.ctypes.data - x.ctypes.data
            _skip(file, start - written, with_holes)
            file.write(part)
            written = start + part.nbytes
        _skip(file, x.nbytes - written, with_holes)
        padding = np.zeros(-x.nbytes % npy.ARRAY_ALIGN, np.uint8)
        npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(padding))
        file.write(padding)


def _in_file(dtype: np.dtype) -> np.dtype:
    """The type in the file: types that the format does not support are stored as unsigned integers of their size."""
    row = BY_NAME.get(dtype.name)
    return np.dtype(f"u{dtype.itemsize}") if row is not None and row.package else dtype


def _skip(file: BinaryIO, count: int, with_holes: bool) -> None:
    """Write `count` bytes of zeros, or leave a hole."""
    if count and with_holes:
        file.seek(count, os.SEEK_CUR)
        return
    zeros = memoryview(bytes(min(count, 1 << 20)))
    while count > 0:
        count -= file.write(zeros[:count])


def read(path: str | os.PathLike, kind: str, make: Callable[..., Store], mmap_mode: str | None) -> Store:
    """Read a cache; `make` takes its parameters and its pools. ValueError for any other file."""
    if mmap_mode not in (None, "r", "c"):
        raise ValueError(f"mmap_mode must be None, 'r' (read-only) or 'c' (copy on write), got {mmap_mode!r}")
    try:
        with open(path, "rb") as file:
            return _read_cache(file, kind, make, mmap_mode)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"path must be a complete file that {kind}.save wrote, got {str(path)!r}: {error}") from error


def _read_cache(file: BinaryIO, kind: str, make: Callable[..., Store], mmap_mode: str | None) -> Store:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    size = status.st_size

    shape, _ = _read_header(file, size, np.dtype(np.uint8))
    if len(shape) != 1 or shape[0] > _LONGEST_TEXT:
        raise ValueError(f"its first array has shape {shape}")
    text = _read_numbers(file, shape, np.dtype(np.uint8)).tobytes()
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError(f"its text is {type(header).__name__}")
    if header["format"] != FORMAT or header["kind"] != kind:
        raise ValueError(f"it holds a {header['kind']} in the format {header['format']!r}")
    state = {}
    for name in header["state"]:
        shape, _ = _read_header(file, size, np.dtype(np.int64))
        state[name] = _read_numbers(file, shape, np.dtype(np.int64))

    def pools(expected: list[tuple[tuple[int, ...], np.dtype]]) -> list[NDArray]:
        arrays = [_read_pool(file, size, shape, dtype, mmap_mode) for shape, dtype in expected]
        if file.tell() != size:
            raise ValueError("it has data after its end")
        return arrays

    store = make(**header["parameters"], pools=pools)
    if text != _text(kind, store.parameters(), list(store.state())):
        raise ValueError("its parameters are not written as save writes them")
    if not store.restore(**state):
        raise ValueError("its tables do not match its pages")
    for scales in store.arrays()[2:]:
        if not all(np.isfinite(scales[part]).all() for part in store.used_parts()):
            raise ValueError("it has scales that are not finite")
    return store


def _read_header(file: BinaryIO, size: int, dtype: np.dtype) -> tuple[tuple[int, ...], int]:
    """Shape and data offset of an array of that type; ValueError unless the file holds all of its data."""
    magic, length = _read_bytes(file, 8), int.from_bytes(_read_bytes(file, 2), "little")
    if magic != npy.magic(1, 0):
        raise ValueError("it has an array that is not in version 1.0 of NumPy's format")
    match = _HEADER.fullmatch(_read_bytes(file, length).decode("latin1")) if length < _LONGEST_TEXT else None
    if match is None or (10 + length) % npy.ARRAY_ALIGN:
        raise ValueError("it has an array with a header that is not NumPy's")
    if _TYPES.get(match[1]) != dtype:
        raise ValueError(f"it has an array of {match[1]!r} instead of {dtype.str!r}")
    shape = tuple(int(number) for number in match[2].rstrip(",").split(", "))
    if file.tell() + math.prod(shape) * dtype.itemsize > size:
        raise ValueError("an array is truncated")
    return shape, file.tell()


def _read_numbers(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    """Read the data of an array whose header was read, and the padding after it."""
    x = np.empty(shape, dtype)
    if file.readinto(x.reshape(-1).view(np.uint8)) != x.nbytes:
        raise ValueError("an array is truncated")
    _read_padding(file, x.nbytes)
    return x


def _read_padding(file: BinaryIO, count: int) -> None:
    """Read the padding after `count` bytes of data."""
    padding = np.zeros(-count % npy.ARRAY_ALIGN, np.uint8)
    shape, _ = _read_header(file, file.tell() + 2 * _LONGEST_TEXT, padding.dtype)
    if shape != padding.shape or _read_bytes(file, len(padding)) != padding.tobytes():
        raise ValueError("the padding after an array is not zeros")


def _read_pool(file: BinaryIO, size: int, shape: tuple[int, ...], dtype: np.dtype, mmap_mode: str | None) -> NDArray:
    """Read or map pages or scales of that shape and type."""
    stored = _in_file(dtype)
    found, start = _read_header(file, size, stored)
    if found != shape:
        raise ValueError("the shapes of its pages do not match its parameters")
    if mmap_mode is None:
        x = _read_numbers(file, shape, stored)
    else:
        x = np.asarray(np.memmap(file, stored, mmap_mode, start, shape))
        file.seek(start + x.nbytes)
        _read_padding(file, x.nbytes)
    return x.view(dtype)


def _read_bytes(file: BinaryIO, count: int) -> bytes:
    found = file.read(count)
    if len(found) != count:
        raise ValueError("an array is truncated")
    return found
