"""Rows whose squares would overflow, brought near one by a power of two.

That rounds nothing but what is 2^-126 of the largest number in its row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def near_one(x: NDArray) -> tuple[NDArray, NDArray]:
    """The rows of x times 2^-n, the largest number of each below 1, and n (..., 1); n is 0 where that is not finite."""
    largest = np.abs(x).max(axis=-1, keepdims=True, initial=0)
    exponents = np.frexp(np.where(np.isfinite(largest), largest, 0))[1]
    return np.ldexp(x, -exponents), exponents
