"""Each operation as the straightforward NumPy formula, computed in the precision of its input.

Its error against the float64 oracle is the yardstick of the contract (see :mod:`fastattn.commands.measuring.accuracy`),
so it must not change; what ``bench`` times is in :mod:`fastattn.commands.measuring.peers.numpy_formulas`.
Names and arguments are the library's, without ``out`` and ``num_threads``; ``matmul`` may replace NumPy's matrix
product, to emulate a machine with other instructions.

In 16 bits every operation rounds its result; matrix products and sums are float32 inside. So are NumPy's own in
float16, but its product there does not use BLAS (0.4 GFLOP/s); in bfloat16 its product returns float32, and a plain sum
of 4,096 ones is 256. Both would make the yardstick too lax, or the baseline too slow.
"""

import math
from itertools import pairwise

import numpy as np

from fastattn.commands.measuring import dtypes


def scaled_dot_product_attention(query, key, value, attn_mask=None, *, return_lse=False, matmul=np.matmul, **options):
    """Attention that stores all scores; arrays of at least three axes, (..., heads, tokens, size)."""
    weights, lse = attention_weights(query, key, attn_mask, return_lse=True, matmul=matmul, **options)
    result = _ungrouped(_product(_grouped(weights, value), value[..., None, :, :], matmul))
    return (result, np.broadcast_to(lse, result.shape[:-1])) if return_lse else result


