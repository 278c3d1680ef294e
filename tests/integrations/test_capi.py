"""Compiled callers: Cython, C, Numba and ctypes get the bits of the Python functions, and codes for errors."""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastattn
from fastattn import _arguments, _dtypes, capi
from support import pointers
from support.dtypes import assert_equal, computed_in
from support.examples import ROOT, blocks
from support.pointers import attention_options, call, kind, linear_options, message

GUIDE = ROOT / "docs" / "guide" / "c-api.md"


def numbers(rng, dtype, *shape):
    return rng.normal(size=shape).astype(dtype)


def transposed(x):
    """The same numbers, in another order in memory."""
    return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)


# The interface itself: what is pinned here does not change within a version


def test_version():
    assert pointers.TABLE.version == 1
    assert pointers.TABLE.size == ctypes.sizeof(pointers.Table)


def test_order_of_the_table():
    """Each entry is the function that Cython and Numba find by its name."""
    assert set(capi.__pyx_capi__) == set(pointers.FUNCTIONS)
    for name, capsule in capi.__pyx_capi__.items():
        entry = ctypes.cast(getattr(pointers.TABLE, name), ctypes.c_void_p).value
        assert entry == pointers.address(capsule, pointers.signature(capsule)), name


def test_signatures():
    """Cython modules that were compiled with other ones do not import."""
    found = {name: pointers.signature(capsule).decode() for name, capsule in capi.__pyx_capi__.items()}
    assert found["softmax_f32"] == "int (float const *, float *, Py_ssize_t, Py_ssize_t)"
    assert found["attention_f64"].startswith(
        "int (double const *, double const *, double const *, double *, Py_ssize_t"
    )
    assert found["softmax"] == "int (fastattn_array const *, fastattn_array const *, fastattn_array const *, int, int)"
    assert found["error_message"] == "char const *(int)"


SIZES = {  # of structs, and where their last field is, on machines of 64 bits
    pointers.Array: (32, "type", 28),
    pointers.AttentionOptions: (120, "position_bias", 112),
    pointers.LinearOptions: (40, "scales", 32),
    pointers.Table: (16 + 8 * 30, "attention_bf16", 8 + 8 * 30),
}


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="sizes of 64 bits")
@pytest.mark.parametrize("struct", SIZES, ids=lambda struct: struct.__name__)
def test_sizes(struct):
    assert (ctypes.sizeof(struct), getattr(struct, SIZES[struct][1]).offset) == SIZES[struct][::2]


def test_header_is_found():
    assert os.listdir(fastattn.get_include()) == ["fastattn.h"]


def test_header_names_every_type_and_activation():
    with open(f"{fastattn.get_include()}/fastattn.h", encoding="utf-8") as file:
        text = file.read()
    assert all(f"FASTATTN_{name.upper()} = " in text for name in _arguments.ACTIVATIONS)
    assert all(f"FASTATTN_{name} = " in text for name in _arguments.KERNEL_TYPES)
    assert all(f"define fastattn_{name} (FASTATTN_TABLE->{name})" in text for name in pointers.FUNCTIONS)
    assert pointers.ACTIVATIONS[1:] == _arguments.ACTIVATIONS


# Results have the bits of the Python functions


@pytest.mark.parametrize("layout", [np.ascontiguousarray, transposed], ids=["contiguous", "transposed"])
def test_softmax(target, dtype, layout, rng):
    x = layout(numbers(rng, dtype, 3, 5, 17))
    where = rng.random((5, 17)) < 0.7
    for name in ("softmax", "log_softmax"):
        for axis, mask in ((-1, None), (1, None), (0, None), (2, where)):
            out = np.empty_like(x)
            assert call(name, x, mask, out, axis, 0) == 0
            assert_equal(out, getattr(fastattn, name)(x, axis, where=mask))
    in_place = x.copy(order="K")
    assert call("softmax", in_place, None, in_place, -1, 2) == 0
    assert_equal(in_place, fastattn.softmax(x))


