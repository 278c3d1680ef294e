"""MultiHeadAttention against the plain definition, against the functions it is made of, and against itself."""

import functools
import threading
import tracemalloc
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import fastattn
from fastattn._runtime import on_target
from fastattn.nn import MultiHeadAttention, quantize
from support.arrays import LAYOUTS, WRITABLE_LAYOUTS, assert_nothing_written_around, empty_laid_out
from support.dtypes import ALL, WIDE, assert_equal, computed_in, eps, readable, stored_beside
from support.nn_layers import (
    Layer,
    angles,
    answers,
    assert_as_defined,
    assert_close,
    attention_map,
    multi_head_attention,
    tokens,
)
from support.nn_layers import attention_weights as state_dict
from support.problems import EVERYTHING_ELSE, OPTIONS, Shape, of_sequence, options_of
from support.targets import multiplies_and_adds_at_once

pytestmark = pytest.mark.usefixtures("one_thread")


class Case(NamedTuple):
    """A call: self-attention, or with `keys` attention to others, whose values may be others again."""

    layer: Layer
    batch: int
    queries: int
    keys: int | None = None
    values: bool = False
    options: tuple = ()  # names of problems.OPTIONS

    @property
    def scores(self):
        layer, keys = self.layer, self.queries if self.keys is None else self.keys
        return Shape(self.batch, layer.heads, layer.kv_heads, self.queries, keys, layer.head_size, layer.head_size)

    def __str__(self):
        layer, keys = self.layer, "" if self.keys is None else f"-{self.keys}"
        sizes = "+".join(str(size) for size in (layer.embed, layer.kdim, layer.vdim) if size)
        return f"{self.batch}x{self.queries}{keys}x{sizes} {layer.heads}:{layer.kv_heads}x{layer.head_size}"


# Sizes of one, odd ones, whole vectors and their neighbours; grouped heads; heads that are together wider or narrower
# than a token. A single number has no accuracy: where there are few, there are many sequences.
SELF = [
    Case(Layer(1, 1, 1, 1), 40, 3),
    Case(Layer(5, 1, 1, 7), 9, 4),
    Case(Layer(7, 2, 2, 1), 9, 5),
    Case(Layer(24, 3, 3, 8, bias=False), 2, 9),
    Case(Layer(24, 6, 2, 5), 3, 17),
    Case(Layer(33, 4, 1, 9), 1, 50),
    Case(Layer(64, 4, 4, 16), 2, 33),
    Case(Layer(20, 2, 2, 48), 1, 65),
    Case(Layer(24, 3, 3, 8), 100, 1),  # fewer would have too few logarithms for the rule
]
CROSS = [
    Case(Layer(24, 3, 3, 8, bias=False), 2, 9, 15),
    Case(Layer(24, 6, 2, 5), 3, 1, 40, values=True),
    Case(Layer(24, 6, 2, 5, kdim=13, vdim=13), 3, 17, 4),
    Case(Layer(24, 3, 1, 9, kdim=31, bias=False), 2, 33, 33, values=True),
    Case(Layer(24, 3, 3, 8, vdim=7), 2, 16, 5, values=True),
    Case(Layer(9, 3, 3, 3, kdim=1, vdim=70), 9, 5, 3, values=True),
]
SMALL, OTHERS = SELF[4], CROSS[1]

# Every option once: that each arrives. What they do together is in test_variants.py.
TOGETHER = [
    ("causal", "lengths"),
    ("offset", "scale"),
    ("offsets", "softcap", "float mask of heads"),
    ("window", "sinks", "bool mask"),
    ("left window", "alibi", "length"),
    ("right window", "alibi per batch", "bool mask of keys"),
    ("float mask", "sinks"),
    ("position bias", "window"),
]


