"""Attention problems of a given shape, with their answers and with every option."""

import functools
from typing import NamedTuple

import numpy as np

import fastattn
from fastattn import reference
from support.accuracy import assert_accurate, assert_accurate_together, by_formula, by_oracle, matmul_of_target
from support.dtypes import HALF, computed_in, eps, readable
from support.remembering import remembered
from support.telling import telling


class Shape(NamedTuple):
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_size: int
    value_size: int

    @property
    def query(self):
        return self.batch, self.heads, self.queries, self.head_size

    @property
    def key(self):
        return self.batch, self.kv_heads, self.keys, self.head_size

    @property
    def value(self):
        return self.batch, self.kv_heads, self.keys, self.value_size

    @property
    def out(self):
        return self.batch, self.heads, self.queries, self.value_size

    @property
    def scores(self):
        return self.batch, self.heads, self.queries, self.keys


class Problem(NamedTuple):
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray


# Errors are judged row by row, so rows must be wide enough to have a magnitude of their own: that of one or two
# elements would be an accident. Narrower values are the first columns of values this wide.
WIDE = 32


@functools.lru_cache(maxsize=16)
def _wide_problem(shape, dtype, stored):
    rng = np.random.default_rng(shape)
    shape = shape._replace(value_size=max(shape.value_size, WIDE))
    kinds = ((shape.query, dtype), (shape.key, stored or dtype), (shape.value, stored or dtype))
    arrays = Problem(*(rng.normal(size=size).astype(kind) for size, kind in kinds))
    for x in arrays:
        x.flags.writeable = False
    return arrays


def problem(shape, dtype, stored=None):
    """Normally distributed query, key and value of that shape, read-only; key and value `stored` in their own type."""
    query, key, value = _wide_problem(shape, dtype, stored)
    return Problem(query, key, np.ascontiguousarray(value[..., : shape.value_size]))


def answers(query, key, value, **options):
    """((out, lse) of the NumPy formula, (out, lse) of the oracle)."""
    arrays = query, key, value
    both = {"return_lse": True, **options}
    expected = by_oracle("scaled_dot_product_attention", query.dtype, *arrays, **both)
    return by_formula("scaled_dot_product_attention", *arrays, matmul=matmul_of_target(), **both), expected


def assert_attention_accurate(query, key, value, *, known=None, out=None, num_threads=None, **options):
    """Attention over these arrays, held to the accuracy rule; returns (out, lse). `known` are the answers, if known."""
    known = known or answers(query, key, value, **options)
    result = fastattn.scaled_dot_product_attention(
        query, key, value, return_lse=True, out=out, num_threads=num_threads, **options
    )
    with telling(read="arrays", query=query, key=key, value=value, num_threads=num_threads, **options):
        assert_accurate_to(known, query, value, result)
    return result


def assert_accurate_to(known, query, value, result):
    """The same for a result that is there already, however it was come by."""
    formula, expected = known
    out, lse = result
    assert out.shape == (*expected[1].shape, value.shape[-1])
    assert out.dtype == query.dtype
    whole = expected[0].astype(query.dtype)
    whole[..., : value.shape[-1]] = out
    assert_accurate(whole, formula[0], expected[0])
    assert_accurate_together(lse, formula[1], expected[1])


def assert_accurate_at(shape, dtype, stored=None, *, num_threads=None, **options):
    """The same for the problem of that shape."""
    known = answers(*_wide_problem(shape, dtype, stored), **options)
    return assert_attention_accurate(*problem(shape, dtype, stored), known=known, num_threads=num_threads, **options)


def assert_same_attention(one, other, query, key, value, **options):
    """That two ways to (out, lse) differ by rounding only: that of the largest score, times the values.

    In 16 bits weights and results are rounded once more.
    """
    tolerance = 16 * eps(computed_in(query.dtype)) * (1 + largest_score(query, key, **options))
    if query.dtype in HALF:
        tolerance += 4 * eps(query.dtype)
    with telling(query=query, key=key, value=value, **options):
        np.testing.assert_allclose(readable(one[0]), readable(other[0]), rtol=0, atol=tolerance * _largest(value))
        np.testing.assert_allclose(one[1], other[1], rtol=0, atol=tolerance * 8)


def assert_same_weights(one, other, query, key, **options):
    """The same for two ways to (weights, lse)."""
    assert_same_attention(one, other, query, key, np.ones(1), **options)


def largest_score(query, key, *, scale=None, softcap=None, alibi_slopes=None, **options):
    """No score is larger, nor any number that goes into one; what is not finite is left out."""
    scale = 1 / np.sqrt(query.shape[-1]) if scale is None else abs(scale)
    score = scale * _longest(query) * _longest(key)
    score = score if softcap is None else min(score, softcap)
    distance = query.shape[-2] + key.shape[-2] + _largest(options.get("q_offset"))
    added = sum(_largest(options.get(name)) for name in ("position_bias", "attn_mask", "sinks"))
    return score + _largest(alibi_slopes) * distance + added


def _largest(x):
    x = np.asarray(0.0 if x is None else x, np.float64)
    return np.abs(x[np.isfinite(x)]).max(initial=0)


def _longest(x):
    return _largest(np.linalg.norm(x.astype(np.float64), axis=-1))


# The options of attention, each for the problem of a given shape. They leave work for one another: together they still
# let most queries see some keys.


def _some(rng, shape, share=0.7):
    """A bool mask; the first row of the last axis but one sees nothing where there are several."""
    mask = rng.random(shape) < share
    if len(shape) > 1 and shape[-2] > 1:
        mask[..., 0, :] = False
    return mask


