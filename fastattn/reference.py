"""The definition of every operation: the package's functions in plain NumPy and float64.

The kernels are tested against this module, and where a docstring leaves a doubt, the code below decides. Names and
arguments are those of the package, without `out` and `num_threads`, which do not change results. Inputs may have any
real floating-point type and are converted to float64 first; results are float64. Only long double is kept, to check
float64 results with. Nothing here is fast, and nothing is checked beyond what NumPy itself checks.

Axis letters: Hq and Hkv number of query and key-value heads, Sq and Sk query and key length, D head size of query and
key, Dv head size of value, N length of a normalised row, P number of parts; in a linear layer, K inputs and N outputs.
"""

import math

import numpy as np

from fastattn.weights import PackedWeight

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "attention_weights",
    "layer_norm",
    "linear",
    "log_softmax",
    "merge_states",
    "rms_norm",
    "rotary_embedding",
    "scaled_dot_product_attention",
    "softmax",
    "varlen_attention",
]


def _real(x):
    x = np.asarray(x)
    return x.astype(np.longdouble if x.dtype == np.longdouble else np.float64)


# Attention


def scaled_dot_product_attention(query, key, value, attn_mask=None, *, return_lse=False, **options):
    """Weighted mean of the values, by softmax of the scaled products of queries and keys.

    Parameters
    ----------
    query : ndarray, shape (..., Hq, Sq, D)
        A 2-D array (Sq, D) is a single head; if all three are 2-D, so is the result.
    key : ndarray, shape (..., Hkv, Sk, D)
        Hq is a multiple of Hkv: query head h reads kv head ``h // (Hq // Hkv)``. Leading axes broadcast.
    value : ndarray, shape (..., Hkv, Sk, Dv)
    attn_mask : ndarray, broadcastable to (..., Hq, Sq, Sk), optional
        bool: True lets the query attend to the key. Float: added to the score, and -inf excludes the key.
    return_lse : bool
        Also return the natural logarithm of each query's sum of exponentials.
    **options
        ``is_causal``, ``q_offset``, ``window``, ``scale``, ``softcap``, ``sinks``, ``alibi_slopes``,
        ``position_bias`` and ``kv_lengths``, as in `attention_weights`.

    Returns
    -------
    out : ndarray, shape (..., Hq, Sq, Dv)
        Zero for a query that sees no key.
    lse : ndarray, shape (..., Hq, Sq)
        Only with `return_lse`. For a query that sees no key: -inf or, with a sink, the sink's logit.

    Examples
    --------
    Both keys have the same score, so a query that sees both gets the mean of their values:

    >>> import numpy as np
    >>> from fastattn import reference
    >>> query, key, value = np.zeros((2, 4)), np.zeros((2, 4)), np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> reference.scaled_dot_product_attention(query, key, value)
    array([[2., 3.],
           [2., 3.]])
    >>> reference.scaled_dot_product_attention(query, key, value, is_causal=True)
    array([[1., 2.],
           [2., 3.]])
    """
    query, key, value = _real(query), _real(key), _real(value)
    has_heads = max(query.ndim, key.ndim, value.ndim) > 2
    query, key, value = _with_common_axes(query, key, value)
    weights, lse, allowed = _weights(query, key, attn_mask, **options)
    out = _weighted_sum(weights, value, allowed)  # (..., Hq, Sq, Dv)
    if not has_heads:
        out, lse = out[0], lse[0]
    return (out, lse) if return_lse else out