@functools.lru_cache(maxsize=64)
def call_of(case, dtype):
    """The arguments, by name; query first."""
    layer = case.layer
    call = {"query": tokens(layer, dtype, case.batch, case.queries)}
    if case.keys is not None:
        call["key"] = tokens(layer, dtype, case.batch, case.keys, seed=1, size=layer.kdim)
    if case.values:
        call["value"] = tokens(layer, dtype, case.batch, case.keys, seed=2, size=layer.vdim)
    return call | options_of(case.options, case.scores, dtype)


def attention_of(layer, stored, **settings):
    """With weights `stored` in this type."""
    return MultiHeadAttention.from_state_dict(state_dict(layer, stored), **layer.settings | settings)


@functools.lru_cache(maxsize=1024)
def _answers(case, dtype, int8, fused):
    del fused  # part of the key, as the formulas depend on it
    weights = state_dict(case.layer, np.float32 if int8 else dtype)
    return answers(multi_head_attention, case.layer, weights, call_of(case, dtype), int8)


def assert_accurate_at(case, dtype, int8=False):
    """A call held to the accuracy rule, with packed weights; plain ones give the same, to the bit."""
    stored, settings = (np.float32, {"dtype": "int8"}) if int8 else (dtype, {})
    found, plain = (
        attention_of(case.layer, stored, **settings, pack=pack)(**call_of(case, dtype), return_lse=True)
        for pack in (True, False)
    )
    assert_identical(found, plain)
    assert_all_as_defined(found, _answers(case, dtype, int8, multiplies_and_adds_at_once()))


def assert_all_as_defined(found, known):
    """(out, lse), or weights in out's place."""
    for result, formula, expected in zip(found, *known, strict=True):
        assert_as_defined(result, formula, expected)


def assert_identical(results, expected):
    for result, right in zip(results, expected, strict=True):
        assert_equal(result, right)


# What it computes


@pytest.mark.parametrize("case", SELF + CROSS, ids=str)
def test_sizes(target, dtype, case):
    assert_accurate_at(case, dtype)


@pytest.mark.parametrize("case", [SMALL, SELF[5], *CROSS[1:4]], ids=str)
@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_quantised_weights(target, dtype, case):
    assert_accurate_at(case, dtype, int8=True)


@pytest.mark.parametrize("case", [SMALL, OTHERS], ids=["self", "cross"])
@pytest.mark.parametrize("options", TOGETHER, ids=", ".join)
def test_options(target, dtype, case, options):
    assert_accurate_at(case._replace(options=options), dtype)


@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
@pytest.mark.parametrize("pairs", [1, 4])
def test_rotary(target, dtype, pairs, interleaved):
    layer = Layer(24, 4, 2, 9)
    cos, sin = angles(40, pairs, dtype)
    call = {"query": tokens(layer, dtype, 2, 13), "cos": cos[:13], "sin": sin[:13], "interleaved": interleaved}
    known = answers(multi_head_attention, layer, state_dict(layer, dtype), call)
    # The tables may go on behind the last token.
    assert_all_as_defined(attention_of(layer, dtype)(**call | {"cos": cos, "sin": sin}, return_lse=True), known)


@pytest.mark.parametrize("case", [SMALL, OTHERS._replace(values=False), CROSS[2]], ids=str)
@pytest.mark.parametrize("options", [(), EVERYTHING_ELSE], ids=["plain", "everything"])
def test_attention_weights(target, dtype, case, options):
    call = call_of(case._replace(options=options), dtype)
    if case.keys is None:
        cos, sin = angles(case.queries, 2, dtype)
        call = call | {"cos": cos, "sin": sin, "interleaved": True}
    known = answers(attention_map, case.layer, state_dict(case.layer, dtype), call)
    found = attention_of(case.layer, dtype).attention_weights(**call, return_lse=True)
    assert_all_as_defined(found, known)


@pytest.mark.parametrize("case", [SMALL, OTHERS], ids=["self", "cross"])
def test_residual(target, dtype, case):
    layer = case.layer
    call = call_of(case, dtype) | {"residual": tokens(layer, dtype, case.batch, case.queries, seed=3)}
    known = answers(multi_head_attention, layer, state_dict(layer, dtype), call)
    assert_as_defined(attention_of(layer, dtype)(**call), *(out for out, _ in known))


