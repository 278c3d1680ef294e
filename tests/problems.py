"""Attention problems of a given shape with their answers, each worked out once for all targets."""

import functools
from typing import NamedTuple

import numpy as np

import fastattn
from accuracy import assert_accurate, naive_attention, unfused_matmul, wider_oracle
from targets import multiplies_and_adds_at_once


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


class Problem(NamedTuple):
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray


# Errors are judged row by row, so rows must be wide enough to have a magnitude of their own: that of one or two
# elements would be an accident. Narrower values are the first columns of values this wide.
WIDE = 32


@functools.lru_cache(maxsize=8)
def _wide_problem(shape, dtype):
    rng = np.random.default_rng(shape)
    shape = shape._replace(value_size=max(shape.value_size, WIDE))
    arrays = Problem(*(rng.normal(size=size).astype(dtype) for size in (shape.query, shape.key, shape.value)))
    for x in arrays:
        x.flags.writeable = False
    return arrays


def problem(shape, dtype):
    """Normally distributed query, key and value of that shape, read-only."""
    query, key, value = _wide_problem(shape, dtype)
    return Problem(query, key, np.ascontiguousarray(value[..., : shape.value_size]))


def answers(query, key, value, **options):
    """((out, lse) of the NumPy formula, (out, lse) of the oracle)."""
    with wider_oracle(query.dtype) as oracle:
        expected = oracle.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
    # NumPy's matmul takes what instructions the machine has; a target without them is measured by one without.
    matmul = np.matmul if multiplies_and_adds_at_once() else unfused_matmul
    return naive_attention(query, key, value, matmul=matmul, **options), expected


@functools.lru_cache(maxsize=64)
def _wide_answers(shape, dtype, options, fused):
    del fused  # part of the key, as the formula depends on it
    return answers(*_wide_problem(shape, dtype), **dict(options))


def assert_attention_accurate(query, key, value, *, known=None, out=None, num_threads=None, **options):
    """Attention over these arrays, held to the accuracy rule; returns (out, lse). `known` are the answers, if known."""
    formula, expected = known or answers(query, key, value, **options)
    result, lse = fastattn.scaled_dot_product_attention(
        query, key, value, return_lse=True, out=out, num_threads=num_threads, **options
    )
    assert result.shape == (*expected[1].shape, value.shape[-1])
    assert result.dtype == query.dtype
    whole = expected[0].astype(query.dtype)
    whole[..., : value.shape[-1]] = result
    assert_accurate(whole, formula[0], expected[0])
    # The lse has no row of its own that would set a magnitude: all of them are one.
    assert_accurate(lse.reshape(1, -1), formula[1].reshape(1, -1), expected[1].reshape(1, -1))
    assert lse.shape == expected[1].shape
    return result, lse


def assert_accurate_at(shape, dtype, *, num_threads=None, **options):
    """The same for the problem of that shape."""
    known = _wide_answers(shape, dtype, tuple(options.items()), multiplies_and_adds_at_once())
    return assert_attention_accurate(*problem(shape, dtype), known=known, num_threads=num_threads, **options)


def assert_same_attention(one, other, query, key, value, *, scale=None, **_):
    """That two ways to (out, lse) differ by rounding only: that of the largest score, times the values."""
    scale = 1 / np.sqrt(query.shape[-1]) if scale is None else abs(scale)
    score = scale * np.linalg.norm(query, axis=-1).max(initial=0) * np.linalg.norm(key, axis=-1).max(initial=0)
    tolerance = 16 * np.finfo(query.dtype).eps * (1 + score)
    np.testing.assert_allclose(one[0], other[0], rtol=0, atol=tolerance * np.abs(value).max(initial=0))
    np.testing.assert_allclose(one[1], other[1], rtol=0, atol=tolerance * 8)
