"""SPLADE: hidden states to a weight for each word of the vocabulary, without all logits in memory at once."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from fastattn import _arguments
from fastattn.linear import linear
from fastattn.models.backbone import ACTIVATIONS
from fastattn.models.float16 import check_finite
from fastattn.nn.weights import Linear
from fastattn.weights import converted, pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fastattn.models.heads import Vocabulary

# Logits that are computed at a time, tokens and words: 1 MB in float32, which the second-level cache holds.
TOKENS, WORDS = 256, 1024


class Splade:
    """The head of a masked language model, and the pooling of its logits. It is immutable.

    The weight of a word is log(1 + relu(logit)), the largest or the sum over the tokens of a text.
    """

    __slots__ = ("_activations", "_blocks", "_dtype", "_sums", "_transform", "_twice", "size")

    def __init__(self, head: Vocabulary, dtype: str, packs: bool, *, sums: bool, twice: bool) -> None:
        """`sums` adds up the tokens' weights instead of taking the largest; `twice` takes the logarithm twice."""
        weight, bias = converted("the head's weight", head.weight, _arguments.storage_dtype("dtype", dtype)), head.bias
        whole = Linear(pack(weight) if packs else weight, bias)
        self.size = whole.stored.shape[0]
        self._blocks = [
            (slice(first, last), whole.rows(first, last))
            for first in range(0, self.size, WORDS)
            for last in [min(first + WORDS, self.size)]
        ]
        self._transform, self._sums, self._twice, self._dtype = head.transform, sums, twice, dtype
        self._activations = _arguments.storage_dtype("dtype", ACTIVATIONS[dtype])

    def __call__(self, hidden: NDArray, cu_seqlens: NDArray, num_threads: int | None) -> NDArray[np.float32]:
        """Weights (N, vocabulary) of N texts packed in hidden states (tokens, H); zeros for a text without tokens."""
        x = self._transform(hidden).astype(self._activations, copy=False)
        weights = np.zeros((len(cu_seqlens) - 1, self.size), np.float32)
        buffer = np.empty(TOKENS * WORDS, x.dtype)
        for words, block in self._blocks:
            of_words = weights[:, words]
            for start, end, texts in _pieces(cu_seqlens):
                logits = buffer[: (end - start) * of_words.shape[1]].reshape(end - start, -1)
                linear(x[start:end], block.weight, block.bias, out=logits, num_threads=num_threads)
                self._add(logits, texts, of_words)
        check_finite(self._dtype, weights)
        return weights if self._sums else self._log(weights)

    def _add(self, logits: NDArray, texts: list[tuple[int, int, int]], weights: NDArray) -> None:
        """Take logits of some tokens into the weights of their texts, (number, first token, last token + 1)."""
        if self._sums:
            logits = self._log(np.maximum(logits.astype(np.float32, copy=False), 0))
        for i, first, last in texts:
            if self._sums:
                weights[i] += logits[first:last].sum(axis=0)
            else:  # the logarithm is monotonic, and the weights begin at 0
                np.maximum(weights[i], logits[first:last].max(axis=0).astype(np.float32, copy=False), out=weights[i])

    def _log(self, x: NDArray) -> NDArray:
        np.log1p(x, out=x)
        return np.log1p(x, out=x) if self._twice else x


def _pieces(cu_seqlens: NDArray) -> Iterator[tuple[int, int, list[tuple[int, int, int]]]]:
    """Cut tokens into pieces: (first, last + 1, the texts in it as (number, first, last + 1 within the piece))."""
    total = int(cu_seqlens[-1])
    for start in range(0, total, TOKENS):
        end = min(start + TOKENS, total)
        first, last = np.searchsorted(cu_seqlens, start, "right") - 1, np.searchsorted(cu_seqlens, end, "left")
        bounds = np.clip(cu_seqlens[first : last + 1] - start, 0, end - start).tolist()
        texts = [(first + i, a, b) for i, (a, b) in enumerate(pairwise(bounds)) if b > a]
        yield start, end, texts
