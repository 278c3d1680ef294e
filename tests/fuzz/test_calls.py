"""Any call of a public function gives the oracle's result, or is refused by name before anything is written."""

import inspect

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import fastattn
from fastattn import reference
from fastattn._runtime import on_target
from support.arrays import LAYOUTS, WRITABLE_LAYOUTS, laid_out
from support.dtypes import ALL, computed_in, eps, largest, readable, smallest, stored_beside
from support.fuzzing import count, fuzzed, outcome, silent
from support.layers import ACTIVATIONS, INT8, assert_close_enough, layer
from support.problems import OPTIONS, Shape, attended, largest_score

TARGETS = st.sampled_from(fastattn.targets())
DTYPES = st.sampled_from(ALL)
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.one_of(
    st.integers(0, 5), st.sampled_from([7, 8, 15, 16, 17, 31, 32, 33, 48, 49, 63, 64, 65]), st.integers(1, 130)
)
NUM_THREADS = st.sampled_from([None, 1, 2, 3])


# Arguments of a call, small and in order


@st.composite
def attention(draw, dtype, rng):
    sizes = [draw(SIZES) for _ in range(4)]
    kv_heads, group, batch = draw(st.integers(0, 2)), draw(st.integers(0, 3)), draw(st.integers(0, 3))
    shape = Shape(batch, kv_heads * group, kv_heads, *sizes)._replace(head_size=max(sizes[2], 1))
    if not draw(st.integers(0, 3)):
        shape = shape._replace(queries=1, keys=draw(st.integers(1, 1500)))
    stored = draw(st.sampled_from(stored_beside(dtype)))
    arrays = {"query": (shape.query, dtype), "key": (shape.key, stored), "value": (shape.value, stored)}
    arguments = {name: rng.normal(size=size).astype(kind) for name, (size, kind) in arrays.items()}
    for name in draw(st.lists(st.sampled_from(list(OPTIONS)), max_size=3)):
        arguments |= OPTIONS[name](shape._replace(keys=max(shape.keys, 1)), dtype, rng)
    if arguments.get("attn_mask") is not None and arguments["attn_mask"].shape[-1:] == (1,):
        arguments["attn_mask"] = arguments["attn_mask"][..., : shape.keys]
    if "kv_lengths" in arguments:
        arguments["kv_lengths"] = np.minimum(arguments["kv_lengths"], shape.keys)
    for name in draw(st.lists(st.sampled_from(sorted(arrays)), max_size=1)):  # which is then broadcast
        arguments[name] = arguments[name][:1]
    return arguments


@st.composite
def weights(draw, dtype, rng):
    arguments = draw(attention(dtype, rng))
    del arguments["value"]
    return arguments


@st.composite
def packed(draw, dtype, rng):
    heads, kv_heads = draw(st.sampled_from([(1, 1), (2, 1), (6, 2)]))
    lengths = np.array(draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 70)), max_size=5)), int).reshape(
        -1, 2
    )
    size, value_size = draw(st.integers(1, 40)), draw(SIZES)
    tokens = lengths.sum(axis=0)
    shapes = {"query": (tokens[0], heads, size), "key": (tokens[1], kv_heads, size)}
    shapes["value"] = (tokens[1], kv_heads, value_size)
    arguments = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    for n, name in enumerate(("cu_seqlens_q", "cu_seqlens_k")):
        arguments[name] = np.concatenate([[0], lengths[:, n].cumsum()])
    shape = Shape(len(lengths), heads, kv_heads, 1, 40, size, value_size)
    for name in draw(st.lists(st.sampled_from(["scale", "causal", "window", "softcap", "sinks", "alibi"]), max_size=3)):
        arguments |= OPTIONS[name](shape, dtype, rng)
    if draw(st.booleans()):
        arguments["kv_lengths"] = rng.integers(0, lengths[:, 1] + 1)
    return arguments


@st.composite
def merged(draw, dtype, rng):
    shape = tuple(draw(st.lists(SIZES.map(lambda n: n % 20), min_size=1, max_size=4)))
    parts = range(draw(st.integers(1, 5)))
    lse = np.where(rng.random((len(parts), *shape[:-1])) < 0.2, -np.inf, rng.normal(0, 5, (len(parts), *shape[:-1])))
    lses = [np.asarray(x, computed_in(dtype)) for x in lse]
    return {"outs": [rng.normal(size=shape).astype(dtype) for _ in parts], "lses": lses}


