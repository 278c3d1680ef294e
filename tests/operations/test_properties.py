"""What must hold for any input: hypothesis draws the calls, the oracle or the kernels themselves say what is right."""

import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import fastattn
from fastattn._runtime import on_target
from support.accuracy import by_formula
from support.arrays import WRITABLE_LAYOUTS, laid_out
from support.dtypes import ALL, assert_equal, eps, readable
from support.layers import ACTIVATIONS, INT8, assert_close_enough, each, layer
from support.problems import Shape, assert_same_attention, problem

attention = functools.partial(fastattn.scaled_dot_product_attention, return_lse=True)

targets = st.sampled_from(fastattn.targets())
dtypes = st.sampled_from(ALL)
layouts = st.sampled_from(list(WRITABLE_LAYOUTS))


@st.composite
def shapes(draw, most_queries=50, most_keys=200):
    """Small sizes, tile sizes and their neighbours come up more often than others."""
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    near = st.sampled_from([4, 8, 16, 32, 48]).flatmap(lambda n: st.integers(n - 1, n + 1))
    size = st.one_of(st.integers(1, 6), near, st.integers(1, 70))
    return Shape(
        batch=draw(st.integers(1, 3)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        queries=draw(st.one_of(st.integers(1, 4), near, st.integers(1, most_queries))),
        keys=draw(st.one_of(st.integers(1, 4), near, st.integers(1, most_keys))),
        head_size=draw(size),
        value_size=draw(size),
    )


@st.composite
def options(draw, shape):
    chosen = {"is_causal": draw(st.booleans())}
    if draw(st.booleans()):
        chosen["q_offset"] = draw(st.integers(-shape.queries - 1, shape.keys + 1))
    if draw(st.booleans()):
        chosen["scale"] = draw(st.floats(-2, 2).map(lambda x: round(x, 3)))
    return chosen


# Attention


@hypothesis.given(targets, dtypes, st.data())
def test_attention_is_what_the_oracle_says(target, dtype, data):
    shape = data.draw(shapes())
    arrays = [laid_out(x, data.draw(layouts)) for x in problem(shape, dtype)]
    chosen = data.draw(options(shape))
    with on_target(target):
        result = attention(*arrays, **chosen)
    expected = fastattn.reference.scaled_dot_product_attention(*arrays, **chosen, return_lse=True)
    assert_same_attention(result, expected, *arrays, **chosen)


@hypothesis.given(targets, dtypes, st.data())
def test_attention_lies_within_the_range_of_the_values(target, dtype, data):
    shape = data.draw(shapes())
    query, key, value = problem(shape, dtype)
    with on_target(target):
        out, lse = attention(query, key, value, **data.draw(options(shape)))
    group = shape.heads // shape.kv_heads
    low, high = (f(value, axis=-2, keepdims=True).repeat(group, axis=1) for f in (np.min, np.max))
    slack = 4 * eps(dtype) * np.abs(value).max()
    saw_something = np.isfinite(lse)[..., None]
    assert ((out >= low - slack) | ~saw_something).all()
    assert ((out <= high + slack) | ~saw_something).all()
    assert (out[~saw_something[..., 0]] == 0).all()


@hypothesis.given(targets, dtypes, st.data())
def test_the_order_of_keys_does_not_matter(target, dtype, data):
    shape = data.draw(shapes())
    query, key, value = arrays = problem(shape, dtype)
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(shape.keys)
    with on_target(target):
        one, other = attention(*arrays), attention(query, key[..., order, :], value[..., order, :])
    assert_same_attention(one, other, *arrays)


@hypothesis.given(targets, dtypes, st.data())
def test_grouped_heads_are_repeated_heads(target, dtype, data):
    shape = data.draw(shapes())
    query, key, value = arrays = problem(shape, dtype)
    chosen = data.draw(options(shape))
    repeated = (x.repeat(shape.heads // shape.kv_heads, axis=1) for x in (key, value))
    with on_target(target):
        one, other = attention(*arrays, **chosen), attention(query, *repeated, **chosen)
    assert_same_attention(one, other, *arrays, **chosen)


@hypothesis.given(targets, dtypes, st.data())
def test_parts_of_the_keys_merge_to_the_whole(target, dtype, data):
    shape = data.draw(shapes(most_keys=1300))
    query, key, value = arrays = problem(shape, dtype)
    chosen = data.draw(options(shape))
    cut = data.draw(st.integers(0, shape.keys))
    q_offset = chosen.get("q_offset", shape.keys - shape.queries)
    with on_target(target):
        first = attention(query, key[..., :cut, :], value[..., :cut, :], **chosen | {"q_offset": q_offset})
        second = attention(query, key[..., cut:, :], value[..., cut:, :], **chosen | {"q_offset": q_offset - cut})
        merged = fastattn.merge_states(*zip(first, second, strict=True))
        whole = attention(*arrays, **chosen)
    assert_same_attention(merged, whole, *arrays, **chosen)


@hypothesis.given(targets, dtypes, st.data())
def test_causal_queries_do_not_see_what_follows(target, dtype, data):
    """Any query of a causal call gives what it gives alone, over the keys up to its own position."""
    shape = data.draw(shapes())
    query, key, value = arrays = problem(shape, dtype)
    i = data.draw(st.integers(0, shape.queries - 1))
    end = max(i + 1 + shape.keys - shape.queries, 0)
    with on_target(target):
        out, lse = attention(*arrays, is_causal=True)
        alone = attention(query[..., i : i + 1, :], key[..., :end, :], value[..., :end, :])
    assert_same_attention((out[..., i : i + 1, :], lse[..., i : i + 1]), alone, *arrays)


@hypothesis.given(targets, dtypes, st.data())
def test_layouts_do_not_matter(target, dtype, data):
    """The elements' places in memory do not change their result: out, whatever its layout, gets the same."""
    shape = data.draw(shapes())
    arrays = problem(shape, dtype)
    chosen = data.draw(options(shape))
    moved = [laid_out(x, data.draw(layouts)) for x in arrays]
    with on_target(target):
        out = laid_out(np.zeros(shape.out, dtype), data.draw(layouts))
        one, other = attention(*arrays, **chosen), attention(*moved, out=out, **chosen)
    assert_same_attention(one, other, *arrays, **chosen)


# To the bit: threads and company

# Shapes with enough work for several threads: whole tiles, rests, split keys, few rows.
SHARED = [
    Shape(4, 4, 4, 130, 130, 32, 32),
    Shape(3, 8, 2, 1, 1500, 64, 64),
    Shape(2, 1, 1, 1, 5000, 64, 48),
    Shape(2, 6, 2, 3, 1100, 33, 31),
    Shape(2, 1, 1, 64, 2100, 16, 16),
    Shape(3, 2, 1, 51, 700, 48, 20),
    Shape(2, 3, 3, 300, 40, 24, 24),
    Shape(2, 2, 2, 17, 1100, 64, 64),
]


@pytest.mark.parametrize("shape", SHARED, ids=str)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
class TestToTheBit:
    def test_any_number_of_threads(self, target, dtype, shape, is_causal):
        arrays = problem(shape, dtype)
        expected = attention(*arrays, is_causal=is_causal, num_threads=1)
        for num_threads in (2, 3, 4, 7, 2, 2, None):
            assert_identical(attention(*arrays, is_causal=is_causal, num_threads=num_threads), expected)

    def test_any_company_in_the_batch(self, target, dtype, shape, is_causal):
        arrays = problem(shape, dtype)
        together = attention(*arrays, is_causal=is_causal)
        for i in range(shape.batch):
            alone = attention(*(x[i] for x in arrays), is_causal=is_causal)
            assert_identical(alone, [x[i] for x in together])
        spoiled = [x.copy() for x in arrays]
        for x in spoiled:
            x[1:] = np.nan
        with_nan = attention(*spoiled, is_causal=is_causal)
        assert_identical([x[0] for x in with_nan], [x[0] for x in together])


def assert_identical(results, expected):
    for result, right in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, right)


@hypothesis.given(targets, dtypes, st.data())
def test_any_batch_to_the_bit(target, dtype, data):
    shape = data.draw(shapes(most_keys=1300))
    arrays = problem(shape, dtype)
    chosen = data.draw(options(shape))
    copies = data.draw(st.integers(1, 40))
    with on_target(target):
        alone = attention(*(x[:1] for x in arrays), **chosen)
        crowd = attention(*(x[:1].repeat(copies, axis=0) for x in arrays), **chosen)
    assert_identical([x[-1:] for x in crowd], alone)


ROW_OPERATIONS = {
    "softmax": fastattn.softmax,
    "log_softmax": fastattn.log_softmax,
    "softmax over an inner axis": lambda x, **options: fastattn.softmax(x, axis=1, **options),
    "layer_norm": fastattn.layer_norm,
    "rms_norm": fastattn.rms_norm,
    "add_layer_norm": lambda x, **options: fastattn.add_layer_norm(x, x[::-1], **options)[0],
}


@pytest.mark.parametrize("operation", ROW_OPERATIONS)
@pytest.mark.parametrize("shape", [(3, 100, 300), (200, 3, 65), (40, 9, 1000), (2, 2, 40_001), (3000, 2, 7)], ids=str)
def test_rows_on_any_number_of_threads_to_the_bit(target, dtype, rng, operation, shape):
    x = rng.normal(size=shape).astype(dtype)
    expected = ROW_OPERATIONS[operation](x, num_threads=1)
    for num_threads in (2, 3, 7, None):
        np.testing.assert_array_equal(ROW_OPERATIONS[operation](x, num_threads=num_threads), expected)


@pytest.mark.parametrize("operation", [name for name in ROW_OPERATIONS if name != "add_layer_norm"])
@hypothesis.given(target=targets, dtype=dtypes, batch=st.integers(1, 20), rows=st.integers(1, 9), data=st.data())
def test_rows_in_any_company_to_the_bit(operation, target, dtype, batch, rows, data):
    size = data.draw(st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 768, 1000, 5000])))
    x = np.random.default_rng(size).normal(size=(batch, rows, size)).astype(dtype)
    i = data.draw(st.integers(0, batch - 1))
    with on_target(target):
        together, alone = ROW_OPERATIONS[operation](x), ROW_OPERATIONS[operation](x[i : i + 1])
    np.testing.assert_array_equal(together[i], alone[0])