@pytest.mark.parametrize("stored", ALL, ids=str)
def test_tokens_in_another_type_than_the_weights(target, dtype, stored):
    if stored == np.float64 and dtype != np.float64:
        pytest.skip("refused: see test_nn_arguments.py")
    call = call_of(SMALL, dtype)
    known = answers(multi_head_attention, SMALL.layer, state_dict(SMALL.layer, stored), call)
    attention = attention_of(SMALL.layer, stored)
    assert_all_as_defined(attention(**call, return_lse=True), known)


@pytest.mark.parametrize("stored", ALL, ids=str)
def test_keys_and_values_in_a_narrower_type(dtype, stored):
    if stored not in stored_beside(dtype):
        pytest.skip("not narrower")
    call = {name: x if name == "query" else x.astype(stored) for name, x in call_of(CROSS[0], dtype).items()}
    weights = state_dict(CROSS[0].layer, np.float16)
    known = answers(multi_head_attention, CROSS[0].layer, weights, call)
    attention = attention_of(CROSS[0].layer, np.float16)
    assert_all_as_defined(attention(**call, return_lse=True), known)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("of_key", ["itself", "its own", "one for all"])
def test_leading_axes(dtype, shape, of_key):
    layer = SMALL.layer
    call = {"query": tokens(layer, dtype, *shape)}
    if of_key != "itself":
        call["key"] = tokens(layer, dtype, *(shape[:-1] if of_key == "its own" else ()), 7, seed=1)
    known = answers(multi_head_attention, layer, state_dict(layer, dtype), call)
    assert_all_as_defined(attention_of(layer, dtype)(**call, return_lse=True), known)


@pytest.mark.parametrize("queries", [0, 4])
@pytest.mark.parametrize("keys", [None, 0, 4])
@pytest.mark.parametrize("batch", [0, 2])
def test_nothing(dtype, batch, queries, keys):
    """No sequences, no queries or no keys: there is the output's bias, if there is any output."""
    call = call_of(SMALL._replace(batch=batch, queries=queries, keys=keys), dtype)
    attention = attention_of(SMALL.layer, dtype)
    out, lse = attention(**call, return_lse=True)
    assert out.shape == (batch, queries, SMALL.layer.embed)
    assert lse.shape == (batch, SMALL.layer.heads, queries)
    if keys == 0:
        assert_equal(out, np.broadcast_to(attention.out_proj.bias, out.shape))
        assert np.isneginf(lse).all()


def test_nothing_to_attend_to(target, dtype):
    """A query that the mask hides everything from gets the output's bias, and no NaN."""
    attention = attention_of(SMALL.layer, dtype)
    out, lse = attention(**call_of(SMALL, dtype), attn_mask=np.zeros(1, bool), return_lse=True)
    assert_equal(out, np.broadcast_to(attention.out_proj.bias, out.shape))
    assert np.isneginf(lse).all()


@hypothesis.given(st.sampled_from(fastattn.targets()), st.sampled_from(ALL), st.data())
def test_any_call_is_what_the_definition_says(target, dtype, data):
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    size, few = st.integers(1, 40), st.integers(1, 12)
    inputs = st.none() | size
    cross = data.draw(st.booleans())
    layer = Layer(
        embed=data.draw(size),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_size=data.draw(few),
        kdim=data.draw(inputs) if cross else None,
        vdim=data.draw(inputs) if cross else None,
        bias=data.draw(st.booleans()),
    )
    shape = {"batch": data.draw(few), "queries": data.draw(few), "keys": data.draw(few) if cross else None}
    names = data.draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=2, unique=True))
    case = Case(layer, **shape, values=cross and layer.kdim != layer.vdim, options=tuple(names))
    with on_target(target):
        out = attention_of(layer, dtype)(**call_of(case, dtype))
        _, expected = _answers(case, dtype, False, multiplies_and_adds_at_once())
    assert_close(out, expected[0], 16)


