"""Relative position biases of MPNet and T5: checkpoints hold one for each bucket of distances, attention takes one for
each distance.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Buckets(NamedTuple):
    """Distances of a key from its query, in buckets that grow with the distance; half of them are ahead."""

    count: int
    farthest: int  # the distance from which on all are in the last bucket of their side

    def of(self, distance: NDArray[np.int64]) -> NDArray[np.int64]:
        """The buckets of distances, key minus query: one for each small distance, then by the logarithm."""
        half = self.count // 2
        exact = half // 2
        far = np.abs(distance)
        # In float32, as models were trained: buckets begin where that rounds.
        ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(
            math.log(self.farthest / exact)
        )
        large = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int64), half - 1)
        return np.where(far < exact, far, large) + half * (distance > 0)

    def position_bias(self, biases: NDArray, positions: int) -> NDArray[np.float32]:
        """The table (heads, 2 R + 1) of `fastattn.varlen_attention`, for sequences of up to so many positions."""
        reach = min(self.farthest, positions - 1)
        return np.ascontiguousarray(biases.astype(np.float32)[self.of(np.arange(-reach, reach + 1))].T)