def attention_weights(query, key, attn_mask=None, *, return_lse=False, **options):
    """The weights of the values in `scaled_dot_product_attention`.

    Parameters
    ----------
    query : ndarray, shape (..., Hq, Sq, D)
    key : ndarray, shape (..., Hkv, Sk, D)
    attn_mask : ndarray, broadcastable to (..., Hq, Sq, Sk), optional
    return_lse : bool
    is_causal : bool
        Query i, at position ``i + q_offset``, sees only the keys j with ``j <= i + q_offset``.
    q_offset : int or integer ndarray, broadcastable to the leading axes, optional
        Position of the first query among the keys. The default, ``Sk - Sq`` or ``kv_lengths - Sq``, aligns the last
        query with the last key.
    window : (left, right), optional
        A query at position p sees only the keys j with ``p - left <= j <= p + right``; None is unbounded.
    scale : float, optional
        Factor applied to the scores, 1/sqrt(D) by default.
    softcap : float, optional
        A scaled score s becomes ``softcap * tanh(s / softcap)``.
    sinks : ndarray, shape (Hq,), optional
        One logit per head that takes part in the softmax but has no value.
    alibi_slopes : ndarray, shape (Hq,), or (..., Hq) with the leading axes, optional
        ``-slope * |p - j|`` is added to the score of key j for a query at position p.
    position_bias : ndarray, shape (Hq, 2 * R + 1), optional
        ``position_bias[h, R + min(max(j - p, -R), R)]`` is added to the score of key j for a query at position p, and
        -inf excludes the key.
    kv_lengths : int or integer ndarray, broadcastable to the leading axes, optional
        Number of valid keys of each sequence, counted from the first.

    Returns
    -------
    weights : ndarray, shape (..., Hq, Sq, Sk)
        Each row sums to 1, to less with a sink, and to 0 where a query sees no key.
    lse : ndarray, shape (..., Hq, Sq)
        Only with `return_lse`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn import reference
    >>> query, key = np.zeros((1, 4)), np.zeros((3, 4))
    >>> reference.attention_weights(query, key, np.array([True, False, True]))
    array([[0.5, 0. , 0.5]])
    >>> reference.attention_weights(query, key, np.array([True, False, True]), sinks=np.log([2.0])).round(12)
    array([[0.25, 0.  , 0.25]])
    """
    query, key = _real(query), _real(key)
    has_heads = max(query.ndim, key.ndim) > 2
    query, key = _with_common_axes(query, key)
    weights, lse, _ = _weights(query, key, attn_mask, **options)
    if not has_heads:
        weights, lse = weights[0], lse[0]
    return (weights, lse) if return_lse else weights


def _weights(
    query,
    key,
    attn_mask=None,
    *,
    is_causal=False,
    q_offset=None,
    window=None,
    scale=None,
    softcap=None,
    sinks=None,
    alibi_slopes=None,
    position_bias=None,
    kv_lengths=None,
):
    """Weights (..., Hq, Sq, Sk), lse (..., Hq, Sq), and what may be attended to (broadcasts to the weights).

    query (..., Hq, Sq, D) and key (..., Hq, Sk, D) have all their axes.
    """
    queries, keys, head_size = query.shape[-2], key.shape[-2], query.shape[-1]
    if scale is None:
        scale = 1 / np.sqrt(query.dtype.type(head_size))

    # 1. Positions of queries and keys. Options per sequence get axes for heads, queries and keys.
    lengths = keys if kv_lengths is None else np.asarray(kv_lengths, np.int64)[..., None, None, None]  # (..., 1, 1, 1)
    # Python's integers, which do not overflow: an offset may be any int64, and bounds are added to it. Only `astype`
    # converts a NumPy scalar to them.
    offset = np.asarray(lengths - queries if q_offset is None else q_offset).astype(object)
    offset = offset if q_offset is None else offset[..., None, None, None]
    i, j = np.arange(queries)[:, None], np.arange(keys)  # (Sq, 1), (Sk,)

    # 2. Scores: how well each key matches each query.
    with np.errstate(invalid="ignore", over="ignore"):
        scores = scale * (query @ key.swapaxes(-1, -2))  # (..., Hq, Sq, Sk)
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        if alibi_slopes is not None:
            scores = scores - _real(alibi_slopes)[..., None, None] * np.abs(i - j + _real(offset))

        # 3. Masks and biases. What they exclude scores -inf, whatever query and key hold.
        left, right = (None, None) if window is None else window
        allowed = j < lengths
        if position_bias is not None:
            bias = _by_distance(_real(position_bias), j - i - _bound(offset))
            allowed = allowed & ~np.isneginf(bias)
            scores = scores + bias
        if is_causal:
            allowed = allowed & (j - i <= _bound(offset))
        if left is not None:
            allowed = allowed & (j - i >= _bound(offset - int(left)))
        if right is not None:
            allowed = allowed & (j - i <= _bound(offset + int(right)))
        if attn_mask is not None and np.asarray(attn_mask).dtype == bool:
            allowed = allowed & attn_mask
        elif attn_mask is not None:
            attn_mask = _real(attn_mask)
            allowed = allowed & ~np.isneginf(attn_mask)
            scores = scores + attn_mask
        scores = np.where(allowed, scores, -np.inf)

    # 4. Softmax over the keys, and over the sink, which has no value to add.
    if sinks is not None:
        sink = np.broadcast_to(_real(sinks)[:, None, None], (*scores.shape[:-1], 1))
        scores = np.concatenate([scores, sink], axis=-1)
    weights, lse = _softmax_and_lse(scores, axis=-1)  # (..., Hq, Sq, Sk [+ 1]), (..., Hq, Sq, 1)
    return weights[..., :keys], lse[..., 0], allowed