# Weights by other names and in other types


@pytest.mark.parametrize("case", [SMALL, OTHERS], ids=["self", "cross"])
@pytest.mark.parametrize("settings", [{}, {"dtype": "int8"}], ids=["plain", "int8"])
def test_separate_projections(dtype, case, settings):
    weights = dict(state_dict(case.layer, dtype))
    sizes = np.cumsum([case.layer.heads, case.layer.kv_heads]) * case.layer.head_size
    parts = np.split(weights.pop("in_proj_weight"), sizes)
    weights |= {f"{name}_proj_weight": part for name, part in zip("qkv", parts, strict=True)}
    separate = MultiHeadAttention.from_state_dict(weights, **case.layer.settings | settings)
    assert_equal(separate(**call_of(case, dtype)), attention_of(case.layer, dtype, **settings)(**call_of(case, dtype)))


def test_bias_none_takes_what_there_is():
    for layer in (SMALL.layer, SMALL.layer._replace(bias=False)):
        expected = attention_of(layer, np.float32)(**call_of(SMALL, np.float32))
        assert_equal(attention_of(layer, np.float32, bias=None)(**call_of(SMALL, np.float32)), expected)
    weights = dict(state_dict(SMALL.layer, np.float32))
    del weights["in_proj_bias"]
    attention = MultiHeadAttention.from_state_dict(weights, **SMALL.layer.settings | {"bias": None})
    assert attention.in_proj.bias is None
    assert attention.out_proj.bias is not None


@pytest.mark.parametrize("stored", WIDE, ids=str)
@pytest.mark.parametrize("as_name", [False, True])
def test_weights_are_converted(dtype, stored, as_name):
    """Biases to what sums are made in."""
    weights = state_dict(SMALL.layer, stored)
    converted = {name: x.astype(dtype if x.ndim == 2 else computed_in(dtype)) for name, x in weights.items()}
    attention = attention_of(SMALL.layer, stored, dtype=dtype.name if as_name else dtype)
    assert attention.dtype == dtype
    expected = MultiHeadAttention.from_state_dict(converted, **SMALL.layer.settings)(**call_of(SMALL, dtype))
    assert_equal(attention(**call_of(SMALL, dtype)), expected)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("layer", [SMALL.layer, CROSS[2].layer])
def test_quantised_weights_are_those_of_quantize(layer, pack):
    weights = state_dict(layer, np.float32)
    attention = attention_of(layer, np.float32, dtype="int8", pack=pack)
    assert attention.dtype == np.float32
    names = {"in_proj": "in_proj_weight"} if attention.in_proj else {f"{x}_proj": f"{x}_proj_weight" for x in "qkv"}
    for name, key in (names | {"out_proj": "out_proj.weight"}).items():
        weight = getattr(attention, name).weight
        assert_identical(weight.unpack() if pack else weight, quantize(weights[key]))


@pytest.mark.parametrize("layer", [SMALL.layer, CROSS[3].layer])
def test_plain_weights_are_not_copied(layer):
    weights = state_dict(layer, np.float32)
    attention = MultiHeadAttention.from_state_dict(weights, **layer.settings, pack=False)
    for name in ("q", "k", "v"):
        stored = weights["in_proj_weight" if attention.in_proj else f"{name}_proj_weight"]
        assert np.shares_memory(getattr(attention, f"{name}_proj").weight, stored)
    assert np.shares_memory(attention.out_proj.weight, weights["out_proj.weight"])