# Softmax and the norms


@st.composite
def row_arrays(draw, dtype):
    shape = (draw(st.integers(1, 6)), draw(st.one_of(st.integers(1, 70), st.sampled_from([127, 129, 1000, 3001]))))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    return rng.normal(0, draw(st.sampled_from([0.1, 1, 10])), size=shape).astype(dtype)


@hypothesis.given(targets, dtypes, st.data())
def test_softmax_sums_to_one_and_ignores_a_shift(target, dtype, data):
    x = data.draw(row_arrays(dtype))
    with on_target(target):
        weights = fastattn.softmax(x)
        shifted = fastattn.softmax(x + dtype.type(8))
        logarithm = fastattn.log_softmax(x)
    unit = eps(dtype)
    assert (weights >= 0).all()
    assert (weights <= 1 + unit).all()
    np.testing.assert_allclose(weights.sum(axis=-1, dtype=np.float64), 1, rtol=8 * unit)
    np.testing.assert_allclose(readable(shifted), readable(weights), rtol=0, atol=64 * unit)
    np.testing.assert_allclose(np.exp(readable(logarithm)), readable(weights), rtol=0, atol=64 * unit)


@hypothesis.given(targets, dtypes, st.data())
def test_softmax_follows_a_permutation(target, dtype, data):
    x = data.draw(row_arrays(dtype))
    order = np.random.default_rng(1).permutation(x.shape[1])
    with on_target(target):
        np.testing.assert_allclose(
            fastattn.softmax(x[:, order]), fastattn.softmax(x)[:, order], rtol=0, atol=64 * eps(dtype)
        )


