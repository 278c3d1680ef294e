"""Chunks of arrays, tasks over them, and the threads of a task."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import threading
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import List, Task, TaskRef
from dask.tokenize import tokenize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import DTypeLike, NDArray

# Number of results that a task merges: the tree has few levels, and no task waits for many results or holds them.
FAN_IN = 4


def threads(num_threads: int | None) -> int | None:
    """Return a task's maximum number of threads: the caller's, or 1; None where no other task runs meanwhile.

    That is in the synchronous scheduler, whose tasks run on the main thread. The others run tasks on threads of a pool,
    or in processes that they start.
    """
    if num_threads is not None:
        return num_threads
    alone = threading.current_thread() is threading.main_thread() and multiprocessing.parent_process() is None
    return None if alone else 1


# Arrays


def collection(name: str, x: object) -> da.Array:
    """Return a dask array whose chunks are known and not empty. A NumPy array becomes one chunk."""
    if isinstance(x, np.ndarray):
        return da.from_array(x, chunks=-1)
    if not isinstance(x, da.Array):
        raise TypeError(f"{name} must be a dask.array.Array or a numpy.ndarray, got {type(x).__name__}")
    if any(map(math.isnan, x.shape)):
        raise ValueError(f"{name} must have chunks of known sizes, got shape {x.shape}: call compute_chunk_sizes()")
    return x.rechunk(tuple(between(borders(sizes)) for sizes in x.chunks))


def stand_in(x: object) -> Any:
    """Return an array of x's shape and dtype that takes no memory, to check arguments with. Other objects stay."""
    return np.broadcast_to(np.zeros((), x.dtype), x.shape) if isinstance(x, da.Array | np.ndarray) else x


def computed_in(dtype: np.dtype) -> np.dtype:
    """Return the dtype of sums and log-sum-exps."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def blockwise(function: Callable, x: da.Array, *others: object, dtype: DTypeLike, **options: Any) -> da.Array:
    """Return an array of x's shape whose blocks are those of ``function(x, *others, **options)``.

    Arrays among the others broadcast to x and have its chunks.
    """
    axes = range(x.ndim)
    pairs = itertools.chain.from_iterable(
        (a, axes[x.ndim - a.ndim :] if isinstance(a, da.Array) else None) for a in others
    )
    meta = np.empty((0,) * x.ndim, dtype)
    return da.blockwise(function, axes, x, axes, *pairs, dtype=dtype, meta=meta, **options)


# Chunks: sizes along an axis. Borders: where they begin and end.


def borders(chunks: Iterable[int]) -> set[int]:  # noqa: D103
    return set(itertools.accumulate(chunks, initial=0))


def between(borders: set[int]) -> tuple[int, ...]:
    """Return the chunks between these borders."""
    return tuple(end - begin for begin, end in itertools.pairwise(sorted(borders))) or (0,)


def slices(chunks: Iterable[int]) -> list[slice]:  # noqa: D103
    return [slice(begin, end) for begin, end in itertools.pairwise(itertools.accumulate(chunks, initial=0))]


def common(axis: int, *arrays: da.Array) -> tuple[int, ...]:
    """Return the largest chunks of an axis, counted from the end, that cross no border of an array.

    Arrays may lack the axis, or broadcast along it.
    """
    chunks = [x.chunks[axis] for x in arrays if x.ndim >= -axis and x.shape[axis] != 1]
    return between(set().union(*map(borders, chunks))) if chunks else (1,)


def rechunked(x: da.Array, chunks: Sequence[tuple[int, ...]]) -> da.Array:
    """Return x with these chunks, except for axes that it lacks or that broadcast."""
    own = chunks[len(chunks) - x.ndim :]
    return x.rechunk(tuple((1,) if length == 1 else sizes for sizes, length in zip(own, x.shape, strict=True)))


def block(x: da.Array, index: Sequence[int]) -> TaskRef:
    """Return the block of x at a place of the grid of chunks; x may lack leading axes, or broadcast."""
    own = index[len(index) - x.ndim :]
    return TaskRef((x.name, *(i if count > 1 else 0 for i, count in zip(own, x.numblocks, strict=True))))


def part(x: NDArray, place: Sequence[slice]) -> NDArray:
    """Return the part of a NumPy array there; x may lack leading axes, or broadcast."""
    own = place[len(place) - x.ndim :]
    return x[tuple(slice(None) if length == 1 else cut for cut, length in zip(own, x.shape, strict=True))]


# Tasks


class Tasks:
    """The tasks that compute an array or several: calls of functions, and what they return."""

    def __init__(self, name: str, *arguments: object) -> None:
        self.token = tokenize(name, *arguments)
        self.name = f"{name}-tasks-{self.token}"
        self.tasks: dict[tuple, Task] = {}

    def add(self, name: str, index: tuple[int, ...], function: Callable, *arguments: Any, **options: Any) -> TaskRef:
        """Add a call of `function`; return its result."""
        key = (f"{name}-{self.token}", *index)
        self.tasks[key] = Task(key, function, *arguments, **options)
        return TaskRef(key)

    def merged(self, name: str, index: tuple[int, ...], parts: list[TaskRef], function: Callable) -> TaskRef:
        """Add a tree of calls of `function`, each with a list of a few results; return that of its root."""
        level = 0
        while len(parts) > 1:
            groups = [parts[i : i + FAN_IN] for i in range(0, len(parts), FAN_IN)]
            parts = [
                self.add(name, (*index, level, n), function, List(*group)) if len(group) > 1 else group[0]
                for n, group in enumerate(groups)
            ]
            level += 1
        return parts[0]

    def graph(self, *arrays: da.Array) -> HighLevelGraph:
        """Return the graph of all tasks, and of the arrays that they read."""
        return HighLevelGraph.from_collections(self.name, self.tasks, arrays)

    def array(
        self, graph: HighLevelGraph, name: str, blocks: dict, function: Callable, chunks: tuple, dtype: DTypeLike
    ) -> da.Array:
        """Return an array on that graph, whose block at an index is ``function(*blocks[index])``."""
        name = f"{name}-{self.token}"
        layer = {(name, *index): Task((name, *index), function, *arguments) for index, arguments in blocks.items()}
        graph = HighLevelGraph({**graph.layers, name: layer}, {**graph.dependencies, name: {self.name}})
        return da.Array(graph, name, chunks, meta=np.empty((0,) * len(chunks), dtype))