@pytest.mark.parametrize("layer", [SMALL.layer, CROSS[3].layer])
def test_packed_weights_are_those_of_the_state_dict(layer):
    """Each projection, too: its rows may begin within a panel."""
    weights = state_dict(layer, np.float32)
    attention = attention_of(layer, np.float32)
    parts = dict.fromkeys("qkv")
    if attention.in_proj:
        stacked = weights["in_proj_weight"]
        assert_equal(attention.in_proj.weight.unpack(), stacked)
        parts |= zip("qkv", np.split(stacked, np.cumsum([layer.heads, layer.kv_heads]) * layer.head_size), strict=True)
    for name, part in parts.items():
        found = getattr(attention, f"{name}_proj")
        assert_equal(found.weight.unpack(), weights[f"{name}_proj_weight"] if part is None else part)
        assert getattr(attention, f"{name}_proj") is found
    assert_equal(attention.out_proj.weight.unpack(), weights["out_proj.weight"])


@pytest.mark.parametrize("pack", [True, False])
def test_attributes_and_repr(pack):
    attention = attention_of(CROSS[3].layer, np.float16, pack=pack)
    assert (attention.embed_dim, attention.kdim, attention.vdim) == (24, 31, 24)
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (3, 1, 9)
    assert attention.dtype == np.float16
    assert repr(attention) == "MultiHeadAttention(24, num_heads=3, num_kv_heads=1, head_dim=9, weights=float16)"


@pytest.mark.parametrize("case", [SMALL, OTHERS], ids=["self", "cross"])
def test_add_zero_attn(dtype, case):
    """A sink whose logit is 0: as beside a key of zeros whose value is zeros."""
    layer, arguments = case.layer, call_of(case, dtype)
    plain, zero = attention_of(layer, dtype), attention_of(layer, dtype, add_zero_attn=True)
    assert (plain.add_zero_attn, zero.add_zero_attn) == (False, True)
    sinks = np.zeros(layer.heads, np.float32)
    assert_identical(zero(**arguments, return_lse=True), plain(**arguments, sinks=sinks, return_lse=True))
    key = arguments.get("key")
    assert_equal(
        zero.attention_weights(arguments["query"], key), plain.attention_weights(arguments["query"], key, sinks=sinks)
    )
    with pytest.raises(ValueError, match=r"^sinks must be None with add_zero_attn, got ndarray"):
        zero(**arguments, sinks=sinks)
    with pytest.raises(TypeError, match=r"^add_zero_attn must be a bool, got int"):
        attention_of(layer, dtype, add_zero_attn=1)


# Packed sequences

LENGTHS = (5, 1, 0, 17, 33)
PER_SEQUENCE = {
    "q_offset": np.array([0, 1, 2, -3, 5]),
    "kv_lengths": np.array([3, 1, 0, 17, 20]),
    "alibi_slopes": np.linspace(0.01, 0.2, 30).reshape(5, 6).astype(np.float16),
}
PACKED = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"window": (4, 2), "softcap": 3.0, "scale": 0.2},
    "position bias": {"position_bias": np.linspace(-2, 2, 66).reshape(6, 11).astype(np.float16)},
    "by sequence": {"is_causal": True, **PER_SEQUENCE},
}


def bounds(lengths):
    return np.cumsum([0, *lengths])


@pytest.mark.parametrize("options", PACKED)
@pytest.mark.parametrize("int8", [False, True], ids=["plain", "int8"])
def test_packed_sequences_are_as_if_alone(target, dtype, options, int8):
    stored = np.dtype(np.int8) if int8 else dtype
    attention = attention_of(SMALL.layer, np.float32, dtype=stored)
    cos, sin = angles(max(LENGTHS), 2, dtype)
    x, cu_seqlens = tokens(SMALL.layer, dtype, sum(LENGTHS)), bounds(LENGTHS)
    more = {"cos": cos, "sin": sin, "return_lse": True}
    out, lse = attention(x, cu_seqlens=cu_seqlens, **PACKED[options], **more)
    for i, n in enumerate(LENGTHS):
        rows = slice(cu_seqlens[i], cu_seqlens[i + 1])
        alone = attention(x[None, rows], **of_sequence(PACKED[options], i), **more)
        assert_identical((out[None, rows], lse[rows].T[None]), alone)
        assert len(out[rows]) == n