def attention_weights(
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
    return_lse=False,
    matmul=np.matmul,
):
    """The softmax of the scores; arrays of at least three axes, (..., heads, tokens, size)."""
    real = query.dtype.type
    k_length, q_length = key.shape[-2], query.shape[-2]
    scores = _ungrouped(_product(_grouped(query, key), key[..., None, :, :].swapaxes(-1, -2), matmul))
    scores *= real(query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = np.tanh(scores / real(softcap)) * real(softcap)

    lengths = k_length if kv_lengths is None else _by_sequence(kv_lengths)
    if is_causal or any(option is not None for option in (window, alibi_slopes, position_bias)):
        offset = lengths - q_length if q_offset is None else _by_sequence(q_offset)
        ahead = np.arange(k_length) - np.arange(q_length)[:, None] - offset
        if alibi_slopes is not None:
            scores -= alibi_slopes.astype(real)[..., None, None] * np.abs(ahead).astype(real)
        if position_bias is not None:
            scores += _by_distance(position_bias.astype(real), ahead)
        np.copyto(scores, -np.inf, where=_out_of_reach(ahead, is_causal, window))
    if kv_lengths is not None:
        np.copyto(scores, -np.inf, where=np.arange(k_length) >= lengths)
    if attn_mask is not None:
        scores += (attn_mask if attn_mask.dtype != bool else np.where(attn_mask, 0, -np.inf)).astype(real)
    if sinks is not None:
        column = np.broadcast_to(sinks.astype(real)[:, None, None], (*scores.shape[:-1], 1))
        scores = np.concatenate([scores, column], axis=-1)

    weights, total, lse = _exponentials(scores, -1)
    weights /= np.where(total == 0, 1, total)
    weights = weights[..., :k_length]
    return (weights, lse[..., 0].astype(dtypes.wide(lse.dtype), copy=False)) if return_lse else weights


def varlen_attention(query, key, value, cu_seqlens_q, cu_seqlens_k, *, return_lse=False, **options):
    """Attention of one packed sequence after the other."""
    results = []
    for n, bounds in enumerate(zip(pairwise(cu_seqlens_q), pairwise(cu_seqlens_k), strict=True)):
        q, k = (slice(*bound) for bound in bounds)
        heads_first = (x.swapaxes(0, 1) for x in (query[q], key[k], value[k]))
        own = {name: _of_sequence(name, option, n) for name, option in options.items()}
        out, lse = scaled_dot_product_attention(*heads_first, return_lse=True, **own)
        results.append((out.swapaxes(0, 1), lse.T))
    out, lse = map(np.concatenate, zip(*results, strict=True))
    return (out, lse) if return_lse else out


def _grouped(x, key):
    """Heads as (..., heads of key, heads that share one, tokens, size)."""
    *lead, heads, length, size = x.shape
    return x.reshape(*lead, key.shape[-3], heads // key.shape[-3], length, size)


def _ungrouped(x):
    """Heads in one axis again."""
    *lead, kv_heads, group, length, size = x.shape
    return x.reshape(*lead, kv_heads * group, length, size)


def _by_sequence(numbers):
    """With axes for heads, queries and keys."""
    return np.asarray(numbers)[..., None, None, None]


def _of_sequence(name, option, n):
    """The n-th sequence's part of an option that may have one for each."""
    axes = {"q_offset": 1, "kv_lengths": 1, "alibi_slopes": 2}.get(name)
    return option[n] if np.ndim(option) == axes else option


def _by_distance(position_bias, ahead):
    reach = position_bias.shape[-1] // 2
    return position_bias[np.arange(len(position_bias))[:, None, None], np.clip(ahead, -reach, reach) + reach]


def _out_of_reach(ahead, is_causal, window):
    """Which keys, `ahead` of the query's position, causal mask and window exclude."""
    left, right = (np.inf if reach is None else reach for reach in window or (None, None))
    return (ahead > (min(right, 0) if is_causal else right)) | (ahead < -left)


def merge_states(outs, lses):
    """Attention over all keys from attention over parts of them."""
    outs, lses = np.stack(outs), np.stack(lses)
    weights, total, lse = _exponentials(lses.copy(), 0)
    weights /= np.where(total == 0, 1, total)
    return _sum(weights.astype(outs.dtype, copy=False)[..., None] * outs, 0), lse[0]


def softmax(x, axis=-1, *, where=None):
    """exp(x) / sum(exp(x)) along an axis, after subtracting the maximum."""
    weights, total, _ = _exponentials(_only(x, where), axis)
    weights /= np.where(total == 0, 1, total)
    return weights


def log_softmax(x, axis=-1, *, where=None):
    """x - log(sum(exp(x))) along an axis, after subtracting the maximum."""
    x = _only(x, where)
    top = x.max(axis, keepdims=True, initial=-np.inf)
    x -= top
    return x - np.log(_sum(np.exp(x), axis, keepdims=True))


def layer_norm(x, weight=None, bias=None, *, eps=1e-5):
    """Rows of mean 0 and variance 1, then scaled and shifted."""
    centred = x - _mean(x)
    return _scaled_and_shifted(centred / np.sqrt(_mean(centred * centred) + x.dtype.type(eps)), weight, bias)


def rms_norm(x, weight=None, *, eps=1e-6):
    """Rows of mean square 1, then scaled."""
    return _scaled_and_shifted(x / np.sqrt(_mean(x * x) + x.dtype.type(eps)), weight, None)


def _scaled_and_shifted(y, weight, bias):
    y = y if weight is None else y * weight.astype(y.dtype, copy=False)
    return y if bias is None else y + bias.astype(y.dtype, copy=False)


def add_layer_norm(x, residual, weight=None, bias=None, *, eps=1e-5):
    """The layer norm of x + residual, and the sum itself."""
    total = x + residual
    return layer_norm(total, weight, bias, eps=eps), total


def add_rms_norm(x, residual, weight=None, *, eps=1e-6):
    """The RMS norm of x + residual, and the sum itself."""
    total = x + residual
    return rms_norm(total, weight, eps=eps), total


def linear(x, weight, bias=None, *, activation=None, residual=None, matmul=np.matmul):
    """The product, then bias, activation and residual, each by itself."""
    y = _product(x, weight.T, matmul)
    if bias is not None:
        y += bias.astype(y.dtype, copy=False)
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    if residual is not None:
        y += residual
    return y


def _gelu(x):
    real = x.dtype.type
    return x * (_erf(x * real(math.sqrt(0.5))) + real(1)) * real(0.5)


def _gelu_tanh(x):
    real = x.dtype.type
    inner = real(math.sqrt(2 / math.pi)) * (x + real(0.044715) * x * x * x)
    return x * (np.tanh(inner) + real(1)) * real(0.5)


def _silu(x):
    return x / (np.exp(-x) + x.dtype.type(1))


def _erf(x):
    """NumPy has none: use Python's, one number at a time, exact to the last place."""
    return np.fromiter(map(math.erf, x.ravel().tolist()), float, x.size).reshape(x.shape).astype(x.dtype)


ACTIVATIONS = {"gelu": _gelu, "gelu_tanh": _gelu_tanh, "relu": lambda x: np.maximum(x, 0), "silu": _silu}


def rotary_embedding(x, cos, sin, *, positions=None, interleaved=False):
    """Rotate pairs by their angles, copy the rest; arrays (tokens, size) or (..., heads, tokens, size)."""
    cos, sin = (table.astype(x.dtype, copy=False) for table in (cos, sin))
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    if x.ndim > 2:
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
    """A copy of x in its memory order, with -inf for excluded elements."""
    return x.copy("K") if where is None else np.where(where, x, x.dtype.type(-np.inf))


def _exponentials(x, axis):
    """exp(x - max), computed in place, its sum, and the logarithm of sum(exp(x)), all along an axis."""
    top = x.max(axis, keepdims=True, initial=-np.inf)
    # The maximum of an empty row is -inf, and -inf - -inf would be NaN.
    x -= np.where(np.isneginf(top), 0, top)
    np.exp(x, out=x)
    total = _sum(x, axis, keepdims=True)
    with np.errstate(divide="ignore"):
        return x, total, np.log(total) + top


def _product(a, b, matmul):
    """The matrix product, in the type of `a`."""
    wide = dtypes.wide(a.dtype)
    return matmul(a.astype(wide, copy=False), b.astype(wide, copy=False)).astype(a.dtype, copy=False)


def _sum(x, axis, keepdims=False):
    return x.sum(axis, dtype=dtypes.wide(x.dtype), keepdims=keepdims).astype(x.dtype, copy=False)


def _mean(x):
    """The mean of each row."""
    return x.mean(-1, dtype=dtypes.wide(x.dtype), keepdims=True).astype(x.dtype, copy=False)