@hypothesis.given(targets, dtypes, st.data())
def test_where_is_leaving_out(target, dtype, data):
    x = data.draw(row_arrays(dtype))
    kept = np.random.default_rng(data.draw(st.integers(0, 99))).random(x.shape[1]) < 0.5
    with on_target(target):
        weights = fastattn.softmax(x, where=kept)
    assert (weights[:, ~kept] == 0).all()
    if kept.any():
        np.testing.assert_allclose(weights[:, kept], by_formula("softmax", x[:, kept]), rtol=0, atol=16 * eps(dtype))


@hypothesis.given(targets, dtypes, st.data())
def test_layer_norm_has_mean_zero_and_ignores_a_factor(target, dtype, data):
    x = data.draw(row_arrays(dtype))
    hypothesis.assume(x.shape[1] > 1)
    with on_target(target):
        y, larger = fastattn.layer_norm(x, eps=0.0), fastattn.layer_norm(x * dtype.type(4), eps=0.0)
        root = fastattn.rms_norm(x, eps=0.0)
    # A row may lie far from zero: its mean then rounds in units that its spread makes larger.
    unit = 64 * eps(dtype) * (1 + (np.abs(x).max(axis=-1) / x.std(axis=-1)).max())
    np.testing.assert_allclose(y.mean(axis=-1, dtype=np.float64), 0, atol=unit)
    np.testing.assert_allclose((y.astype(np.float64) ** 2).mean(axis=-1), 1, rtol=2 * unit)
    np.testing.assert_allclose(larger, y, rtol=0, atol=unit * np.abs(y).max())
    np.testing.assert_allclose((root.astype(np.float64) ** 2).mean(axis=-1), 1, rtol=64 * eps(dtype))


