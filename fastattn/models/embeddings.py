"""Token ids to rows: words, positions and token types, added and normalised; the rules for positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastattn.linear import linear
from fastattn.normalization import layer_norm

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Embeddings:
    """The embedding tables of a model, in the dtype of its files, and what follows them in float32."""

    __slots__ = ("_eps", "_positions", "_scale", "_token_types", "_words", "bias", "projection", "weight")

    def __init__(
        self,
        words: NDArray,
        positions: NDArray | None = None,
        token_types: NDArray | None = None,
        norm: NDArray | None = None,
        norm_bias: NDArray | None = None,
        projection: NDArray | None = None,
        projection_bias: NDArray | None = None,
        *,
        eps: float,
        scale: float | None = None,
    ) -> None:
        self._words, self._positions, self._token_types = words, positions, token_types
        self.weight, self.bias = _in_float32(norm), _in_float32(norm_bias)
        self.projection = None if projection is None else (_in_float32(projection), _in_float32(projection_bias))
        self._eps, self._scale = eps, scale

    def __call__(
        self, ids: NDArray, positions: NDArray, token_types: NDArray | None, num_threads: int | None = None
    ) -> NDArray:
        """float32 rows (tokens, H) of these tokens; without token types all are of type 0."""
        x = self._words[ids].astype(np.float32, copy=False)
        if self._scale is not None:
            x *= np.float32(self._scale)
        if self._token_types is not None:
            x += self._token_types[0 if token_types is None else token_types]
        if self._positions is not None:
            x += self._positions[positions]
        if self.weight is not None:
            x = layer_norm(x, self.weight, self.bias, eps=self._eps, out=x, num_threads=num_threads)
        if self.projection is not None:
            x = linear(x, *self.projection, num_threads=num_threads)
        return x


def _in_float32(x: NDArray | None) -> NDArray | None:
    return None if x is None else x.astype(np.float32)


def token_positions(ids: NDArray, starts: NDArray, lengths: NDArray, skipped: int | None) -> NDArray:
    """The positions of tokens in packed sequences that begin at `starts`.

    They count from 0. With an id `skipped` (RoBERTa), tokens of that id are not counted and all have that position; the
    others count from the next one on.
    """
    if skipped is None:
        return np.arange(len(ids)) - np.repeat(starts, lengths)
    counted = ids != skipped
    so_far = np.concatenate([[0], np.cumsum(counted)])
    return np.where(counted, so_far[1:] - np.repeat(so_far[starts], lengths), 0) + skipped
