"""What every operation means: the package's functions once more, in plain NumPy and float64.

These few screens are the definition. The kernels are tested against them, and where a docstring leaves a doubt, the
code below settles it. Names and arguments are those of the package, except that `out` and `num_threads` are missing:
they say where and how, not what. Inputs may have any real floating-point type and are converted to float64 first;
results are float64. Nothing here is fast, and nothing is checked beyond what NumPy itself checks.

Axis letters, the same everywhere: Hq and Hkv query and key-value heads, Sq and Sk query and key length, D head size of
query and key, Dv head size of value, N length of a normalised row, P number of parts.
"""

import numpy as np

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "layer_norm",
    "log_softmax",
    "merge_states",
    "rms_norm",
    "scaled_dot_product_attention",
    "softmax",
]

_REAL = np.float64  # the type everything below computes in; tests of float64 kernels widen it


def _real(x):
    return np.asarray(x).astype(_REAL)


# Attention


def scaled_dot_product_attention(query, key, value, *, is_causal=False, q_offset=None, scale=None, return_lse=False):
    """Weighted mean of the values, by softmax of the scaled products of queries and keys.

    Parameters
    ----------
    query : (..., Hq, Sq, D) array
        A 2-D array (Sq, D) has one head and no axis for it; so has the result where all three are 2-D.
    key : (..., Hkv, Sk, D) array
        Hq is a multiple of Hkv: query head h reads kv head ``h // (Hq // Hkv)``. Leading axes broadcast.
    value : (..., Hkv, Sk, Dv) array
    is_causal : bool
        Query i, at position ``i + q_offset``, sees only the keys j with ``j <= i + q_offset``.
    q_offset : int, optional
        Position of the first query among the keys. The default, ``Sk - Sq``, lets the last query meet the last key.
    scale : float, optional
        Factor of the scores, 1/sqrt(D) by default.
    return_lse : bool
        Also return the natural logarithm of each query's sum of exponentials.

    Returns
    -------
    out : (..., Hq, Sq, Dv) array
        Zero for a query that sees no key.
    lse : (..., Hq, Sq) array, only with ``return_lse``
        -inf for a query that sees no key.

    Examples
    --------
    Both keys score the same, so each query that sees both gets the mean of their values:

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
    head_size = query.shape[-1]
    if scale is None:
        scale = 1 / np.sqrt(_REAL(head_size))

    # 1. Scores: how well each key answers each query.
    with np.errstate(invalid="ignore", over="ignore"):
        scores = scale * (query @ key.swapaxes(-1, -2))  # (..., Hq, Sq, Sk)

    # 2. Exclusion: an excluded key's score is -inf, whatever stands in the key.
    allowed = _allowed(scores.shape[-2], scores.shape[-1], is_causal, q_offset)  # (Sq, Sk)
    scores = np.where(allowed, scores, -np.inf)

    # 3. Weights: softmax over the keys.
    weights, lse = _softmax_and_lse(scores, axis=-1)  # (..., Hq, Sq, Sk), (..., Hq, Sq, 1)

    # 4. The weighted sum.
    out = _weighted_sum(weights, value, allowed)  # (..., Hq, Sq, Dv)

    lse = lse[..., 0]
    if not has_heads:
        out, lse = out[0], lse[0]
    return (out, lse) if return_lse else out


def _with_common_axes(query, key, value):
    """The three with the same leading axes and number of heads: key and value repeat each head for its group."""
    query, key, value = (x[None] if x.ndim == 2 else x for x in (query, key, value))
    group = query.shape[-3] // key.shape[-3]
    key, value = key.repeat(group, axis=-3), value.repeat(group, axis=-3)
    leading = np.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    return (np.broadcast_to(x, leading + x.shape[-3:]) for x in (query, key, value))


def _allowed(queries, keys, is_causal, q_offset):
    """True where query i (down) may attend to key j (across)."""
    if q_offset is None:
        q_offset = keys - queries
    position = np.arange(queries)[:, None] + q_offset  # (Sq, 1)
    key = np.arange(keys)  # (Sk,)
    allowed = np.ones((queries, keys), dtype=bool)
    if is_causal:
        allowed &= key <= position
    return allowed


def _weighted_sum(weights, value, allowed):
    """weights @ value, where an excluded key adds nothing: in floating point 0 · NaN and 0 · inf are not nothing.

    weights (..., Hq, Sq, Sk), value (..., Hq, Sk, Dv), allowed (Sq, Sk).
    """
    every_axis_but_keys = tuple(axis for axis in range(value.ndim) if axis != value.ndim - 2)
    finite = np.isfinite(value).all(axis=every_axis_but_keys)  # (Sk,)
    out = weights[..., finite] @ value[..., finite, :]
    for j in np.flatnonzero(~finite):  # few or none: one by one, only to those who attend to them
        with np.errstate(invalid="ignore"):
            contribution = weights[..., j, None] * value[..., None, j, :]  # (..., Hq, Sq, Dv)
            out += np.where(allowed[..., j, None], contribution, 0)
    return out


def merge_states(outs, lses):
    """Attention over all keys, from the attention over each part of them.

    Parameters
    ----------
    outs : sequence of P arrays (..., Sq, Dv)
    lses : sequence of P arrays (..., Sq)
        What `scaled_dot_product_attention` returns with ``return_lse=True`` for each part of the keys. A part that
        saw no key has lse -inf and contributes nothing.

    Returns
    -------
    out : (..., Sq, Dv) array
    lse : (..., Sq) array

    Examples
    --------
    One part saw one key, the other saw three that score the same:

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
    x : array
    axis : int
    where : bool array that broadcasts to x, optional
        False takes an element out: it counts as -inf and its result is 0.

    Returns
    -------
    array of x's shape
        All zeros along the axis where every element is -inf or taken out.

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
    x : array
    axis : int
    where : bool array that broadcasts to x, optional
        False takes an element out: it counts as -inf and its result is -inf.

    Returns
    -------
    array of x's shape

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
    """Softmax and logarithm of its denominator (that axis kept); zeros and -inf where all of x is -inf."""
    exponentials, total, top = _exponentials(x, axis)
    with np.errstate(divide="ignore"):
        return exponentials / np.where(total == 0, 1, total), top + np.log(total)


