"""Sparse vectors in compressed rows, as SciPy's csr_array where SciPy is installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn.models import units

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SparseVectors(NamedTuple):
    """Vectors in compressed sparse rows: what `SparseEncoder` returns where SciPy is not installed.

    Vector i has the numbers ``data[indptr[i]:indptr[i + 1]]`` at ``indices[indptr[i]:indptr[i + 1]]``, in ascending
    order; ``scipy.sparse.csr_array((data, indices, indptr), shape)`` is the same.

    Attributes
    ----------
    data : ndarray
        float32, none of them 0.
    indices, indptr : ndarray
        Integers.
    shape : tuple of int
        (number of vectors, size of the vocabulary)

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn.models import SparseVectors
    >>> SparseVectors(np.ones(2, np.float32), np.array([4, 7]), np.array([0, 2]), (1, 10)).toarray()
    array([[0., 0., 0., 0., 1., 0., 0., 1., 0., 0.]], dtype=float32)
    """

    data: NDArray[np.float32]
    indices: NDArray[np.int32]
    indptr: NDArray[np.int64]
    shape: tuple[int, int]

    def toarray(self) -> NDArray[np.float32]:
        """Return the dense array, of `shape`."""
        dense = np.zeros(self.shape, np.float32)
        dense[np.repeat(np.arange(self.shape[0]), np.diff(self.indptr)), self.indices] = self.data
        return dense


class Rows(NamedTuple):
    """Some rows in compressed form."""

    lengths: NDArray
    indices: NDArray
    data: NDArray


def rows_of(dense: NDArray, most: int | None) -> Rows:
    """The numbers other than 0 of each dense row; at most so many, the largest."""
    if most is not None and most < dense.shape[1]:
        kept = np.argpartition(-dense, most - 1, axis=1)[:, :most]
        largest = np.zeros_like(dense)
        np.put_along_axis(largest, kept, np.take_along_axis(dense, kept, axis=1), axis=1)
        dense = largest
    rows, columns = np.nonzero(dense)
    return Rows(np.bincount(rows, minlength=len(dense)), columns.astype(np.int32), dense[rows, columns])


def joined(parts: list[Rows], order: NDArray, size: int) -> Any:
    """The rows of all parts, whose i-th row is row `order[i]` of the result."""
    lengths = np.concatenate([part.lengths for part in parts]) if parts else np.empty(0, np.int64)
    indices = np.concatenate([part.indices for part in parts]) if parts else np.empty(0, np.int32)
    data = np.concatenate([part.data for part in parts]) if parts else np.empty(0, np.float32)
    back = np.argsort(order)
    starts, lengths = (np.cumsum(lengths) - lengths)[back], lengths[back]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
    return made(SparseVectors(data[places], indices[places], indptr, (len(lengths), size)))


def made(vectors: SparseVectors) -> Any:
    """A csr_array if SciPy is installed."""
    if find_spec("scipy") is None:
        return vectors
    from scipy.sparse import csr_array

    return csr_array(vectors[:3], shape=vectors.shape)


def checked(name: str, x: Any) -> SparseVectors:
    """Vectors from the caller: SparseVectors, or a sparse array or matrix of SciPy."""
    if not isinstance(x, SparseVectors):
        if not hasattr(x, "tocsr"):
            raise TypeError(f"{name} must be sparse vectors as encode returns them, got {type(x).__name__}")
        x = x.tocsr()
        x = SparseVectors(x.data, x.indices, x.indptr, x.shape)
    if len(x.shape) != 2 or x.data.dtype.kind != "f":
        raise ValueError(f"{name} must be rows of floating-point numbers, got shape {x.shape}, dtype {x.data.dtype}")
    return x


def dot(x: SparseVectors, y: SparseVectors) -> NDArray[np.float32]:
    """The scalar product of each vector of x with each of y, (N, M)."""
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"embeddings must be of one size, got {x.shape[1]} and {y.shape[1]}")
    result = np.empty((x.shape[0], y.shape[0]), np.float32)
    dense = np.zeros(x.shape[1], np.float32)
    some = np.diff(y.indptr) > 0
    for i, row in enumerate(result):
        of_row = slice(x.indptr[i], x.indptr[i + 1])
        dense[x.indices[of_row]] = x.data[of_row]
        row[~some] = 0
        if some.any():
            row[some] = np.add.reduceat(y.data * dense[y.indices], y.indptr[:-1][some])
        dense[x.indices[of_row]] = 0
    return result


@np.errstate(over="ignore")
def unit(x: SparseVectors) -> SparseVectors:
    """Vectors of length 1; the minimum divisor is PyTorch's."""
    lengths = np.diff(x.indptr)
    squares = np.bincount(np.repeat(np.arange(x.shape[0]), lengths), x.data.astype(np.float64) ** 2, x.shape[0])
    norms = np.maximum(np.sqrt(squares), 1e-12).astype(np.float32)
    data = x.data / np.repeat(norms, lengths)
    for i in np.flatnonzero(np.isinf(norms)):  # from float32's largest number on
        of_row = slice(x.indptr[i], x.indptr[i + 1])
        data[of_row] = units.unit(x.data[np.newaxis, of_row])[0]
    return x._replace(data=data)
