"""Scaled dot-product attention for padded and packed sequences, its weights, and merging over parts of the keys.

Compiled half: _core/attention.pyx; kernels: _core/kernels/attention/; definition: reference.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np

from fastattn import _arguments
from fastattn._core import attention as _core
from fastattn._core.options import attention_options

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Literal, Unpack

    from numpy.typing import NDArray

    from fastattn._typing import Array, Call, Integers, IntOrIntegers, Out, Window


@overload
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    *,
    out: Out | None = None,
    return_lse: Literal[False] = False,
    **options: Unpack[Call],
) -> Out: ...
@overload
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    *,
    out: Out | None = None,
    return_lse: Literal[True],
    **options: Unpack[Call],
) -> tuple[Out, NDArray[Any]]: ...
@overload
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    *,
    out: Out | None = None,
    return_lse: bool,
    **options: Unpack[Call],
) -> Out | tuple[Out, NDArray[Any]]: ...
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    *,
    is_causal: bool = False,
    q_offset: IntOrIntegers | None = None,
    window: Window | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    position_bias: Array | None = None,
    kv_lengths: IntOrIntegers | None = None,
    out: Out | None = None,
    return_lse: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Compute scaled dot-product attention: for each query, the weighted sum of the values of the keys it may see.

    ``softmax(scale * query @ key.T) @ value``, computed in tiles, without storing the score matrix. All options
    combine, applied in this order: scale, softcap, ALiBi, position bias, float mask; exclusion by bool mask, causal,
    window and lengths; softmax, with the sink in its denominator.

    Parameters
    ----------
    query : ndarray, shape (..., Hq, Sq, D)
        float32, float64, float16 or bfloat16, with any strides. A 2-D array (Sq, D) is a single head.
    key : ndarray, shape (..., Hkv, Sk, D)
        Of query's dtype or a narrower one. Hq must be a multiple of Hkv: the query heads
        ``h * Hq // Hkv`` to ``(h + 1) * Hq // Hkv - 1`` share key head ``h`` (grouped-query attention).
    value : ndarray, shape (..., Hkv, Sk, Dv)
        Dv may differ from D. The leading axes of all three broadcast as in NumPy.
    attn_mask : ndarray, broadcastable to (..., Hq, Sq, Sk), optional
        bool: True lets the query attend to the key. float (float64 only with float64 arrays): added to the score; -inf
        excludes the key. Read in place, with any strides. For the 0/1 ``attention_mask`` (B, Sk) of a tokenizer, pass
        ``attention_mask.astype(bool)[:, None, None, :]``.
    is_causal : bool
        A query sees the keys up to its own position; by default the last query is aligned with the last key (bottom
        right). Query i is at position ``i + q_offset``, key j at position j.
    q_offset : int, integer ndarray or list, optional
        Position of the first query: one number, or a shape that broadcasts to the leading axes. The default is
        ``Sk - Sq`` (``kv_lengths - Sq``), as needed for decoding with a cache; 0 is the top-left alignment of PyTorch
        and ONNX.
    window : (int or None, int or None), optional
        (left, right): a query at position p sees the keys ``p - left`` to ``p + right``; None is unbounded.
    scale : float, optional
        Factor applied to the scores; ``1 / sqrt(D)`` by default.
    softcap : float, optional
        A scaled score s becomes ``softcap * tanh(s / softcap)``.
    sinks : ndarray, shape (Hq,), optional
        One logit per head that takes part in the softmax but has no value; -inf for none. Sinks, slopes, biases and
        masks may be float32 with 16-bit queries.
    alibi_slopes : ndarray, shape (Hq,) or (..., Hq), optional
        ``-slope * |p - j|`` is added to the score of key j for a query at position p.
    position_bias : ndarray, shape (Hq, 2 * R + 1), optional
        Relative position bias, as in T5: ``position_bias[h, R + d]`` is added to the scores of head h for keys at the
        distance ``d = j - p``. Beyond R, the first and the last column apply. As in a float mask, -inf excludes a key.
    kv_lengths : int, integer ndarray or list, optional
        Number of valid keys of each sequence, counted from the first; like `q_offset`, one number or one per sequence.
    out : ndarray, shape (..., Hq, Sq, Dv), optional
        Output array: any writable array of query's dtype. It may overlap the inputs.
    return_lse : bool
        Also return the log-sum-exp of the scores, which `merge_states` needs.
    num_threads : int, optional
        Maximum number of threads; see `set_num_threads`.

    Returns
    -------
    out : ndarray, shape (..., Hq, Sq, Dv)
        In query's dtype and memory order. Zero where a query sees no key.
    lse : ndarray, shape (..., Hq, Sq)
        Only with `return_lse`. Natural logarithm, including the sink; -inf where a query sees neither key nor sink.
        float32, or float64 for float64 queries.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        Shapes do not match, or a value is out of range. In both cases `out` is left unchanged.

    Notes
    -----
    Vaswani et al., "Attention Is All You Need" (2017); computed in one pass with an online softmax (Milakov and
    Gimelshein 2018; Rabe and Staats 2021; Dao et al. 2022). ALiBi: Press et al. 2022; position bias: Raffel et al.
    2020 (T5); softcap: Gemma 2 (2024); sinks: Xiao et al. 2024 and gpt-oss (2025). Excluded keys never affect a result,
    even if they hold NaN; blocks of keys that a mask excludes entirely are skipped. The result of a sequence is bitwise
    the same for any number of threads and in any batch. Weights that are subnormal relative to the largest one (below
    2^-126, 2^-1022 in float64) become 0.

    16-bit arrays are read in place and accumulated in float32. If all three are bfloat16 and the processor has
    AVX512_BF16, AMX or arm64's BF16, the weights are rounded to bfloat16 before they multiply the values.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> rng = np.random.default_rng(0)
    >>> query = rng.standard_normal((8, 5, 64), dtype=np.float32)   # 8 query heads, 5 tokens
    >>> key, value = rng.standard_normal((2, 2, 9, 64), dtype=np.float32)  # 2 heads for keys and values, 9 tokens
    >>> fastattn.scaled_dot_product_attention(query, key, value, is_causal=True, window=(4, None)).shape
    (8, 5, 64)
    """
    options = attention_options(
        attn_mask=attn_mask, is_causal=is_causal, q_offset=q_offset, window=window, scale=scale, softcap=softcap,
        sinks=sinks, alibi_slopes=alibi_slopes, position_bias=position_bias, kv_lengths=kv_lengths, out=out,
        return_lse=return_lse, num_threads=num_threads,
    )  # fmt: skip
    return _core.scaled_dot_product_attention(query, key, value, options)


