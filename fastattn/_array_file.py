"""Files of arrays in NumPy's own .npy format, one after the other.

The first array is a JSON text, as bytes. Each array is followed by padding, an array of zeros, so that the data of the
next one begins at a multiple of 64 bytes and can be mapped into memory. Types that the format does not support are
stored as unsigned integers.

Files are not trusted: before memory is allocated for an array, its shape and type must be what the reader expects, and
its size must fit the file's. ValueError says what is wrong; `read` names the file.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from numpy.lib import format as npy

from fastattn._dtypes import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

T = TypeVar("T")

_LONGEST_TEXT = 4096  # bytes
_TYPES = {np.dtype(name).str: np.dtype(name) for name in ("u1", "i1", "u2", "f2", "f4", "f8", "i8")}
_NUMBER = r"(?:0|[1-9]\d{0,18})"
_HEADER = re.compile(
    r"\{'descr': '([<>|]\w\d)', 'fortran_order': False, 'shape': "
    rf"\(({_NUMBER},|{_NUMBER}(?:, {_NUMBER}){{1,4}})\), \}} *\n",
    re.ASCII,
)


def text(content: dict[str, Any]) -> bytes:
    """The text that begins a file."""
    return json.dumps(content).encode()


def write(path: str | os.PathLike, content: dict[str, Any], arrays: list[tuple[NDArray, list | None]]) -> None:
    """Write the text, then each array, or of an array only the given parts: contiguous, in ascending order.

    A temporary file is written, then renamed: the old file may be mapped. Devices and pipes are written directly.
    """
    path = os.fspath(path)
    arrays = [(np.frombuffer(text(content), np.uint8), None), *arrays]
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


def read(path: str | os.PathLike, kind: str, mmap_mode: str | None, take: Callable[[BinaryIO, int, bytes], T]) -> T:
    """Open a file that `kind`.save wrote; `take` reads it: its file, size and text. ValueError for any other file."""
    if mmap_mode not in (None, "r", "c"):
        raise ValueError(f"mmap_mode must be None, 'r' (read-only) or 'c' (copy on write), got {mmap_mode!r}")
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is not a regular file")
            size = status.st_size
            shape, _ = _read_header(file, size, np.dtype(np.uint8))
            if len(shape) != 1 or shape[0] > _LONGEST_TEXT:
                raise ValueError(f"its first array has shape {shape}")
            return take(file, size, _read_numbers(file, shape, np.dtype(np.uint8)).tobytes())
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"path must be a complete file that {kind}.save wrote, got {str(path)!r}: {error}") from error


def content_of(found: bytes, kind: str, form: str) -> dict[str, Any]:
    """The text's content, if it is a `kind` of this form."""
    content = json.loads(found)
    if not isinstance(content, dict):
        raise ValueError(f"its text is {type(content).__name__}")
    if content["format"] != form or content["kind"] != kind:
        raise ValueError(f"it holds a {content['kind']} in the format {content['format']!r}")
    return content


def read_small(file: BinaryIO, size: int, dtype: np.dtype) -> NDArray:
    """Read an array of any shape."""
    shape, _ = _read_header(file, size, dtype)
    return _read_numbers(file, shape, dtype)


def check_end(file: BinaryIO, size: int) -> None:
    """Raise if there is more in the file."""
    if file.tell() != size:
        raise ValueError("it has data after its end")


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
    """Read the data of an array whose header was read, and the padding after it; aligned as in the file."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + npy.ARRAY_ALIGN, np.uint8)
    first = -memory.ctypes.data % npy.ARRAY_ALIGN
    x = memory[first : first + size].view(dtype).reshape(shape)
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


def read_array(file: BinaryIO, size: int, shape: tuple[int, ...], dtype: np.dtype, mmap_mode: str | None) -> NDArray:
    """Read or map an array of that shape and type."""
    stored = _in_file(dtype)
    found, start = _read_header(file, size, stored)
    if found != shape:
        raise ValueError("the shapes of its arrays do not match its parameters")
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