@hypothesis.given(targets, dtypes, st.data())
def test_adding_first_is_the_same_as_adding_inside(target, dtype, data):
    x = data.draw(row_arrays(dtype))
    residual = np.ascontiguousarray(x[::-1, ::-1])
    hypothesis.assume(x.shape[1] > 2)
    with on_target(target):
        y, total = fastattn.add_layer_norm(x, residual)
    np.testing.assert_array_equal(total, x + residual)
    formula = by_formula("layer_norm", x + residual)
    np.testing.assert_allclose(y, formula, rtol=0, atol=64 * eps(dtype) * np.abs(y).max())


# Linear layers


@st.composite
def layers(draw, dtype, most_rows=70):
    """The arguments of a layer in any layout, weight and bias stored in any type beside x's."""
    near = st.sampled_from([8, 16, 32, 64, 128, 256]).flatmap(lambda n: st.integers(n - 1, n + 1))
    size = st.one_of(st.integers(1, 6), near, st.integers(1, 300))
    stored = draw(st.sampled_from([INT8, *(other for other in ALL if dtype == np.float64 or other != np.float64)]))
    rows = draw(st.one_of(st.integers(1, 6), st.integers(1, most_rows)))
    arrays = layer(np.random.default_rng(draw(st.integers(0, 999))), dtype, rows, draw(size), draw(size), stored)
    return {name: each(lambda x: laid_out(x, draw(layouts)), array) for name, array in arrays.items()}


@hypothesis.given(targets, dtypes, st.sampled_from(ACTIVATIONS), st.data())
def test_linear_is_what_the_oracle_says(target, dtype, activation, data):
    arrays = data.draw(layers(dtype))
    for name in ("bias", "residual"):
        if data.draw(st.booleans()):
            del arrays[name]
    with on_target(target):
        result = fastattn.linear(**arrays, activation=activation)
    assert_close_enough(result, arrays, activation=activation)


@hypothesis.given(targets, dtypes, st.data())
def test_rows_of_a_layer_in_any_company_to_the_bit(target, dtype, data):
    arrays = data.draw(layers(dtype, most_rows=300))
    rng, count = np.random.default_rng(data.draw(st.integers(0, 99))), data.draw(st.integers(1, 300))
    order = rng.integers(len(arrays["x"]), size=count)
    some = {name: laid_out(arrays[name][order], data.draw(layouts)) for name in ("x", "residual")}
    with on_target(target):
        result, other = fastattn.linear(**arrays), fastattn.linear(**arrays | some)
    assert_equal(other, result[order])