@st.composite
def rows(draw, dtype, rng, most_axes=3):
    shape = [*draw(st.lists(st.integers(0, 5), max_size=most_axes - 1)), draw(SIZES)]
    if draw(st.integers(0, 5)) == 0:
        shape[-1] = draw(st.integers(1, 5000))
    return rng.normal(0, draw(st.sampled_from([0.1, 1, 10])), size=shape).astype(dtype)


@st.composite
def softmax(draw, dtype, rng):
    x = draw(rows(dtype, rng))
    arguments = {"x": x, "axis": draw(st.integers(-x.ndim, x.ndim - 1))}
    if draw(st.booleans()):
        arguments["where"] = rng.random(x.shape[draw(st.integers(0, x.ndim - 1)) :]) < 0.7
    return arguments


@st.composite
def norm(draw, dtype, rng, names):
    x = draw(rows(dtype, rng))
    arguments = {"x": x, "eps": draw(st.sampled_from([1e-6, 1e-5, 0.1]))}
    for name in names:
        if name == "residual" or draw(st.booleans()):
            arguments[name] = rng.normal(size=x.shape if name == "residual" else x.shape[-1:]).astype(dtype)
    return arguments


@st.composite
def linear(draw, dtype, rng):
    stored = draw(st.sampled_from([INT8, *(other for other in ALL if dtype == np.float64 or other != np.float64)]))
    lead = tuple(draw(st.lists(st.integers(0, 9), max_size=2)))
    arguments = layer(rng, dtype, lead, draw(SIZES), draw(SIZES), stored)
    for name in draw(st.lists(st.sampled_from(["bias", "residual"]), max_size=2)):
        arguments.pop(name, None)
    return arguments | {"activation": draw(st.sampled_from(ACTIVATIONS))}


@st.composite
def rotary(draw, dtype, rng):
    heads, tokens, pairs, rest = (draw(st.integers(*ends)) for ends in ((0, 4), (0, 12), (0, 40), (0, 5)))
    x = rng.normal(size=(*[2] * draw(st.integers(0, 1)), heads, tokens, 2 * pairs + rest)).astype(dtype)
    arguments = {"x": x, "interleaved": draw(st.booleans()), "rotary_dim": 2 * pairs}  # tables may repeat an element
    length = tokens
    if draw(st.booleans()):
        length = draw(st.integers(1, 30))
        arguments["positions"] = rng.integers(0, length, tokens)
    return arguments | {name: rng.normal(size=(length, pairs)).astype(dtype) for name in ("cos", "sin")}


# How far a result may be from the oracle's. Rows may have a single element, so the rule of the tests of accuracy, which
# needs a formula's worst error, is not for them: this is what a few roundings of the largest term can do.


def of_attention(arguments, expected):
    arrays = {name: x for name, x in arguments.items() if name in ("query", "key", "value")}
    options = {name: x for name, x in arguments.items() if name not in (*arrays, "cu_seqlens_q", "cu_seqlens_k")}
    if "cu_seqlens_q" in arguments:  # tokens come first
        arrays = {name: x.swapaxes(0, 1) for name, x in arrays.items()}
    value = arrays.pop("value", np.ones(1))
    kind = computed_in(arrays["query"].dtype)
    each_score = 16 * eps(kind) * (1 + (0 if expected[0].size == 0 else largest_score(**arrays, **options)))
    tolerance = each_score + (4 * eps(arrays["query"].dtype) if kind != arrays["query"].dtype else 0)
    return tolerance * max(1, _largest(value)), 8 * tolerance


def _largest(x):
    x = np.abs(np.asarray(x, np.float64))
    return x.max(where=np.isfinite(x), initial=0)


def of_merge(arguments, expected):
    unit = 32 * eps(arguments["outs"][0].dtype)
    return tuple(unit * (1 + _largest(np.stack(x).astype(float))) for x in (arguments["outs"], arguments["lses"]))


def of_softmax(arguments, expected):
    x = arguments["x"]
    reach = 1 + 2 * _largest(x)
    return (16 * eps(computed_in(x.dtype)) * reach + 4 * eps(x.dtype) * max(1, _largest(expected[0])),)