def _by_distance(table, distance):
    """Biases (..., Hq, Sq, Sk) from a table (Hq, 2R + 1), for distances of keys from queries (..., 1, Sq, Sk)."""
    reach = table.shape[-1] // 2
    return table[np.arange(len(table))[:, None, None], reach + np.clip(distance, -reach, reach)]


def _bound(offset):
    """Clip integers of any size to int64, beyond every key and query."""
    return np.asarray(np.clip(offset, -(2**62), 2**62), np.int64)


def varlen_attention(query, key, value, cu_seqlens_q, cu_seqlens_k, *, return_lse=False, **options):
    """`scaled_dot_product_attention` of each of N sequences, packed one after the other.

    Parameters
    ----------
    query : ndarray, shape (Tq, Hq, D)
        Sequence n is ``query[cu_seqlens_q[n]:cu_seqlens_q[n + 1]]``.
    key : ndarray, shape (Tk, Hkv, D)
    value : ndarray, shape (Tk, Hkv, Dv)
        Likewise, by `cu_seqlens_k`.
    cu_seqlens_q, cu_seqlens_k : integer ndarray, shape (N + 1,)
        Cumulative sequence lengths: from 0 to Tq, and from 0 to Tk, never decreasing.
    return_lse : bool
    **options
        As in `attention_weights`; `q_offset` and `kv_lengths` broadcast to (N,), `alibi_slopes` has shape (Hq,) or
        (N, Hq).

    Returns
    -------
    out : ndarray, shape (Tq, Hq, Dv)
    lse : ndarray, shape (Tq, Hq)
        Only with `return_lse`.

    Examples
    --------
    Two sequences, of two tokens and of one. All keys of a sequence have the same score:

    >>> import numpy as np
    >>> from fastattn import reference
    >>> query, key, value = np.zeros((3, 1, 4)), np.zeros((3, 1, 4)), np.array([[[1.0]], [[3.0]], [[7.0]]])
    >>> reference.varlen_attention(query, key, value, [0, 2, 3], [0, 2, 3])[:, 0, 0]
    array([2., 2., 7.])
    """
    sequences = len(cu_seqlens_q) - 1
    for name in {"q_offset", "kv_lengths"} & options.keys():
        if options[name] is not None:
            options[name] = np.broadcast_to(options[name], sequences)
    if options.get("alibi_slopes") is not None:
        options["alibi_slopes"] = np.broadcast_to(options["alibi_slopes"], (sequences, np.shape(query)[1]))
    per_sequence = {"q_offset", "kv_lengths", "alibi_slopes"}

    query, key, value = _real(query), _real(key), _real(value)
    out = np.zeros((*query.shape[:2], value.shape[2]), query.dtype)
    lse = np.zeros(query.shape[:2], query.dtype)
    for n in range(sequences):
        q, k = slice(*cu_seqlens_q[n : n + 2]), slice(*cu_seqlens_k[n : n + 2])
        own = {
            name: option[n] if name in per_sequence and option is not None else option
            for name, option in options.items()
        }
        packed = (np.swapaxes(x, 0, 1) for x in (query[q], key[k], value[k]))  # (H, S, D)
        own_out, own_lse = scaled_dot_product_attention(*packed, return_lse=True, **own)
        out[q], lse[q] = own_out.swapaxes(0, 1), own_lse.T
    return (out, lse) if return_lse else out


def _with_common_axes(query, *keys_and_values):
    """Broadcast all to the same leading axes and number of heads: key and value heads are repeated for their group."""
    query, *others = (x[None] if x.ndim == 2 else x for x in (query, *keys_and_values))
    group = query.shape[-3] // others[0].shape[-3]
    arrays = [query, *(x.repeat(group, axis=-3) for x in others)]
    leading = np.broadcast_shapes(*(x.shape[:-3] for x in arrays))
    return (np.broadcast_to(x, leading + x.shape[-3:]) for x in arrays)