@overload
def varlen_attention(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: Integers,
    cu_seqlens_k: Integers,
    *,
    out: Out | None = None,
    return_lse: Literal[False] = False,
    **options: Unpack[Call],
) -> Out: ...
@overload
def varlen_attention(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: Integers,
    cu_seqlens_k: Integers,
    *,
    out: Out | None = None,
    return_lse: Literal[True],
    **options: Unpack[Call],
) -> tuple[Out, NDArray[Any]]: ...
@overload
def varlen_attention(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: Integers,
    cu_seqlens_k: Integers,
    *,
    out: Out | None = None,
    return_lse: bool,
    **options: Unpack[Call],
) -> Out | tuple[Out, NDArray[Any]]: ...
def varlen_attention(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: Integers,
    cu_seqlens_k: Integers,
    *,
    is_causal: bool = False,
    q_offset: IntOrIntegers | None = None,
    window: Window | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    position_bias: Array | None = None,
    kv_lengths: IntOrIntegers | None = None,
    out: Out | None = None,
    return_lse: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Compute attention within each of N sequences that are packed one after the other, without padding.

    Bitwise equal to `scaled_dot_product_attention` of each sequence alone.

    Parameters
    ----------
    query : ndarray, shape (Tq, Hq, D)
        float32, float64, float16 or bfloat16, with any strides. Sequence n is
        ``query[cu_seqlens_q[n]:cu_seqlens_q[n + 1]]``.
    key : ndarray, shape (Tk, Hkv, D)
        Of query's dtype or a narrower one; split into sequences by `cu_seqlens_k`. Hq must be a multiple of Hkv.
    value : ndarray, shape (Tk, Hkv, Dv)
    cu_seqlens_q, cu_seqlens_k : integer ndarray or list, shape (N + 1,)
        Cumulative sequence lengths: from 0, never decreasing, to Tq and to Tk. A sequence may be empty.
    is_causal : bool
        A query sees the keys up to its own position; by default the last query of a sequence is aligned with its last
        key.
    window, scale, softcap, sinks, position_bias
        As in `scaled_dot_product_attention`, the same for all sequences.
    q_offset, kv_lengths : int, integer ndarray or list, optional
        As in `scaled_dot_product_attention`: one number, or a shape that broadcasts to (N,). Positions and lengths
        count from the start of each sequence.
    alibi_slopes : ndarray, shape (Hq,) or (N, Hq), optional
    out : ndarray, shape (Tq, Hq, Dv), optional
        Output array: any writable array of query's dtype. It may overlap the inputs.
    return_lse : bool
        Also return the log-sum-exp of the scores.
    num_threads : int, optional
        Maximum number of threads; see `set_num_threads`.

    Returns
    -------
    out : ndarray, shape (Tq, Hq, Dv)
        In query's dtype and memory order.
    lse : ndarray, shape (Tq, Hq)
        Only with `return_lse`.

    Raises
    ------
    TypeError, ValueError
        As `scaled_dot_product_attention`.

    Notes
    -----
    The layout is that of FlashAttention's ``flash_attn_varlen_func`` (Dao 2023), except that its lse is (Hq, Tq).

    Examples
    --------
    Two sequences, of 2 and 3 tokens:

    >>> import numpy as np, fastattn
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 5, 4, 16))
    >>> bounds = np.array([0, 2, 5])
    >>> out = fastattn.varlen_attention(query, key, value, bounds, bounds)
    >>> alone = [x[2:5].swapaxes(0, 1) for x in (query, key, value)]
    >>> np.array_equal(out[2:5].swapaxes(0, 1), fastattn.scaled_dot_product_attention(*alone))
    True
    """
    options = attention_options(
        is_causal=is_causal, q_offset=q_offset, window=window, scale=scale, softcap=softcap, sinks=sinks,
        alibi_slopes=alibi_slopes, position_bias=position_bias, kv_lengths=kv_lengths, out=out, return_lse=return_lse,
        num_threads=num_threads,
    )  # fmt: skip
    return _core.varlen_attention(query, key, value, cu_seqlens_q, cu_seqlens_k, options)


@overload
def attention_weights(
    query: Array,
    key: Array,
    attn_mask: Array | None = None,
    *,
    out: Out | None = None,
    return_lse: Literal[False] = False,
    **options: Unpack[Call],
) -> Out: ...
@overload
def attention_weights(
    query: Array,
    key: Array,
    attn_mask: Array | None = None,
    *,
    out: Out | None = None,
    return_lse: Literal[True],
    **options: Unpack[Call],
) -> tuple[Out, NDArray[Any]]: ...
@overload
def attention_weights(
    query: Array,
    key: Array,
    attn_mask: Array | None = None,
    *,
    out: Out | None = None,
    return_lse: bool,
    **options: Unpack[Call],
) -> Out | tuple[Out, NDArray[Any]]: ...
def attention_weights(
    query: Array,
    key: Array,
    attn_mask: Array | None = None,
    *,
    is_causal: bool = False,
    q_offset: IntOrIntegers | None = None,
    window: Window | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    position_bias: Array | None = None,
    kv_lengths: IntOrIntegers | None = None,
    out: Out | None = None,
    return_lse: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Return the full matrix of attention weights, for inspection or cache pruning.

    Parameters
    ----------
    query : ndarray, shape (..., Hq, Sq, D)
    key : ndarray, shape (..., Hkv, Sk, D)
    is_causal : bool
        A query sees the keys up to its own position; by default the last query is aligned with the last key (bottom
        right).
    attn_mask, q_offset, window, scale, softcap, sinks, alibi_slopes, position_bias, kv_lengths
        As in `scaled_dot_product_attention`.
    out : ndarray, shape (..., Hq, Sq, Sk), optional
        Output array: any writable array of query's dtype. It may overlap the inputs.
    return_lse : bool
        Also return the log-sum-exp of the scores.
    num_threads : int, optional
        Maximum number of threads; see `set_num_threads`.

    Returns
    -------
    weights : ndarray, shape (..., Hq, Sq, Sk)
        Each row sums to 1, to less with a sink, and to 0 where a query sees no key.
    lse : ndarray, shape (..., Hq, Sq)
        Only with `return_lse`.

    Raises
    ------
    TypeError, ValueError
        As `scaled_dot_product_attention`.

    Notes
    -----
    ``need_weights=True`` of PyTorch's MultiheadAttention, but not averaged over the heads. The result takes Sq * Sk
    numbers per head, and the scores are computed twice.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> query, key = np.zeros((1, 4)), np.zeros((3, 4))
    >>> fastattn.attention_weights(query, key, np.array([True, False, True]))
    array([[0.5, 0. , 0.5]])
    """
    options = attention_options(
        attn_mask=attn_mask, is_causal=is_causal, q_offset=q_offset, window=window, scale=scale, softcap=softcap,
        sinks=sinks, alibi_slopes=alibi_slopes, position_bias=position_bias, kv_lengths=kv_lengths, out=out,
        return_lse=return_lse, num_threads=num_threads,
    )  # fmt: skip
    return _core.attention_weights(query, key, options)


