"""The oracle against loops in plain Python and values worked out by hand."""

import doctest
import inspect
import math

import numpy as np
import pytest

import fastattn
from fastattn import reference

INF, NAN = math.inf, math.nan


def test_docstrings_run():
    result = doctest.testmod(reference)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", reference.__all__)
def test_arguments_are_those_of_the_package(name):
    where_and_how = {"out", "num_threads"}
    ours = inspect.signature(getattr(fastattn, name)).parameters
    theirs = inspect.signature(getattr(reference, name)).parameters
    assert [(p.name, p.kind, p.default) for p in theirs.values()] == [
        (p.name, p.kind, p.default) for p in ours.values() if p.name not in where_and_how
    ]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_results_are_float64(dtype):
    x = np.ones((1, 2, 3), dtype)
    out, lse = reference.scaled_dot_product_attention(x, x, x, return_lse=True)
    assert out.dtype == lse.dtype == np.float64
    assert reference.softmax(x).dtype == np.float64
    assert reference.layer_norm(x, x[0, 0], x[0, 0]).dtype == np.float64


# Attention


def attention_of_one_query(query, keys, values, scale):
    """(out, lse) of one query over the keys it sees, one by one."""
    scores = [scale * sum(a * b for a, b in zip(query, key, strict=True)) for key in keys]
    exponentials = [math.exp(score) for score in scores]
    total = sum(exponentials)
    if total == 0:
        return [0.0] * values.shape[-1], -INF
    out = [
        sum(e * value[c] for e, value in zip(exponentials, values, strict=True)) / total
        for c in range(values.shape[-1])
    ]
    return out, math.log(total)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("q_offset", [None, 0, 2, -2, 100])