@hypothesis.given(targets, dtypes, st.sampled_from(ACTIVATIONS), st.booleans(), st.data())
def test_packed_weights_are_the_weights_themselves(target, dtype, activation, nothing, data):
    arrays = data.draw(layers(dtype, most_rows=140))
    if nothing:  # no rows, no inputs, no outputs
        x, weight = arrays["x"], arrays["weight"]
        rows, inputs, outputs = (data.draw(st.sampled_from([0, None])) for _ in range(3))
        cut = [slice(outputs), slice(inputs)]
        arrays = {"x": x[:rows, :inputs], "weight": each(lambda w: w[tuple(cut[: w.ndim])], weight)}
    hypothesis.assume(dtype != np.float64 or each(lambda w: w.dtype, arrays["weight"]) == np.float64)
    with on_target(target):
        weight = fastattn.pack(arrays["weight"])
        whole = weight.unpack()
        for one, other in zip(*(w if isinstance(w, tuple) else (w,) for w in (whole, arrays["weight"])), strict=True):
            assert_equal(one, other)
        result = fastattn.linear(**arrays | {"weight": weight}, activation=activation)
        assert_equal(result, fastattn.linear(**arrays, activation=activation))


# Rotary embedding


@st.composite
def turnings(draw, dtype):
    """x and the angles of its tokens."""
    heads, tokens, pairs, rest = (draw(st.integers(*ends)) for ends in ((1, 5), (1, 20), (1, 70), (0, 9)))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    x = rng.normal(size=(heads, tokens, 2 * pairs + rest)).astype(dtype)
    return laid_out(x, draw(layouts)), rng.normal(0, 100, size=(tokens, pairs))


def turned(x, angles, interleaved):
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    return fastattn.rotary_embedding(x, cos, sin, interleaved=interleaved)


@hypothesis.given(targets, dtypes, st.booleans(), st.data())
def test_rotation_keeps_norms(target, dtype, interleaved, data):
    x, angles = data.draw(turnings(dtype))
    with on_target(target):
        y = turned(x, angles, interleaved)
    norms = [np.linalg.norm(rows.astype(np.float64), axis=-1) for rows in (x, y)]
    np.testing.assert_allclose(*norms, rtol=8 * eps(dtype))


@hypothesis.given(targets, dtypes, st.booleans(), st.data())
def test_turning_back_by_the_same_angles_is_the_identity(target, dtype, interleaved, data):
    x, angles = data.draw(turnings(dtype))
    with on_target(target):
        back = turned(turned(x, angles, interleaved), -angles, interleaved)
    np.testing.assert_allclose(back, x, rtol=0, atol=8 * eps(dtype) * np.abs(x).max())


@hypothesis.given(targets, dtypes, st.booleans(), st.integers(0, 50), st.data())
def test_products_of_turned_rows_depend_on_the_distance_alone(target, dtype, interleaved, shift, data):
    """What rotary embedding is for: query·key is the same for all pairs of positions equally far apart."""
    x, angles = data.draw(turnings(dtype))
    x, frequencies = x[:, :1], np.linspace(0.01, 1, angles.shape[1])
    with on_target(target):
        products = [
            turned(x, np.array([[i]]) * frequencies, interleaved).astype(np.float64)
            * turned(x, np.array([[i + 3]]) * frequencies, interleaved)
            for i in (0, shift)
        ]
    first, second = (product.sum(axis=-1) for product in products)
    # Angles of a float32 table are off by some ulps.
    np.testing.assert_allclose(first, second, rtol=0, atol=64 * eps(dtype) * (x.astype(float) ** 2).sum())


@hypothesis.given(targets, dtypes, st.booleans(), st.data())
def test_layouts_do_not_matter_to_rotation(target, dtype, interleaved, data):
    x, angles = data.draw(turnings(dtype))
    cos, sin = (laid_out(f(angles).astype(dtype), data.draw(layouts)) for f in (np.cos, np.sin))
    with on_target(target):
        one = turned(np.ascontiguousarray(x), angles, interleaved)
        other = fastattn.rotary_embedding(x, cos, sin, interleaved=interleaved)
    np.testing.assert_array_equal(one, other)
