"""fastattn.nn given bad input: the error names what is wrong, neither `out` nor a cache is touched. And quantize."""

import contextlib
import doctest
import importlib
import re

import ml_dtypes
import numpy as np
import pytest

import fastattn
from fastattn.nn import MultiHeadAttention, TransformerEncoder, TransformerEncoderLayer, quantize
from support.arrays import LAYOUTS, POISON, is_poison
from support.dtypes import ALL, assert_equal, largest
from support.nn_layers import Layer, attention_weights, encoder_weights, layer_weights

LAYER = Layer(8, 4, 2, 2, hidden=6)
OTHERS = LAYER._replace(kdim=5, vdim=7)
CLASSES = {
    MultiHeadAttention: lambda dtype=np.float32: attention_weights(LAYER, dtype),
    TransformerEncoderLayer: lambda dtype=np.float32: layer_weights(LAYER, dtype),
    TransformerEncoder: lambda dtype=np.float32: encoder_weights(LAYER, dtype, 2),
}
of_each_class = pytest.mark.parametrize("cls", CLASSES)


def made(cls, mapping=None, prefix="", **settings):
    mapping = CLASSES[cls]() if mapping is None else mapping
    return cls.from_state_dict(mapping, prefix, **LAYER.settings | settings)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def poisoned(*shape):
    return np.full((*shape, 4), POISON, np.uint8).view(np.float32)[..., 0]


@contextlib.contextmanager
def refused(error, name, also=""):
    """It is said what must be with `name`, and what came instead."""
    with pytest.raises(error, match=rf"(^|\W){re.escape(name)}(?!\w).* must .*got") as caught:
        yield
    assert also in str(caught.value)
    assert ",," not in str(caught.value)
    assert not re.search(r"\bany\b[,)]", str(caught.value))


# Calls

X = zeros(2, 5, 8)
PACKED = zeros(9, 8)
BOUNDS = np.array([0, 4, 9])
TABLE = zeros(5, 1)
UNALIKE = zeros(2, 3, 8)


class Swapped:
    dtype = np.dtype(np.float32).newbyteorder()