def of_norm(arguments, expected):
    x = arguments["x"].astype(np.float64)
    if "residual" in arguments:
        total = x + arguments["residual"]
        rounding = eps(arguments["x"].dtype) * (1 + np.abs(total))
        x = total
    spread = np.sqrt(np.minimum(x.var(axis=-1), (x**2).mean(axis=-1)).min(initial=np.inf) + arguments["eps"])
    scale = _largest(arguments.get("weight", np.ones(1))) * (1 + _largest(x)) / spread * (1 + _largest(x) / spread)
    unit = eps(arguments["x"].dtype) if "residual" in arguments else eps(computed_in(arguments["x"].dtype))
    y = 64 * unit * scale + 4 * eps(arguments["x"].dtype) * (1 + _largest(expected[0]))
    return (y, rounding.max(initial=0)) if "residual" in arguments else (y,)


def of_rotary(arguments, expected):
    return (16 * eps(arguments["x"].dtype) * (1 + _largest(arguments["x"]) * (1 + _largest(arguments["cos"]))),)


NORM, RMS = ("weight", "bias"), ("weight",)
OPERATIONS = {
    "scaled_dot_product_attention": (attention, of_attention),
    "attention_weights": (weights, of_attention),
    "varlen_attention": (packed, of_attention),
    "merge_states": (merged, of_merge),
    "softmax": (softmax, of_softmax),
    "log_softmax": (softmax, of_softmax),
    "layer_norm": (lambda *given: norm(*given, NORM), of_norm),
    "rms_norm": (lambda *given: norm(*given, RMS), of_norm),
    "add_layer_norm": (lambda *given: norm(*given, ("residual", *NORM)), of_norm),
    "add_rms_norm": (lambda *given: norm(*given, ("residual", *RMS)), of_norm),
    "linear": (linear, None),
    "rotary_embedding": (rotary, of_rotary),
}
WITH_LSE = ("scaled_dot_product_attention", "attention_weights", "varlen_attention")


# What may be wrong with one of them


class Odd:
    """An object that is nothing."""

    def __repr__(self):
        return "odd"


ANYTHING = [
    None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, float("nan"), float("inf"), 1e300, 10**30, -(10**30), 2**63, 2**31,
    "", "gelu", b"x", [], (), {}, [1, 2], (1, 2), (None, 1), (-1, 0), [[1.0, 2.0]], 1j, Odd(), Odd, slice(3),
    np.float32(1), np.int64(2), np.array(1.0), np.array(1), np.zeros(0, np.float32), np.ones(3, np.float32),
    np.ones((2, 3)), np.ones((2, 3), np.int8), np.array([True, False]), np.array(["a"]), np.array([None]),
    np.ones(3, np.complex64), np.ones(3, np.longdouble), np.ones(3, ">f4"), np.ones(3, "M8[s]"),
    np.ones(2, [("a", "f4")]), np.ma.masked_array([1.0, 2.0], [True, False]), np.ones(2).view(np.recarray),
    np.array([0, 1, 5]), np.array([3, 1]), np.array([-1, 2]), np.array([2**62, 2**62]), np.zeros((1,) * 40, np.float32),
]  # fmt: skip


def other_shape(draw, x):
    """An array with one axis more or less, longer or shorter, or so long that no machine has the memory."""
    axis = draw(st.integers(0, x.ndim - 1)) if x.ndim else 0
    kind = draw(st.integers(0, 6 if x.ndim else 0))
    if kind == 0:
        return np.broadcast_to(x, (*[draw(st.integers(0, 2)) for _ in range(draw(st.integers(1, 3)))], *x.shape))
    if kind == 1:
        return x[(slice(None),) * axis + (0,)] if x.shape[axis] else x[..., None]
    if kind == 2:
        return np.concatenate([x, x[(slice(None),) * axis + (slice(1),)]], axis)
    if kind == 3:
        return x[(slice(None),) * axis + (slice(draw(st.integers(0, 2)), None, draw(st.sampled_from([1, 2, -1]))),)]
    if kind == 4:
        return x.swapaxes(0, axis)
    if kind == 5:
        return x.astype(draw(st.sampled_from([*map(str, ALL[:3]), "i8", "u1", "?", ">f4", "c8"])))
    lengths, strides = list(x.shape), list(x.strides)
    lengths[axis], strides[axis] = draw(st.sampled_from([1 << 46, 1 << 61])), 0
    try:
        return np.lib.stride_tricks.as_strided(x, lengths, strides, writeable=False) if x.size else x
    except ValueError:  # NumPy has no array of so many elements
        return x


