"""The file format of caches: see `fastattn._array_file`.

The text holds the kind of the cache, its parameters, and the names of the small arrays that follow. After those come
the pages and, for int8, their scales. Pages and rows that are not in use are skipped: the file is sparse there, if the
file system supports it.

The text must be exactly what `write` makes for the cache that it describes; the cache checks every number of the small
arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from fastattn import _array_file

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fastattn._core.cache import Store

FORMAT = "fastattn cache 1"


def write(path: str | os.PathLike, kind: str, parameters: dict[str, Any], store: Store) -> None:
    """Write a cache to a file."""
    state = store.state()
    arrays = [(np.ascontiguousarray(x), None) for x in state.values()]
    arrays += [(x, store.used_parts()) for x in store.arrays()]
    _array_file.write(path, _content(kind, parameters, list(state)), arrays)


def _content(kind: str, parameters: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {"format": FORMAT, "kind": kind, "parameters": parameters, "state": names}


def read(path: str | os.PathLike, kind: str, make: Callable[..., Store], mmap_mode: str | None) -> Store:
    """Read a cache; `make` takes its parameters and its pools. ValueError for any other file."""

    def take(file: BinaryIO, size: int, text: bytes) -> Store:
        return _take(file, size, text, kind, make, mmap_mode)

    return _array_file.read(path, kind, mmap_mode, take)


def _take(
    file: BinaryIO, size: int, text: bytes, kind: str, make: Callable[..., Store], mmap_mode: str | None
) -> Store:
    content = _array_file.content_of(text, kind, FORMAT)
    state = {name: _array_file.read_small(file, size, np.dtype(np.int64)) for name in content["state"]}

    def pools(expected: list[tuple[tuple[int, ...], np.dtype]]) -> list[NDArray]:
        arrays = [_array_file.read_array(file, size, shape, dtype, mmap_mode) for shape, dtype in expected]
        _array_file.check_end(file, size)
        return arrays

    store = make(**content["parameters"], pools=pools)
    if text != _array_file.text(_content(kind, store.parameters(), list(store.state()))):
        raise ValueError("its parameters are not written as save writes them")
    if not store.restore(**state):
        raise ValueError("its tables do not match its pages")
    for scales in store.arrays()[2:]:
        if not all(np.isfinite(scales[part]).all() for part in store.used_parts()):
            raise ValueError("it has scales that are not finite")
    return store
