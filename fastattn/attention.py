"""Scaled dot-product attention, and the merging of attention over parts of the keys.

Compiled half: _core/attention.pyx; kernels: _core/kernels/attention_*.h; definition: reference.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastattn import _arguments
from fastattn._core import attention as _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def scaled_dot_product_attention(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    *,
    is_causal: bool = False,
    q_offset: int | None = None,
    scale: float | None = None,
    out: NDArray | None = None,
    return_lse: bool = False,
    num_threads: int | None = None,
) -> NDArray | tuple[NDArray, NDArray]:
    """Attend each query to all keys that it may see, and return the weighted sum of their values.

    ``softmax(scale * query @ key.T) @ value``, computed tile by tile: the scores are never stored whole.

    Parameters
    ----------
    query : ndarray, shape (..., Hq, Sq, D)
        float32 or float64, at any strides. Two axes (Sq, D) mean one head.
    key : ndarray, shape (..., Hkv, Sk, D)
        Of query's dtype or a narrower one. Hq is a multiple of Hkv: the query heads
        ``h * Hq // Hkv`` to ``(h + 1) * Hq // Hkv - 1`` share key head ``h`` (grouped-query attention).
    value : ndarray, shape (..., Hkv, Sk, Dv)
        Dv may differ from D. Leading axes of the three broadcast as in NumPy.
    is_causal : bool
        Query i stands at position ``i + q_offset``, key j at j; a query sees the keys up to its own position.
    q_offset : int, optional
        Position of the first query. The default, ``Sk - Sq``, lets the last query meet the last key, as decoding with
        a cache needs; 0 is the top-left alignment of PyTorch and ONNX.
    scale : float, optional
        Factor of the scores; ``1 / sqrt(D)`` by default.
    out : ndarray, shape (..., Hq, Sq, Dv), optional
        Where the result goes: any writable array of query's dtype. It may overlap the inputs.
    return_lse : bool
        Also return the log-sum-exp of the scores, as `merge_states` needs it.
    num_threads : int, optional
        At most so many threads; see `set_num_threads`.

    Returns
    -------
    out : ndarray, shape (..., Hq, Sq, Dv)
        In query's dtype and memory order. Zero where a query sees no key.
    lse : ndarray, shape (..., Hq, Sq)
        Only with `return_lse`. Natural logarithm; -inf where a query sees no key.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        Shapes do not fit, or a value is out of range. In both cases `out` is as it was.

    Notes
    -----
    Vaswani et al., "Attention Is All You Need" (2017); computed in one pass with a running softmax (Milakov and
    Gimelshein 2018; Rabe and Staats 2021; Dao et al. 2022). Keys that the causal mask excludes are not read. The result
    for one sequence is the same to the bit for any number of threads and whatever else is in the batch.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> rng = np.random.default_rng(0)
    >>> query = rng.standard_normal((8, 5, 64), dtype=np.float32)   # 8 query heads, 5 tokens
    >>> key, value = rng.standard_normal((2, 2, 9, 64), dtype=np.float32)  # 2 heads for keys and values, 9 tokens
    >>> fastattn.scaled_dot_product_attention(query, key, value, is_causal=True).shape
    (8, 5, 64)
    """
    return _core.scaled_dot_product_attention(
        query, key, value, is_causal, q_offset, scale, out, return_lse, num_threads
    )


def merge_states(outs: Sequence[NDArray], lses: Sequence[NDArray]) -> tuple[NDArray, NDArray]:
    """Merge attention over several parts of the keys into attention over all of them.

    Parameters
    ----------
    outs : sequence of ndarray, each of shape (..., Sq, Dv)
        Results over the parts, all of one shape and dtype.
    lses : sequence of ndarray, each of shape (..., Sq)
        Their log-sum-exps, from ``return_lse=True``. A part in which a query saw no key (-inf) adds nothing to it.

    Returns
    -------
    out : ndarray, shape (..., Sq, Dv)
    lse : ndarray, shape (..., Sq)

    Raises
    ------
    TypeError, ValueError
        No parts, or parts that do not fit each other.

    Notes
    -----
    ``sum(exp(lse_i - lse) * out_i)`` with ``lse = log(sum(exp(lse_i)))``; Ye et al., "Cascade Inference" (2024).

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 6, 16))
    >>> parts = [
    ...     fastattn.scaled_dot_product_attention(query, key[part], value[part], return_lse=True)
    ...     for part in (slice(0, 4), slice(4, 6))
    ... ]
    >>> out, lse = fastattn.merge_states(*zip(*parts))
    >>> np.allclose(out, fastattn.scaled_dot_product_attention(query, key, value))
    True
    """
    outs, lses = _arguments.states(outs, lses)
    lse = np.stack(lses)
    top = lse.max(axis=0)
    shift = np.where(np.isneginf(top), 0, top)
    weights = np.exp(lse - shift)
    total = weights.sum(axis=0)
    with np.errstate(divide="ignore"):
        merged_lse = np.log(total) + shift
    weights /= np.where(total == 0, 1, total)
    weights = weights[..., np.newaxis]
    # A part in which a query saw no key adds nothing, whatever it holds.
    seen = ~np.isneginf(lse)[..., np.newaxis]
    merged = sum(
        np.multiply(weight, out, where=where, out=np.zeros_like(out))
        for weight, where, out in zip(weights, seen, outs, strict=True)
    )
    return merged.astype(outs[0].dtype, copy=False), merged_lse
