"""Each operation as the straightforward NumPy formula, computed in the precision of its input.

What a careful user would write without the library: it is the baseline that ``bench`` times, and its
error against the float64 oracle is the yardstick of the contract (see :mod:`fastattn.commands.accuracy`).
Names and arguments are the library's, without ``out`` and ``num_threads``.
"""

import numpy as np


def scaled_dot_product_attention(query, key, value, *, is_causal=False, q_offset=None, scale=None, return_lse=False):
    """Attention that stores all scores; arrays of three axes and more, (..., heads, tokens, size)."""
    *lead, q_heads, q_length, size = query.shape
    kv_heads, k_length = key.shape[-3:-1]
    grouped = query.reshape(*lead, kv_heads, q_heads // kv_heads, q_length, size)
    scores = grouped * query.dtype.type(size**-0.5 if scale is None else scale) @ key[..., None, :, :].swapaxes(-1, -2)
    if is_causal:
        offset = k_length - q_length if q_offset is None else q_offset
        hidden = np.arange(k_length) > np.arange(q_length)[:, None] + offset
        np.copyto(scores, -np.inf, where=hidden)
    weights, total, lse = _exponentials(scores, -1)
    weights /= np.where(total == 0, 1, total)
    result = (weights @ value[..., None, :, :]).reshape(*lead, q_heads, q_length, value.shape[-1])
    return (result, lse.reshape(*lead, q_heads, q_length)) if return_lse else result


def merge_states(outs, lses):
    """Attention over all keys from attention over parts of them."""
    outs, lses = np.stack(outs), np.stack(lses)
    weights, total, lse = _exponentials(lses.copy(), 0)
    weights /= np.where(total == 0, 1, total)
    return (weights[..., None] * outs).sum(0), lse[0]


def softmax(x, axis=-1, *, where=None):
    """exp(x) / sum(exp(x)) along an axis, after subtracting the maximum."""
    weights, total, _ = _exponentials(_only(x, where), axis)
    weights /= np.where(total == 0, 1, total)
    return weights


def log_softmax(x, axis=-1, *, where=None):
    """x - log(sum(exp(x))) along an axis, after subtracting the maximum."""
    x = _only(x, where)
    top = x.max(axis, keepdims=True)
    x -= top
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def layer_norm(x, weight=None, bias=None, *, eps=1e-5):
    """Rows of mean 0 and variance 1, then scaled and shifted."""
    centred = x - x.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + x.dtype.type(eps))
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def rms_norm(x, weight=None, *, eps=1e-6):
    """Rows of mean square 1, then scaled."""
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps))
    return y if weight is None else y * weight


def add_layer_norm(x, residual, weight=None, bias=None, *, eps=1e-5):
    """The layer norm of x + residual, and the sum itself."""
    total = x + residual
    return layer_norm(total, weight, bias, eps=eps), total


def add_rms_norm(x, residual, weight=None, *, eps=1e-6):
    """The RMS norm of x + residual, and the sum itself."""
    total = x + residual
    return rms_norm(total, weight, eps=eps), total


def rotary_embedding(x, cos, sin, *, positions=None, interleaved=False):
    """Pairs turned by their angles, the rest copied; arrays of three axes and more, (..., heads, tokens, size)."""
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos[..., None, :, :], sin[..., None, :, :]
    pairs = cos.shape[-1]
    first, second = np.s_[..., :pairs], np.s_[..., pairs : 2 * pairs]
    if interleaved:
        first, second = np.s_[..., : 2 * pairs : 2], np.s_[..., 1 : 2 * pairs : 2]
    y = x.copy()
    y[first] = x[first] * cos - x[second] * sin
    y[second] = x[first] * sin + x[second] * cos
    return y


def _only(x, where):
    """A copy of x, with -inf at the excluded places."""
    return x.copy() if where is None else np.where(where, x, x.dtype.type(-np.inf))


def _exponentials(x, axis):
    """exp(x - max) in the place of x, its sum, and the logarithm of sum(exp(x)), all along an axis."""
    top = x.max(axis, keepdims=True, initial=-np.inf)
    # A row with nothing in it has the maximum -inf, and -inf - -inf would be NaN.
    x -= np.where(np.isneginf(top), 0, top)
    np.exp(x, out=x)
    total = x.sum(axis, keepdims=True)
    with np.errstate(divide="ignore"):
        return x, total, np.log(total) + top
