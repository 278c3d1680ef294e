"""Scores of embeddings that have a vector for each token: MaxSim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn.linear import linear
from fastattn.models.inputs import cumulated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# The score of a document without vectors, as in sentence-transformers: below any other.
WITHOUT_VECTORS = -1e9

# Products of vectors at a time, 4 MB.
AT_ONCE = 1 << 20


def checked(name: str, x: Any) -> list[NDArray[np.float32]]:
    """Embeddings from the caller: arrays (tokens, D) of one D, or a single one, in float32."""
    if isinstance(x, np.ndarray) and x.ndim == 2 and x.dtype.kind in "fV":
        x = [x]
    if isinstance(x, str | bytes) or not hasattr(x, "__iter__"):
        raise TypeError(f"{name} must be a list of arrays, got {type(x).__name__}")
    arrays = []
    for i, array in enumerate(x):
        found = np.asarray(array)
        if found.dtype.kind != "f" and found.dtype.name != "bfloat16":
            raise TypeError(f"{name}[{i}] must hold floating-point numbers, got dtype {found.dtype}")
        if found.ndim != 2:
            raise ValueError(f"{name}[{i}] must have shape (tokens, D), got shape {found.shape}")
        arrays.append(found.astype(np.float32, copy=False))
    return arrays


def _check_sizes(queries: Sequence[NDArray], documents: Sequence[NDArray]) -> None:
    sizes = {x.shape[1] for x in (*queries, *documents)}
    if len(sizes) > 1:
        raise ValueError(f"embeddings must have vectors of one size, got {', '.join(map(str, sorted(sizes)))}")


def maxsim(
    queries: Sequence[NDArray], documents: Sequence[NDArray], *, mean: bool, num_threads: int | None
) -> NDArray[np.float32]:
    """For each query and document, the sum or mean over the query's vectors of the largest product, (N, M)."""
    _check_sizes(queries, documents)
    scores = np.full((len(queries), len(documents)), WITHOUT_VECTORS, np.float32)
    lengths = np.array([len(x) for x in documents], np.int64)
    some = np.flatnonzero(lengths)
    for i, query in enumerate(queries):
        for part in _parts(some, lengths, max(1, AT_ONCE // max(len(query), 1))):
            keys = np.concatenate([documents[j] for j in part]) if len(part) > 1 else documents[part[0]]
            products = linear(keys, query, num_threads=num_threads)  # (document tokens, query tokens)
            starts = cumulated(lengths[part])[:-1]
            scores[i, part] = np.maximum.reduceat(products, starts, axis=0).sum(axis=1)
        if mean:
            scores[i] /= max(len(query), 1)
    return scores


def maxsim_pairwise(
    queries: Sequence[NDArray], documents: Sequence[NDArray], *, mean: bool, num_threads: int | None
) -> NDArray[np.float32]:
    """The same for the i-th query and the i-th document, (N,)."""
    if len(queries) != len(documents):
        raise ValueError(f"embeddings1 and embeddings2 must be as many, got {len(queries)} and {len(documents)}")
    rows = [
        maxsim([query], [document], mean=mean, num_threads=num_threads)[0, 0]
        for query, document in zip(queries, documents, strict=True)
    ]
    return np.array(rows, np.float32)


def _parts(numbers: NDArray, lengths: NDArray, most: int) -> list[NDArray]:
    """Cut documents into parts of about `most` tokens, at least one document each."""
    ends = np.cumsum(lengths[numbers])
    return [part for part in np.split(numbers, np.flatnonzero(np.diff(ends // most)) + 1) if len(part)]