@pytest.mark.parametrize("options", PACKED)
@pytest.mark.parametrize("layer", [SMALL.layer, Layer(24, 6, 2, 5, kdim=13, vdim=7)], ids=["as wide", "narrower"])
def test_packed_queries_on_packed_keys(target, dtype, layer, options):
    of_queries, of_keys = (5, 1, 0, 3, 17), (7, 30, 4, 17, 20)
    attention = attention_of(layer, dtype)
    query = tokens(layer, dtype, sum(of_queries))
    key, value = (
        tokens(layer, dtype, sum(of_keys), seed=seed, size=size) for seed, size in ((1, layer.kdim), (2, layer.vdim))
    )
    q, k = bounds(of_queries), bounds(of_keys)
    out, lse = attention(query, key, value, cu_seqlens_q=q, cu_seqlens_k=k, **PACKED[options], return_lse=True)
    for i in range(5):
        rows, others = slice(q[i], q[i + 1]), slice(k[i], k[i + 1])
        own = of_sequence(PACKED[options], i)
        alone = attention(query[None, rows], key[None, others], value[None, others], **own, return_lse=True)
        assert_identical((out[None, rows], lse[rows].T[None]), alone)


def test_packed_keys_that_lie_as_the_queries(dtype):
    layer, cu_seqlens = SMALL.layer, bounds(LENGTHS)
    query, key = (tokens(layer, dtype, sum(LENGTHS), seed=seed) for seed in (0, 1))
    attention = functools.partial(attention_of(layer, dtype), query, key)
    assert_equal(attention(cu_seqlens=cu_seqlens), attention(cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens))


@pytest.mark.parametrize("cached", [False, True])
def test_angles_that_stand_twice_are_refused(cached):
    """By the whole tables, though the first row alone says nothing."""
    layer = Layer(24, 3, 3, 8)
    cos, sin = angles(5, 2, np.float32)
    attention, x = attention_of(layer, np.float32), tokens(layer, np.float32, 1, 1)
    more = {"cache": cache_of(layer, 1, "float32")} if cached else {}
    twice = {"cos": np.concatenate([cos, cos], axis=1), "sin": np.concatenate([sin, sin], axis=1)}
    with pytest.raises(ValueError, match=r"cos must hold the number of each pair once, got shape \(5, 4\)"):
        attention(x, **twice, **more)
    if cached:
        assert (more["cache"].lengths == 0).all()
    else:
        with pytest.raises(ValueError, match=r"cos must hold the number of each pair once"):
            attention.attention_weights(x, **twice)
    scaled = {"cos": 1.5 * cos, "sin": 1.5 * sin}  # as some models do: position 0 scales all pairs alike
    attention(x, **scaled, **more)
    attention.attention_weights(x, **scaled)


# Caches


def cache_of(layer, batch, dtype, **more):
    return fastattn.KVCache(batch, layer.kv_heads, 64, layer.head_size, dtype=dtype, **more)


@pytest.mark.parametrize("turned", [False, True], ids=["plain", "rotary"])
@pytest.mark.parametrize("layer", [SMALL.layer, Layer(33, 4, 1, 9)], ids=["6:2", "4:1"])
def test_step_by_step_is_the_whole_prompt(target, dtype, layer, turned):
    cos, sin = angles(40, 2, dtype)
    rotary = {"cos": cos, "sin": sin, "interleaved": True} if turned else {}
    x = tokens(layer, dtype, 9, 20)
    call = {"query": x, "is_causal": True} | rotary
    if turned:
        call |= {"cos": cos[:20], "sin": sin[:20]}
    known = answers(multi_head_attention, layer, state_dict(layer, dtype), call)
    attention, cache = attention_of(layer, dtype), cache_of(layer, 9, dtype)
    steps = [
        attention(part, cache=cache, is_causal=True, return_lse=True, **rotary)
        for part in np.split(x, [11, 12, 13, 18], axis=1)
    ]
    outs, lses = zip(*steps, strict=True)
    assert_all_as_defined((np.concatenate(outs, axis=1), np.concatenate(lses, axis=-1)), known)
    assert (cache.lengths == 20).all()


