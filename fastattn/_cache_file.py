"""A cache in a file: NumPy's own .npy arrays, one behind the other.

The first array is a text, as bytes: the kind of the cache, its parameters, the names of the small arrays that follow;
behind those come the pages and, for int8, their scales. Each array is followed by one of zeros, such that the numbers
of the next begin at a multiple of 64 bytes and can be mapped into memory. bfloat16, which the format does not know, is
kept as the uint16 of its bits. Pages and rows that are not in use are left out: the file has holes there, zeros that
take no room where the file system knows holes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fastattn._core.cache import Store

FORMAT = "fastattn cache 1"


def write(path: str | os.PathLike, kind: str, parameters: dict[str, Any], store: Store) -> None:
    """Write a new file beside, then put it in the place of a former one: that one may be mapped by somebody."""
    path, state = Path(path), store.state()
    header = {"format": FORMAT, "kind": kind, "parameters": parameters, "state": list(state)}
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            _write_array(file, np.frombuffer(json.dumps(header).encode(), np.uint8))
            for x in state.values():
                _write_array(file, np.ascontiguousarray(x))
            for x in store.arrays():
                _write_array(file, x, store.used_parts())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _write_array(file: BinaryIO, x: NDArray, parts: list | None = None) -> None:
    """An array, or only those parts of it, each of which lies side by side."""
    x = x.view(np.uint16) if x.dtype.name == "bfloat16" else x
    npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(x))
    start = file.tell()
    for part in [x] if parts is None else (x[index] for index in parts):
        file.seek(start + part.ctypes.data - x.ctypes.data)
        file.write(part)
    file.truncate(start + x.nbytes)
    file.seek(start + x.nbytes)
    npy.write_array(file, np.zeros(-x.nbytes % npy.ARRAY_ALIGN, np.uint8))


def read(path: str | os.PathLike, kind: str, make: Callable[..., Store], mmap_mode: str | None) -> Store:
    """The cache of a file; `make` takes its parameters and its pools. ValueError for any other file."""
    if mmap_mode not in (None, "r", "c"):
        raise ValueError(f"mmap_mode must be None, 'r' (read-only) or 'c' (copy on write), got {mmap_mode!r}")
    try:
        with open(path, "rb") as file:
            header = json.loads(_read_array(file, None).tobytes())
            if header["format"] != FORMAT or header["kind"] != kind:
                raise ValueError(f"it holds a {header['kind']} in the format {header['format']!r}")
            parameters = header["parameters"]
            state = {name: _read_array(file, None) for name in header["state"]}
            pools = [_read_array(file, mmap_mode) for _ in range(4 if parameters["dtype"] == "int8" else 2)]
            if file.read(1):
                raise ValueError("there is more behind its end")
        return _made(make, parameters, state, pools)
    except (ValueError, TypeError, KeyError, EOFError, OverflowError, SyntaxError) as error:
        raise ValueError(f"path must be a whole file that {kind}.save wrote, got {str(path)!r}: {error}") from error


def _read_array(file: BinaryIO, mmap_mode: str | None) -> NDArray:
    version = npy.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"it has an array in version {version} of NumPy's format")
    shape, fortran_order, dtype = npy.read_array_header_1_0(file)
    start, size = file.tell(), int(np.prod(shape, dtype=object)) * dtype.itemsize
    if fortran_order or dtype.hasobject or start + size > os.fstat(file.fileno()).st_size:
        raise ValueError("an array is not whole")
    if mmap_mode is None:
        x = np.empty(shape, dtype)
        file.readinto(x.reshape(-1).view(np.uint8))
    else:
        x = np.asarray(np.memmap(file, dtype, mmap_mode, start, shape))
    file.seek(start + size)
    npy.read_array(file, allow_pickle=False)
    return x


def _made(make: Callable[..., Store], parameters: dict, state: dict[str, NDArray], pools: list[NDArray]) -> Store:
    """The cache, once everything fits."""
    if parameters["dtype"] == "bfloat16":
        pools = [x.view(_bfloat16()) for x in pools]
    store = make(**parameters, pools=pools)
    if [(x.shape, x.dtype) for x in pools] != store.pools():
        raise ValueError("its pages have other shapes than its parameters say")
    if any(x.dtype != np.int64 for x in state.values()) or not store.restore(**state):
        raise ValueError("its tables do not fit its pages")
    for scales in store.arrays()[2:]:
        if not all(np.isfinite(scales[part]).all() for part in store.used_parts()):
            raise ValueError("it has scales that are not finite")
    return store


def _bfloat16() -> np.dtype:
    from fastattn import _arguments

    return _arguments.storage_dtype("dtype", "bfloat16")