# (what is wrong, in words; error; the name that must be in the message; the call). "tokens" stands for what the class
# calls its first argument.
BAD_CALLS = [
    ("list", TypeError, "tokens", {"tokens": X.tolist()}),
    ("masked", TypeError, "tokens", {"tokens": np.ma.array(X)}),
    ("integers", TypeError, "tokens", {"tokens": X.astype(int)}),
    ("complex", TypeError, "tokens", {"tokens": X.astype(complex)}),
    ("swapped bytes", TypeError, "tokens", {"tokens": X.astype(Swapped.dtype)}),
    ("one axis", ValueError, "tokens", {"tokens": zeros(8)}),
    ("too wide", ValueError, "tokens", {"tokens": zeros(2, 5, 9)}),
    ("packed, three axes", ValueError, "tokens", {"tokens": X, "cu_seqlens": BOUNDS}),
    ("bounds, list of floats", TypeError, "cu_seqlens", {"tokens": PACKED, "cu_seqlens": [0, 4.0, 9]}),
    ("bounds, reals", TypeError, "cu_seqlens", {"tokens": PACKED, "cu_seqlens": BOUNDS.astype(float)}),
    ("bounds, short", ValueError, "cu_seqlens", {"tokens": PACKED, "cu_seqlens": BOUNDS[:2]}),
    ("bounds, empty", ValueError, "cu_seqlens", {"tokens": PACKED, "cu_seqlens": BOUNDS[:0]}),
    ("bounds, falling", ValueError, "cu_seqlens", {"tokens": PACKED, "cu_seqlens": np.array([0, 5, 3, 9], np.uint8)}),
    ("bounds and angles", ValueError, "cu_seqlens",
     {"tokens": PACKED, "cu_seqlens": BOUNDS[1:], "cos": TABLE, "sin": TABLE}),
    ("mask and bounds", ValueError, "attn_mask",
     {"tokens": PACKED, "cu_seqlens": BOUNDS, "attn_mask": np.ones(9, bool)}),
    ("mask, too large", ValueError, "attn_mask", {"attn_mask": np.ones((6, 5), bool)}),
    ("mask, integers", TypeError, "attn_mask", {"attn_mask": np.ones((5, 5), int)}),
    ("causal", TypeError, "is_causal", {"is_causal": 1}),
    ("offset", TypeError, "q_offset", {"q_offset": 1.5}),
    ("window", ValueError, "window", {"window": (3,)}),
    ("scale", ValueError, "scale", {"scale": np.nan}),
    ("softcap", ValueError, "softcap", {"softcap": -1.0}),
    ("sinks", ValueError, "sinks", {"sinks": zeros(2)}),
    ("slopes", ValueError, "alibi_slopes", {"alibi_slopes": zeros(3)}),
    ("biases", ValueError, "position_bias", {"position_bias": zeros(4, 4)}),
    ("lengths", ValueError, "kv_lengths", {"kv_lengths": 6}),
    ("cos alone", TypeError, "sin", {"cos": TABLE}),
    ("sin alone", TypeError, "cos", {"sin": TABLE}),
    ("angles, list", TypeError, "cos", {"cos": [[1.0]] * 5, "sin": TABLE}),
    ("angles, wider", TypeError, "cos", {"cos": TABLE.astype(float), "sin": TABLE.astype(float)}),
    ("angles, few", ValueError, "cos", {"cos": TABLE[:4], "sin": TABLE}),
    ("angles, few packed", ValueError, "cos", {"tokens": PACKED, "cu_seqlens": BOUNDS, "cos": TABLE[:4], "sin": TABLE}),
    ("angles, many pairs", ValueError, "cos", {"cos": zeros(5, 2), "sin": zeros(5, 2)}),
    ("angles, one axis", ValueError, "sin", {"cos": TABLE, "sin": TABLE[:, 0]}),
    ("interleaved", TypeError, "interleaved", {"cos": TABLE, "sin": TABLE, "interleaved": "yes"}),
    ("threads", ValueError, "num_threads", {"num_threads": 0}),
    ("threads, text", TypeError, "num_threads", {"num_threads": "2"}),
    ("out, list", TypeError, "out", {"out": [1.0]}),
    ("out, dtype", TypeError, "out", {"out": X.astype(np.float64)}),
    ("out, shape", ValueError, "out", {"out": zeros(2, 5, 9)}),
    ("out, read-only", ValueError, "out", {"out": np.broadcast_to(X[0], (2, 5, 8))}),
]  # fmt: skip

# What tokenizers return beside padded texts.
PADDING = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])


@pytest.mark.parametrize("cls", CLASSES)
def test_padding_masks_of_integers(cls):
    layer = made(cls, CLASSES[cls](), "")
    with refused(TypeError, "attn_mask", "attn_mask.astype(bool)[:, None, None, :]"):
        layer(X, attn_mask=PADDING)
    with refused(ValueError, "attn_mask", "attn_mask[:, None, None, :]"):
        layer(X, attn_mask=PADDING.astype(bool))
    with refused(TypeError, "attn_mask", "attn_mask.astype(bool)"):
        layer(X, attn_mask=np.ones((5, 5), np.int64))
    np.testing.assert_array_equal(
        layer(X, attn_mask=PADDING.astype(bool)[:, None, None, :]),
        layer(X, kv_lengths=[4, 2]),
    )


@pytest.mark.parametrize("cls", CLASSES)
def test_lists_of_integers(cls):
    layer = made(cls, CLASSES[cls](), "")
    np.testing.assert_array_equal(layer(PACKED, cu_seqlens=BOUNDS.tolist()), layer(PACKED, cu_seqlens=BOUNDS))
    turn = {"cos": TABLE, "sin": TABLE}
    for more in (turn, turn | {"kv_lengths": [3, 5], "q_offset": (1, 0)}):
        wanted = {name: np.array(x) for name, x in more.items()}
        if "kv_lengths" in more:
            np.testing.assert_array_equal(layer(X, **more), layer(X, **wanted))
        else:
            packed = layer(PACKED, cu_seqlens=tuple(BOUNDS.tolist()), **more)
            np.testing.assert_array_equal(packed, layer(PACKED, cu_seqlens=BOUNDS, **wanted))


