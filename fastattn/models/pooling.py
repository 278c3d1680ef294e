"""Hidden states of packed sequences to one embedding for each, as sentence-transformers' modules define them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastattn.linear import linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def _mean(x: NDArray, starts: NDArray, lengths: NDArray) -> NDArray:
    return np.add.reduceat(x, starts, axis=0) / lengths.astype(x.dtype)[:, None]


def _mean_sqrt_len(x: NDArray, starts: NDArray, lengths: NDArray) -> NDArray:
    return np.add.reduceat(x, starts, axis=0) / np.sqrt(lengths.astype(x.dtype))[:, None]


def _weighted_mean(x: NDArray, starts: NDArray, lengths: NDArray) -> NDArray:
    weights = (np.arange(1, len(x) + 1) - np.repeat(starts, lengths)).astype(x.dtype)[:, None]
    return np.add.reduceat(x * weights, starts, axis=0) / np.add.reduceat(weights, starts, axis=0)


# Each takes hidden states (tokens, H), where sequences begin, and their lengths, none of them 0.
MODES: dict[str, Callable[[NDArray, NDArray, NDArray], NDArray]] = {
    "cls": lambda x, starts, lengths: x[starts],
    "lasttoken": lambda x, starts, lengths: x[starts + lengths - 1],
    "max": lambda x, starts, lengths: np.maximum.reduceat(x, starts, axis=0),
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
}

# activation_function of a dense layer; None: the sums themselves.
ACTIVATIONS: dict[str, Callable[[NDArray], NDArray] | None] = {
    "torch.nn.modules.activation.Tanh": np.tanh,
    "torch.nn.modules.linear.Identity": None,
}


class Dense(NamedTuple):
    """A dense layer behind the pooling."""

    weight: NDArray
    bias: NDArray | None
    activation: Callable[[NDArray], NDArray] | None

    def __call__(self, x: NDArray) -> NDArray:
        """The layer's output (N, out_features)."""
        x = linear(x, self.weight, self.bias)
        return x if self.activation is None else self.activation(x)


class Pooling(NamedTuple):
    """All that comes behind the transformer."""

    modes: tuple[str, ...]
    dense: tuple[Dense, ...]
    normalize: bool
    size: int  # what is beyond is cut off

    def __call__(self, x: NDArray, cu_seqlens: NDArray, normalize: bool | None) -> NDArray:
        """Embeddings (N, size) of N sequences that are packed in x (tokens, H); a sequence without tokens gives zeros.

        `normalize`: whether they are scaled to length 1; None: as the model says, which is before they are cut off.
        """
        lengths = np.diff(cu_seqlens)
        some = lengths > 0
        pooled = np.zeros((len(lengths), x.shape[1] * len(self.modes)), x.dtype)
        if some.any():
            starts = cu_seqlens[:-1][some]
            pooled[some] = np.concatenate([MODES[mode](x, starts, lengths[some]) for mode in self.modes], axis=1)
        for layer in self.dense:
            pooled = layer(pooled)
        if normalize is None and self.normalize:
            pooled = _unit(pooled)
        pooled = pooled[:, : self.size]
        return _unit(pooled) if normalize else pooled


def _unit(x: NDArray) -> NDArray:
    """Rows of length 1. The least divisor is PyTorch's: a row of zeros stays one."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
