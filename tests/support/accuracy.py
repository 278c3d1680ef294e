"""The accuracy rule, and the formulas that it measures against.

The rule: the error against the oracle is at most twice that of the straightforward NumPy formula in the same
precision, plus one unit in the last place.

Formulas in 16 bits round after every step, as NumPy does; but sums and matrix products are made in float32 and rounded
then, as NumPy makes them for float16 and ml_dtypes only in part: the stricter yardstick. A log-sum-exp is stored in
float32 at least.

Rows (last axis) may differ in magnitude, so errors are taken relative to the largest magnitude expected in their row.
The formula's error is that of its worst row; the ulp is that of each row's largest magnitude. Inputs should have some
hundreds of elements: then the formula's worst error is a property of the formula and not of one lucky rounding.
"""

import contextlib
import math

import numpy as np
import pytest

from fastattn import reference
from support.dtypes import computed_in, readable
from support.remembering import remembered


def assert_accurate(result, formula, expected):
    """Hold `result` to the rule; infinities, NaN and zeros of empty rows must be the expected ones exactly."""
    assert result.shape == expected.shape
    assert result.dtype == formula.dtype
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(readable(result[~finite]), expected[~finite])
    assert np.isfinite(result[finite]).all(), "finite was expected"
    magnitude = np.max(np.abs(expected), axis=-1, keepdims=True, where=finite, initial=0)
    ulp = np.spacing(magnitude.astype(result.dtype))
    by_formula = np.max(_errors(formula, expected) / np.where(magnitude == 0, 1, magnitude), initial=0)
    excess = _errors(result, expected) / (2 * by_formula * magnitude + ulp)
    worst = np.max(excess, initial=0)
    assert worst <= 1, (
        f"{worst:.2f} of what the rule allows at {place_of(excess)} of shape {result.shape}; "
        f"the formula's error is {by_formula:.2g}"
    )


def place_of(x):
    """Where x is largest, or NaN: an index, whose last part is the place in the row."""
    return tuple(map(int, np.unravel_index(np.argmax(x), x.shape)))


def _errors(x, expected):
    """Distance from the expected, where both are finite."""
    finite = np.isfinite(expected) & np.isfinite(x)
    return np.abs(np.subtract(x, expected, out=np.zeros_like(expected), where=finite))


@contextlib.contextmanager
def wider_oracle(dtype):
    """The oracle computing in a wider type than `dtype`: its own float64, or long double to judge float64."""
    if dtype != np.float64:
        yield reference
        return
    if np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps:
        pytest.skip("no type wider than float64 here")
    former, reference._REAL = reference._REAL, np.longdouble
    try:
        yield reference
    finally:
        reference._REAL = former


@remembered
def by_oracle(operation, dtype, *arguments, **options):
    """What the oracle says of arrays of that type."""
    with wider_oracle(dtype) as oracle:
        return getattr(oracle, operation)(*arguments, **options)


# The straightforward formulas, in the precision of their first argument. Where there is nothing to attend to, or
# garbage beside what is attended to, they give NaN and are not asked.

_ignored = np.errstate(all="ignore")


def _sum(x, axis):
    return x.sum(axis=axis, keepdims=True, dtype=computed_in(x.dtype)).astype(x.dtype)


def _mean(x):
    return x.mean(axis=-1, keepdims=True, dtype=computed_in(x.dtype)).astype(x.dtype)


def _product(a, b, matmul):
    wide = computed_in(a.dtype)
    return matmul(a.astype(wide, copy=False), b.astype(wide, copy=False)).astype(a.dtype, copy=False)


@remembered
@_ignored
def naive_attention(query, key, value, attn_mask=None, *, matmul=np.matmul, **options):
    """(out, lse): out in query's type."""
    weights, lse = naive_attention_weights(query, key, attn_mask, matmul=matmul, **options)
    out = _product(weights, _in_type_and_heads_of(query, value), matmul)
    return out, np.broadcast_to(lse, out.shape[:-1])


@remembered
@_ignored
def naive_attention_weights(
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
    kv_lengths=None,
    matmul=np.matmul,
):
    """(weights, lse): weights in query's type."""
    real = query.dtype.type
    queries, keys = query.shape[-2], key.shape[-2]
    lengths = _per_sequence(keys if kv_lengths is None else kv_lengths)
    offset = lengths - queries if q_offset is None else _per_sequence(q_offset)
    ahead = np.arange(keys) - (np.arange(queries)[:, None] + offset)  # of the query's position: (..., 1, Sq, Sk)

    scale = real(1 / np.sqrt(query.shape[-1]) if scale is None else scale)
    scores = _product(query, _in_type_and_heads_of(query, key).swapaxes(-1, -2), matmul) * scale
    if softcap is not None:
        scores = np.tanh(scores / real(softcap)) * real(softcap)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.astype(real)[..., None, None] * np.abs(ahead).astype(real)
    if attn_mask is not None:
        scores = scores + (attn_mask if attn_mask.dtype != bool else np.where(attn_mask, 0, -np.inf)).astype(real)

    left, right = (np.inf if reach is None else reach for reach in window or (None, None))
    right = min(right, 0) if is_causal else right
    hidden = (ahead > right) | (ahead < -left) | (np.arange(keys) >= lengths)
    scores = np.where(hidden, real(-np.inf), scores)
    if sinks is not None:
        sinks = np.broadcast_to(sinks.astype(real)[:, None, None], (*scores.shape[:-1], 1))
        scores = np.concatenate([scores, sinks], axis=-1)
    weights, lse = _naive_softmax_and_lse(scores, axis=-1)
    return weights[..., :keys], readable(lse[..., 0])