ATTENTION_ALONE = [
    ("residual, list", TypeError, "residual", {"residual": X.tolist()}),
    ("residual, dtype", TypeError, "residual", {"residual": X.astype(np.float16)}),
    ("residual, shape", ValueError, "residual", {"residual": X[0]}),
    ("lse", TypeError, "return_lse", {"return_lse": "yes"}),
    ("bounds of no keys", ValueError, "cu_seqlens_k", {"tokens": PACKED, "cu_seqlens": BOUNDS, "cu_seqlens_k": BOUNDS}),
    ("bounds of keys alone", ValueError, "cu_seqlens_k", {"key": UNALIKE, "cu_seqlens_k": BOUNDS}),
    ("bounds of queries alone", ValueError, "cu_seqlens_q", {"key": UNALIKE, "cu_seqlens_q": BOUNDS}),
    ("bounds of both", ValueError, "cu_seqlens", {"tokens": PACKED, "key": PACKED[1:], "cu_seqlens": BOUNDS}),
    ("bounds of keys", ValueError, "cu_seqlens_k",
     {"tokens": PACKED, "key": PACKED[1:], "cu_seqlens_q": BOUNDS, "cu_seqlens_k": BOUNDS}),
    ("bounds of queries", ValueError, "cu_seqlens_q",
     {"tokens": PACKED, "key": PACKED[:], "cu_seqlens_q": BOUNDS - 1, "cu_seqlens_k": BOUNDS}),
    ("bounds twice", ValueError, "cu_seqlens_q",
     {"tokens": PACKED, "key": PACKED[:], "cu_seqlens": BOUNDS, "cu_seqlens_q": BOUNDS, "cu_seqlens_k": BOUNDS}),
    ("bounds beside keys", ValueError, "cu_seqlens", {"tokens": PACKED, "key": PACKED[1:], "cu_seqlens": BOUNDS - 1}),
    ("mask, bounds, keys", ValueError, "attn_mask",
     {"tokens": PACKED, "key": PACKED[:], "cu_seqlens": BOUNDS, "attn_mask": np.ones(9, bool)}),
    ("key, list", TypeError, "key", {"key": X.tolist()}),
    ("key, integers", TypeError, "key", {"key": X.astype(int)}),
    ("key, wider", TypeError, "key", {"key": X.astype(np.float64)}),
    ("key, width", ValueError, "key", {"key": zeros(2, 5, 7)}),
    ("key, axes", ValueError, "key", {"key": zeros(8)}),
    ("key, packed", ValueError, "key", {"tokens": PACKED, "key": X, "cu_seqlens": BOUNDS}),
    ("key, leading axis", ValueError, "key", {"key": zeros(3, 5, 8)}),
    ("value, list", TypeError, "value", {"value": X.tolist()}),
    ("value, width", ValueError, "value", {"value": zeros(2, 5, 7)}),
    ("value, rows", ValueError, "value", {"key": UNALIKE, "value": X}),
    ("angles of others", ValueError, "cos", {"key": UNALIKE, "cos": TABLE, "sin": TABLE}),
    ("angle of others", ValueError, "sin", {"key": UNALIKE, "sin": TABLE}),
    ("others in a cache", ValueError, "cache", {"key": UNALIKE, "cache": fastattn.KVCache(2, 2, 9, 2)}),
]  # fmt: skip


def call(layer, bad, out):
    bad = dict(bad)
    first = bad.pop("tokens", X)
    if out is not None:
        bad.setdefault("out", out)
    return layer(first, **bad)


@pytest.mark.parametrize(
    ("error", "name", "bad"), [case[1:] for case in BAD_CALLS], ids=[case[0] for case in BAD_CALLS]
)
@of_each_class
def test_calls(cls, error, name, bad):
    out = poisoned(*bad.get("tokens", X).shape) if isinstance(bad.get("tokens", X), np.ndarray) else None
    name = ("query" if cls is MultiHeadAttention else "x") if name == "tokens" else name
    with refused(error, name):
        call(made(cls), bad, out)
    assert out is None or is_poison(out)


@pytest.mark.parametrize(
    ("error", "name", "bad"), [case[1:] for case in ATTENTION_ALONE], ids=[case[0] for case in ATTENTION_ALONE]
)
def test_calls_of_attention(error, name, bad):
    out = poisoned(*bad.get("tokens", X).shape)
    with refused(error, name):
        call(made(MultiHeadAttention), bad, out)
    assert is_poison(out)