def _weighted_sum(weights, value, allowed):
    """weights @ value, where excluded keys contribute nothing: in floating point, 0 · NaN and 0 · inf are NaN.

    weights (..., Hq, Sq, Sk), value (..., Hq, Sk, Dv), allowed broadcasts to the weights.
    """
    allowed = np.broadcast_to(allowed, weights.shape)
    every_axis_but_keys = tuple(axis for axis in range(value.ndim) if axis != value.ndim - 2)
    finite = np.isfinite(value).all(axis=every_axis_but_keys)  # (Sk,)
    out = weights[..., finite] @ value[..., finite, :]
    for j in np.flatnonzero(~finite):  # few or none: one by one, only for queries that attend to them
        with np.errstate(invalid="ignore"):
            contribution = weights[..., j, None] * value[..., None, j, :]  # (..., Hq, Sq, Dv)
            out += np.where(allowed[..., j, None], contribution, 0)
    return out


def merge_states(outs, lses):
    """Attention over all keys, from the attention over each part of them.

    Parameters
    ----------
    outs : sequence of P ndarrays, each of shape (..., Sq, Dv)
    lses : sequence of P ndarrays, each of shape (..., Sq)
        Results of `scaled_dot_product_attention` with ``return_lse=True`` for each part of the keys. A part in which a
        query saw no key has lse -inf and contributes nothing.

    Returns
    -------
    out : ndarray, shape (..., Sq, Dv)
    lse : ndarray, shape (..., Sq)

    Examples
    --------
    One part saw one key, the other three keys with the same score:

    >>> import numpy as np
    >>> from fastattn import reference
    >>> out, lse = reference.merge_states([[[0.0]], [[8.0]]], [[np.log(1)], [np.log(3)]])
    >>> out.round(12), np.exp(lse).round(12)
    (array([[6.]]), array([4.]))
    """
    outs = np.stack([_real(out) for out in outs])  # (P, ..., Sq, Dv)
    lses = np.stack([_real(lse) for lse in lses])  # (P, ..., Sq)
    weights, lse = _softmax_and_lse(lses, axis=0)  # merging is itself a softmax, over the parts
    with np.errstate(invalid="ignore"):
        contributions = np.where(np.isneginf(lses)[..., None], 0, weights[..., None] * outs)
    return contributions.sum(axis=0), lse[0]


# Softmax


def softmax(x, axis=-1, *, where=None):
    """Exponentials that sum to one along an axis.

    Parameters
    ----------
    x : ndarray
    axis : int
    where : bool ndarray, broadcastable to x's shape, optional
        False excludes an element: it counts as -inf, and its result is 0.

    Returns
    -------
    ndarray, shape of x
        All zeros along the axis where every element is -inf or excluded.

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn import reference
    >>> reference.softmax(np.log([1, 2, 5])).round(12)
    array([0.125, 0.25 , 0.625])
    >>> reference.softmax(np.log([1, 2, 5]), where=np.array([True, False, False]))
    array([1., 0., 0.])
    """
    weights, _ = _softmax_and_lse(_kept(_real(x), where), axis)
    return weights


def log_softmax(x, axis=-1, *, where=None):
    """Logarithm of `softmax`, exact where that would underflow.

    Parameters
    ----------
    x : ndarray
    axis : int
    where : bool ndarray, broadcastable to x's shape, optional
        False excludes an element: it counts as -inf, and its result is -inf.

    Returns
    -------
    ndarray, shape of x

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn import reference
    >>> reference.log_softmax(np.array([0.0, -1000.0]))
    array([    0., -1000.])
    """
    x = _kept(_real(x), where)
    _, total, top = _exponentials(x, axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isneginf(x), -np.inf, x - top - np.log(total))


def _kept(x, where):
    return x if where is None else np.where(where, x, -np.inf)


def _softmax_and_lse(x, axis):
    """Softmax and the logarithm of its denominator (the axis is kept); zeros and -inf where all of x is -inf."""
    exponentials, total, top = _exponentials(x, axis)
    with np.errstate(divide="ignore"):
        return exponentials / np.where(total == 0, 1, total), top + np.log(total)


def _exponentials(x, axis):
    """exp(x - top), their sum, and top; the last two with the axis kept."""
    # 1. The maximum, so that no exponential overflows. If all is -inf, use 0: -inf - -inf would be NaN.
    top = x.max(axis=axis, keepdims=True, initial=-np.inf)
    top = np.where(np.isneginf(top), 0, top)

    # 2. The exponentials and their sum.
    with np.errstate(invalid="ignore"):
        exponentials = np.exp(x - top)
    return exponentials, exponentials.sum(axis=axis, keepdims=True), top