def _bias(rng, shape, dtype):
    """A float mask that excludes, too."""
    return np.where(_some(rng, shape), rng.normal(size=shape), -np.inf).astype(dtype)


def _slopes(rng, shape, dtype):
    return (2.0 ** -rng.uniform(2, 8, size=shape)).astype(dtype)


def _biases(rng, heads, reach, dtype):
    """By distance; beyond `reach` are those of the ends, which exclude nothing."""
    table = _bias(rng, (heads, 2 * reach + 1), dtype)
    table[:, [0, -1]] = rng.normal(size=(heads, 2)).astype(dtype)
    return table


OPTIONS = {
    "scale": lambda shape, dtype, rng: {"scale": 0.3},
    "causal": lambda shape, dtype, rng: {"is_causal": True},
    "offset": lambda shape, dtype, rng: {"is_causal": True, "q_offset": shape.keys // 2},
    "offsets": lambda shape, dtype, rng: {"is_causal": True, "q_offset": rng.integers(-3, shape.keys, shape.batch)},
    "window": lambda shape, dtype, rng: {"window": (9, 4)},
    "left window": lambda shape, dtype, rng: {"window": (shape.keys // 3, None)},
    "right window": lambda shape, dtype, rng: {"window": (None, 0), "q_offset": 2},
    "softcap": lambda shape, dtype, rng: {"softcap": 1.5},
    "sinks": lambda shape, dtype, rng: {"sinks": rng.normal(size=shape.heads).astype(dtype)},
    "alibi": lambda shape, dtype, rng: {"alibi_slopes": _slopes(rng, shape.heads, dtype)},
    "alibi per batch": lambda shape, dtype, rng: {"alibi_slopes": _slopes(rng, (shape.batch, shape.heads), dtype)},
    "position bias": lambda shape, dtype, rng: {"position_bias": _biases(rng, shape.heads, 20, dtype)},
    "far position bias": lambda shape, dtype, rng: {"position_bias": _biases(rng, shape.heads, 1500, dtype)},
    "length": lambda shape, dtype, rng: {"kv_lengths": shape.keys - shape.keys // 4},
    "lengths": lambda shape, dtype, rng: {"kv_lengths": rng.integers(0, shape.keys + 1, shape.batch)},
    "bool mask": lambda shape, dtype, rng: {"attn_mask": _some(rng, shape.scores)},
    "bool mask of keys": lambda shape, dtype, rng: {"attn_mask": _some(rng, (shape.batch, 1, 1, shape.keys))},
    "bool mask of queries": lambda shape, dtype, rng: {"attn_mask": _some(rng, (shape.queries, 1))},
    "float mask": lambda shape, dtype, rng: {"attn_mask": _bias(rng, shape.scores, dtype)},
    "float mask of heads": lambda shape, dtype, rng: {"attn_mask": _bias(rng, shape.scores[1:], dtype)},
    "float mask of pairs": lambda shape, dtype, rng: {"attn_mask": _bias(rng, shape.scores[2:], dtype)},
}
EVERYTHING_ELSE = ("offsets", "left window", "scale", "softcap", "sinks", "alibi per batch", "position bias", "lengths")


@functools.lru_cache(maxsize=128)
def options_of(names, shape, dtype):
    """The options of those names, for the problem of that shape."""
    return {
        name: option
        for n, kind in enumerate(names)
        for name, option in OPTIONS[kind](shape, dtype, np.random.default_rng([n, *shape])).items()
    }


def of_sequence(options, i):
    """The options of sequence i alone, from those of its batch (one leading axis)."""
    return {name: _of_sequence(name, option, i) for name, option in options.items()}


_AXES_BEHIND_BATCH = {"attn_mask": 3, "alibi_slopes": 1, "q_offset": 0, "kv_lengths": 0, "sinks": 1}


def _of_sequence(name, option, i):
    if np.ndim(option) <= _AXES_BEHIND_BATCH.get(name, np.inf):
        return option
    return option[i if len(option) > 1 else 0]


@remembered
def attended(query, key, attn_mask=None, *, position_bias=None, **options):
    """Which keys each query may attend to, (..., Hq, Sq, Sk): with equal scores these are those that have a weight."""
    if attn_mask is not None and attn_mask.dtype != bool:
        attn_mask = ~np.isneginf(attn_mask)
    kept = {name: options[name] for name in ("is_causal", "q_offset", "window", "kv_lengths") if name in options}
    if position_bias is not None:
        kept["position_bias"] = np.where(np.isneginf(position_bias), -np.inf, 0)
    return reference.attention_weights(np.zeros_like(query), np.zeros_like(key), attn_mask, **kept) > 0


def assert_accurate_with(names, shape, dtype):
    """Attention with the options of those names, held to the accuracy rule."""
    return assert_accurate_at(shape, dtype, **options_of(names, shape, dtype))


def assert_weights_accurate(names, shape, dtype):
    """attention_weights with the options of those names, held to the accuracy rule."""
    query, key, _ = problem(shape, dtype)
    options = options_of(names, shape, dtype)
    expected = by_oracle("attention_weights", dtype, query, key, return_lse=True, **options)
    formula = by_formula("attention_weights", query, key, return_lse=True, matmul=matmul_of_target(), **options)
    result = fastattn.attention_weights(query, key, return_lse=True, **options)
    assert_accurate(result[0], formula[0], expected[0])
    assert_accurate_together(result[1], formula[1], expected[1])
    return result