def test_keys_and_values_of_other_widths_cannot_be_left_out():
    attention = MultiHeadAttention.from_state_dict(attention_weights(OTHERS, np.float32), **OTHERS.settings)
    for name, given in (
        ("key", {}),
        ("value", {"key": zeros(2, 5, 5)}),
        ("key", {"cache": fastattn.KVCache(2, 2, 9, 2)}),
    ):
        with refused(ValueError, name):
            attention(X, **given)


@pytest.mark.parametrize(
    ("error", "name", "bad"),
    [
        (TypeError, "query", {"query": X.tolist()}),
        (ValueError, "key", {"key": zeros(2, 5, 7)}),
        (ValueError, "cos", {"key": UNALIKE, "cos": TABLE, "sin": TABLE}),
        (ValueError, "sin", {"cos": TABLE, "sin": TABLE[1:]}),
        (ValueError, "attn_mask", {"attn_mask": np.ones((6, 5), bool)}),
        (ValueError, "window", {"window": (3,)}),
    ],
    ids=str,
)
def test_calls_of_attention_weights(error, name, bad):
    with refused(error, name):
        made(MultiHeadAttention).attention_weights(**{"query": X} | bad)


@of_each_class
def test_unknown_options(cls):
    with pytest.raises(TypeError, match="'dropout'"):
        made(cls)(X, dropout=0.1)


@pytest.mark.parametrize("cls", [TransformerEncoderLayer, TransformerEncoder])
def test_layers_have_no_lse(cls):
    with refused(TypeError, "return_lse"):
        made(cls)(X, return_lse=True)


@of_each_class
def test_float64_weights_want_float64_tokens(cls):
    for wrong in (np.float32, np.float16, ml_dtypes.bfloat16):
        with refused(TypeError, "query" if cls is MultiHeadAttention else "x", np.dtype(wrong).name):
            made(cls, CLASSES[cls](np.float64))(X.astype(wrong))
    for dtype in ALL:  # none do not
        made(cls, CLASSES[cls](np.float16), pack=False)(X.astype(dtype))


@of_each_class
@pytest.mark.parametrize("wrong", [None, 1, "yes"], ids=repr)
def test_pack_is_a_bool(cls, wrong):
    with refused(TypeError, "pack"):
        made(cls, pack=wrong)


# Caches


def cache(batch=2, heads=2, room=9, size=2, **more):
    made = fastattn.KVCache(batch, heads, room, size, **more)
    made.append(*(np.ones((batch, heads, 3, width), np.float32) for width in (size, more.get("value_dim", size))))
    return made


BAD_CACHES = [
    ("dict", TypeError, "cache", lambda: {}, {}),
    ("paged", TypeError, "cache", lambda: fastattn.PagedKVCache(9, 4, 2, 2), {}),
    ("heads", ValueError, "cache", lambda: cache(heads=4), {}),
    ("head size", ValueError, "cache", lambda: cache(size=3), {}),
    ("value size", ValueError, "cache", lambda: cache(value_dim=3), {}),
    ("batch", ValueError, "tokens", lambda: cache(batch=3), {}),
    ("no batch", ValueError, "tokens", cache, {"tokens": X[0]}),
    ("packed", ValueError, "cache", cache, {"tokens": PACKED, "cu_seqlens": BOUNDS}),
    ("wider", TypeError, "query", lambda: cache(dtype="float64"), {}),
    ("full", ValueError, "tokens", lambda: cache(room=7), {}),
    ("lengths", ValueError, "kv_lengths", cache, {"kv_lengths": np.array([5, 6])}),
    ("lengths, reals", TypeError, "kv_lengths", cache, {"kv_lengths": np.array([5.0, 5.0])}),
    ("lengths, shape", ValueError, "kv_lengths", cache, {"kv_lengths": np.array([5, 5, 5])}),
    ("full for one", ValueError, "tokens", lambda: cache(room=7), {"kv_lengths": np.array([4, 5])}),
    ("mask", ValueError, "attn_mask", cache, {"attn_mask": np.ones((5, 5), bool)}),
    ("window", ValueError, "window", cache, {"window": (3,)}),
    ("few angles", ValueError, "cos", cache, {"cos": TABLE, "sin": TABLE}),
    ("not finite", ValueError, "key", lambda: cache(dtype="int8"), {"tokens": X + np.inf}),
    ("window has moved on", ValueError, "tokens", lambda: moved_on(), {"tokens": zeros(2, 66, 8)}),
    ("out", ValueError, "out", cache, {"out": zeros(2, 5, 9)}),
    ("threads", ValueError, "num_threads", cache, {"num_threads": 0}),
]  # fmt: skip


