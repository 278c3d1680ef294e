"""Hidden states of packed sequences to one embedding each, as defined by sentence-transformers' modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastattn.linear import linear
from fastattn.models.units import unit
from fastattn.normalization import layer_norm

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


class Sequences(NamedTuple):
    """The bounds of packed sequences; none is empty."""

    starts: NDArray  # where they begin
    lengths: NDArray
    first: int  # the position of their first tokens


def _mean(x: NDArray, of: Sequences) -> NDArray:
    return np.add.reduceat(x, of.starts, axis=0) / of.lengths.astype(x.dtype)[:, None]


def _mean_sqrt_len(x: NDArray, of: Sequences) -> NDArray:
    return np.add.reduceat(x, of.starts, axis=0) / np.sqrt(of.lengths.astype(x.dtype))[:, None]


def _weighted_mean(x: NDArray, of: Sequences) -> NDArray:
    weights = (np.arange(1, len(x) + 1) - np.repeat(of.starts - of.first, of.lengths)).astype(x.dtype)[:, None]
    return np.add.reduceat(x * weights, of.starts, axis=0) / np.add.reduceat(weights, of.starts, axis=0)


# Each takes hidden states (tokens, H) and the bounds of the sequences.
MODES: dict[str, Callable[[NDArray, Sequences], NDArray]] = {
    "cls": lambda x, of: x[of.starts],
    "lasttoken": lambda x, of: x[of.starts + of.lengths - 1],
    "max": lambda x, of: np.maximum.reduceat(x, of.starts, axis=0),
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
}


def sigmoid(x: NDArray) -> NDArray:
    """The logistic function."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


# activation_function of a dense layer -> the activation of `linear`, or a function applied after it.
ACTIVATIONS: dict[str, str | Callable[[NDArray], NDArray] | None] = {
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": sigmoid,
    "torch.nn.modules.activation.Tanh": np.tanh,
    "torch.nn.modules.linear.Identity": None,
}


class Dense(NamedTuple):
    """A dense layer after the pooling."""

    weight: NDArray
    bias: NDArray | None
    activation: str | Callable[[NDArray], NDArray] | None

    def __call__(self, x: NDArray) -> NDArray:
        """The layer's output (N, out_features)."""
        if callable(self.activation):
            return self.activation(linear(x, self.weight, self.bias))
        return linear(x, self.weight, self.bias, activation=self.activation)


class LayerNorm(NamedTuple):
    """A layer normalisation after the pooling, with torch's eps."""

    weight: NDArray
    bias: NDArray

    def __call__(self, x: NDArray) -> NDArray:
        """Rows of the same size."""
        return layer_norm(x, self.weight, self.bias)


class Pooling(NamedTuple):
    """The modules after the transformer."""

    modes: tuple[str, ...]
    steps: tuple[Callable[[NDArray], NDArray], ...]
    normalize: bool
    size: int  # of an embedding before truncation

    def __call__(self, x: NDArray, cu_seqlens: NDArray, *, skipped: int, normalize: bool | None, size: int) -> NDArray:
        """Embeddings (N, size) of N sequences packed in x (tokens, H); zeros for a sequence without pooled tokens.

        `skipped` tokens at the beginning of each are not pooled. `normalize` scales embeddings to length 1; None
        follows the model, which does so before truncation to `size`.
        """
        lengths = np.diff(cu_seqlens)
        if skipped:
            x = x[np.arange(len(x)) - np.repeat(cu_seqlens[:-1], lengths) >= skipped]
            lengths = np.maximum(lengths - skipped, 0)
        some = lengths > 0
        pooled = np.zeros((len(lengths), x.shape[1] * len(self.modes)), x.dtype)
        if some.any():
            sequences = Sequences((np.cumsum(lengths) - lengths)[some], lengths[some], skipped)
            pooled[some] = np.concatenate([MODES[mode](x, sequences) for mode in self.modes], axis=1)
        for step in self.steps:
            pooled = step(pooled)
        if normalize is None and self.normalize:
            pooled = unit(pooled)
        pooled = pooled[:, :size]
        return unit(pooled) if normalize else pooled