@pytest.mark.parametrize("layout", [np.ascontiguousarray, transposed], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("parameters", [False, True])
def test_norms(target, dtype, layout, parameters, rng):
    x, residual = (layout(numbers(rng, dtype, 2, 4, 33)) for _ in range(2))
    weight = numbers(rng, computed_in(dtype), 33) if parameters else None
    bias = numbers(rng, dtype, 33) if parameters else None
    out, total = np.empty_like(x), np.empty_like(x)
    assert call("layer_norm", x, weight, bias, out, 1e-5, 0) == 0
    assert_equal(out, fastattn.layer_norm(x, weight, bias))
    assert call("rms_norm", x, weight, out, 1e-6, 1) == 0
    assert_equal(out, fastattn.rms_norm(x, weight))
    assert call("add_layer_norm", x, residual, weight, bias, out, total, 1e-5, 0) == 0
    for mine, expected in zip((out, total), fastattn.add_layer_norm(x, residual, weight, bias), strict=True):
        assert_equal(mine, expected)
    total = residual.copy(order="K")
    assert call("add_rms_norm", x, total, weight, out, total, 1e-6, 0) == 0
    for mine, expected in zip((out, total), fastattn.add_rms_norm(x, residual, weight), strict=True):
        assert_equal(mine, expected)


@pytest.mark.parametrize("activation", pointers.ACTIVATIONS)
def test_linear(target, dtype, activation, rng):
    x, weight = numbers(rng, dtype, 2, 5, 40), numbers(rng, dtype, 24, 40)
    bias, residual = numbers(rng, dtype, 24), transposed(numbers(rng, dtype, 2, 5, 24))
    out = np.empty_like(residual)
    assert call("linear", x, transposed(weight), out, None) == 0
    assert_equal(out, fastattn.linear(x, weight))
    options = linear_options(bias=bias, residual=residual, activation=activation, num_threads=2)
    assert call("linear", x, weight, out, options) == 0
    assert_equal(out, fastattn.linear(x, weight, bias, activation=activation, residual=residual))
    values, scales = rng.integers(-127, 128, (24, 40)).astype(np.int8), numbers(rng, np.float32, 24)
    assert call("linear", x, values, out, linear_options(scales=scales, activation=activation)) == 0
    assert_equal(out, fastattn.linear(x, (values, scales), activation=activation))


ATTENTION = {  # options of a call with 2 sequences, 4 heads, 5 queries and 30 keys
    "none": lambda rng, sums: {},
    "causal": lambda rng, sums: {"is_causal": True, "num_threads": 2},
    "window": lambda rng, sums: {"window": (3, None), "q_offset": 7},
    "window and causal": lambda rng, sums: {"window": (4, 9), "is_causal": True, "q_offset": np.array([0, 12])},
    "scale, softcap": lambda rng, sums: {"scale": 0.3, "softcap": 2.0},
    "bool mask": lambda rng, sums: {"attn_mask": rng.random((5, 30)) < 0.6},
    "float mask": lambda rng, sums: {"attn_mask": rng.normal(size=(2, 1, 1, 30)).astype(sums)},
    "lengths": lambda rng, sums: {"kv_lengths": np.array([30, 11]), "is_causal": True},
    "sinks": lambda rng, sums: {"sinks": rng.normal(size=4).astype(sums), "kv_lengths": 20},
    "slopes": lambda rng, sums: {"alibi_slopes": rng.random(4).astype(sums)},
    "slopes of each": lambda rng, sums: {"alibi_slopes": rng.random((2, 4)).astype(sums), "is_causal": True},
    "position bias": lambda rng, sums: {"position_bias": rng.normal(size=(4, 9)).astype(sums), "q_offset": 3},
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(target, dtype, name, rng):
    """With heads next to tokens, as in (batch, tokens, heads, size), and with the lse."""
    sums = computed_in(dtype)
    options = ATTENTION[name](rng, sums)
    query = numbers(rng, dtype, 2, 5, 4, 24).swapaxes(1, 2)
    key, value = numbers(rng, dtype, 2, 30, 2, 24).swapaxes(1, 2), numbers(rng, dtype, 2, 2, 30, 8)
    out, lse = np.empty((2, 4, 5, 8), dtype), np.empty((2, 4, 5), sums)
    struct = attention_options(dtype, lse=lse, **options)
    assert call("attention", query, key, value, out, struct) == 0
    expected, expected_lse = fastattn.scaled_dot_product_attention(query, key, value, **options, return_lse=True)
    assert_equal(out, expected)
    assert_equal(lse, expected_lse)


def test_attention_broadcasts_leading_axes_and_keeps_its_bits_in_parts(target, dtype, rng):
    query, key = numbers(rng, dtype, 3, 1, 2, 70, 16), numbers(rng, dtype, 2, 1, 2000, 16)
    out = np.empty((3, 2, 2, 70, 16), dtype)
    assert call("attention", query, key, key, out, None) == 0
    assert_equal(out, fastattn.scaled_dot_product_attention(query, key, key))
    one = np.empty((2, 70, 16), dtype)
    assert call("attention", query[0, 0], key[0], key[0], one, None) == 0
    assert_equal(one, out[0, 0])
    assert call("attention", query[0, 0, 0], key[0, 0], key[0, 0], one[1], None) == 0
    assert_equal(one[1], fastattn.scaled_dot_product_attention(query[0, 0, 0], key[0, 0], key[0, 0]))


def test_varlen_attention(target, dtype, rng):
    query, key, value = (numbers(rng, dtype, 19, 4, 16), *(numbers(rng, dtype, 25, 2, 16) for _ in range(2)))
    begin_q, begin_k = [0, 5, 5, 19], [0, 9, 10, 25]
    out, lse = np.empty_like(query), np.empty((19, 4), computed_in(dtype))
    options = {"is_causal": True, "kv_lengths": np.array([7, 1, 15])}
    code = call(
        "varlen_attention", query, key, value, out, pointers.integers(begin_q)[0], pointers.integers(begin_k)[0], 3,
        attention_options(dtype, lse=lse, **options),
    )  # fmt: skip
    assert code == 0
    expected, expected_lse = fastattn.varlen_attention(query, key, value, begin_q, begin_k, **options, return_lse=True)
    assert_equal(out, expected)
    assert_equal(lse, expected_lse)


def test_plain_pointers(target, dtype, rng):
    x, weight, bias = numbers(rng, dtype, 6, 48), numbers(rng, dtype, 48), numbers(rng, dtype, 48)
    matrix, out = numbers(rng, dtype, 10, 48), np.empty((6, 48), dtype)

    def run(name, *arguments):
        arguments = [x.ctypes.data if isinstance(x, np.ndarray) else x for x in arguments]
        assert call(f"{name}_{pointers.SUFFIXES[dtype.name]}", *arguments) == 0

    run("softmax", x, out, 6, 48)
    assert_equal(out, fastattn.softmax(x))
    run("layer_norm", x, weight, bias, out, 6, 48, 1e-5)
    assert_equal(out, fastattn.layer_norm(x, weight, bias))
    run("layer_norm", x, None, None, out, 6, 48, 1e-3)
    assert_equal(out, fastattn.layer_norm(x, eps=1e-3))
    run("rms_norm", x, weight, out, 6, 48, 1e-6)
    assert_equal(out, fastattn.rms_norm(x, weight))
    out = np.empty((6, 10), dtype)
    run("linear", x, matrix, bias, out, 6, 48, 10)
    assert_equal(out, fastattn.linear(x, matrix, bias[:10]))
    run("linear", x, matrix, None, out, 6, 48, 10)
    assert_equal(out, fastattn.linear(x, matrix))
    query, key, value = (numbers(rng, dtype, 2, *shape) for shape in ((4, 7, 16), (2, 9, 16), (2, 9, 8)))
    out = np.empty((2, 4, 7, 8), dtype)
    run("attention", query, key, value, out, 2, 4, 2, 7, 9, 16, 8, 0.0, 0)
    assert_equal(out, fastattn.scaled_dot_product_attention(query, key, value))
    run("attention", query, key, value, out, 2, 4, 2, 7, 9, 16, 8, 0.5, 1)
    assert_equal(out, fastattn.scaled_dot_product_attention(query, key, value, scale=0.5, is_causal=True))


def test_no_keys_and_no_addresses():
    """An empty array may have no address; nothing to attend gives zeros and -inf."""
    query, nothing = np.ones((1, 2, 3, 4), np.float32), np.empty((1, 2, 0, 4), np.float32)
    out, lse = np.full_like(query, 7), np.full((1, 2, 3), 7, np.float32)
    empty = pointers.array(nothing, data=None, strides=None)
    assert call("attention", query, empty, empty, out, attention_options(lse=lse)) == 0
    assert (out == 0).all()
    assert (lse == -np.inf).all()
    rows = np.empty((0, 4), np.float32)
    assert call("softmax", rows, None, pointers.array(rows, data=None), -1, 0) == 0


def test_strides_may_be_left_out(rng):
    x = numbers(rng, np.float32, 3, 1, 7)
    out = np.empty_like(x)
    assert call("softmax", pointers.array(x, strides=None), None, out, -1, 0) == 0
    assert_equal(out, fastattn.softmax(x))


# Errors


def softmax(**changes):
    x = np.ones((3, 8), np.float32)
    return call("softmax", pointers.array(x, **changes), None, x, -1, 0)


def attend(out_changes=None, query=(2, 4, 5, 8), key=np.ones((2, 2, 6, 8), np.float32), **options):  # noqa: B008
    value, out = np.ones((2, 2, 6, 8), np.float32), np.full((2, 4, 5, 8), 7, np.float32)
    given = pointers.array(out, **out_changes or {})
    code = call("attention", np.ones(query, np.float32), key, value, given, attention_options(**options))
    assert (out == 7).all(), "nothing is written before an error"
    return code


def project(weight=np.ones((3, 8), np.float32), shape=(4, 3), **options):  # noqa: B008
    x = np.ones((4, 8), np.float32)
    return call("linear", x, weight, np.empty(shape, np.float32), linear_options(**options))


def norm(weight=None, eps=1e-5, **changes):
    x = np.ones((3, 8), np.float32)
    return call("layer_norm", pointers.array(x, **changes), weight, None, x, eps, 0)


def packed(begin_q, sequences, **options):
    x = np.ones((6, 2, 8), np.float32)
    begin = None if begin_q is None else pointers.integers(begin_q)[0]
    return call(
        "varlen_attention", x, x, x, np.empty_like(x), begin, pointers.integers([0, 6])[0], sequences,
        attention_options(**options),
    )  # fmt: skip


ones = np.ones
ERRORS = {
    "no array": (lambda: call("softmax", None, None, ones(3), -1, 0), "x", pointers.NULL),
    "no output": (lambda: call("softmax", ones(3), None, None, -1, 0), "out", pointers.NULL),
    "no address": (lambda: softmax(data=None), "x", pointers.NULL),
    "no shape": (lambda: softmax(shape=None), "x", pointers.NULL),
    "unknown type": (lambda: softmax(type=9), "x", pointers.TYPE),
    "no type": (lambda: softmax(type=0), "x", pointers.TYPE),
    "softmax of int8": (lambda: softmax(type=5), "x", pointers.TYPE),
    "negative length": (lambda: softmax(shape=pointers.longs(3, -8)), "x", pointers.SIZE),
    "too large": (lambda: softmax(shape=pointers.longs(1 << 40, 1 << 40)), "x", pointers.SIZE),
    "too large and empty": (lambda: softmax(shape=pointers.longs(0, 1 << 62)), "x", pointers.SIZE),
    "negative axes": (lambda: softmax(ndim=-1), "x", pointers.SHAPE),
    "too many axes": (lambda: softmax(ndim=9), "x", pointers.SHAPE),
    "no axes": (lambda: call("softmax", ones(()), None, ones(()), -1, 0), "x", pointers.SHAPE),
    "strides of elements": (lambda: softmax(strides=pointers.longs(8, 1)), "x", pointers.STRIDE),
    "odd address": (lambda: softmax(data=ones(9).ctypes.data + 2), "x", pointers.STRIDE),
    "another shape": (lambda: call("softmax", ones((2, 3)), None, ones((3, 2)), -1, 0), "out", pointers.SHAPE),
    "another type": (lambda: call("softmax", ones(3), None, ones(3, np.float32), -1, 0), "out", pointers.TYPE),
    "no such axis": (lambda: call("softmax", ones(3), None, ones(3), 1, 0), "axis", pointers.VALUE),
    "negative threads": (lambda: call("softmax", ones(3), None, ones(3), 0, -1), "num_threads", pointers.VALUE),
    "where of numbers": (lambda: call("softmax", ones(3), ones(3), ones(3), 0, 0), "where", pointers.TYPE),
    "where too large": (lambda: call("softmax", ones(3), ones((2, 3), bool), ones(3), 0, 0), "where", pointers.SHAPE),
    "negative size": (lambda: call("softmax_f32", 64, 64, -1, 4), "x", pointers.SIZE),
    "plain NULL": (lambda: call("softmax_f32", None, None, 2, 4), "x", pointers.NULL),
    "plain NULL output": (lambda: call("layer_norm_f64", 64, None, None, None, 2, 4, 0.1), "out", pointers.NULL),
    "plain query": (lambda: call("attention_f32", 64, 64, 64, 64, 1, 3, 2, 1, 1, 4, 4, 0, 0), "query", pointers.SHAPE),
    "weight of float64": (lambda: norm(ones(8)), "weight", pointers.TYPE),
    "weight too short": (lambda: norm(ones(7, np.float32)), "weight", pointers.SHAPE),
    "weight with gaps": (lambda: norm(ones(16, np.float32)[::2]), "weight", pointers.STRIDE),
    "negative eps": (lambda: norm(eps=-1.0), "eps", pointers.VALUE),
    "eps of NaN": (lambda: norm(eps=np.nan), "eps", pointers.VALUE),
    "empty rows": (lambda: norm(shape=pointers.longs(3, 0)), "x", pointers.SHAPE),
    "options of no version": (lambda: attend(size=0), "options", pointers.VERSION),
    "options too small": (lambda: attend(size=104), "options", pointers.VERSION),
    "options too large": (lambda: attend(size=1 << 20), "options", pointers.VERSION),
    "heads": (lambda: attend(query=(2, 3, 5, 8)), "query", pointers.SHAPE),
    "head sizes": (lambda: attend(key=ones((2, 2, 6, 9), np.float32)), "key", pointers.SHAPE),
    "numbers of keys": (lambda: attend(key=ones((2, 2, 7, 8), np.float32)), "value", pointers.SHAPE),
    "batches": (lambda: attend(key=ones((3, 2, 6, 8), np.float32)), "key", pointers.SHAPE),
    "wider keys": (lambda: attend(key=ones((2, 2, 6, 8))), "key", pointers.TYPE),
    "int8 keys": (lambda: attend(key=ones((2, 2, 6, 8), np.int8)), "key", pointers.TYPE),
    "shape of out": (lambda: attend({"shape": pointers.longs(2, 4, 5, 4)}), "out", pointers.SHAPE),
    "axes of out": (lambda: attend({"ndim": 3}), "out", pointers.SHAPE),
    "out on itself": (lambda: attend({"strides": pointers.longs(0, 160, 32, 4)}), "out", pointers.OVERLAP),
    "mask of int8": (lambda: attend(attn_mask=ones((5, 6), np.int8)), "attn_mask", pointers.TYPE),
    "mask too wide": (lambda: attend(attn_mask=ones((5, 6))), "attn_mask", pointers.TYPE),
    "mask of keys": (lambda: attend(attn_mask=ones((5, 5), bool)), "attn_mask", pointers.SHAPE),
    "lse of float64": (lambda: attend(lse=ones((2, 4, 5))), "lse", pointers.TYPE),
    "lse too small": (lambda: attend(lse=ones((2, 4, 4), np.float32)), "lse", pointers.SHAPE),
    "infinite scale": (lambda: attend(scale=np.inf), "scale", pointers.VALUE),
    "negative softcap": (lambda: attend(softcap=-1.0), "softcap", pointers.VALUE),
    "offsets": (lambda: attend(q_offset=[1, 2, 3]), "q_offset", pointers.SHAPE),
    "no offsets": (lambda: attend(q_offset=[]), "q_offset", pointers.SHAPE),
    "lengths beyond": (lambda: attend(kv_lengths=[1, 7]), "kv_lengths", pointers.VALUE),
    "negative lengths": (lambda: attend(kv_lengths=-1), "kv_lengths", pointers.VALUE),
    "sinks of NaN": (lambda: attend(sinks=[0, 0, np.nan, 0]), "sinks", pointers.VALUE),
    "infinite slopes": (lambda: attend(alibi_slopes=[0, 0, -np.inf, 0]), "alibi_slopes", pointers.VALUE),
    "slopes": (lambda: attend(alibi_slopes=[0, 0, 0]), "alibi_slopes", pointers.SHAPE),
    "biases of float64": (lambda: attend(position_bias=ones((4, 3))), "position_bias", pointers.TYPE),
    "biases of heads": (lambda: attend(position_bias=ones((3, 3), np.float32)), "position_bias", pointers.SHAPE),
    "biases of even width": (lambda: attend(position_bias=ones((4, 4), np.float32)), "position_bias", pointers.SHAPE),
    "biases of one axis": (lambda: attend(position_bias=ones(4, np.float32)), "position_bias", pointers.SHAPE),
    "no biases": (lambda: attend(position_bias=ones((4, 0), np.float32)), "position_bias", pointers.SHAPE),
    "biases with gaps": (
        lambda: attend(position_bias=ones((4, 6), np.float32)[:, ::2]), "position_bias", pointers.STRIDE),
    "biases by columns": (
        lambda: attend(position_bias=ones((3, 4), np.float32).T), "position_bias", pointers.STRIDE),
    "no boundaries": (lambda: packed(None, 1), "cu_seqlens_q", pointers.NULL),
    "negative sequences": (lambda: packed([0, 6], -1), "cu_seqlens_q", pointers.SIZE),
    "boundaries beyond": (lambda: packed([0, 7], 1), "cu_seqlens_q", pointers.VALUE),
    "boundaries decrease": (lambda: packed([0, 4, 2, 6], 3), "cu_seqlens_q", pointers.VALUE),
    "packed with a mask": (lambda: packed([0, 6], 1, attn_mask=ones((6, 6), bool)), "attn_mask", pointers.VALUE),
    "weight of another size": (lambda: project(ones((3, 7), np.float32)), "weight", pointers.SHAPE),
    "weight wider": (lambda: project(ones((3, 8))), "weight", pointers.TYPE),
    "int8 without scales": (lambda: project(ones((3, 8), np.int8)), "scales", pointers.NULL),
    "scales without int8": (lambda: project(scales=ones(3, np.float32)), "scales", pointers.VALUE),
    "outputs": (lambda: project(shape=(4, 8)), "out", pointers.SHAPE),
    "bias": (lambda: project(bias=ones(8, np.float32)), "bias", pointers.SHAPE),
    "bias wider": (lambda: project(bias=ones(3)), "bias", pointers.TYPE),
    "residual": (lambda: project(residual=ones((4, 8), np.float32)), "residual", pointers.SHAPE),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    provoke, argument, expected = ERRORS[name]
    code = provoke()
    assert kind(code) == expected, message(code)
    assert message(code).startswith(f"{argument}: ")


def test_messages():
    assert message(0) == "no error"
    assert message(pointers.MEMORY) == "not enough memory"
    assert message(softmax(type=0)) == "x: an unknown type, or one that does not go with the others"
    assert message(-1) == message(200) == message(1 << 20) == "an unknown code"
    codes = [argument << 8 | kind for argument in range(28) for kind in range(10)]
    assert all(len(message(code)) < 111 for code in codes)


def test_an_activation_that_there_is_not():
    options = linear_options()
    options.activation = 5
    code = call("linear", *(np.ones((2, 2)) for _ in range(3)), options)
    assert message(code) == "activation: a number out of range"


@pytest.mark.parametrize("more", [False, True])
def test_options_of_a_newer_header(more, rng):
    """They are taken as long as what this version does not know is 0."""

    class Newer(ctypes.Structure):
        _fields_ = (("known", pointers.AttentionOptions), ("more", ctypes.c_double))

    x = numbers(rng, np.float32, 1, 2, 3, 8)
    out = np.empty_like(x)
    newer = Newer(attention_options(is_causal=True), float(more))
    newer.known.size = ctypes.sizeof(Newer)
    options = ctypes.cast(ctypes.pointer(newer), ctypes.POINTER(pointers.AttentionOptions))
    code = pointers.TABLE.attention(*(pointers.array(y) for y in (x, x, x, out)), options)
    if more:
        assert kind(code) == pointers.VERSION
    else:
        assert code == 0
        assert_equal(out, fastattn.scaled_dot_product_attention(x, x, x, is_causal=True))


def test_overlaps(rng):
    """Refused, unless a row is read before it is written."""
    x = numbers(rng, np.float32, 4, 8)
    before = x.copy()
    assert kind(call("softmax", x[1:], None, x[:-1], -1, 0)) == pointers.OVERLAP
    assert kind(call("layer_norm", x, x[0], None, x, 1e-5, 0)) == pointers.OVERLAP
    assert kind(call("linear", x, numbers(rng, np.float32, 8, 8), x, None)) == pointers.OVERLAP
    assert kind(call("attention", x, x, x, x, None)) == pointers.OVERLAP
    assert kind(call("add_rms_norm", x, x, None, x, x, 1e-5, 0)) == pointers.OVERLAP
    assert_equal(x, before)
    assert call("rms_norm", x, None, x, 1e-6, 0) == 0
    assert_equal(x, fastattn.rms_norm(before))
    weight, total = numbers(rng, np.float32, 8, 8), x.copy()
    assert call("linear", x, weight, total, linear_options(residual=total)) == 0
    assert_equal(total, fastattn.linear(x, weight, residual=x))


def test_threads_at_once(rng):
    """ctypes lets go of the GIL: calls run beside each other, large and small."""
    large, small = numbers(rng, np.float32, 1, 4, 300, 32), numbers(rng, np.float32, 1, 1, 3, 8)
    expected = {x.size: fastattn.scaled_dot_product_attention(x, x, x, is_causal=True) for x in (large, small)}
    together = threading.Barrier(8)

    def work(number):
        together.wait()
        for _ in range(10):
            for x in (large, small):
                out = np.empty_like(x)
                assert call("attention", x, x, x, out, attention_options(is_causal=True, num_threads=number % 3)) == 0
                assert_equal(out, expected[x.size])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


# Compiled callers: the guide's, as they stand there


def example(language, first):
    """The block of the guide whose first line is this comment."""
    [block] = [block for block in blocks(GUIDE, language) if first in block.code.splitlines()[0]]
    return block.code


def compiler(name):
    return shutil.which(name) or pytest.skip(f"needs a compiler, {name}")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder on sys.path with the guide's two modules, built by its setup.py."""
    for package in ("Cython", "setuptools"):
        pytest.importorskip(package)
    compiler("cc")
    folder = tmp_path_factory.mktemp("callers")
    for name, language in (("attend.pyx", "cython"), ("rows.c", "c"), ("setup.py", "py")):
        (folder / name).write_text(example(language, name), encoding="utf-8")
    package = os.path.dirname(os.path.dirname(os.path.abspath(fastattn.__file__)))
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": package, "CFLAGS": "-Wall -Wextra -Wno-unused-parameter"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [line for line in done.stderr.splitlines() if "fastattn" in line and "warning" in line]
    return folder


def module(built, name):
    [path] = [path for path in built.glob(f"{name}.*") if path.suffix in (".so", ".pyd")]
    spec = importlib.util.spec_from_file_location(name, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_use(built):
    """Both modules, as the guide calls them."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(fastattn.__file__)))
    done = subprocess.run(
        [sys.executable, "-c", example("py", "use.py")], cwd=built, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": package},
    )  # fmt: skip
    assert done.stdout == "[0.25 0.25 0.25 0.25]\n", done.stderr


def test_cython(built, rng):
    attend = module(built, "attend").attend
    query = numbers(rng, np.float32, 2, 9, 4, 16).swapaxes(1, 2)
    key, value = (numbers(rng, np.float32, 2, 2, 30, size) for size in (16, 24))
    value.setflags(write=False)
    out = np.empty((2, 4, 9, 24), np.float32)
    for is_causal in (False, True):
        attend(query, key, value, out, is_causal)
        assert_equal(out, fastattn.scaled_dot_product_attention(query, key, value, is_causal=is_causal).copy())
    with pytest.raises(ValueError, match=r"^key: its number of axes or its lengths do not go with the others$"):
        attend(query, key[..., :8], value, out)


def test_cython_in_several_threads(built, rng):
    """Without the GIL: each has its own result."""
    attend = module(built, "attend").attend
    inputs = [numbers(rng, np.float32, 1, 4, 150 + n, 32) for n in range(4)]
    expected = [fastattn.scaled_dot_product_attention(x, x, x) for x in inputs]

    def work(n):
        out = np.empty_like(inputs[n])
        for _ in range(10):
            attend(inputs[n], inputs[n], inputs[n], out)
            assert_equal(out, expected[n])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_c(built, rng):
    softmax = module(built, "rows").softmax
    x = numbers(rng, np.float32, 7, 40)
    out = np.empty_like(x)
    softmax(x, out, 40)
    assert_equal(out, fastattn.softmax(x))
    with pytest.raises(ValueError, match=r"^x: a length or count is negative"):
        softmax(x, out, 0)


def test_c_refuses_an_older_fastattn(built, tmp_path, monkeypatch):
    """One whose table is shorter than the header's, or has another version."""
    [path] = [path for path in built.glob("rows.*") if path.suffix in (".so", ".pyd")]
    shutil.copy(path, tmp_path)  # a file whose module other tests have imported is not initialised again
    for size, version in ((pointers.TABLE.size - 8, 1), (pointers.TABLE.size, 2)):
        older = pointers.Table(size=size, version=version)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        name = b"fastattn.capi._C_API"
        monkeypatch.setattr(capi, "_C_API", new(ctypes.addressof(older), name, None))
        with pytest.raises(ImportError, match=rf"compiled for version 1 .* version {version}, with {size} bytes"):
            module(tmp_path, "rows")


STRUCTS = {
    "fastattn_array": pointers.Array,
    "fastattn_attention_options": pointers.AttentionOptions,
    "fastattn_linear_options": pointers.LinearOptions,
    "fastattn_table": pointers.Table,
}


LANGUAGES = [("cc", "-std=c11", "c", "_Static_assert"), ("c++", "-std=c++11", "cpp", "static_assert")]


@pytest.mark.parametrize(("command", "standard", "ending", "assertion"), LANGUAGES, ids=["c", "c++"])
def test_layout_of_the_header(tmp_path, command, standard, ending, assertion):
    """The header has the structs of support/pointers.py, compiles alone, and without a warning."""
    sure = []
    for name, struct in STRUCTS.items():
        sure.append(f"sizeof({name}) == {ctypes.sizeof(struct)}")
        sure += [f"offsetof({name}, {field}) == {getattr(struct, field).offset}" for field, _ in struct._fields_]
    types = {"bool": "BOOL", **{row.name: row.kernels for row in _dtypes.TYPES}}
    sure += [f"FASTATTN_{types[name]} == {n}" for name, n in pointers.TYPES.items()]
    sure += [f"FASTATTN_{name.upper()} == {n}" for n, name in enumerate(pointers.ACTIVATIONS) if name]
    errors = ("NULL", "VERSION", "TYPE", "SIZE", "SHAPE", "STRIDE", "VALUE", "OVERLAP", "MEMORY")
    sure += [f"FASTATTN_ERROR_{name} == {getattr(pointers, name)}" for name in errors]
    source = tmp_path / f"layout.{ending}"
    source.write_text(
        "\n".join(
            [
                "const struct fastattn_table *mine;", "#define FASTATTN_TABLE mine", "#include <fastattn.h>",
                *(f'{assertion}({fact}, "{fact}");' for fact in sure),
                "int call(const float *x, float *out);",
                "int call(const float *x, float *out) { return fastattn_softmax_f32(x, out, 2, 3); }", "",
            ]
        )
    )  # fmt: skip
    flags = ["-c", "-Wall", "-Wextra", "-Werror", "-pedantic", standard, f"-I{fastattn.get_include()}"]
    done = subprocess.run(
        [compiler(command), *flags, source, "-o", tmp_path / "layout.o"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# Numba


@pytest.fixture(scope="module")
def numba():
    return pytest.importorskip("numba")


def from_numba(name, result, *types):
    """A function as Numba calls it."""
    from numba.extending import get_cython_function_address

    return ctypes.CFUNCTYPE(result, *types)(get_cython_function_address("fastattn.capi", name))


def test_numba(numba, rng):
    """In a compiled loop, in several threads without the GIL."""
    pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
    sizes = (size,) * 7
    attention = from_numba("attention_f64", ctypes.c_int, *(pointer,) * 4, *sizes, ctypes.c_double, ctypes.c_int)

    @numba.njit(nogil=True)
    def attend(query, key, value, out):
        batch, heads, queries, head_size = query.shape
        return attention(
            query.ctypes, key.ctypes, value.ctypes, out.ctypes, batch, heads, key.shape[1], queries, key.shape[2],
            head_size, value.shape[3], 0.0, 1,
        )  # fmt: skip

    query, key = numbers(rng, np.float64, 2, 4, 60, 8), numbers(rng, np.float64, 2, 2, 70, 8)
    expected = fastattn.scaled_dot_product_attention(query, key, key, is_causal=True)

    def work(_):
        out = np.empty_like(query)
        assert attend(query, key, key, out) == 0
        assert_equal(out, expected)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


def test_numba_errors(numba):
    softmax = from_numba("softmax_f32", ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *(ctypes.c_ssize_t,) * 2)
    say = from_numba("error_message", ctypes.c_char_p, ctypes.c_int)

    @numba.njit
    def run(x, rows):
        return softmax(x.ctypes, x.ctypes, rows, x.shape[1])

    x = np.ones((2, 4), np.float32)
    assert run(x, 2) == 0
    assert (x == 0.25).all()
    code = run(x, -2)
    assert say(code) == b"x: a length or count is negative, or too large for the address space"