def moved_on():
    """A ring of 4 + 64 rows that begins to overwrite with the next 66."""
    return cache(room=99, window=4)


@pytest.mark.parametrize(
    ("error", "name", "make", "bad"), [case[1:] for case in BAD_CACHES], ids=[case[0] for case in BAD_CACHES]
)
@of_each_class
def test_caches(cls, error, name, make, bad):
    """The encoder is given a good cache first: it must not keep what the second one refuses."""
    wrong, first = make(), cache(room=99)
    x = bad.get("tokens", X)
    out = poisoned(*x.shape)
    given = {"caches": [first, wrong]} if cls is TransformerEncoder else {"cache": wrong}
    names = {"tokens": "query" if cls is MultiHeadAttention else "x"}
    if cls is TransformerEncoder:
        names["cache"] = "caches[0]" if "cu_seqlens" in bad else "caches[1]"
    name = names.get(name, name)
    with refused(error, name), np.errstate(invalid="ignore"):
        call(made(cls), bad | given, out)
    assert is_poison(out)
    for kept in (wrong, first):
        if isinstance(kept, fastattn.KVCache):
            assert (kept.lengths == 3).all()


def test_a_cache_that_failed_goes_on_as_if_nothing_had_been():
    rng = np.random.default_rng(0)
    layer = made(TransformerEncoderLayer)
    x = rng.normal(size=(2, 4, 8)).astype(np.float32)
    kept, other = cache(), cache()
    with pytest.raises(ValueError, match="softcap"):
        layer(x, cache=kept, softcap=-1.0)
    assert_equal(layer(x, cache=kept, is_causal=True), layer(x, cache=other, is_causal=True))
    assert_equal(kept.keys, other.keys)


def test_a_ring_takes_a_long_prompt_while_nothing_is_lost():
    ring, plain = cache(room=99, window=4), cache(room=99)
    x = np.random.default_rng(0).normal(size=(2, 65, 8)).astype(np.float32)
    attention = made(MultiHeadAttention)
    expected = attention(x, cache=plain, is_causal=True, window=(3, None))
    np.testing.assert_allclose(attention(x, cache=ring, is_causal=True), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("error", "make"),
    [
        (TypeError, cache),
        (TypeError, lambda: iter([cache(), cache()])),
        (ValueError, lambda: []),
        (ValueError, lambda: [cache()]),
        (ValueError, lambda: [cache()] * 2),
    ],
    ids=["one", "iterator", "none", "too few", "one twice"],
)
def test_lists_of_caches(error, make):
    with refused(error, "caches"):
        made(TransformerEncoder)(X, caches=make())


def test_a_list_of_caches_with_none_in_it():
    with refused(TypeError, "caches[1]", "NoneType"):
        made(TransformerEncoder)(X, caches=[cache(), None])


# State dicts

NAMES = [(cls, name) for cls, weights in CLASSES.items() for name in weights()]
of_each_entry = pytest.mark.parametrize(("cls", "name"), NAMES, ids=[f"{cls.__name__}-{name}" for cls, name in NAMES])


@of_each_entry
def test_entries(cls, name):
    """Each missing, misshapen, or of a type that is none; the message has its name in full."""
    good = {f"model.{key}": x for key, x in CLASSES[cls]().items()} | {"another": zeros(1)}
    key = f"model.{name}"
    x = good[key]
    with refused(ValueError, "mapping", key):
        made(cls, {other: x for other, x in good.items() if other != key}, "model.")
    for error, wrong in [
        (ValueError, x[:-1]),
        (ValueError, x[:0]),
        (ValueError, x[None]),
        (ValueError, np.concatenate([x, x, x])),
        (TypeError, x.tolist()),
        (TypeError, None),
        (TypeError, x.astype(np.int8)),
        (TypeError, x.astype(Swapped.dtype)),
        (TypeError, np.ma.array(x)),
    ]:
        # The output's projection says how wide tokens are: that the others disagree is said of the next.
        said_of = key.replace("out_proj.weight", "(out_proj.|in_proj_)weight")
        with pytest.raises(error, match=rf"^{said_of} must .*, got|, got '{key}'$") as caught:
            made(cls, good | {key: wrong}, "model.")
        assert "any" not in str(caught.value)
    made(cls, good, "model.")