# Normalisation


def layer_norm(x, weight=None, bias=None, *, eps=1e-5):
    """Rows of mean zero and variance one, then scaled and shifted: ``(x - mean) / sqrt(var + eps) * weight + bias``.

    Parameters
    ----------
    x : ndarray, shape (..., N)
    weight, bias : ndarray, shape (N,), optional
    eps : float
        Added to the variance, which is the biased one (divided by N, not N - 1).

    Returns
    -------
    ndarray, shape (..., N)

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn import reference
    >>> reference.layer_norm(np.array([2.0, 4.0]), eps=0.0)
    array([-1.,  1.])
    """
    x, eps = _near_one(_real(x), eps)  # (..., N), (..., 1)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred**2, axis=-1, keepdims=True)  # (..., 1)
    return _scaled_and_shifted(centred / np.sqrt(variance + eps), weight, bias)


def rms_norm(x, weight=None, *, eps=1e-6):
    """Rows of mean square one, then scaled: ``x / sqrt(mean(x**2) + eps) * weight``.

    Parameters
    ----------
    x : ndarray, shape (..., N)
    weight : ndarray, shape (N,), optional
    eps : float
        Added to the mean square.

    Returns
    -------
    ndarray, shape (..., N)

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn import reference
    >>> reference.rms_norm(np.array([1.0, 7.0]), eps=0.0)
    array([0.2, 1.4])
    """
    x, eps = _near_one(_real(x), eps)  # (..., N), (..., 1)
    mean_square = np.mean(x**2, axis=-1, keepdims=True)  # (..., 1)
    return _scaled_and_shifted(x / np.sqrt(mean_square + eps), weight, None)


def add_layer_norm(x, residual, weight=None, bias=None, *, eps=1e-5):
    """The residual step of a transformer: the sum, and `layer_norm` of the sum.

    Parameters
    ----------
    x, residual : ndarray, shape (..., N)
    weight, bias : ndarray, shape (N,), optional
    eps : float

    Returns
    -------
    y : ndarray, shape (..., N)
        ``layer_norm(x + residual, weight, bias, eps=eps)``
    total : ndarray, shape (..., N)
        ``x + residual``

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn import reference
    >>> reference.add_layer_norm(np.array([2.0, 1.0]), np.array([0.0, 3.0]), eps=0.0)
    (array([-1.,  1.]), array([2., 4.]))
    """
    total = _real(x) + _real(residual)
    return layer_norm(total, weight, bias, eps=eps), total


def add_rms_norm(x, residual, weight=None, *, eps=1e-6):
    """The residual step of a transformer: the sum, and `rms_norm` of the sum.

    Parameters
    ----------
    x, residual : ndarray, shape (..., N)
    weight : ndarray, shape (N,), optional
    eps : float

    Returns
    -------
    y : ndarray, shape (..., N)
        ``rms_norm(x + residual, weight, eps=eps)``
    total : ndarray, shape (..., N)
        ``x + residual``

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn import reference
    >>> reference.add_rms_norm(np.array([1.0, 4.0]), np.array([0.0, 3.0]), eps=0.0)
    (array([0.2, 1.4]), array([1., 7.]))
    """
    total = _real(x) + _real(residual)
    return rms_norm(total, weight, eps=eps), total


def _near_one(x, eps):
    """x · 2^n and eps · 4^n, with the same x / sqrt(mean(x**2) + eps), such that no square overflows."""
    eps = x.dtype.type(eps)
    _, exponent = np.frexp(np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.sqrt(eps)))
    return np.ldexp(x, -exponent), np.ldexp(eps, -2 * exponent)


def _scaled_and_shifted(x, weight, bias):
    if weight is not None:
        x = x * _real(weight)
    if bias is not None:
        x = x + _real(bias)
    return x


# Linear layers