@pytest.mark.parametrize(("queries", "keys"), [(3, 5), (4, 4), (5, 3), (2, 0)])
def test_attention_is_what_loops_compute(rng, queries, keys, q_offset, is_causal):
    batch, heads, kv_heads, head_size, value_size = 2, 6, 2, 3, 4
    query = rng.normal(size=(batch, heads, queries, head_size))
    key = rng.normal(size=(batch, kv_heads, keys, head_size))
    value = rng.normal(size=(batch, kv_heads, keys, value_size))
    out, lse = reference.scaled_dot_product_attention(
        query, key, value, is_causal=is_causal, q_offset=q_offset, return_lse=True
    )
    offset = keys - queries if q_offset is None else q_offset
    for b, h, i in np.ndindex(batch, heads, queries):
        kv_head = h // (heads // kv_heads)
        seen = [j for j in range(keys) if not is_causal or j <= i + offset]
        expected_out, expected_lse = attention_of_one_query(
            query[b, h, i], key[b, kv_head, seen], value[b, kv_head, seen], 1 / math.sqrt(head_size)
        )
        np.testing.assert_allclose(out[b, h, i], expected_out, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(lse[b, h, i], expected_lse, rtol=1e-13, atol=1e-15)


def causal_mask(queries, keys, q_offset=None):
    """Which values arrive: with equal scores a key is seen where its own unit vector shows in the result."""
    zeros = np.zeros((max(queries, keys), 1))
    out = reference.scaled_dot_product_attention(
        zeros[:queries], zeros[:keys], np.eye(keys), is_causal=True, q_offset=q_offset
    )
    return (out > 0).astype(int).tolist()


def test_causal_mask_drawn():
    assert causal_mask(2, 4) == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert causal_mask(3, 3) == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert causal_mask(4, 2) == [[0, 0], [0, 0], [1, 0], [1, 1]]
    assert causal_mask(2, 4, q_offset=0) == [[1, 0, 0, 0], [1, 1, 0, 0]]
    assert causal_mask(4, 2, q_offset=0) == [[1, 0], [1, 1], [1, 1], [1, 1]]


def test_attention_broadcasts_leading_axes_of_all_three(rng):
    query, key, value = rng.normal(size=(4, 3, 2)), rng.normal(size=(5, 1, 2, 6, 2)), rng.normal(size=(7, 2, 6, 3))
    out, lse = reference.scaled_dot_product_attention(query, key, value, return_lse=True)
    assert out.shape == (5, 7, 4, 3, 3)
    assert lse.shape == (5, 7, 4, 3)
    np.testing.assert_array_equal(out[4, 6], reference.scaled_dot_product_attention(query, key[4, 0], value[6]))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_excluded_keys_contribute_exactly_nothing(rng, bad):
    query, key, value = rng.normal(size=(3, 2, 4, 5))
    key[:, 3], value[:, 3] = bad, bad  # only the last query sees this key
    out, lse = reference.scaled_dot_product_attention(query, key, value, is_causal=True, return_lse=True)
    before, before_lse = reference.scaled_dot_product_attention(
        query[:, :3], key[:, :3], value[:, :3], is_causal=True, return_lse=True
    )
    np.testing.assert_allclose(out[:, :3], before, rtol=1e-14)
    np.testing.assert_allclose(lse[:, :3], before_lse, rtol=1e-14)


def test_nan_that_is_attended_shows_in_its_row(rng):
    query, key, value = rng.normal(size=(3, 1, 4, 2))
    value[0, 2, 1] = NAN
    out = reference.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert np.isnan(out[0]).tolist() == [[False, False]] * 2 + [[False, True]] * 2


def test_merge_states_of_parts_is_the_whole(rng):
    query, key, value = rng.normal(size=(3, 2, 6, 4))
    cuts = [(0, 1), (1, 1), (1, 4), (4, 6)]
    parts = [
        reference.scaled_dot_product_attention(query, key[:, a:b], value[:, a:b], return_lse=True) for a, b in cuts
    ]
    out, lse = reference.merge_states(*zip(*parts, strict=True))
    whole = reference.scaled_dot_product_attention(query, key, value, return_lse=True)
    np.testing.assert_allclose(out, whole[0], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(lse, whole[1], rtol=1e-13, atol=1e-15)


def test_merge_states_of_empty_parts():
    out, lse = reference.merge_states([[[NAN, 1.0]], [[2.0, 3.0]]], [[-INF], [0.5]])
    assert out.tolist() == [[2.0, 3.0]]
    assert lse.tolist() == [0.5]
    out, lse = reference.merge_states([[[0.0]], [[0.0]]], [[-INF], [-INF]])
    assert out.tolist() == [[0.0]]
    assert lse.tolist() == [-INF]


# Softmax


@pytest.mark.parametrize(
    ("x", "where", "softmax", "log_softmax"),
    [
        ([0.0, 0.0], None, [0.5, 0.5], [-math.log(2), -math.log(2)]),
        ([7.0], None, [1.0], [0.0]),
        ([-INF, 3.0], None, [0.0, 1.0], [-INF, 0.0]),
        ([-INF, -INF], None, [0.0, 0.0], [-INF, -INF]),
        ([0.0, -1e4], None, [1.0, 0.0], [0.0, -1e4]),
        ([5.0, 3.0], [False, True], [0.0, 1.0], [-INF, 0.0]),
        ([NAN, 3.0], [False, True], [0.0, 1.0], [-INF, 0.0]),
        ([5.0, NAN], [False, False], [0.0, 0.0], [-INF, -INF]),
        ([NAN, 3.0], None, [NAN, NAN], [NAN, NAN]),
        ([INF, 3.0], None, [NAN, NAN], [NAN, NAN]),
        ([], None, [], []),
    ],
)
def test_softmax_by_hand(x, where, softmax, log_softmax):
    np.testing.assert_allclose(reference.softmax(x, where=where), softmax, rtol=1e-15)
    np.testing.assert_allclose(reference.log_softmax(x, where=where), log_softmax, rtol=1e-15)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_softmax_along_an_axis(rng, axis):
    x = rng.normal(size=(3, 4, 5))
    exponentials = np.exp(x)
    expected = exponentials / exponentials.sum(axis=axis, keepdims=True)
    np.testing.assert_allclose(reference.softmax(x, axis), expected, rtol=1e-14)
    np.testing.assert_allclose(reference.log_softmax(x, axis), np.log(expected), rtol=1e-13)


# Normalisation


def test_layer_norm_is_what_loops_compute(rng):
    x, weight, bias = rng.normal(size=(4, 5)), rng.normal(size=5), rng.normal(size=5)
    result = reference.layer_norm(x, weight, bias, eps=0.1)
    for row, got in zip(x, result, strict=True):
        mean = sum(row) / 5
        deviation = math.sqrt(sum((a - mean) ** 2 for a in row) / 5 + 0.1)
        expected = [(a - mean) / deviation * w + b for a, w, b in zip(row, weight, bias, strict=True)]
        np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_rms_norm_is_what_loops_compute(rng):
    x, weight = rng.normal(size=(4, 5)), rng.normal(size=5)
    result = reference.rms_norm(x, weight, eps=0.1)
    for row, got in zip(x, result, strict=True):
        rms = math.sqrt(sum(a * a for a in row) / 5 + 0.1)
        np.testing.assert_allclose(got, [a / rms * w for a, w in zip(row, weight, strict=True)], rtol=1e-13)


def test_add_norms_are_the_norms_of_the_sum(rng):
    x, residual, weight, bias = rng.normal(size=(4, 3, 5))
    y, total = reference.add_layer_norm(x, residual, weight[0], bias[0], eps=0.1)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_array_equal(y, reference.layer_norm(x + residual, weight[0], bias[0], eps=0.1))
    y, total = reference.add_rms_norm(x, residual, weight[0], eps=0.1)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_array_equal(y, reference.rms_norm(x + residual, weight[0], eps=0.1))


# Rotary embedding


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("by_position", [False, True])
def test_rotary_embedding_is_what_complex_numbers_do(rng, interleaved, by_position):
    batch, heads, tokens, pairs, size = 2, 3, 4, 5, 12
    x = rng.normal(size=(batch, heads, tokens, size))
    positions = rng.integers(0, 20, size=(batch, tokens))
    table = rng.normal(0, 3, size=(20, pairs))
    angles = table if by_position else table[positions]
    result = reference.rotary_embedding(
        x, np.cos(angles), np.sin(angles), positions=positions if by_position else None, interleaved=interleaved
    )
    for b, h, s, i in np.ndindex(batch, heads, tokens, pairs):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + pairs)
        turned = complex(x[b, h, s, first], x[b, h, s, second]) * np.exp(1j * table[positions[b, s], i])
        np.testing.assert_allclose(result[b, h, s, [first, second]], [turned.real, turned.imag], rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(result[..., 2 * pairs :], x[..., 2 * pairs :])