@of_each_entry
def test_entries_in_float64_alone(cls, name):
    weights = CLASSES[cls]()
    with refused(TypeError, "mapping", name):
        made(cls, weights | {name: weights[name].astype(np.float64)})
    made(cls, weights | {name: weights[name].astype(np.float64)}, dtype="float32")
    made(cls, weights | {name: weights[name].astype(np.float16)})


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (MultiHeadAttention, "q_proj.weight"),
        (MultiHeadAttention, "dropout"),
        (TransformerEncoderLayer, "self_attn.in_proj_weight_"),
        (TransformerEncoderLayer, "gate.weight"),
        (TransformerEncoder, "layers.1.norm3.weight"),
        (TransformerEncoder, "norm.running_mean"),
        (TransformerEncoder, "embeddings.weight"),
    ],
)
def test_entries_that_nothing_reads(cls, name):
    with refused(ValueError, "mapping", f"a.{name}"):
        made(cls, {f"a.{key}": x for key, x in CLASSES[cls]().items()} | {f"a.{name}": zeros(1)}, "a.")


@of_each_class
def test_bias_that_is_not_asked_for(cls):
    with refused(ValueError, "mapping", "bias"):
        made(cls, bias=False)


@of_each_class
@pytest.mark.parametrize("stored", ALL, ids=str)
def test_weights_beyond_float16(cls, stored):
    """A number that would become infinity there is refused; the largest that does not is taken, and other types are."""
    if largest(stored) < 65536:
        return
    for sign in (1, -1):
        mapping = CLASSES[cls](stored)
        name = next(name for name in mapping if name.endswith("in_proj_weight"))
        mapping[name] = mapping[name].copy()
        mapping[name][3, 2] = sign * 131072
        for dtype in ("float32", "bfloat16", "int8"):
            made(cls, mapping, dtype=dtype)
        with pytest.raises(ValueError, match=f"{name} must be below 65520 .*float16, got 131072: use dtype"):
            made(cls, mapping, dtype="float16")
        mapping[name][3, 2] = sign * 65280
        made(cls, mapping, dtype="float16")


@pytest.mark.parametrize("name", ["bias_k", "bias_v"])
def test_added_keys_and_values_are_not_supported(name):
    weights = {f"a.{key}": x for key, x in CLASSES[MultiHeadAttention]().items()}
    with refused(ValueError, f"a.{name}"):
        made(MultiHeadAttention, weights | {f"a.{name}": X}, "a.")


@pytest.mark.parametrize("name", ["q_proj_weight", "k_proj_weight", "v_proj_weight"])
def test_parts_of_separate_projections(name):
    weights = attention_weights(OTHERS, np.float32)
    load = MultiHeadAttention.from_state_dict
    with refused(ValueError, "mapping", name):
        load({key: x for key, x in weights.items() if key != name}, **OTHERS.settings)
    with refused(ValueError, "mapping", "in_proj_weight"):
        load(weights | {"in_proj_weight": zeros(16, 8)}, **OTHERS.settings)
    if name != "q_proj_weight":
        with refused(TypeError, name, "float16"):
            load(weights | {name: weights[name].astype(np.float16)}, **OTHERS.settings)


def test_layers_of_another_size():
    weights = CLASSES[TransformerEncoder]()
    other = layer_weights(LAYER._replace(hidden=5), np.float32)
    with refused(ValueError, "layers.1.linear2.weight"):
        made(TransformerEncoder, weights | {f"layers.1.{name}": x for name, x in other.items()})


def test_a_gap_between_layers():
    weights = {name.replace("layers.1", "layers.2"): x for name, x in CLASSES[TransformerEncoder]().items()}
    with refused(ValueError, "mapping", "layers.1."):
        made(TransformerEncoder, weights)


def test_no_layers():
    with refused(ValueError, "mapping", "layers.0."):
        made(TransformerEncoder, {})