@pytest.mark.parametrize("turned", [False, True], ids=["plain", "rotary"])
def test_sequences_of_different_lengths_in_a_cache(target, dtype, turned):
    """Each as if alone, to the bit; what pads it is neither stored nor seen, nor need its angle be in the table."""
    layer, lengths = SMALL.layer, np.array([[7, 1, 12], [1, 3, 0]])
    cos, sin = angles(13, 2, dtype)
    options = {"is_causal": True} | ({"cos": cos, "sin": sin} if turned else {})
    attention = attention_of(layer, dtype)
    parts = [tokens(layer, dtype, 3, n, seed=n).copy() for n in (12, 3)]
    for x, own in zip(parts, lengths, strict=True):
        x[np.arange(x.shape[1]) >= own[:, None]] = np.nan
    cache = cache_of(layer, 3, dtype)
    outs = [attention(x, cache=cache, kv_lengths=n, **options) for x, n in zip(parts, lengths, strict=True)]
    np.testing.assert_array_equal(cache.lengths, lengths.sum(axis=0))
    for b in range(3):
        padded, exact = (cache_of(layer, 1, dtype) for _ in range(2))
        for x, out, n in zip(parts, outs, lengths[:, b], strict=True):
            x, out = x[b : b + 1], out[b : b + 1, :n]
            assert_equal(out, attention(x, cache=padded, kv_lengths=n, **options)[:, :n])
            # Without the padding there are fewer queries, which other kernels may take.
            alone = readable(attention(x[:, :n], cache=exact, **options))
            np.testing.assert_allclose(readable(out), alone, rtol=0, atol=32 * eps(dtype))


def test_a_refused_call_leaves_a_padded_cache_as_it_was():
    """Also what it knows of where queries stand."""
    layer = SMALL.layer
    attention, cache = attention_of(layer, np.float32), cache_of(layer, 3, "float32")
    x = tokens(layer, np.float32, 3, 12)
    attention(x, cache=cache, kv_lengths=[7, 1, 12], is_causal=True)
    query = np.random.default_rng(0).normal(size=(3, layer.heads, 12, layer.head_size)).astype(np.float32)
    expected = cache.attend(query, is_causal=True)
    with pytest.raises(ValueError, match="softcap"):
        attention(x[:, :5], cache=cache, kv_lengths=[5, 2, 0], softcap=-1.0)
    np.testing.assert_array_equal(cache.attend(query, is_causal=True), expected)


