"""softmax and log_softmax of dask arrays, also along a chunked axis.

Each chunk's own softmax is scaled by what the maxima and sums of all chunks along the axis say. So each element is read
and exponentiated once, and only maxima and sums move between workers.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np

import fastattn
from fastattn.integrations.dask.chunks import Tasks, block, blockwise, collection, computed_in, rechunked, threads

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray


def softmax(
    x: da.Array | NDArray, axis: int = -1, *, where: da.Array | NDArray | None = None, num_threads: int | None = None
) -> da.Array:
    """Compute `fastattn.softmax` of a dask array, chunked along any axis.

    Parameters
    ----------
    x : dask Array or ndarray
        float32, float64, float16 or bfloat16, with at least one axis.
    axis : int
        The axis to sum over.
    where : bool dask Array or ndarray, broadcastable to x's shape, optional
        Elements where it is False are excluded: their result is 0.
    num_threads : int, optional
        Maximum number of threads of each task; 1 by default, as a worker runs a task on each of its threads.

    Returns
    -------
    dask Array
        Of x's shape, dtype and chunks.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        A shape does not match, the axis does not exist, or an array has chunks of unknown sizes.

    Notes
    -----
    Maxima and sums of chunks are combined as in Milakov and Gimelshein, "Online normalizer calculation for softmax"
    (2018).

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from fastattn.integrations.dask import softmax
    >>> softmax(da.from_array(np.array([0.0, 0.0, -np.inf, 0.0, 0.0]), chunks=3)).compute(scheduler="synchronous")
    array([0.25, 0.25, 0.  , 0.25, 0.25])
    """
    return _normalized("softmax", x, axis, where, num_threads)


def log_softmax(
    x: da.Array | NDArray, axis: int = -1, *, where: da.Array | NDArray | None = None, num_threads: int | None = None
) -> da.Array:
    """Compute `fastattn.log_softmax` of a dask array, chunked along any axis.

    Parameters
    ----------
    x, axis, where, num_threads
        As in `softmax`; the result of an excluded element is -inf.

    Returns
    -------
    dask Array
        Of x's shape, dtype and chunks.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from fastattn.integrations.dask import log_softmax
    >>> log_softmax(da.from_array(np.array([1000.0, 0.0]), chunks=1)).compute(scheduler="synchronous")
    array([    0., -1000.])
    """
    return _normalized("log_softmax", x, axis, where, num_threads)


def _normalized(name: str, x: object, axis: int, where: object, num_threads: int | None) -> da.Array:
    x = collection("x", x)
    where = None if where is None else collection("where", where)
    # Of arrays without elements, fastattn checks all but whether the mask broadcasts.
    empty = None if where is None else np.empty((0,) * min(where.ndim, x.ndim), where.dtype)
    getattr(fastattn, name)(np.empty((0,) * x.ndim, x.dtype), axis, where=empty, num_threads=num_threads)
    if where is not None:
        if where.ndim > x.ndim or any(n not in (1, m) for n, m in zip(where.shape[::-1], x.shape[::-1], strict=False)):
            raise ValueError(f"where must broadcast to x's shape {x.shape}, got shape {where.shape}")
        where = rechunked(where, x.chunks)
    arrays = [x] if where is None else [x, where]
    axis %= x.ndim
    if x.numblocks[axis] == 1:
        return blockwise(_whole, *arrays, dtype=x.dtype, operation=name, axis=axis, num_threads=num_threads)
    return _over_chunks(name, axis, num_threads, *arrays)


def _whole(x: NDArray, where: NDArray | None = None, *, operation: str, axis: int, num_threads: int | None) -> NDArray:
    return getattr(fastattn, operation)(x, axis, where=where, num_threads=threads(num_threads))


# Along a chunked axis. Sums are those of the exponentials of x - maximum.


def _over_chunks(name: str, axis: int, num_threads: int | None, x: da.Array, *where: da.Array) -> da.Array:
    arrays = (x, *where)
    tasks, blocks = Tasks(name, axis, num_threads, *arrays), {}
    for row in itertools.product(*(range(1 if i == axis else count) for i, count in enumerate(x.numblocks))):
        indices = [(*row[:axis], i, *row[axis + 1 :]) for i in range(x.numblocks[axis])]
        own = [
            tasks.add(f"{name}-part", i, _of_chunk, name, axis, num_threads, *(block(a, i) for a in arrays))
            for i in indices
        ]
        sums = [tasks.add(f"{name}-sum", i, _maxima_and_sums, part) for i, part in zip(indices, own, strict=True)]
        total = tasks.merged(f"{name}-merge", row, sums, _combined)
        blocks |= {i: (name, part, total, x.dtype) for i, part in zip(indices, own, strict=True)}
    return tasks.array(tasks.graph(*arrays), name, blocks, _of_all, x.chunks, x.dtype)


def _of_chunk(
    name: str, axis: int, num_threads: int | None, x: NDArray, where: NDArray | None = None
) -> tuple[NDArray, NDArray, NDArray]:
    """The chunk's own result, and its maxima and sums; 16-bit numbers in float32, so that they are rounded once."""
    x = x.astype(computed_in(x.dtype), copy=False)
    y = getattr(fastattn, name)(x, axis, where=where, num_threads=threads(num_threads))
    top = x.max(axis, keepdims=True, initial=-np.inf, where=True if where is None else where)
    largest = y.max(axis, keepdims=True, initial=-np.inf if name == "log_softmax" else 0)  # exp(0) / sum, or its log
    if name == "log_softmax":
        largest = np.exp(largest)
    with np.errstate(divide="ignore"):
        return y, top, np.where(largest == 0, 0, 1 / largest)


def _maxima_and_sums(chunk: tuple[NDArray, NDArray, NDArray]) -> tuple[NDArray, NDArray]:
    """What merges need of a chunk: its result stays where it is."""
    return chunk[1:]


def _combined(parts: list[tuple[NDArray, NDArray]]) -> tuple[NDArray, NDArray]:
    """The maxima and sums over several chunks."""
    tops, sums = map(np.stack, zip(*parts, strict=True))
    top = tops.max(axis=0)
    with np.errstate(invalid="ignore"):
        return top, (sums * np.exp(tops - _finite(top))).sum(axis=0)


def _of_all(
    name: str, chunk: tuple[NDArray, NDArray, NDArray], total: tuple[NDArray, NDArray], dtype: DTypeLike
) -> NDArray:
    """The chunk's result, scaled to the sum over all chunks."""
    (y, own_top, own_sum), (top, all_sum) = chunk, total
    with np.errstate(divide="ignore", invalid="ignore"):
        share = own_sum / np.where(all_sum == 0, 1, all_sum)
        if name == "softmax":
            y = y * (np.exp(own_top - _finite(top)) * share)
        else:
            y = y + ((own_top - _finite(top)) + np.log(share))
    return y.astype(dtype, copy=False)


def _finite(top: NDArray) -> NDArray:
    """The maximum to subtract: 0 where there is no number but -inf, as -inf - -inf would be NaN."""
    return np.where(np.isneginf(top), 0, top)
