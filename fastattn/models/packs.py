"""Cuts texts into packs, which go through the layers together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Tokens of a pack, by default.
TOKENS_AT_ONCE = 4096


def packs(order: NDArray, lengths: NDArray, most: int | None) -> Iterator[NDArray]:
    """Cut the texts in `order` into packs of `most` texts or, for None, of TOKENS_AT_ONCE tokens; at least one text."""
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        if most is None:
            limit = ends[start] - lengths[order[start]] + TOKENS_AT_ONCE
            end = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        else:
            end = start + most
        yield order[start:end]
        start = end
