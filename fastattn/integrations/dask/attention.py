"""Attention over dask arrays.

A task computes (out, lse) of one chunk of queries over one chunk of keys. Its options are those of the call, with
positions and lengths counted from the chunk's first key. The results over all chunks of keys are merged, a few at a
time. Chunks of keys that no query of a chunk sees have no task.
"""

from __future__ import annotations

import itertools
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import dask.array as da
import numpy as np

import fastattn
from fastattn import _arguments
from fastattn.integrations.dask.chunks import (
    Tasks,
    between,
    block,
    borders,
    collection,
    common,
    computed_in,
    part,
    rechunked,
    slices,
    stand_in,
    threads,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Literal, Unpack

    from dask.task_spec import TaskRef
    from numpy.typing import DTypeLike, NDArray

    from fastattn._typing import Call, IntOrIntegers, Window

# Offsets beyond this could overflow when positions are counted from another key.
FARTHEST = 1 << 61


@overload
def scaled_dot_product_attention(
    query: da.Array | NDArray[Any],
    key: da.Array | NDArray[Any],
    value: da.Array | NDArray[Any],
    attn_mask: da.Array | NDArray[Any] | None = None,
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[Call],
) -> da.Array: ...
@overload
def scaled_dot_product_attention(
    query: da.Array | NDArray[Any],
    key: da.Array | NDArray[Any],
    value: da.Array | NDArray[Any],
    attn_mask: da.Array | NDArray[Any] | None = None,
    *,
    return_lse: Literal[True],
    **options: Unpack[Call],
) -> tuple[da.Array, da.Array]: ...
@overload
def scaled_dot_product_attention(
    query: da.Array | NDArray[Any],
    key: da.Array | NDArray[Any],
    value: da.Array | NDArray[Any],
    attn_mask: da.Array | NDArray[Any] | None = None,
    *,
    return_lse: bool,
    **options: Unpack[Call],
) -> da.Array | tuple[da.Array, da.Array]: ...
def scaled_dot_product_attention(
    query: da.Array | NDArray,
    key: da.Array | NDArray,
    value: da.Array | NDArray,
    attn_mask: da.Array | NDArray | None = None,
    *,
    is_causal: bool = False,
    q_offset: IntOrIntegers | None = None,
    window: Window | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: NDArray | None = None,
    alibi_slopes: NDArray | None = None,
    position_bias: NDArray | None = None,
    kv_lengths: IntOrIntegers | None = None,
    return_lse: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Compute `fastattn.scaled_dot_product_attention` of dask arrays, chunked along any axis but the last.

    Parameters
    ----------
    query : dask Array or ndarray, shape (..., Hq, Sq, D)
        float32, float64, float16 or bfloat16. NumPy arrays are one chunk.
    key : dask Array or ndarray, shape (..., Hkv, Sk, D)
        Of query's dtype or a narrower one. Hq must be a multiple of Hkv.
    value : dask Array or ndarray, shape (..., Hkv, Sk, Dv)
        The leading axes of all three broadcast. Chunks of different arrays need not match: they are cut at the borders
        of all, and the last axis is made one chunk.
    attn_mask : dask Array or ndarray, broadcastable to (..., Hq, Sq, Sk), optional
        bool or float. Of an ndarray, blocks that exclude everything are not scheduled.
    is_causal, q_offset, window, scale, softcap, sinks, alibi_slopes, position_bias, kv_lengths
        As in `fastattn.scaled_dot_product_attention`: numbers, lists or NumPy arrays. Positions count over all chunks.
    return_lse : bool
        Also return the log-sum-exp of the scores.
    num_threads : int, optional
        Maximum number of threads of each task; 1 by default, as a worker runs a task on each of its threads.

    Returns
    -------
    out : dask Array, shape (..., Hq, Sq, Dv)
        In query's dtype, with query's chunks, which are cut further where needed.
    lse : dask Array, shape (..., Hq, Sq)
        Only with `return_lse`. float32, or float64 for float64 queries.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype. Options must not be dask arrays.
    ValueError
        Shapes do not match, a value is out of range, or an array has chunks of unknown sizes.

    Notes
    -----
    Each task returns out and lse over one chunk of keys; `fastattn.merge_states` merges them, four at a time: Ye et
    al., "Cascade Inference" (2024). Liu, Zaharia and Abbeel, "Ring Attention" (2023), divide queries and keys among
    machines in the same way. Of the tasks that are merged, only the first takes the sinks.

    Chunks affect the rounding of a result; scheduler, workers and threads do not. 16-bit results are rounded to 16 bits
    once over each chunk of keys, merged in float32, and rounded again at the end.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import fastattn
    >>> from fastattn.integrations.dask import scaled_dot_product_attention
    >>> x = np.random.default_rng(0).standard_normal((4, 100, 16), dtype=np.float32)
    >>> chunked = da.from_array(x, chunks=(2, 30, 16))
    >>> out = scaled_dot_product_attention(chunked, chunked, chunked, is_causal=True)
    >>> out.chunks
    ((2, 2), (30, 30, 30, 10), (16,))
    >>> whole = fastattn.scaled_dot_product_attention(x, x, x, is_causal=True)
    >>> np.allclose(out.compute(scheduler="synchronous"), whole, atol=1e-6)
    True
    """
    query, key, value = collection("query", query), collection("key", key), collection("value", value)
    mask = None if attn_mask is None else collection("attn_mask", attn_mask)
    same = {"is_causal": is_causal, "window": window, "scale": scale, "softcap": softcap, "num_threads": num_threads}
    local = {"q_offset": q_offset, "kv_lengths": kv_lengths, "sinks": sinks, "alibi_slopes": alibi_slopes}
    local["position_bias"] = position_bias
    for name, option in local.items():
        if isinstance(option, da.Array):
            raise TypeError(f"{name} must not be a dask.array.Array: pass {name}.compute()")
    _check(query, key, value, mask, same | local)
    return_lse = _arguments.flag("return_lse", return_lse)

    grid = _Grid(query, key, value)
    known_mask = attn_mask if isinstance(attn_mask, np.ndarray) else None
    options = _Options(grid, known_mask, is_causal=is_causal, window=window, **local)
    arrays = [grid.of_queries(query), grid.of_keys(key), grid.of_keys(value)]
    if mask is not None:
        arrays.append(grid.of_scores(mask))
    tasks = Tasks("attention", *arrays, same, local, known_mask is None)
    states = {}
    for place in grid.places():
        parts = _parts(tasks, grid, place, options, same, *arrays)
        states[place.name] = tasks.merged("attention-merge", place.name, parts, _merged)

    graph, chunks = tasks.graph(*arrays), (*grid.leading, grid.heads, grid.rows)[-grid.axes :]
    blocks = {(*name, 0): (state, query.dtype) for name, state in states.items()}
    out = tasks.array(graph, "attention", blocks, _out, (*chunks, value.shape[-1:]), query.dtype)
    if not return_lse:
        return out
    blocks = {name: (state,) for name, state in states.items()}
    lse = tasks.array(graph, "attention-lse", blocks, itemgetter(1), chunks, computed_in(query.dtype))
    return out, lse


def _check(query: da.Array, key: da.Array, value: da.Array, mask: da.Array | None, options: dict[str, Any]) -> None:
    """Raise what fastattn raises. Without elements of the values, it computes nothing."""
    query, key, value, mask = map(stand_in, (query, key, value, mask))
    no_values = value[..., :0] if value.ndim else value
    try:
        fastattn.scaled_dot_product_attention(query, key, no_values, mask, **options)
    except ValueError as error:
        if str(error).startswith("value"):  # and names its shape, which should be the real one
            fastattn.scaled_dot_product_attention(query[..., :0, :], key, value)
        raise


# Where things are


class _Place(NamedTuple):
    """A chunk of queries: of some sequences, some heads and some rows."""

    name: tuple[int, ...]  # its index among the chunks of the result, without the last axis
    queries: tuple[int, ...]  # and of query: (..., heads, rows)
    keys: tuple[int, ...]  # that of the heads of key that it reads: (..., heads)
    cuts: tuple[slice, ...]  # (..., heads, rows)


class _Grid:
    """The chunks of all arrays, cut at the borders of all."""

    def __init__(self, query: da.Array, key: da.Array, value: da.Array) -> None:
        arrays = query, key, value
        self.axes = max(x.ndim for x in arrays) - 1  # of the result, without the last one
        self.leading = tuple(common(-axis, *arrays) for axis in range(self.axes + 1, 3, -1))
        self.heads, self.kv_heads, self.kv_block = _head_chunks(common(-3, query), common(-3, key, value))
        self.rows, self.columns = common(-2, query), common(-2, key, value)

    def of_queries(self, query: da.Array) -> da.Array:
        return rechunked(query, (*self.leading, self.heads, self.rows, query.shape[-1:]))

    def of_keys(self, key: da.Array) -> da.Array:
        return rechunked(key, (*self.leading, self.kv_heads, self.columns, key.shape[-1:]))

    def of_scores(self, mask: da.Array) -> da.Array:
        return rechunked(mask, (*self.leading, self.heads, self.rows, self.columns))

    def places(self) -> Iterator[_Place]:
        cuts = [slices(chunks) for chunks in (*self.leading, self.heads, self.rows)]
        for index in itertools.product(*(range(len(own)) for own in cuts)):
            *leading, head, _ = index
            place = tuple(own[i] for own, i in zip(cuts, index, strict=True))
            yield _Place(index[len(index) - self.axes :], index, (*leading, self.kv_block[head]), place)


def _head_chunks(
    heads: tuple[int, ...], kv_heads: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], list[int]]:
    """Chunks of query heads, chunks of key heads, and which of these each of those reads.

    A chunk of query heads reads all of a chunk of key heads. So it is made of whole groups, or lies within a group,
    whose key head is a chunk of its own.
    """
    group = sum(heads) // max(1, sum(kv_heads))
    if not group:
        return (0,), (sum(kv_heads),), [0]
    ends = borders(heads) | {group * end for end in borders(kv_heads)}
    for end in [end for end in ends if end % group]:
        ends |= {end // group * group, (end // group + 1) * group}
    kv_ends = sorted({end // group for end in ends})
    return between(ends), between(kv_ends), [kv_ends.index(begin // group) for begin in sorted(ends)[:-1]]


class _Options:
    """The options that differ from chunk to chunk, and what they exclude."""

    def __init__(
        self, grid: _Grid, mask: NDArray | None, *, is_causal: bool, window: Sequence[int | None] | None,
        q_offset: Any, kv_lengths: Any, sinks: NDArray | None, alibi_slopes: NDArray | None,
        position_bias: NDArray | None,
    ) -> None:  # fmt: skip
        leading = tuple(map(sum, grid.leading))
        self._cuts = slices(grid.columns)
        self._begins, self._ends = (np.array([getattr(cut, end) for cut in self._cuts]) for end in ("start", "stop"))
        self._lengths = None if kv_lengths is None else _per_sequence(kv_lengths, leading)
        keys = sum(grid.columns) if self._lengths is None else self._lengths
        self._offsets = _per_sequence(keys - sum(grid.rows) if q_offset is None else q_offset, leading)
        if (self._offsets < -FARTHEST).any() or (self._offsets > FARTHEST).any():
            raise ValueError(f"q_offset must lie between -2**61 and 2**61, got {q_offset}")
        self._sinks, self._slopes, self._biases = sinks, alibi_slopes, position_bias
        # What the mask leaves; a dask array's is not known yet.
        self._kept = mask if mask is None or mask.dtype == bool else ~np.isneginf(mask)
        # The first and the last key that a sequence's query 0 sees.
        left, right = (None, None) if window is None else window
        right = 0 if is_causal else right
        self._first = None if left is None else self._offsets - min(left, 2 * FARTHEST)
        self._last = None if right is None else self._offsets + min(right, 2 * FARTHEST)

    def columns(self, place: _Place) -> list[int]:
        """Chunks of keys of which a query of the place may see some."""
        *sequences, _, rows = place.cuts
        ends = self._ends if self._lengths is None else np.minimum(self._ends, _column(self._lengths, sequences))
        seen = (self._begins < ends) & (rows.start < rows.stop)
        if self._first is not None:
            seen = seen & (ends > _column(self._first, sequences) + rows.start)
        if self._last is not None:
            seen = seen & (self._begins < _column(self._last, sequences) + rows.stop)
        seen = seen.reshape(-1, len(self._cuts)).any(axis=0)
        if self._kept is not None:
            seen &= [bool(part(self._kept, (*place.cuts, cut)).any()) for cut in self._cuts]
        return np.flatnonzero(seen).tolist()

    def at(self, place: _Place, column: int) -> dict[str, Any]:
        """The options over a chunk of keys, whose first one is at position 0 there."""
        *sequences, heads, rows = place.cuts
        cut = self._cuts[column]
        offsets = part(self._offsets, sequences) + rows.start - cut.start
        lengths = None
        if self._lengths is not None:
            lengths = np.clip(part(self._lengths, sequences) - cut.start, 0, cut.stop - cut.start)
        slopes = None if self._slopes is None else part(self._slopes, (*sequences, heads))
        biases = None if self._biases is None else self._biases[heads]
        return {"q_offset": offsets, "kv_lengths": lengths, "alibi_slopes": slopes, "position_bias": biases}

    def sinks(self, place: _Place) -> NDArray | None:
        return None if self._sinks is None else self._sinks[place.cuts[-2]]


def _per_sequence(x: Any, leading: tuple[int, ...]) -> NDArray[np.int64]:
    """One number, or one for each sequence."""
    x = np.asarray(x).astype(np.int64)
    return np.broadcast_to(x, leading) if x.ndim else x


def _column(x: NDArray[np.int64], sequences: list[slice]) -> NDArray[np.int64]:
    return part(x, sequences)[..., np.newaxis]


# Tasks


def _parts(
    tasks: Tasks, grid: _Grid, place: _Place, options: _Options, same: dict[str, Any],
    query: da.Array, key: da.Array, value: da.Array, mask: da.Array | None = None,
) -> list[TaskRef]:  # fmt: skip
    """Add a task for each chunk of keys that queries of the place may see; return their results."""
    parts, sinks = [], options.sinks(place)
    for column in options.columns(place):
        keys = (*place.keys, column, 0)
        blocks = block(query, (*place.queries, 0)), block(key, keys), block(value, keys)
        own_mask = None if mask is None else block(mask, (*place.queries, column))
        own = options.at(place, column) | {"sinks": None if parts else sinks}  # once
        parts.append(tasks.add("attention-part", (*place.name, column), _attention, *blocks, own_mask, **same, **own))
    if parts:
        return parts
    shape = (*(cut.stop - cut.start for cut in place.cuts), value.shape[-1])[-grid.axes - 1 :]
    return [tasks.add("attention-empty", place.name, _no_keys, shape, query.dtype, sinks)]


def _attention(
    query: NDArray, key: NDArray, value: NDArray, mask: NDArray | None, *, num_threads: int | None, **options: Any
) -> tuple[NDArray, NDArray]:
    """The state over a chunk of keys: (out, lse)."""
    return fastattn.scaled_dot_product_attention(
        query, key, value, mask, return_lse=True, num_threads=threads(num_threads), **options
    )


def _no_keys(shape: tuple[int, ...], dtype: np.dtype, sinks: NDArray | None) -> tuple[NDArray, NDArray]:
    """The state of queries that see no key."""
    *heads, rows, value_size = shape
    query, key, value = (np.zeros((*heads, *own), dtype) for own in ((rows, 1), (0, 1), (0, value_size)))
    return fastattn.scaled_dot_product_attention(query, key, value, sinks=sinks, return_lse=True)


def _merged(states: list[tuple[NDArray, NDArray]]) -> tuple[NDArray, NDArray]:
    """The state over several chunks; what is stored in 16 bits is merged, and kept, in float32."""
    outs, lses = zip(*states, strict=True)
    return fastattn.merge_states([out.astype(lses[0].dtype, copy=False) for out in outs], lses)


def _out(state: tuple[NDArray, NDArray], dtype: DTypeLike) -> NDArray:
    return state[0].astype(dtype, copy=False)
