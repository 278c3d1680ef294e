"""Embeddings of length 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastattn._scaling import near_one

if TYPE_CHECKING:
    from numpy.typing import NDArray


def unit(x: NDArray) -> NDArray:
    """Scale rows to length 1. The minimum divisor is PyTorch's: a row of zeros stays zero."""
    lengths = _lengths(x)
    if np.isinf(lengths).any():  # squares of float32 overflow from 1.8e19 on; other rows keep their bits
        x = np.where(np.isinf(lengths), near_one(x)[0], x)
        lengths = _lengths(x)
    return x / np.maximum(lengths, 1e-12)


@np.errstate(over="ignore")
def _lengths(x: NDArray) -> NDArray:
    return np.linalg.norm(x, axis=1, keepdims=True)