def _exponentials(x, axis):
    """exp(x - top), their sum, and top; the last two with that axis kept."""
    # 1. The maximum, so that no exponential overflows. Where all is -inf, 0 serves: -inf - -inf would be NaN.
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
    x : (..., N) array
    weight, bias : (N,) arrays, optional
    eps : float
        Added to the variance, which is the mean square (not divided by N - 1).

    Returns
    -------
    (..., N) array

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn import reference
    >>> reference.layer_norm(np.array([2.0, 4.0]), eps=0.0)
    array([-1.,  1.])
    """
    x = _real(x)  # (..., N)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred**2, axis=-1, keepdims=True)  # (..., 1)
    return _scaled_and_shifted(centred / np.sqrt(variance + eps), weight, bias)


def rms_norm(x, weight=None, *, eps=1e-6):
    """Rows of mean square one, then scaled: ``x / sqrt(mean(x**2) + eps) * weight``.

    Parameters
    ----------
    x : (..., N) array
    weight : (N,) array, optional
    eps : float
        Added to the mean square.

    Returns
    -------
    (..., N) array

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn import reference
    >>> reference.rms_norm(np.array([1.0, 7.0]), eps=0.0)
    array([0.2, 1.4])
    """
    x = _real(x)  # (..., N)
    mean_square = np.mean(x**2, axis=-1, keepdims=True)  # (..., 1)
    return _scaled_and_shifted(x / np.sqrt(mean_square + eps), weight, None)


def add_layer_norm(x, residual, weight=None, bias=None, *, eps=1e-5):
    """The residual step of a transformer: the sum, and `layer_norm` of the sum.

    Parameters
    ----------
    x, residual : (..., N) arrays of one shape
    weight, bias : (N,) arrays, optional
    eps : float

    Returns
    -------
    y : (..., N) array
        ``layer_norm(x + residual, weight, bias, eps=eps)``
    sum : (..., N) array
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
    x, residual : (..., N) arrays of one shape
    weight : (N,) array, optional
    eps : float

    Returns
    -------
    y : (..., N) array
        ``rms_norm(x + residual, weight, eps=eps)``
    sum : (..., N) array
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


def _scaled_and_shifted(x, weight, bias):
    if weight is not None:
        x = x * _real(weight)
    if bias is not None:
        x = x + _real(bias)
    return x
