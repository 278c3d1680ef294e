"""Similarity of embeddings, by the name that config_sentence_transformers.json gives the function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn.linear import linear
from fastattn.models.arrays import embeddings
from fastattn.models.units import unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# Rows of the second array at a time, so that intermediate arrays stay small: 4 MB of float64 for 384 numbers in a row.
_ROWS_AT_ONCE = 1024


def _cosine(x: NDArray, y: NDArray) -> NDArray:
    return linear(unit(x), unit(y))


def _euclidean(x: NDArray, y: NDArray) -> NDArray:
    """By squares and products in float64, where what cancels out for near embeddings does not matter."""
    x = x.astype(np.float64)
    squares = np.einsum("ij,ij->i", x, x)[:, None]

    def distances(part: NDArray) -> NDArray:
        part = part.astype(np.float64)
        return np.sqrt(np.maximum(squares - 2 * linear(x, part) + np.einsum("ij,ij->i", part, part), 0))

    return -_by_parts(distances, x, y)


def _manhattan(x: NDArray, y: NDArray) -> NDArray:
    return -_by_parts(lambda part: np.stack([np.abs(part - row).sum(axis=1) for row in x]), x, y)


def _by_parts(distances: Callable[[NDArray], NDArray], x: NDArray, y: NDArray) -> NDArray[np.float32]:
    result = np.empty((len(x), len(y)), np.float32)
    for start in range(0, len(y) if len(x) else 0, _ROWS_AT_ONCE):
        result[:, start : start + _ROWS_AT_ONCE] = distances(y[start : start + _ROWS_AT_ONCE])
    return result


# similarity_fn_name -> a function of (N, D) and (M, D) whose result is (N, M). Distances are negative.
SIMILARITIES: dict[str, Callable[[NDArray, NDArray], NDArray]] = {
    "cosine": _cosine,
    "dot": linear,
    "euclidean": _euclidean,
    "manhattan": _manhattan,
}


def checked_similarity(path: Any, name: Any) -> str:
    """The field similarity_fn_name of a file; null is cosine."""
    if name is None:
        return "cosine"
    if not isinstance(name, str) or name not in SIMILARITIES:
        raise ValueError(f"{path}: similarity_fn_name must be one of {', '.join(SIMILARITIES)}, got {name!r:.80}")
    return name


def similarity(function: str, embeddings1: Any, embeddings2: Any) -> NDArray[np.float32]:
    """The similarity of every embedding of the one array to every one of the other, (N, M)."""
    x, y = (
        np.atleast_2d(embeddings(name, array, "iuf"))
        for name, array in (("embeddings1", embeddings1), ("embeddings2", embeddings2))
    )
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"embeddings1 and embeddings2 must have rows of one size, got {x.shape[1]} and {y.shape[1]} numbers"
        )
    return SIMILARITIES[function](x, y)