def _in_type_and_heads_of(query, x):
    return x.astype(query.dtype).repeat(query.shape[-3] // x.shape[-3], axis=-3)


def _per_sequence(x):
    return np.asarray(x, np.int64)[..., None, None, None]


def unfused_matmul(a, b):
    """What matmul gives on a machine that rounds each product before adding it, with BLAS's order of the additions.

    NumPy's own loops do that rounding. Like BLAS they add along the reduction, in blocks, or for a single row in lanes.
    """
    if a.ndim == 1:
        return unfused_matmul(a[None], b)[0]
    if a.shape[-2] > 1:
        b = np.ascontiguousarray(b)
    starts = range(0, max(a.shape[-1], 1), 256)
    return sum(np.einsum("...ij,...jk->...ik", a[..., i : i + 256], b[..., i : i + 256, :]) for i in starts)


@remembered
@_ignored
def naive_merge_states(outs, lses):
    outs, lses = np.stack(outs), np.stack(lses)
    weights, lse = _naive_softmax_and_lse(lses, axis=0)
    return _sum(weights[..., None].astype(outs.dtype) * outs, axis=0)[0], lse[0]


@remembered
@_ignored
def naive_softmax(x, axis=-1, *, where=True):
    exponentials, total, _ = _naive_exponentials(_kept(x, where), axis)
    return exponentials / total


@remembered
@_ignored
def naive_log_softmax(x, axis=-1, *, where=True):
    x = _kept(x, where)
    _, total, top = _naive_exponentials(x, axis)
    return x - top - np.log(total)


def _kept(x, where):
    return np.where(where, x, x.dtype.type(-np.inf))


def _naive_softmax_and_lse(x, axis):
    exponentials, total, top = _naive_exponentials(x, axis)
    return exponentials / total, top + np.log(total)


def _naive_exponentials(x, axis):
    top = x.max(axis=axis, keepdims=True, initial=-np.inf)
    exponentials = np.exp(x - top)
    return exponentials, _sum(exponentials, axis), top


@remembered
@_ignored
def naive_layer_norm(x, weight=None, bias=None, *, eps=1e-5):
    centred = x - _mean(x)
    variance = _mean(centred * centred)
    return _scaled_and_shifted(centred / np.sqrt(variance + x.dtype.type(eps)), weight, bias)


@remembered
@_ignored
def naive_rms_norm(x, weight=None, *, eps=1e-6):
    return _scaled_and_shifted(x / np.sqrt(_mean(x * x) + x.dtype.type(eps)), weight, None)


@remembered
def naive_add_layer_norm(x, residual, weight=None, bias=None, *, eps=1e-5):
    return naive_layer_norm(x + residual, weight, bias, eps=eps), x + residual


@remembered
def naive_add_rms_norm(x, residual, weight=None, *, eps=1e-6):
    return naive_rms_norm(x + residual, weight, eps=eps), x + residual


@remembered
def naive_rotary_embedding(x, cos, sin, *, positions=None, interleaved=False):
    cos, sin = (table.astype(x.dtype) for table in (cos, sin))
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    if x.ndim > 2:
        cos, sin = cos[..., None, :, :], sin[..., None, :, :]
    pairs = cos.shape[-1]
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else (turned[..., :pairs], turned[..., pairs:])
    both = [a * cos - b * sin, a * sin + b * cos]
    both = np.stack(both, axis=-1).reshape(turned.shape) if interleaved else np.concatenate(both, axis=-1)
    return np.concatenate([both, rest], axis=-1)


@remembered
@_ignored
def naive_linear(x, weight, bias=None, *, activation=None, residual=None, matmul=np.matmul):
    """The weight may be a pair (values, scales), which are multiplied in the type that x is computed in."""
    if isinstance(weight, tuple):
        values, scales = (array.astype(computed_in(x.dtype)) for array in weight)
        weight = values * scales[:, None]
    y = _product(x, weight.T, matmul)
    if bias is not None:
        y = y + bias.astype(x.dtype)
    if activation is not None:
        y = _NAIVE_ACTIVATIONS[activation](y, y.dtype.type)
    return y if residual is None else y + residual


def _naive_gelu_tanh(x, real):
    return x * (1 + np.tanh(real(np.sqrt(2 / np.pi)) * (x + real(0.044715) * x * x * x))) / real(2)


# By name, functions of (x, the type of its numbers). At -inf they give NaN and are not asked.
_NAIVE_ACTIVATIONS = {
    "gelu": lambda x, real: x * (1 + _erf(x / real(np.sqrt(2)))) / real(2),
    "gelu_tanh": _naive_gelu_tanh,
    "relu": lambda x, real: np.maximum(x, real(0)),
    "silu": lambda x, real: x / (1 + np.exp(-x)),
}


def _erf(x):
    return np.vectorize(math.erf, otypes=[float])(x).astype(x.dtype)


def _scaled_and_shifted(x, weight, bias):
    if weight is not None:
        x = x * weight.astype(x.dtype)
    if bias is not None:
        x = x + bias.astype(x.dtype)
    return x