@pytest.mark.parametrize("more", [{"dtype": "bfloat16"}, {"dtype": "int8"}, {"window": 5}], ids=str)
@pytest.mark.parametrize("options", [{}, {"window": (3, 0), "softcap": 2.0}], ids=["plain", "options"])
def test_any_cache(target, more, options):
    """Projecting, appending, attending and projecting, whatever the cache makes of it."""
    layer = SMALL.layer
    attention = attention_of(layer, np.float32)
    caches = [cache_of(layer, 2, **{"dtype": "float32"} | more) for _ in range(2)]
    for step in range(30 if "window" in more else 15):  # a ring is full after 64 tokens
        x = tokens(layer, np.float32, 2, 8 if step == 0 else 3, seed=step)
        q, k, v = (
            projection(x).reshape(*x.shape[:2], -1, layer.head_size).swapaxes(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        caches[1].append(k, v)
        found = caches[1].attend(q, is_causal=True, **options)
        expected = attention.out_proj(found.swapaxes(1, 2).reshape(2, x.shape[1], -1))
        assert_equal(attention(x, cache=caches[0], is_causal=True, **options), expected)


# Where it goes


@pytest.mark.parametrize("case", [SMALL, OTHERS], ids=["self", "cross"])
@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_out_layouts(dtype, case, layout):
    attention, call = attention_of(case.layer, dtype), call_of(case, dtype)
    expected, lse = attention(**call, return_lse=True)
    out = empty_laid_out(expected.shape, dtype, layout)
    found = attention(**call, out=out, return_lse=True)
    assert found[0] is out
    assert_identical(found, (expected, lse))
    assert_nothing_written_around(out)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_input_layouts(dtype, layout):
    attention = attention_of(OTHERS.layer, dtype)
    arrays = [LAYOUTS[layout](x) for x in call_of(OTHERS, dtype).values()]
    assert_equal(attention(*arrays), attention(*(np.ascontiguousarray(x) for x in arrays)))


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cache"])
def test_in_place(target, dtype, cached):
    """As in a layer: the result is added to the tokens where they are."""
    attention, call = attention_of(SMALL.layer, dtype), call_of(SMALL, dtype)

    def attend(x, **more):
        return attention(x, cache=cache_of(SMALL.layer, SMALL.batch, dtype) if cached else None, residual=x, **more)

    expected, x = attend(call["query"]), call["query"].copy()
    assert attend(x, out=x) is x
    assert_equal(x, expected)


@pytest.mark.parametrize("distance", [1, 24, -1, -24])
@pytest.mark.parametrize("shared", ["query", "key", "residual"])
def test_out_overlaps_an_input(dtype, distance, shared):
    case, attention = CROSS[0], attention_of(CROSS[0].layer, dtype)
    call = call_of(case, dtype) | {"residual": tokens(case.layer, dtype, 2, 9, seed=3)}
    expected, x = attention(**call), call[shared]
    memory = np.zeros(x.size + 128, dtype)
    here, out = memory[64:][: x.size].reshape(x.shape), memory[64 + distance :][: expected.size].reshape(expected.shape)
    here[...] = x
    assert_equal(attention(**call | {shared: here}, out=out), expected)


def test_a_decoding_step_needs_little_memory():
    """The projections of its tokens, and some Python objects: nothing for what the cache holds."""
    layer = Layer(512, 8, 2, 64)
    attention, x = attention_of(layer, np.float32), tokens(layer, np.float32, 1, 1)
    cache = fastattn.KVCache(1, 2, 4096, 64)
    cache.append(*np.ones((2, 1, 2, 4000, 64), np.float32))
    out = np.empty_like(x)
    tracemalloc.start()
    for step in range(40):
        if step == 20:  # what Python itself keeps for later it has by then
            tracemalloc.clear_traces()
            tracemalloc.reset_peak()
        attention(x, cache=cache, out=out)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    projected, joined = (8 + 2 * 2) * 64, 8 * 64
    assert peak <= 4 * (projected + joined) + 10_000
    assert kept <= 2_000


# To the bit

LARGE = Case(Layer(96, 8, 2, 24), 3, 65)


@pytest.mark.parametrize("int8", [False, True], ids=["plain", "int8"])
def test_any_number_of_threads(target, dtype, int8):
    stored = np.dtype(np.int8) if int8 else dtype
    attention = attention_of(LARGE.layer, np.float32, dtype=stored)
    call = functools.partial(attention, **call_of(LARGE, dtype), is_causal=True, return_lse=True)
    expected = call(num_threads=1)
    for num_threads in (2, 3, 7):
        assert_identical(call(num_threads=num_threads), expected)


def test_any_company(target, dtype):
    attention, x = attention_of(LARGE.layer, dtype), call_of(LARGE, dtype)["query"]
    together = attention(x)
    spoiled = x.copy()
    spoiled[1:] = np.nan
    assert_equal(attention(spoiled)[0], together[0])
    for i in range(LARGE.batch):
        assert_equal(attention(x[i]), together[i])


def test_many_threads_at_once():
    attention, call = attention_of(LARGE.layer, np.float32), call_of(LARGE, np.dtype(np.float32))
    expected, results = attention(**call), []

    def work():
        results.extend(attention(**call, num_threads=2) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    for result in results:
        assert_equal(result, expected)