def reshaped(draw, arguments):
    """One of the arguments in another shape or type."""
    name = draw(st.sampled_from([name for name, x in arguments.items() if isinstance(x, np.ndarray | list | tuple)]))
    x = arguments[name]
    if isinstance(x, np.ndarray):
        return arguments | {name: other_shape(draw, x)}
    arrays = [n for n, part in enumerate(x) if isinstance(part, np.ndarray)]
    if not arrays:
        return arguments
    at = draw(st.sampled_from(arrays))
    return arguments | {name: type(x)([*x[:at], other_shape(draw, x[at]), *x[at + 1 :]])}


def is_huge(x):
    return isinstance(x, np.ndarray) and x.size > 1 << 40


# The layout of arrays, and where the result goes


def moved(draw, arguments):
    """The arguments, the arrays among them in other places; those that repeat an element change."""
    found = {}
    for name, x in arguments.items():
        arrays = x if isinstance(x, tuple | list) and x and isinstance(x[0], np.ndarray) else [x]
        if all(isinstance(part, np.ndarray) and part.dtype in ALL and part.ndim for part in arrays):
            placed = [LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](part) if part.size else part for part in arrays]
            found[name] = type(x)(placed) if isinstance(x, tuple | list) else placed[0]
        else:
            found[name] = x
    return found


def with_out(draw, arguments, shape, dtype):
    """An array for the result: one of its own, one of the inputs, or one that shares memory with one of them."""
    like = [
        name
        for name, x in arguments.items()
        if isinstance(x, np.ndarray) and x.dtype == dtype and x.shape == shape and x.size
    ]
    kind = draw(st.sampled_from(["own", "input", "overlapping"])) if like else "own"
    if kind == "own":
        return arguments, laid_out(np.zeros(shape, dtype), draw(st.sampled_from(sorted(WRITABLE_LAYOUTS))))
    name = draw(st.sampled_from(like))
    x = arguments[name]
    memory = np.zeros(3 * x.size, dtype)
    shift = 0 if kind == "input" else draw(st.integers(-x.size, x.size))
    given, out = (memory[x.size + n : 2 * x.size + n].reshape(shape) for n in (0, shift))
    given[...] = x
    if kind == "overlapping" and draw(st.booleans()):
        out = out[..., ::-1]
    return arguments | {name: given}, out


def parameters(name):
    return list(inspect.signature(getattr(fastattn, name)).parameters)


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def oracle(name, arguments):
    """What the oracle says, or None: it is written for arguments that are right."""
    try:
        return as_tuple(getattr(reference, name)(**arguments))
    except Exception:  # whatever NumPy raises
        return None


