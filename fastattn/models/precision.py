"""Embeddings in 8 bits or 1 bit for each number, as sentence-transformers quantises them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn.models.arrays import embeddings as embeddings_array
from fastattn.models.arrays import numbers

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray


def _levels(x: NDArray, ranges: NDArray) -> NDArray[np.uint8]:
    """The number of the step, of 256 from the smallest to the largest number of a column."""
    steps = (ranges[1] - ranges[0]) / 255
    steps[steps == 0] = 1
    return np.clip(np.floor((x - ranges[0]) / steps), 0, 255).astype(np.uint8)


def _bits(x: NDArray) -> NDArray[np.uint8]:
    return np.packbits(x > 0, axis=-1)


def _signed(x: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Each number less 128."""
    return (x ^ 0x80).view(np.int8)


# What depends on the range of every column; it takes embeddings and (smallest, largest), (2, D).
CALIBRATED: dict[str, Callable[[NDArray, NDArray], NDArray]] = {
    "int8": lambda x, ranges: _signed(_levels(x, ranges)),
    "uint8": _levels,
}
# What an embedding alone decides.
_ALONE: dict[str, Callable[[NDArray], NDArray]] = {
    "float32": lambda x: x,
    "binary": lambda x: _signed(_bits(x)),
    "ubinary": _bits,
}
PRECISIONS = ("float32", *CALIBRATED, "binary", "ubinary")


def checked_precision(precision: Any, *, alone: bool = False) -> str:
    """A precision; only one that needs no other embeddings if `alone`."""
    known = tuple(_ALONE) if alone else PRECISIONS
    if not isinstance(precision, str):
        raise TypeError(f"precision must be a str, got {type(precision).__name__}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision not in known:
        raise ValueError(
            f"precision must be one of {', '.join(known)} where embeddings come one by one, got {precision!r}, which "
            f"needs the range of all: use quantize_embeddings with ranges"
        )
    return precision


def quantized(x: NDArray, precision: str, ranges: NDArray | None = None) -> NDArray:
    """Embeddings (N, D) in a precision; those that are calibrated take their own range for None."""
    if precision in _ALONE:
        return _ALONE[precision](x)
    if ranges is None:
        if len(x) == 1:
            raise ValueError(
                f"precision {precision!r} must have the range of two embeddings or more, got one text: use "
                f"quantize_embeddings with ranges or calibration_embeddings"
            )
        ranges = ranges_of(x) if len(x) else np.zeros((2, x.shape[1]), np.float32)
    return CALIBRATED[precision](x, ranges)


def ranges_of(x: NDArray) -> NDArray:
    """The smallest and largest number of every column, (2, D)."""
    return np.stack((x.min(axis=0), x.max(axis=0)))


def quantize_embeddings(
    embeddings: ArrayLike,
    precision: str,
    *,
    ranges: ArrayLike | None = None,
    calibration_embeddings: ArrayLike | None = None,
) -> NDArray:
    """Quantize embeddings, as `SentenceEncoder.encode` does by its argument `precision`.

    Parameters
    ----------
    embeddings : array_like, shape (N, D) or (D,)
    precision : {"float32", "int8", "uint8", "binary", "ubinary"}
        int8 and uint8 divide the range of each column into 256 steps. binary and ubinary keep a bit for each number,
        whether it is positive, eight to a byte.
    ranges : array_like, shape (2, D), optional
        The smallest and the largest number of each column, for int8 and uint8. Numbers beyond are clipped.
    calibration_embeddings : array_like, shape (M, D), optional
        Embeddings that have these ranges. By default, the embeddings themselves have.

    Returns
    -------
    ndarray, shape (N, D) or (D,)
        float32, int8 or uint8. For binary (int8: bytes less 128) and ubinary (uint8), D / 8 rounded up in place of D.

    Raises
    ------
    TypeError
        `precision` is not a str, or an array does not hold floating-point numbers.
    ValueError
        `precision` is none of these, a shape does not match, or a single embedding has to be its own calibration.

    Notes
    -----
    Results are those of sentence-transformers' `quantize_embeddings`. Queries are comparable to documents that were
    quantised with the same ranges.

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn.models import quantize_embeddings
    >>> x = np.array([[-1.0, 0.5, 0.0], [1.0, 1.0, -0.5]], np.float32)
    >>> quantize_embeddings(x, "ubinary").tolist()
    [[64], [192]]
    >>> quantize_embeddings(x[0], "int8", ranges=[[-1, 0, -1], [1, 1, 1]]).tolist()
    [-128, -1, -1]
    """
    checked_precision(precision)
    x = embeddings_array("embeddings", embeddings)
    size, found = x.shape[-1], None
    if ranges is not None:
        found = numbers("ranges", ranges, "iuf")
        if found.shape != (2, size):
            raise ValueError(f"ranges must have shape (2, {size}), got shape {found.shape}")
    elif calibration_embeddings is not None:
        several = numbers("calibration_embeddings", calibration_embeddings, "f")
        if several.ndim != 2 or several.shape[1] != size or not len(several):
            raise ValueError(
                f"calibration_embeddings must have shape (M, {size}) and M at least 1, got shape {several.shape}"
            )
        found = ranges_of(several)
    result = quantized(np.atleast_2d(x), precision, found)
    return result[0] if x.ndim == 1 else result