@pytest.mark.parametrize(
    ("name", "error", "wrong"),
    [
        ("num_heads", TypeError, "4"),
        ("num_heads", TypeError, True),
        ("num_heads", ValueError, 0),
        ("num_kv_heads", TypeError, 2.0),
        ("num_kv_heads", ValueError, 0),
        ("num_kv_heads", ValueError, 3),
        ("bias", TypeError, 1),
        ("bias", TypeError, "True"),
        ("dtype", TypeError, "int16"),
        ("dtype", TypeError, 8),
        ("prefix", TypeError, None),
        ("prefix", TypeError, b"a"),
        ("mapping", TypeError, [("in_proj_weight", X)]),
        ("mapping", TypeError, {0: X}),
    ],
)
@of_each_class
def test_parameters(cls, name, error, wrong):
    with refused(error, name):
        cls.from_state_dict(**{"mapping": CLASSES[cls]()} | LAYER.settings | {name: wrong})


@pytest.mark.parametrize(
    ("name", "error", "wrong"),
    [
        ("activation", TypeError, None),
        ("activation", TypeError, ["relu"]),
        ("activation", ValueError, "tanh"),
        ("norm", TypeError, {}),
        ("norm", ValueError, "batch"),
        ("norm_eps", TypeError, "1e-5"),
        ("norm_eps", ValueError, -1e-5),
        ("norm_eps", ValueError, np.nan),
        ("norm_first", TypeError, 1),
        ("norm_first", TypeError, None),
    ],
)
@pytest.mark.parametrize("cls", [TransformerEncoderLayer, TransformerEncoder])
def test_parameters_of_layers(cls, name, error, wrong):
    with refused(error, name):
        made(cls, **{name: wrong})


@of_each_class
def test_heads_that_do_not_fit(cls):
    with refused(ValueError, "out_proj.weight", "num_heads, 3"):
        made(cls, num_heads=3, num_kv_heads=3)


# Quantised weights


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_quantised_rows_are_as_close_as_steps_allow(rng, dtype, layout):
    weight = LAYOUTS[layout]((rng.normal(size=(30, 40)) * 10.0 ** rng.integers(-3, 3, (30, 1))).astype(dtype))
    values, scales = quantize(weight)
    assert (values.dtype, scales.dtype) == (np.int8, np.float32)
    most = np.abs(weight.astype(float)).max(axis=1)
    np.testing.assert_allclose(scales, most / 127, rtol=2e-7)
    assert (np.abs(values).max(axis=1) == 127).all()
    errors = np.abs(values * scales[:, None].astype(float) - weight.astype(float))
    assert (errors <= 0.5001 * scales[:, None]).all()


def test_quantised_rows_of_zeros_and_of_the_smallest_numbers():
    smallest = np.float32(1e-45)
    weight = quantize(np.array([[0, 0], [0, smallest], [178 * smallest, -smallest]], np.float32))
    np.testing.assert_array_equal(weight.values, [[0, 0], [0, 0], [127, -1]])
    np.testing.assert_array_equal(weight.scales, np.array([0, 0, smallest]))


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_largest_numbers_can_be_quantised(dtype):
    if dtype == np.float64:
        with refused(ValueError, "weight"):
            quantize(np.full((2, 2), largest(dtype)))
    else:
        values, scales = quantize(np.full((2, 2), largest(dtype), dtype))
        np.testing.assert_allclose(values * scales[:, None].astype(float), largest(dtype), rtol=1e-6)


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (TypeError, [[1.0]]),
        (TypeError, np.ones((2, 2), np.int8)),
        (TypeError, np.ma.array(np.ones((2, 2)))),
        (ValueError, np.ones(2)),
        (ValueError, np.ones((2, 0))),
        (ValueError, np.array([[1.0, np.nan]])),
        (ValueError, np.array([[1.0, -np.inf]])),
    ],
    ids=["list", "integers", "masked", "one axis", "empty", "nan", "infinite"],
)
def test_weights_that_cannot_be_quantised(error, wrong):
    with refused(error, "weight"):
        quantize(wrong)


def test_weights_of_a_layer_that_cannot_be_quantised():
    weights = CLASSES[TransformerEncoder]()
    wrong = weights["layers.1.linear1.weight"] + np.float32(np.inf)
    with refused(ValueError, "layers.1.linear1.weight"):
        made(TransformerEncoder, weights | {"layers.1.linear1.weight": wrong}, dtype="int8")


@pytest.mark.parametrize("name", ["nn.attention", "nn.encoder", "weights"])
def test_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(f"fastattn.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