def assert_near(name, result, expected, arguments):
    if name == "linear":
        arrays = {key: x for key, x in arguments.items() if isinstance(x, np.ndarray | tuple)}
        assert_close_enough(result[0], arrays, activation=arguments["activation"])
        return
    for got, wanted, tolerance in zip(result, expected, OPERATIONS[name][1](arguments, expected), strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(readable(got), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", OPERATIONS)
@hypothesis.given(TARGETS, DTYPES, SEEDS, st.data())
@fuzzed()
def test_any_call(name, target, dtype, seed, data):
    """Of arrays anywhere in memory, one of them perhaps wrong, with a result of its own or in an input's place."""
    draw, function, names = data.draw, getattr(fastattn, name), parameters(name)
    arguments = draw(OPERATIONS[name][0](dtype, np.random.default_rng(seed)))
    if draw(st.integers(0, 3)):
        arguments = moved(draw, arguments)
    more = {"return_lse": True} if name in WITH_LSE else {}
    wrong = draw(st.sampled_from(["nothing", "nothing", "a shape", "anything"]))
    if wrong == "a shape":
        arguments = reshaped(draw, arguments)
    elif wrong == "anything":
        arguments = arguments | {draw(st.sampled_from(names)): draw(st.sampled_from(ANYTHING))}
    with on_target(target), silent():
        expected = (
            None if wrong == "anything" or any(map(is_huge, arguments.values())) else oracle(name, arguments | more)
        )
        right = wrong == "nothing" and expected is not None
        if right and draw(st.booleans()):
            arguments, more["out"] = with_out(draw, arguments, expected[0].shape, dtype)
            if name.startswith("add_"):
                more["out"] = more["out"], None
        kept = {key: x.copy() if isinstance(x, np.ndarray) and not is_huge(x) else x for key, x in arguments.items()}
        result = outcome(function, {"num_threads": draw(NUM_THREADS)} | more | arguments, names)
    count(name, result is not None)
    if result is None:
        assert not right or "out" in more, "refused without a reason"
    elif expected is not None:
        assert_near(name, as_tuple(result), expected, kept)


# Any numbers

OF_ROWS = (
    "softmax",
    "log_softmax",
    "layer_norm",
    "rms_norm",
    "add_layer_norm",
    "add_rms_norm",
    "linear",
    "rotary_embedding",
)


def wild(rng, dtype, size):
    """Numbers at the ends of a type's range, and what is no number."""
    chosen = [np.nan, np.inf, -np.inf, largest(dtype), -largest(dtype), smallest(dtype), smallest(dtype) / 4, -0.0]
    return rng.choice(np.array(chosen, dtype), size)


@pytest.mark.parametrize("name", OF_ROWS)
@hypothesis.given(TARGETS, DTYPES, SEEDS, st.data())
@fuzzed()
def test_any_numbers_in_rows(name, target, dtype, seed, data):
    """They stay in their rows, and a NaN of x is in the row's result."""
    rng = np.random.default_rng(seed)
    arguments = data.draw(OPERATIONS[name][0](dtype, rng)) | {"num_threads": data.draw(NUM_THREADS)}
    axis = arguments.get("axis", -1)
    x = np.moveaxis(arguments["x"], axis, -1)
    hypothesis.assume(x.size)
    odd_rows, odd = rng.random(x.shape[:-1]) < 0.5, x.copy()
    odd[odd_rows] = np.where(
        rng.random(odd[odd_rows].shape) < 0.3, wild(rng, dtype, odd[odd_rows].shape), odd[odd_rows]
    )
    function = getattr(fastattn, name)
    with on_target(target), silent():
        before = as_tuple(function(**arguments))
        result = as_tuple(function(**arguments | {"x": np.moveaxis(odd, -1, axis)}))
    count(f"{name}, any numbers", True)
    for got, wanted in zip(result, before, strict=True):
        got, wanted = (readable(np.moveaxis(part, axis, -1)) for part in (got, wanted))
        unit = 64 * eps(dtype) * max(1, _largest(wanted))
        np.testing.assert_allclose(got[~odd_rows], wanted[~odd_rows], rtol=0, atol=unit)
    lost = np.isnan(readable(odd)).any(axis=-1)
    if "where" not in arguments and result[0].size and arguments.get("activation") != "relu":
        assert np.isnan(readable(np.moveaxis(result[0], axis, -1))[lost]).any(axis=-1).all()


@hypothesis.given(TARGETS, DTYPES, SEEDS, st.data())
@fuzzed(2)
def test_any_numbers_in_attention(target, dtype, seed, data):
    """Those of a query stay with it, and those of a key with the queries that attend to it."""
    rng = np.random.default_rng(seed)
    arguments = data.draw(attention(dtype, rng))
    query, key, value = arguments["query"], arguments["key"], arguments["value"]
    hypothesis.assume(min(query.size, key.size, value.size) and len(query) == len(key) == len(value))
    which = data.draw(st.sampled_from(["query", "key", "value"]))
    x = arguments[which]
    odd, odd_rows = x.copy(), rng.random(x.shape[:-1]) < 0.2
    odd[odd_rows] = wild(rng, x.dtype, odd[odd_rows].shape)
    with on_target(target), silent():
        before = fastattn.scaled_dot_product_attention(**arguments)
        result = fastattn.scaled_dot_product_attention(**arguments | {which: odd})
        seen = attended(**{key: x for key, x in arguments.items() if key != "value"})
        tolerance, _ = of_attention(arguments, (before,))
    count("attention, any numbers", True)
    if which == "query":
        kept = ~odd_rows
    else:
        kept = ~(seen & np.repeat(odd_rows, query.shape[1] // key.shape[1], axis=1)[:, :, None, :]).any(axis=-1)
    np.testing.assert_allclose(readable(result)[kept], readable(before)[kept], rtol=0, atol=2 * tolerance)