def merge_states(
    outs: Sequence[Array] | NDArray[Any],
    lses: Sequence[Array] | NDArray[Any],
    *,
    out: Out | None = None,
    num_threads: int | None = None,
) -> tuple[Out, NDArray[Any]]:
    """Merge attention over several parts of the keys into attention over all of them.

    Parameters
    ----------
    outs : sequence of ndarray, each of shape (..., Sq, Dv)
        Results over the parts, all of one shape and dtype.
    lses : sequence of ndarray, each of shape (..., Sq)
        Their log-sum-exps, from ``return_lse=True``: float64 if `outs` are float64, else float32. A part whose lse is
        -inf for a query contributes nothing to it.
    out : ndarray, shape (..., Sq, Dv), optional
        Output array: any writable array of the dtype of `outs`. It may overlap the inputs.
    num_threads : int, optional
        Maximum number of threads. Currently one is used: merging runs in NumPy.

    Returns
    -------
    out : ndarray, shape (..., Sq, Dv)
        In the dtype of `outs`; summed in that of `lses`.
    lse : ndarray, shape (..., Sq)

    Raises
    ------
    TypeError, ValueError
        There are no parts, or they do not match each other. `out` is left unchanged.

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
    outs, lses, target = _arguments.states(outs, lses, out)
    _arguments.thread_limit(num_threads)
    lse = np.stack(lses)
    top = lse.max(axis=0)
    shift = np.where(np.isneginf(top), 0, top)
    weights = np.exp(lse - shift)
    total = weights.sum(axis=0)
    with np.errstate(divide="ignore"):
        merged_lse = np.log(total) + shift
    weights /= np.where(total == 0, 1, total)
    weights = weights[..., np.newaxis]
    # A part in which a query saw no key contributes nothing, even if it holds NaN.
    seen = ~np.isneginf(lse)[..., np.newaxis]
    merged = sum(
        np.multiply(weight, part, where=where, out=np.zeros_like(part, dtype=lse.dtype))
        for weight, where, part in zip(weights, seen, outs, strict=True)
    )
    if out is None:
        return merged.astype(outs[0].dtype, copy=False), merged_lse
    target[...] = merged
    return out, merged_lse
