"""The oracle against loops in plain Python and values worked out by hand."""

import decimal
import doctest
import inspect
import math

import numpy as np
import pytest

import fastattn
from fastattn import _arguments, reference

INF, NAN = math.inf, math.nan


def test_docstrings_run():
    result = doctest.testmod(reference)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", reference.__all__)
def test_arguments_are_those_of_the_package(name):
    where_and_how = {"out", "num_threads"}
    ours = inspect.signature(getattr(fastattn, name)).parameters
    assert [(p.name, p.kind, p.default) for p in arguments_of_the_oracle(name)] == [
        (p.name, p.kind, p.default) for p in ours.values() if p.name not in where_and_how
    ]


def arguments_of_the_oracle(name):
    """The function's own, and for **options, which all functions of attention pass on, those of the one they end at."""
    own = list(inspect.signature(getattr(reference, name)).parameters.values())
    if own[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        return own
    spelled_out = inspect.signature(reference._weights).parameters.values()
    options = [p for p in spelled_out if p.kind is inspect.Parameter.KEYWORD_ONLY]
    own.pop()
    keywords = [p for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY]
    return [*(p for p in own if p not in keywords), *options, *keywords]


def test_docstrings_name_all_options():
    for option in inspect.signature(reference._weights).parameters.values():
        if option.kind is inspect.Parameter.KEYWORD_ONLY:
            assert f"    {option.name} : " in reference.attention_weights.__doc__
            assert f"``{option.name}``" in reference.scaled_dot_product_attention.__doc__


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_results_are_float64_or_long_double(dtype):
    """Long double stays what it is, through every step: results in float64 are judged by it."""
    x, wide = np.ones((1, 2, 3), dtype), np.longdouble if dtype == np.longdouble else np.float64
    one = x[:, 0, 0]
    options = {"softcap": 2.0, "alibi_slopes": one, "sinks": one, "is_causal": True, "attn_mask": x[0, :, :2]}
    results = [
        *reference.scaled_dot_product_attention(x, x, x, return_lse=True, **options),
        *reference.attention_weights(x, x, return_lse=True),
        *reference.varlen_attention(*3 * [x.swapaxes(0, 1)], [0, 1, 2], [0, 1, 2], return_lse=True),
        *reference.merge_states([x, x], [x[..., 0], x[..., 0]]),
        *reference.add_layer_norm(x, x, x[0, 0], x[0, 0]),
        *reference.add_rms_norm(x, x, x[0, 0]),
        reference.softmax(x),
        reference.log_softmax(x, where=x > 0),
        reference.layer_norm(x, x[0, 0], x[0, 0]),
        reference.rms_norm(x, x[0, 0]),
        reference.rotary_embedding(x, x[0, :, :1], x[0, :, :1]),
        *(
            reference.linear(x, x[0], x[0, 0, :2], residual=x[..., :2], activation=activation)
            for activation in FORMULAS
        ),
    ]
    assert {result.dtype for result in results} == {np.dtype(wide)}


@pytest.mark.skipif(np.dtype(np.longdouble) == np.float64, reason="no type wider than float64 here")
def test_long_double_has_more_digits():
    x = np.random.default_rng(1).normal(size=(2, 5, 7))
    for operation, arguments in {"softmax": [x], "layer_norm": [x], "scaled_dot_product_attention": [x, x, x]}.items():
        narrow = getattr(reference, operation)(*arguments)
        wide = getattr(reference, operation)(*(x.astype(np.longdouble) for x in arguments))
        np.testing.assert_allclose(narrow, wide, rtol=1e-13, atol=1e-15)
        assert (wide != wide.astype(np.float64)).any()


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


# Options of attention


def scores_of_one_query(query, keys, *, batch, head, i, queries, attn_mask=None, **options):
    """The scores (a list) of query i over all keys, number by number; -inf where it may not see one.

    `attn_mask` has all its axes here, and `q_offset`, `kv_lengths` and `alibi_slopes` have one number a sequence.
    """
    length = options["kv_lengths"][batch] if "kv_lengths" in options else len(keys)
    position = i + (options["q_offset"][batch] if "q_offset" in options else length - queries)
    left, right = options.get("window", (None, None))
    scores = []
    for j, key in enumerate(keys):
        score = options.get("scale", 1 / math.sqrt(len(query))) * sum(a * b for a, b in zip(query, key, strict=True))
        if "softcap" in options:
            score = options["softcap"] * math.tanh(score / options["softcap"])
        if "alibi_slopes" in options:
            score -= options["alibi_slopes"][batch][head] * abs(position - j)
        bias = 0.0
        if "position_bias" in options:
            row = options["position_bias"][head]
            bias = row[min(max(len(row) // 2 + j - position, 0), len(row) - 1)]
        score += bias
        given = True if attn_mask is None else attn_mask[batch, head, i, j]
        if attn_mask is not None and attn_mask.dtype != bool:
            score += given
        seen = (
            j < length
            and bias > -INF
            and (j <= position or not options.get("is_causal"))
            and (left is None or j >= position - left)
            and (right is None or j <= position + right)
            and (given if attn_mask is None or attn_mask.dtype == bool else given > -INF)
        )
        scores.append(score if seen else -INF)
    return scores


BATCH, HEADS, KV_HEADS, QUERIES, KEYS = 2, 4, 2, 3, 5
OPTION_SETS = {
    "causal": {"is_causal": True},
    "offsets": {"is_causal": True, "q_offset": [3, -1]},
    "lengths": {"kv_lengths": [4, 0]},
    "causal, lengths": {"is_causal": True, "kv_lengths": [4, 2]},
    "offsets, lengths": {"is_causal": True, "kv_lengths": [4, 2], "q_offset": [0, 1]},
    "window": {"window": (1, 1)},
    "window, left": {"window": (1, None)},
    "window, right": {"window": (None, 0), "q_offset": [1, 0]},
    "window, causal": {"window": (1, 2), "is_causal": True},
    "scale": {"scale": -0.7},
    "softcap": {"softcap": 0.8, "scale": 2.0},
    "sinks": {"sinks": [0.5, -1.0, -INF, 2.0]},
    "alibi": {"alibi_slopes": [[0.5, 0.25, 0.1, -0.3]] * 2},
    "alibi of each": {"alibi_slopes": [[0.5, 0.25, 0.1, 0.0], [1.0, 0.3, 0.2, 0.7]], "q_offset": [0, 4]},
    "alibi, lengths": {"alibi_slopes": [[0.5, 0.25, 0.1, 0.0]] * 2, "kv_lengths": [4, 2]},
    "position bias": {"position_bias": [[0.5, -1.0, 0.3], [0.0, 2.0, 1.0], [1.0, -INF, 0.5], [-INF, 0.1, 0.2]]},
    "position bias, lengths": {"position_bias": [[h * d for d in range(9)] for h in range(4)], "kv_lengths": [4, 2]},
    "position bias, offsets": {"position_bias": [[0.3], [0.2], [-INF], [0.0]], "q_offset": [-3, 4]},
    "everything": {
        "is_causal": True,
        "q_offset": [2, 1],
        "window": (2, 5),
        "scale": 1.3,
        "softcap": 1.1,
        "sinks": [0.5, -1.0, 0.2, 2.0],
        "alibi_slopes": [[0.5, 0.25, 0.1, 0.0], [1.0, 0.3, 0.2, 0.7]],
        "position_bias": [[0.1, -0.2, 0.5, 0.0, 1.0], [1.0, 0.5, 0.0, 0.3, 0.1], [0.0] * 5, [-INF, 0.2, 0.3, 0.4, 0.5]],
        "kv_lengths": [5, 3],
    },
}
MASKS = {
    "none": lambda rng, shape: None,
    "bool": lambda rng, shape: rng.random(shape) < 0.6,
    "float": lambda rng, shape: np.where(rng.random(shape) < 0.7, rng.normal(size=shape), -INF),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", OPTION_SETS)
def test_options_are_what_loops_compute(rng, name, mask):
    options = OPTION_SETS[name]
    query = rng.normal(size=(BATCH, HEADS, QUERIES, 3))
    key, value = rng.normal(size=(BATCH, KV_HEADS, KEYS, 3)), rng.normal(size=(BATCH, KV_HEADS, KEYS, 2))
    attn_mask = MASKS[mask](rng, (BATCH, HEADS, QUERIES, KEYS))
    given = {name: np.array(x) if isinstance(x, list) else x for name, x in options.items()}
    out, lse = reference.scaled_dot_product_attention(query, key, value, attn_mask, **given, return_lse=True)
    weights, weights_lse = reference.attention_weights(query, key, attn_mask, **given, return_lse=True)
    np.testing.assert_array_equal(weights_lse, lse)
    for b, h, i in np.ndindex(BATCH, HEADS, QUERIES):
        keys, values = key[b, h // 2], value[b, h // 2]
        where = {"batch": b, "head": h, "i": i, "queries": QUERIES}
        exponentials = [
            math.exp(s) for s in scores_of_one_query(query[b, h, i], keys, **where, attn_mask=attn_mask, **options)
        ]
        total = sum(exponentials) + math.exp(options.get("sinks", [-INF] * HEADS)[h])
        expected = [e / total if total else 0.0 for e in exponentials]
        np.testing.assert_allclose(weights[b, h, i], expected, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(lse[b, h, i], math.log(total) if total else -INF, rtol=1e-13, atol=1e-15)
        expected = [sum(w * v[c] for w, v in zip(expected, values, strict=True)) for c in range(2)]
        np.testing.assert_allclose(out[b, h, i], expected, rtol=1e-13, atol=1e-14)


def weights_by_hand(queries=1, keys=4, scores=None, **options):
    """Weights and lse of queries that all score the keys alike: 0, or the given scores."""
    key = np.zeros((keys, 1)) if scores is None else np.array(scores)[:, None]
    return reference.attention_weights(np.ones((queries, 1)), key, scale=1.0, return_lse=True, **options)


LOG2, LOG3 = math.log(2), math.log(3)


@pytest.mark.parametrize(
    ("options", "weights", "lse"),
    [
        ({}, [1 / 4] * 4, 2 * LOG2),
        ({"attn_mask": np.array([True, False, False, True])}, [1 / 2, 0, 0, 1 / 2], LOG2),
        ({"attn_mask": np.array([False] * 4)}, [0, 0, 0, 0], -INF),
        ({"attn_mask": np.array(False)}, [0, 0, 0, 0], -INF),
        ({"attn_mask": np.array([LOG2, 0, -INF, 0])}, [1 / 2, 1 / 4, 0, 1 / 4], 2 * LOG2),
        ({"attn_mask": np.array([-INF] * 4)}, [0, 0, 0, 0], -INF),
        ({"attn_mask": np.array([-1e300] * 4)}, [1 / 4] * 4, -1e300),
        ({"window": (1, 0)}, [0, 0, 1 / 2, 1 / 2], LOG2),
        ({"window": (1, 1), "q_offset": 1}, [1 / 3, 1 / 3, 1 / 3, 0], LOG3),
        ({"window": (0, 0), "q_offset": 4}, [0, 0, 0, 0], -INF),
        ({"window": (None, None)}, [1 / 4] * 4, 2 * LOG2),
        ({"kv_lengths": 3}, [1 / 3, 1 / 3, 1 / 3, 0], LOG3),
        ({"kv_lengths": 0}, [0, 0, 0, 0], -INF),
        ({"kv_lengths": 3, "window": (1, 0)}, [0, 1 / 2, 1 / 2, 0], LOG2),
        ({"kv_lengths": 3, "window": (1, 0), "q_offset": 3}, [0, 0, 1, 0], 0.0),
        ({"sinks": np.log([4.0])}, [1 / 8] * 4, 3 * LOG2),
        ({"sinks": np.array([-INF])}, [1 / 4] * 4, 2 * LOG2),
        ({"sinks": np.array([0.7]), "kv_lengths": 0}, [0, 0, 0, 0], 0.7),
        ({"alibi_slopes": np.array([LOG2])}, [1 / 15, 2 / 15, 4 / 15, 8 / 15], math.log(15 / 8)),
        ({"alibi_slopes": np.array([LOG2]), "q_offset": 1}, [2 / 9, 4 / 9, 2 / 9, 1 / 9], math.log(9 / 4)),
        ({"alibi_slopes": np.array([LOG2]), "kv_lengths": 2}, [1 / 3, 2 / 3, 0, 0], math.log(3 / 2)),
        ({"position_bias": np.array([[0, LOG2, 0]])}, [1 / 5, 1 / 5, 1 / 5, 2 / 5], math.log(5)),
        ({"position_bias": np.array([[LOG2, 0, -INF]]), "q_offset": 1}, [2 / 3, 1 / 3, 0, 0], LOG3),
        ({"position_bias": np.array([[LOG2]]), "q_offset": 10**30}, [1 / 4] * 4, 3 * LOG2),
        ({"position_bias": np.array([[-INF]])}, [0, 0, 0, 0], -INF),
        ({"scores": [1e9, -1e9, 1e9, 0.0], "softcap": LOG2 / 2}, None, None),
    ],
)
def test_options_by_hand(options, weights, lse):
    got, got_lse = weights_by_hand(**options)
    if weights is None:  # the cap makes these scores c, -c, c and 0, with exponentials sqrt(2), 1/sqrt(2), sqrt(2), 1
        root = math.sqrt(2)
        total = 2 * root + 1 / root + 1
        weights, lse = [root / total, 1 / root / total, root / total, 1 / total], math.log(total)
    np.testing.assert_allclose(got, [weights], rtol=1e-14)
    np.testing.assert_allclose(got_lse, [lse], rtol=1e-14)


def test_masks_broadcast(rng):
    query, key, value = (rng.normal(size=(2, 3, 4, 5)) for _ in range(3))
    for shape in [(), (4,), (4, 1), (1, 4), (3, 1, 1), (2, 1, 1, 4), (1, 3, 4, 1), (2, 3, 4, 4)]:
        for mask in (rng.random(shape) < 0.5, rng.normal(size=shape)):
            result = reference.scaled_dot_product_attention(query, key, value, mask)
            whole = np.broadcast_to(mask, (2, 3, 4, 4))
            np.testing.assert_array_equal(result, reference.scaled_dot_product_attention(query, key, value, whole))


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.uint64, np.int64])
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_offsets_do_not_wrap_in_their_own_type(rng, kind, packed):
    """A NumPy scalar stays in its type when a bound of the window is taken from it or added."""
    x = rng.standard_normal((130, 1, 4))
    for offset, window in ((1, (2, 2)), (126, (3, 3)), (0, (4, None))):
        options = {"q_offset": offset, "window": window, "is_causal": True}
        if packed:
            bounds = [0, 65, 130]
            wanted = reference.varlen_attention(x, x, x, bounds, bounds, **options)
            got = reference.varlen_attention(x, x, x, bounds, bounds, **options | {"q_offset": kind(offset)})
        else:
            x = x.reshape(1, 130, 4)
            wanted = reference.scaled_dot_product_attention(x, x, x, **options)
            got = reference.scaled_dot_product_attention(x, x, x, **options | {"q_offset": kind(offset)})
        np.testing.assert_array_equal(got, wanted)


def test_numbers_of_each_sequence_broadcast_to_the_leading_axes(rng):
    query, key, value = rng.normal(size=(2, 3, 1, 4, 5)), rng.normal(size=(3, 1, 6, 5)), rng.normal(size=(3, 1, 6, 5))
    for shape in [(), (3,), (1,), (2, 1), (2, 3)]:
        q_offset, kv_lengths = rng.integers(0, 6, size=shape), rng.integers(0, 7, size=shape)
        out = reference.scaled_dot_product_attention(
            query, key, value, q_offset=q_offset, kv_lengths=kv_lengths, is_causal=True
        )
        for n in np.ndindex(2, 3):
            own = reference.scaled_dot_product_attention(
                query[n],
                key[n[1]],
                value[n[1]],
                is_causal=True,
                q_offset=int(np.broadcast_to(q_offset, (2, 3))[n]),
                kv_lengths=int(np.broadcast_to(kv_lengths, (2, 3))[n]),
            )
            np.testing.assert_allclose(out[n], own, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "options",
    [
        {"attn_mask": np.arange(4) != 2},
        {"attn_mask": np.where(np.arange(4) != 2, 0.5, -INF)},
        {"attn_mask": np.array([0.0, 0.0, -INF, -INF]), "softcap": 1.0, "alibi_slopes": np.ones(2)},
        {"position_bias": np.array([[0.5, 0.1, 0.3, -INF, -INF, -INF, -INF]] * 2), "q_offset": -1},
        {"window": (3, 0), "q_offset": -2},
        {"kv_lengths": 2},
        {"kv_lengths": np.array(2), "attn_mask": np.array([0.0, 1.0, NAN, NAN])},
        {"is_causal": True, "q_offset": -2, "attn_mask": np.array([0.0, 1.0, NAN, INF])},
    ],
)
def test_what_options_exclude_contributes_exactly_nothing(rng, bad, options):
    query, key, value = rng.normal(size=(3, 2, 4, 5))
    clean = reference.scaled_dot_product_attention(query, key, value, **options, return_lse=True)
    key[:, 2], value[:, 2] = bad, bad
    result = reference.scaled_dot_product_attention(query, key, value, **options, return_lse=True)
    for got, expected in zip(result, clean, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)


def test_nan_that_a_mask_lets_through_shows_in_its_row(rng):
    query, key, value = rng.normal(size=(3, 1, 4, 2))
    mask = np.zeros((4, 4))
    mask[1, 2] = NAN
    out, lse = reference.scaled_dot_product_attention(query, key, value, mask, return_lse=True)
    assert np.isnan(out[0]).tolist() == [[False] * 2, [True] * 2, [False] * 2, [False] * 2]
    assert np.isnan(lse[0]).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "options",
    [{"softcap": 2.0}, {"sinks": np.ones(1)}, {"alibi_slopes": np.ones(1)}, {"position_bias": np.ones((1, 3))}],
)
def test_nan_passes_through_every_option(rng, options):
    query, key, value = rng.normal(size=(3, 1, 4, 2))
    key[0, 2] = NAN
    out, lse = reference.scaled_dot_product_attention(query, key, value, **options, is_causal=True, return_lse=True)
    assert np.isnan(out[0]).any(axis=-1).tolist() == np.isnan(lse[0]).tolist() == [False, False, True, True]


def test_varlen_is_each_sequence_alone(rng):
    lengths_q, lengths_k = [2, 0, 3, 1], [3, 2, 0, 4]
    query, key, value = rng.normal(size=(6, 4, 3)), rng.normal(size=(9, 2, 3)), rng.normal(size=(9, 2, 5))
    bounds = [np.cumsum([0, *lengths]) for lengths in (lengths_q, lengths_k)]
    slopes = rng.random((4, 4))
    options = {"is_causal": True, "window": (2, None), "softcap": 1.5, "sinks": rng.normal(size=4), "scale": 0.9}
    out, lse = reference.varlen_attention(
        query,
        key,
        value,
        *bounds,
        **options,
        q_offset=np.array([1, 0, 0, 2]),
        kv_lengths=np.array([3, 1, 0, 2]),
        alibi_slopes=slopes,
        return_lse=True,
    )
    assert out.shape == (6, 4, 5)
    assert lse.shape == (6, 4)
    for q, k, q_offset, length, n in [((0, 2), (0, 3), 1, 3, 0), ((2, 5), (5, 5), 0, 0, 2), ((5, 6), (5, 7), 2, 2, 3)]:
        own_query, own_key, own_value = query[slice(*q)], key[slice(*k)], value[slice(*k)]
        assert len(own_key) == length  # the keys beyond it were cut off here
        for h in range(4):
            expected, expected_lse = reference.scaled_dot_product_attention(
                own_query[:, h],
                own_key[:, h // 2],
                own_value[:, h // 2],
                **options | {"sinks": options["sinks"][h : h + 1]},
                q_offset=q_offset,
                alibi_slopes=slopes[n, h : h + 1],
                return_lse=True,
            )
            np.testing.assert_allclose(out[slice(*q), h], expected, rtol=1e-13, atol=1e-15)
            np.testing.assert_allclose(lse[slice(*q), h], expected_lse, rtol=1e-13, atol=1e-15)


def test_varlen_of_no_sequences():
    out, lse = reference.varlen_attention(
        np.ones((0, 2, 3)), np.ones((0, 1, 3)), np.ones((0, 1, 4)), [0], [0], return_lse=True
    )
    assert out.shape == (0, 2, 4)
    assert lse.shape == (0, 2)


# Rotary position embedding


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("half", [1, 2, 3])
def test_rotary_embedding_is_multiplication_by_a_unit_complex_number(rng, interleaved, half):
    """A pair is a complex number; what lies beyond the rotary size stays."""
    x, angles = rng.normal(size=(2, 3, 4, 6)), rng.normal(size=(5, half))
    positions = np.array([[4, 0, 1, 1], [2, 3, 3, 0]])
    result = reference.rotary_embedding(x, np.cos(angles), np.sin(angles), positions=positions, interleaved=interleaved)
    np.testing.assert_array_equal(result[..., 2 * half :], x[..., 2 * half :])
    for b, h, s, i in np.ndindex(2, 3, 4, half):
        pair = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        turned = complex(*x[b, h, s, list(pair)]) * complex(math.cos(a := angles[positions[b, s], i]), math.sin(a))
        np.testing.assert_allclose(result[b, h, s, list(pair)], [turned.real, turned.imag], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("interleaved", "expected"), [(False, [-3.0, -4.0, 1.0, 2.0, 5.0]), (True, [-2.0, 1.0, -4.0, 3.0, 5.0])]
)
def test_rotary_embedding_by_hand(interleaved, expected):
    """A quarter turn of both pairs."""
    zeros, ones = np.zeros((1, 2)), np.ones((1, 2))
    result = reference.rotary_embedding([[1.0, 2.0, 3.0, 4.0, 5.0]], zeros, ones, interleaved=interleaved)
    assert result.tolist() == [expected]


def test_rotary_embedding_of_every_token_or_by_positions(rng):
    x, angles = rng.normal(size=(2, 3, 4, 6)), rng.normal(size=(9, 3))
    cos, sin = np.cos(angles), np.sin(angles)
    by_default = reference.rotary_embedding(x, cos[:4], sin[:4])
    np.testing.assert_array_equal(reference.rotary_embedding(x, cos, sin, positions=np.arange(4)), by_default)
    positions = rng.integers(9, size=(2, 4))
    each = reference.rotary_embedding(x, cos[positions], sin[positions])
    np.testing.assert_array_equal(reference.rotary_embedding(x, cos, sin, positions=positions), each)
    np.testing.assert_array_equal(reference.rotary_embedding(x[0, 0], cos[positions[0]], sin[positions[0]]), each[0, 0])


def test_rotary_embedding_makes_scores_depend_on_the_distance(rng):
    query, key, angles = (
        rng.normal(size=(1, 8)),
        rng.normal(size=(1, 8)),
        np.arange(20)[:, None] * [1.0, 0.3, 0.1, 0.03],
    )
    cos, sin = np.cos(angles), np.sin(angles)

    def score(i, j):
        turned = [reference.rotary_embedding(x, cos, sin, positions=np.array([at])) for x, at in ((query, i), (key, j))]
        return (turned[0] @ turned[1].T).item()

    np.testing.assert_allclose([score(5, 2), score(19, 16)], score(3, 0), rtol=1e-12)


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


@pytest.mark.parametrize("scale", [1e308, 1e200, 1e155, 1e-160, 1e-300, 5e-324])
@pytest.mark.parametrize("eps", [0, 1e-5, 1e-300])
def test_norms_of_rows_whose_squares_no_type_holds(scale, eps):
    """Against sixty decimal digits."""
    x = np.array([0.25, -1.0, 0.5, 1.5, 0.75]) * scale
    with decimal.localcontext() as digits:
        digits.prec, digits.Emin, digits.Emax = 60, -9999, 9999
        numbers = [decimal.Decimal(float(number)) for number in x]
        mean = sum(numbers) / len(x)
        for operation, about in ((reference.layer_norm, mean), (reference.rms_norm, 0)):
            square = sum((number - about) ** 2 for number in numbers) / len(x) + decimal.Decimal(eps)
            expected = [float((number - about) / square.sqrt()) for number in numbers]
            atol = max(1e-15 * max(map(abs, expected)), 1e-323)
            np.testing.assert_allclose(operation(x, eps=eps), expected, rtol=1e-14, atol=atol)


def test_add_norms_are_the_norms_of_the_sum(rng):
    x, residual, weight, bias = rng.normal(size=(4, 3, 5))
    y, total = reference.add_layer_norm(x, residual, weight[0], bias[0], eps=0.1)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_array_equal(y, reference.layer_norm(x + residual, weight[0], bias[0], eps=0.1))
    y, total = reference.add_rms_norm(x, residual, weight[0], eps=0.1)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_array_equal(y, reference.rms_norm(x + residual, weight[0], eps=0.1))


# Linear layers

FORMULAS = {
    None: lambda x: x,
    "gelu": lambda x: x * math.erfc(-x / math.sqrt(2)) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("activation", [None, *_arguments.ACTIVATIONS])
@pytest.mark.parametrize("given", [(), ("bias",), ("residual",), ("bias", "residual")], ids="+".join)
def test_linear_is_what_loops_compute(rng, activation, given):
    x, weight = rng.normal(size=(2, 3, 5)), rng.normal(size=(4, 5))
    bias, residual = rng.normal(size=4), rng.normal(size=(2, 3, 4))
    options = {name: array for name, array in (("bias", bias), ("residual", residual)) if name in given}
    result = reference.linear(x, weight, activation=activation, **options)
    for b, i, n in np.ndindex(2, 3, 4):
        total = sum(p * q for p, q in zip(x[b, i], weight[n], strict=True)) + (bias[n] if "bias" in given else 0)
        expected = FORMULAS[activation](total) + (residual[b, i, n] if "residual" in given else 0)
        np.testing.assert_allclose(result[b, i, n], expected, rtol=1e-13, atol=1e-15)


def test_activations_known_from_elsewhere():
    """At -3, -1, 1/2 and 2, by PyTorch in float64; gelu's at -10, where PyTorch has 0, by 30 digits."""
    known = {
        "gelu": [-0.00404969409489031, -0.15865525393145702, 0.34573123063700656, 1.9544997361036416],
        "gelu_tanh": [-0.0036373920817729943, -0.15880800939172324, 0.34571400982514394, 1.954597694087775],
        "relu": [0.0, 0.0, 0.5, 2.0],
        "silu": [-0.14227761953270035, -0.2689414213699951, 0.3112296656009273, 1.7615941559557646],
    }
    x, one = np.array([[-3.0], [-1.0], [0.5], [2.0]]), np.ones((1, 1))
    for activation, expected in known.items():
        result = reference.linear(x, one, activation=activation)[:, 0]
        np.testing.assert_allclose(result, expected, rtol=1e-13)
    np.testing.assert_allclose(reference.linear([-10.0], one, activation="gelu"), -7.619853024160526e-23, rtol=1e-13)


@pytest.mark.parametrize("activation", _arguments.ACTIVATIONS)
def test_activations_have_their_limits(activation):
    result = reference.linear([[INF], [-INF], [NAN], [0.0]], [[1.0]], activation=activation)[:, 0]
    np.testing.assert_array_equal(result, [INF, 0, NAN, 0])


def test_scales_belong_to_the_rows_of_a_weight():
    weight = np.array([[1, -2], [127, 0]], np.int8), np.array([0.5, 2.0], np.float32)
    assert reference.linear([[3.0, 1.0]], weight, [1.0, 0.0]).tolist() == [[1.5, 762.0]]


def test_a_layer_without_inputs_is_its_bias():
    result = reference.linear(np.ones((2, 0)), np.ones((3, 0)), [-1.0, 0.0, 1.0], activation="relu")
    assert result.tolist() == [[0.0, 0.0, 1.0]] * 2


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