def linear(x, weight, bias=None, *, activation=None, residual=None):
    """``activation(x @ weight.T + bias) + residual``.

    Parameters
    ----------
    x : ndarray, shape (..., K)
    weight : ndarray, shape (N, K), or (values, scales), or PackedWeight
        A pair of values (N, K) and scales (N,) stands for ``scales[:, None] * values``. With a gated weight and its
        gate, the result is ``activation(x @ gate.T + bias[0]) * (x @ weight.T + bias[1]) + residual``.
    bias : ndarray, shape (N,), or (2, N) for a gated weight, optional
    activation : None, "gelu", "gelu_tanh", "relu" or "silu"
    residual : ndarray, shape (..., N), optional

    Returns
    -------
    ndarray, shape (..., N)

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn import reference
    >>> reference.linear(np.array([1.0, 2.0]), np.array([[1.0, 1.0], [1.0, -1.0]]), activation="relu")
    array([3., 0.])
    """
    if isinstance(weight, PackedWeight) and weight.gated:
        weight, gate = weight.unpack()
        gate_bias, bias = (None, None) if bias is None else bias
        y = _activated(_affine(x, gate, gate_bias), activation) * _affine(x, weight, bias)
    else:
        y = _activated(_affine(x, weight, bias), activation)
    return y if residual is None else y + _real(residual)


def _affine(x, weight, bias):
    """x @ weight.T + bias"""
    if isinstance(weight, PackedWeight):
        weight = weight.unpack()
    if isinstance(weight, tuple):
        values, scales = weight
        weight = _real(values) * _real(scales)[:, None]
    y = _real(x) @ _real(weight).T
    return y if bias is None else y + _real(bias)


def _activated(x, activation):
    return x if activation is None else _ACTIVATIONS[activation](x)


def _gated(x, share):
    """x * share; at -inf the limit, 0."""
    return np.where(x == -np.inf, 0, x) * share


def _logistic(x):
    with np.errstate(invalid="ignore"):  # logaddexp warns of NaN
        return np.exp(-np.logaddexp(0, -x))


def _normal_distribution(x):
    return np.vectorize(math.erfc, otypes=[x.dtype])(-x / np.sqrt(x.dtype.type(2))) / 2


def _steepened(x):
    """The argument of the logistic function by which `gelu_tanh` approximates the normal distribution of x."""
    real = x.dtype.type
    return 2 * np.sqrt(2 / real(np.pi)) * (x + real("0.044715") * x**3)


_ACTIVATIONS = {
    "gelu": lambda x: _gated(x, _normal_distribution(x)),
    "gelu_tanh": lambda x: _gated(x, _logistic(_steepened(x))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: _gated(x, _logistic(x)),
}


# Rotary position embedding


def rotary_embedding(x, cos, sin, *, positions=None, interleaved=False, rotary_dim=None):
    """Rotate pairs of components by angles that grow with the token's position.

    Parameters
    ----------
    x : ndarray, shape (..., H, S, D) or (S, D)
    cos, sin : ndarray, shape (P, R/2) with `positions`, (..., S, R/2) without
        Cosine and sine of the angle for each position (or token) and pair. R, the rotary size, is at most D; components
        from R on are left unchanged.
    positions : integer ndarray, broadcastable to (..., S), optional
        Row of `cos` and `sin` for each token. By default they have a row for each token.
    interleaved : bool
        A pair is (x[2i], x[2i + 1]); otherwise it is (x[i], x[i + R/2]).
    rotary_dim : int, optional
        R, to confirm the width of the tables.

    Returns
    -------
    ndarray, shape of x

    Examples
    --------
    A quarter turn takes (1, 0) to (0, 1):

    >>> import numpy as np
    >>> from fastattn import reference
    >>> reference.rotary_embedding(np.array([[1.0, 0.0, 5.0]]), np.array([[0.0]]), np.array([[1.0]]))
    array([[0., 1., 5.]])
    """
    x, cos, sin = _real(x), _real(cos), _real(sin)
    if positions is not None:
        positions = np.asarray(positions, np.int64) + np.zeros(x.shape[-2], np.int64)  # one position may be for all
        cos, sin = cos[positions], sin[positions]  # (..., S, R/2)
    if x.ndim > 2:
        cos, sin = np.expand_dims(cos, -3), np.expand_dims(sin, -3)  # (..., 1, S, R/2)
    half = cos.shape[-1]
    assert rotary_dim in (None, 2 * half)
    pairs = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(half), slice(half, 2 * half))
    a, b = x[..., pairs[0]], x[..., pairs[1]]
    turned = x.copy()
    turned[..., pairs[0]] = a * cos - b * sin
    turned[..., pairs[1]] = a * sin + b * cos
    return turned
