"""Bad input: the error names the argument, what came and what is needed, and nothing is written. And odd good input."""

import inspect
import sys

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import fastattn
from fastattn import reference
from fastattn._core.options import attention_options
from fastattn.nn import quantize
from support import dtypes
from support.arrays import POISON, is_poison


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


# A good call of each operation; every case below spoils one argument of it.
GOOD = {
    "scaled_dot_product_attention": {"query": zeros(2, 4, 3, 8), "key": zeros(2, 2, 5, 8), "value": zeros(2, 2, 5, 6)},
    "attention_weights": {"query": zeros(2, 4, 3, 8), "key": zeros(2, 2, 5, 8)},
    "varlen_attention": {
        "query": zeros(7, 4, 8),
        "key": zeros(9, 2, 8),
        "value": zeros(9, 2, 6),
        "cu_seqlens_q": np.array([0, 3, 7]),
        "cu_seqlens_k": np.array([0, 5, 9]),
    },
    "softmax": {"x": zeros(3, 4)},
    "log_softmax": {"x": zeros(3, 4)},
    "layer_norm": {"x": zeros(3, 4), "weight": zeros(4), "bias": zeros(4)},
    "rms_norm": {"x": zeros(3, 4), "weight": zeros(4)},
    "add_layer_norm": {"x": zeros(3, 4), "residual": zeros(3, 4), "weight": zeros(4), "bias": zeros(4)},
    "add_rms_norm": {"x": zeros(3, 4), "residual": zeros(3, 4), "weight": zeros(4)},
    "linear": {"x": zeros(3, 5), "weight": zeros(4, 5), "bias": zeros(4), "residual": zeros(3, 4)},
    "rotary_embedding": {"x": zeros(3, 4), "cos": zeros(3, 2), "sin": zeros(3, 2)},
}
BOUNDS = ("cu_seqlens_q", "cu_seqlens_k")
ARRAYS = [(operation, name) for operation, arguments in GOOD.items() for name in arguments if name not in BOUNDS]
SOFTMAXES = ("softmax", "log_softmax")
NORMS = ("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm")
PAIRS = ("add_layer_norm", "add_rms_norm")
ATTENTION = "scaled_dot_product_attention"
LINEAR = "linear"
ROTARY = "rotary_embedding"
WEIGHTS = "attention_weights"
VARLEN = "varlen_attention"
ATTENTIONS = (ATTENTION, WEIGHTS, VARLEN)
OUT_SHAPES = {ATTENTION: (2, 4, 3, 6), WEIGHTS: (2, 4, 3, 5), VARLEN: (7, 4, 6)}


def test_every_operation_is_here():
    """But for merge_states, which takes lists and has tests of its own."""
    assert {*GOOD, "merge_states"} == set(reference.__all__)


def outs_for(operation, dtype=np.float32):
    """Fresh poisoned results, as the operation's `out` wants them, and a list of them."""
    shape = OUT_SHAPES.get(operation, (3, 4))
    outs = [np.full((*shape, np.dtype(dtype).itemsize), POISON, np.uint8).view(dtype)[..., 0] for _ in range(2)]
    return (tuple(outs), outs) if operation in PAIRS else (outs[0], outs[:1])


def assert_refused(operation, name, error, came, wrong):
    """That the good call with `wrong` in it raises `error`, says so properly, and leaves `out` alone."""
    out, outs = outs_for(operation)
    references = {key: sys.getrefcount(value) for key, value in GOOD[operation].items()}
    with pytest.raises(error, match=rf"\b{name}\b.* must .*got") as caught:
        getattr(fastattn, operation)(**{"out": out, **GOOD[operation], **wrong})
    assert came in str(caught.value)
    assert ",," not in str(caught.value)
    assert all(is_poison(x) for x in outs)
    del caught
    assert {key: sys.getrefcount(value) for key, value in GOOD[operation].items()} == references


@pytest.mark.parametrize("operation", GOOD)
def test_the_good_calls_are_good(operation):
    out, outs = outs_for(operation)
    getattr(fastattn, operation)(**GOOD[operation], out=out)
    assert not any(is_poison(x) for x in outs)


# Types of arrays


def masked(x):
    return np.ma.masked_array(x, mask=False)


SWAPPED = np.dtype(np.float32).newbyteorder()
NOT_ARRAYS = {
    "list": lambda x: x.tolist(),
    "tuple": tuple,
    "memoryview": memoryview,
    "str": lambda x: "text",
    "bytes": lambda x: b"bytes",
    "float": lambda x: 1.5,
    "float32": lambda x: np.float32(1.5),
    "object": lambda x: object(),
    "MaskedArray": masked,
}
WRONG_DTYPES = ("bool", "int8", "int32", "int64", "uint8", "uint64", "complex64", "complex128", "object")
WRONG_DTYPES += ("<U4", "|S4", "datetime64[s]", SWAPPED.str, np.dtype(np.float16).newbyteorder().str)
OTHER_DTYPES = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float6_e2m3fn", "int4")  # of ml_dtypes


@pytest.mark.parametrize(("operation", "name"), ARRAYS)
@pytest.mark.parametrize("came", NOT_ARRAYS)
def test_what_is_no_array(operation, name, came):
    if (operation, name, came) == (LINEAR, "weight", "tuple"):
        pytest.skip("a pair of values and scales is one, see below")
    assert_refused(operation, name, TypeError, came, {name: NOT_ARRAYS[came](GOOD[operation][name])})


@pytest.mark.parametrize(("operation", "name"), ARRAYS)
@pytest.mark.parametrize("came", WRONG_DTYPES)
def test_wrong_dtypes(operation, name, came):
    assert_refused(operation, name, TypeError, came, {name: GOOD[operation][name].astype(came)})


@pytest.mark.parametrize(("operation", "name"), ARRAYS)
@pytest.mark.parametrize("came", OTHER_DTYPES)
def test_types_of_other_packages(operation, name, came):
    assert_refused(operation, name, TypeError, came, {name: GOOD[operation][name].astype(getattr(ml_dtypes, came))})


@pytest.mark.skipif(np.dtype(np.longdouble) == np.float64, reason="no type wider than float64 here")
@pytest.mark.parametrize(("operation", "name"), ARRAYS)
def test_wider_than_double(operation, name):
    wrong = GOOD[operation][name].astype(np.longdouble)
    assert_refused(operation, name, TypeError, wrong.dtype.name, {name: wrong})


@pytest.mark.parametrize("operation", GOOD)
@pytest.mark.parametrize("dtype", dtypes.ALL, ids=str)
def test_the_good_calls_are_good_in_every_type(operation, dtype):
    arrays = {name: x if name in BOUNDS else x.astype(dtype) for name, x in GOOD[operation].items()}
    result = getattr(fastattn, operation)(**arrays)
    for x in result if operation in PAIRS else (result,):
        assert x.dtype == dtype


# Arguments that must have the type of another one, and those that may be as wide as what it is computed in.
TWINS = [(operation, "residual") for operation in (*PAIRS, LINEAR)] + [(ROTARY, "sin")]
PARAMETERS = [(operation, name) for operation, name in ARRAYS if name in ("weight", "bias")] + [(ROTARY, "cos")]


@pytest.mark.parametrize(("operation", "name"), TWINS)
@pytest.mark.parametrize("came", dtypes.HALF, ids=str)
def test_another_type_than_that_of_its_twin(operation, name, came):
    assert_refused(operation, name, TypeError, came.name, {name: GOOD[operation][name].astype(came)})


@pytest.mark.parametrize(("operation", "name"), PARAMETERS)
@pytest.mark.parametrize("dtype", dtypes.HALF, ids=str)
def test_parameters_beside_16_bits(operation, name, dtype):
    """float32 is no wider than what 16 bits are computed in; float64 is."""
    arrays = {given: x.astype(dtype) for given, x in GOOD[operation].items()}
    same = ("cos", "sin") if name == "cos" else (name,)
    for wide in (np.float16, ml_dtypes.bfloat16, np.float32):
        getattr(fastattn, operation)(**arrays | {name: arrays[name].astype(wide) for name in same})
    with pytest.raises(TypeError, match=rf"\b{name}\b.* must not be wider .*float32.* got dtype float64"):
        getattr(fastattn, operation)(**arrays | {name: arrays[name].astype(np.float64) for name in same})


@pytest.mark.parametrize(("operation", "name"), [(o, n) for o, n in ARRAYS if n in ("key", "value")])
@pytest.mark.parametrize("came", dtypes.WIDE, ids=str)
@pytest.mark.parametrize("dtype", dtypes.HALF, ids=str)
def test_wider_than_a_query_of_16_bits(operation, name, came, dtype):
    arrays = {given: x if given in BOUNDS else x.astype(dtype) for given, x in GOOD[operation].items()}
    with pytest.raises(TypeError, match=rf"\b{name}\b.* must .*{dtype}.* got dtype {came}"):
        getattr(fastattn, operation)(**arrays | {name: arrays[name].astype(came)})


@pytest.mark.parametrize(("operation", "name"), [(o, n) for o, n in ARRAYS if n not in ("query", "x")])
def test_wider_than_the_first_argument(operation, name):
    wrong = GOOD[operation][name].astype(np.float64)
    assert_refused(operation, name, TypeError, "float64", {name: wrong})


@pytest.mark.parametrize("operation", GOOD)
def test_none_is_no_array(operation):
    first = next(iter(GOOD[operation]))
    assert_refused(operation, first, TypeError, "NoneType", {first: None})


# Shapes

ATTENTION_SHAPES = [
    # argument blamed, what came, the arrays
    ("query", "(8,)", {"query": zeros(8)}),
    ("query", "()", {"query": zeros()}),
    ("key", "(8,)", {"key": zeros(8)}),
    ("value", "(6,)", {"value": zeros(6)}),
    ("key", "(2, 2, 5, 7)", {"key": zeros(2, 2, 5, 7)}),
    ("key", "(2, 2, 5, 0)", {"key": zeros(2, 2, 5, 0)}),
    ("value", "(2, 2, 4, 6)", {"value": zeros(2, 2, 4, 6)}),
    ("value", "(2, 4, 5, 6)", {"value": zeros(2, 4, 5, 6)}),
    ("value", "(2, 1, 5, 6)", {"value": zeros(2, 1, 5, 6)}),
    ("value", "(5, 6)", {"value": zeros(5, 6)}),
    ("query", "(2, 3, 3, 8)", {"query": zeros(2, 3, 3, 8)}),
    ("query", "(2, 1, 3, 8)", {"query": zeros(2, 1, 3, 8)}),
    ("query", "(3, 8)", {"query": zeros(3, 8)}),
    ("query", "(2, 4, 3, 8)", {"key": zeros(2, 0, 5, 8), "value": zeros(2, 0, 5, 6)}),
    ("query", "(2, 4, 3, 0)", {"query": zeros(2, 4, 3, 0), "key": zeros(2, 2, 5, 0)}),
    ("key", "(3, 2, 5, 8)", {"key": zeros(3, 2, 5, 8)}),
    ("value", "(3, 2, 5, 6)", {"value": zeros(3, 2, 5, 6)}),
]


@pytest.mark.parametrize(("name", "came", "wrong"), ATTENTION_SHAPES, ids=lambda p: p if isinstance(p, str) else "")
def test_wrong_shapes_of_attention(name, came, wrong):
    assert_refused(ATTENTION, name, ValueError, came, wrong)


@pytest.mark.parametrize("operation", [*SOFTMAXES, *NORMS, LINEAR])
def test_rows_need_an_axis(operation):
    assert_refused(operation, "x", ValueError, "()", {"x": zeros()})


@pytest.mark.parametrize(("operation", "name"), [(o, n) for o, n in ARRAYS if n in ("weight", "bias")])
@pytest.mark.parametrize("shape", [(3,), (5,), (1,), (0,), (1, 4), (3, 4), ()], ids=str)
def test_wrong_shapes_of_weight_and_bias(operation, name, shape):
    assert_refused(operation, name, ValueError, str(shape), {name: zeros(*shape)})


@pytest.mark.parametrize("operation", [*PAIRS, LINEAR])
@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 1), (4, 3), (2, 3, 4), ()], ids=str)
def test_wrong_shapes_of_residual(operation, shape):
    assert_refused(operation, "residual", ValueError, str(shape), {"residual": zeros(*shape)})


@pytest.mark.parametrize("operation", NORMS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 0)], ids=str)
def test_rows_to_normalise_are_not_empty(operation, shape):
    wrong = {name: zeros(*(shape if name in ("x", "residual") else (0,))) for name in GOOD[operation]}
    assert_refused(operation, "x", ValueError, str(shape), wrong)


def values(*shape):
    return np.zeros(shape, np.int8)


WRONG_WEIGHTS = [
    # argument blamed, error, what came, weight
    ("weight", ValueError, "(5, 4)", zeros(5, 4)),
    ("weight", ValueError, "(4, 4)", zeros(4, 4)),
    ("weight", ValueError, "(1, 4, 5)", zeros(1, 4, 5)),
    ("weight", TypeError, "int8", values(4, 5)),
    ("weight", TypeError, "list", [values(4, 5), zeros(4)]),
    ("weight", ValueError, "tuple of 0", ()),
    ("weight", ValueError, "tuple of 1", (values(4, 5),)),
    ("weight", ValueError, "tuple of 3", (values(4, 5), zeros(4), zeros(4))),
    ("weight", ValueError, "(4, 4)", (values(4, 4), zeros(4))),
    ("weight", ValueError, "(5,)", (values(5), zeros(4))),
    (r"weight\[0", TypeError, "list", (values(4, 5).tolist(), zeros(4))),
    (r"weight\[0", TypeError, "NoneType", (None, zeros(4))),
    (r"weight\[0", TypeError, "MaskedArray", (masked(values(4, 5)), zeros(4))),
    *((r"weight\[0", TypeError, str(x), (zeros(4, 5, dtype=x), zeros(4))) for x in ("uint8", "int16", *dtypes.ALL)),
    *((r"weight\[1", TypeError, str(x), (values(4, 5), zeros(4, dtype=x))) for x in ("int8", "float64", *dtypes.HALF)),
    (r"weight\[1", TypeError, SWAPPED.str, (values(4, 5), zeros(4, dtype=SWAPPED))),
    (r"weight\[1", TypeError, "list", (values(4, 5), [0.0] * 4)),
    (r"weight\[1", TypeError, "NoneType", (values(4, 5), None)),
    *((r"weight\[1", ValueError, str(x), (values(4, 5), zeros(*x))) for x in ((), (3,), (5,), (1,), (4, 1), (1, 4))),
]


@pytest.mark.parametrize(
    ("name", "error", "came", "wrong"), WRONG_WEIGHTS, ids=lambda p: p if isinstance(p, str) else ""
)
def test_wrong_weights_of_linear(name, error, came, wrong):
    assert_refused(LINEAR, name, error, came, {"weight": wrong})


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=str)
def test_a_named_pair_is_a_weight_beside_any_type(dtype):
    arrays = {name: x.astype(dtype) for name, x in GOOD[LINEAR].items()}
    fastattn.linear(**arrays | {"weight": quantize(GOOD[LINEAR]["weight"])})


ROTARY_SHAPES = [
    # argument blamed, what came, the arguments
    ("x", "(4,)", {"x": zeros(4)}),
    ("x", "()", {"x": zeros()}),
    ("cos", "(3, 3)", {"cos": zeros(3, 3), "sin": zeros(3, 3)}),
    ("cos", "(3, 1)", {"x": zeros(3, 1), "cos": zeros(3, 1), "sin": zeros(3, 1)}),
    ("cos", "(2,)", {"cos": zeros(2)}),
    ("cos", "()", {"cos": zeros()}),
    ("cos", "(2, 2)", {"cos": zeros(2, 2)}),
    ("cos", "(1, 2)", {"cos": zeros(1, 2)}),
    ("cos", "(1, 3, 2)", {"cos": zeros(1, 3, 2)}),
    ("cos", "(5, 3, 2)", {"x": zeros(5, 3, 4), "cos": zeros(5, 3, 2)}),
    ("cos", "(5, 3, 2)", {"x": zeros(2, 5, 3, 4), "cos": zeros(5, 3, 2)}),
    ("cos", "(2, 1, 3, 2)", {"x": zeros(2, 5, 3, 4), "cos": zeros(2, 1, 3, 2)}),
    ("cos", "(3, 3, 2)", {"cos": zeros(3, 3, 2), "positions": [0, 1, 2]}),
    ("cos", "(2,)", {"cos": zeros(2), "positions": [0, 1, 2]}),
    ("sin", "(3, 1)", {"sin": zeros(3, 1)}),
    ("sin", "(4, 2)", {"sin": zeros(4, 2)}),
    ("sin", "(2,)", {"sin": zeros(2)}),
    ("sin", "(4, 2)", {"sin": zeros(4, 2), "positions": [0, 1, 2]}),
]


@pytest.mark.parametrize(("name", "came", "wrong"), ROTARY_SHAPES, ids=lambda p: p if isinstance(p, str) else "")
def test_wrong_shapes_of_rotary_embedding(name, came, wrong):
    assert_refused(ROTARY, name, ValueError, came, wrong)


@pytest.mark.parametrize(
    ("positions", "error", "came"),
    [
        ([0, 1], ValueError, "(2,)"),
        ([[0, 1, 2]], ValueError, "(1, 3)"),
        (np.zeros((3, 1), int), ValueError, "(3, 1)"),
        ([[0], [1, 2]], ValueError, "list"),
        ([0, 1, 3], ValueError, "0 to 3"),
        ([0, -1, 2], ValueError, "-1 to 2"),
        (np.array([0, 2**63, 1], np.uint64), ValueError, str(2**63)),
        (np.array([0, -128, 1], np.int8), ValueError, "-128 to 1"),
        (7, ValueError, "7"),
        ([0.0, 1.0, 2.0], TypeError, "float64"),
        (np.zeros(3, np.float32), TypeError, "float32"),
        ([True, False, True], TypeError, "bool"),
        (True, TypeError, "bool"),
        ([2**70, 0, 1], TypeError, "object"),
        ([], TypeError, "float64"),
        ("012", TypeError, "<U3"),
        (np.zeros(3, "timedelta64[s]"), TypeError, "timedelta64"),
        (masked(np.zeros(3, int)), TypeError, "MaskedArray"),
    ],
    ids=repr,
)
def test_wrong_positions(positions, error, came):
    assert_refused(ROTARY, "positions", error, came, {"positions": positions})


def test_positions_in_a_table_without_rows():
    wrong = {"cos": zeros(0, 2), "sin": zeros(0, 2), "positions": [0, 0, 0]}
    assert_refused(ROTARY, "positions", ValueError, "0 to 0", wrong)


# Scalars

SCALARS = [
    # operations, argument, what is refused, error
    *((ATTENTIONS, "scale", wrong, ValueError) for wrong in (np.nan, np.inf, -np.inf, 10**400)),
    *((ATTENTIONS, "scale", wrong, TypeError) for wrong in ("1", True, 1j, [1.0], np.ones(1))),
    *((ATTENTIONS, "softcap", wrong, ValueError) for wrong in (0, 0.0, -1.5, -np.inf, np.inf, np.nan, 10**400)),
    *((ATTENTIONS, "softcap", wrong, TypeError) for wrong in ("1", True, 1j, [1.0], np.ones(1))),
    *((ATTENTIONS, "q_offset", wrong, TypeError) for wrong in (1.0, "1", True, np.float64(2), np.True_)),
    *((ATTENTIONS, "q_offset", wrong, ValueError) for wrong in (10**30, -(10**30))),
    *((ATTENTIONS, "kv_lengths", wrong, TypeError) for wrong in (1.0, "1", True, np.float64(2), np.True_)),
    *((ATTENTIONS, "kv_lengths", wrong, ValueError) for wrong in (-1, 6, 10**30, -(10**30))),
    *((ATTENTIONS, "is_causal", wrong, TypeError) for wrong in (1, 0, None, "yes", 1.0, np.ones(1, bool))),
    *((ATTENTIONS, "return_lse", wrong, TypeError) for wrong in (1, 0, None, "yes", 1.0)),
    *((tuple(GOOD), "num_threads", wrong, ValueError) for wrong in (0, -1, -(10**30), 10**30)),
    *((tuple(GOOD), "num_threads", wrong, TypeError) for wrong in (1.0, "2", True, False, np.float32(1), [1], (1,))),
    *((SOFTMAXES, "axis", wrong, ValueError) for wrong in (2, -3, 100, 10**30)),
    *((SOFTMAXES, "axis", wrong, TypeError) for wrong in (None, 1.0, "1", True, (0, 1), np.float64(0))),
    *(((ROTARY,), "interleaved", wrong, TypeError) for wrong in (1, 0, None, "yes", 1.0)),
    *(((LINEAR,), "activation", wrong, ValueError) for wrong in ("", "GELU", "tanh", "gelu ", "None")),
    *(((LINEAR,), "activation", wrong, TypeError) for wrong in (1, False, b"gelu", ("gelu",), np.tanh)),
    *((NORMS, "eps", wrong, ValueError) for wrong in (-1e-9, np.nan, np.inf, -1, 10**400)),
    *((NORMS, "eps", wrong, TypeError) for wrong in (None, "1", True, 1j, [1e-5])),
]


@pytest.mark.parametrize(
    ("operation", "name", "wrong", "error"),
    [(operation, *case) for operations, *case in SCALARS for operation in operations],
    ids=lambda p: None if isinstance(p, str) else repr(p)[:20],
)
def test_wrong_scalars(operation, name, wrong, error):
    came = type(wrong).__name__ if error is TypeError else str(wrong)[:5]
    assert_refused(operation, name, error, came, {name: wrong})


# Options of attention that are arrays, or several numbers

MASKED = (ATTENTION, WEIGHTS)
NO_LISTS = [
    (TypeError, "list", [0.0, 1.0]),
    (TypeError, "tuple", (0.0, 1.0)),
    (TypeError, "float", 1.0),
    (TypeError, "str", "text"),
]
NO_INTEGERS = [
    (TypeError, "float64", [1.0, 2.0]),
    (TypeError, "bool", [True, False]),
    (TypeError, "bool", (False, True)),
    (TypeError, "<U1", ["1", "2"]),
    (ValueError, "list", [[1], [1, 2]]),
    (ValueError, "(3,)", [1, 2, 3]),
    (ValueError, str(2**63), [1, 2**63]),
    (ValueError, str(2**70), [1, 2**70]),
    (TypeError, "float32", zeros(2)),
    (TypeError, "float64", np.zeros(2)),
    (TypeError, "bool", np.ones(2, bool)),
    (TypeError, "object", np.zeros(2, object)),
    (TypeError, "complex64", zeros(2, dtype=np.complex64)),
    (TypeError, "MaskedArray", masked(np.zeros(2, int))),
]
NO_FLOATS = [
    (TypeError, dtype, np.zeros(4, dtype))
    for dtype in ("bool", "int32", "int64", "uint8", "float64", "longdouble", "complex64", "object", "datetime64[s]")
]
OPTIONS = {
    "attn_mask": [
        *NO_LISTS,
        (TypeError, "bool", True),
        (TypeError, "MaskedArray", masked(np.ones((3, 5), bool))),
        *((TypeError, dtype, np.zeros((3, 5), dtype)) for dtype in ("int8", "uint8", "int32", "int64", "uint64")),
        *((TypeError, dtype, np.zeros((3, 5), dtype)) for dtype in ("float64", "complex64", "object", "datetime64[s]")),
        (TypeError, SWAPPED.str, np.zeros((3, 5), SWAPPED)),
        *((ValueError, str(shape), np.ones(shape, bool)) for shape in ((4,), (3, 4), (2, 5), (0, 5), (3, 0))),
        *((ValueError, str(shape), zeros(*shape)) for shape in ((2, 1, 5), (3, 1, 1, 1), (2, 2, 1, 1), (2, 4, 3, 6))),
        # These broadcast with the scores, but would make them larger.
        *((ValueError, str(shape), zeros(*shape)) for shape in ((1, 1, 1, 1, 5), (2, 2, 4, 3, 5), (1, 2, 4, 3, 5))),
    ],
    "sinks": [
        *NO_LISTS,
        *NO_FLOATS,
        (TypeError, "MaskedArray", masked(zeros(4))),
        *((ValueError, str(shape), zeros(*shape)) for shape in ((), (3,), (5,), (1,), (0,), (4, 1), (1, 4), (2, 4))),
        (ValueError, "nan", np.array([0, 1, np.nan, 2], np.float32)),
        (ValueError, "inf", np.array([0, 1, np.inf, 2], np.float32)),
    ],
    "alibi_slopes": [
        *NO_LISTS,
        *NO_FLOATS,
        (TypeError, "MaskedArray", masked(zeros(4))),
        *((ValueError, str(shape), zeros(*shape)) for shape in ((), (3,), (5,), (1,), (0,), (4, 1), (2, 2), (3, 4))),
        *((ValueError, str(shape), zeros(*shape)) for shape in ((1, 2, 4), (2, 4, 1))),
        *((ValueError, str(x), np.array([0, x, 1, 2], np.float32)) for x in (np.nan, np.inf, -np.inf)),
        (ValueError, "nan", np.array([[0, 1, 2, 3], [0, 1, np.nan, 3]], np.float32)),
    ],
    "position_bias": [
        *NO_LISTS,
        *NO_FLOATS,
        (TypeError, "MaskedArray", masked(zeros(4, 3))),
        *((ValueError, str(shape), zeros(*shape)) for shape in ((), (4,), (3, 5), (1, 5), (4, 0), (4, 2), (2, 4, 3))),
    ],
    "q_offset": [
        *NO_INTEGERS,
        *((ValueError, str(shape), np.zeros(shape, int)) for shape in ((3,), (0,), (2, 1), (1, 2), (2, 4))),
        (ValueError, str(2**63), np.array([0, 2**63], np.uint64)),
    ],
    "kv_lengths": [
        *NO_INTEGERS,
        *((ValueError, str(shape), np.zeros(shape, int)) for shape in ((3,), (0,), (2, 1), (1, 2), (2, 4))),
        *((ValueError, str(x), np.array([2, x])) for x in (-1, 6, 2**40, -(2**63))),
        (ValueError, "", np.array([2, 2**64 - 1], np.uint64)),
    ],
    "window": [
        (TypeError, "int", 5),
        (TypeError, "float", 5.0),
        (TypeError, "float", (1.0, 2)),
        (TypeError, "float", (1, 2.0)),
        (TypeError, "str", (1, "2")),
        (TypeError, "str", "12"),
        (TypeError, "bool", (True, None)),
        (TypeError, "list", ([1], 2)),
        (TypeError, "0 axes", np.array(1)),
        (TypeError, "2 axes", np.array([[1, 2], [3, 4]])),
        (ValueError, "", ()),
        (ValueError, "", (1,)),
        (ValueError, "", [1, 2, 3]),
        (ValueError, "-1", (-1, None)),
        (ValueError, "-1", (None, -1)),
        (ValueError, "", (10**30, None)),
    ],
}


@pytest.mark.parametrize(
    ("operation", "name", "error", "came", "wrong"),
    [
        (operation, name, *case)
        for name, cases in OPTIONS.items()
        for case in cases
        for operation in (MASKED if name == "attn_mask" else ATTENTIONS)
    ],
    ids=lambda p: p if isinstance(p, str) else "",
)
def test_wrong_options_of_attention(operation, name, error, came, wrong):
    assert_refused(operation, name, error, "float128" if came == "longdouble" else came, {name: wrong})


def test_lists_of_integers():
    """Wherever an array of integers is wanted."""
    batch = {"q_offset": [3, -1], "kv_lengths": [5, 2], "is_causal": True}
    for operation in ATTENTIONS:
        for kind in (list, tuple):
            arguments = GOOD[operation] | {"is_causal": True}
            lists, arrays = dict(arguments), dict(arguments)
            names = [*batch, *BOUNDS] if operation == VARLEN else batch
            for name in names:
                wanted = batch[name] if name in batch else GOOD[VARLEN][name].tolist()
                lists[name] = kind(wanted) if isinstance(wanted, list) else wanted
                arrays[name] = np.array(wanted) if isinstance(wanted, list) else wanted
            lists["kv_lengths"], arrays["kv_lengths"] = kind([4, 2]), np.array([4, 2])
            dtypes.assert_equal(getattr(fastattn, operation)(**lists), getattr(fastattn, operation)(**arrays))
    none = fastattn.scaled_dot_product_attention(zeros(0, 4, 3, 8), zeros(0, 2, 5, 8), zeros(0, 2, 5, 6), kv_lengths=[])
    assert none.shape == (0, 4, 3, 6)
    table = zeros(5, 2)
    x = zeros(2, 1, 3, 4)
    turned = fastattn.rotary_embedding(x, table, table, positions=[[0, 4, 2], [1, 1, 1]])
    assert turned.shape == x.shape


# Masks as tokenizers return them, and axes in another order: the message says what to write.

PADDING = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])


@pytest.mark.parametrize("operation", MASKED)
@pytest.mark.parametrize("integer", ["i1", "i4", "i8", "u1", "u8"])
def test_padding_masks_of_integers(operation, integer):
    wrong = PADDING.astype(integer)
    advice = "attn_mask.astype(bool)[:, None, None, :]"
    assert_refused(operation, "attn_mask", TypeError, advice, {"attn_mask": wrong})
    good = GOOD[operation]
    getattr(fastattn, operation)(**good, attn_mask=eval(advice, {"attn_mask": wrong, "bool": bool}))
    assert_refused(operation, "attn_mask", TypeError, "attn_mask.astype(bool)", {"attn_mask": wrong[:, None, None]})
    assert "None" not in said_of_mask(operation, wrong[:, None, None])


@pytest.mark.parametrize("operation", MASKED)
@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_padding_masks_without_axes(operation, dtype):
    wrong = PADDING.astype(dtype)
    assert_refused(operation, "attn_mask", ValueError, "pass attn_mask[:, None, None, :]", {"attn_mask": wrong})
    getattr(fastattn, operation)(**GOOD[operation], attn_mask=wrong[:, None, None, :])
    for other in (wrong[:, :4], wrong[:1].repeat(3, 0), wrong.repeat(2, 0)):
        if other.shape != (3, 5):
            assert "None" not in said_of_mask(operation, other)


def said_of_mask(operation, mask):
    try:
        getattr(fastattn, operation)(**GOOD[operation], attn_mask=mask)
    except (TypeError, ValueError) as error:
        return str(error)


@pytest.mark.parametrize("queries", [1, 3])
def test_heads_behind_tokens(queries):
    """(B, S, H, D), as FlashAttention has it: told by the numbers of heads."""
    q, k, v = zeros(2, queries, 4, 8), zeros(2, 5, 2, 8), zeros(2, 5, 2, 6)
    for operation, arrays in ((ATTENTION, (q, k, v)), (WEIGHTS, (q, k))):
        with pytest.raises(ValueError, match=r"^query must .*, got .*tokens, heads, size.*x\.swapaxes\(-2, -3\)"):
            getattr(fastattn, operation)(*arrays)
        getattr(fastattn, operation)(*(x.swapaxes(-2, -3) for x in arrays))
    packed = zeros(4, queries, 8), zeros(2, 5, 8), zeros(2, 5, 6), np.array([0, queries]), np.array([0, 5])
    with pytest.raises(ValueError, match=r"^query must .*, got .*\(heads, tokens, size\), pass x\.swapaxes\(0, 1\)"):
        fastattn.varlen_attention(*packed)
    with pytest.raises(ValueError, match="query must") as caught:
        fastattn.scaled_dot_product_attention(zeros(2, 3, 4, 8), zeros(2, 2, 5, 8), zeros(2, 2, 5, 8))
    assert "swapaxes" not in str(caught.value)
    cache = fastattn.KVCache(2, 2, 10, 8)
    with pytest.raises(ValueError, match=r"^k(ey)? must .*, got .*tokens, heads, size.*x\.swapaxes\(1, 2\)"):
        cache.append(k, k)
    cache.append(k.swapaxes(1, 2), k.swapaxes(1, 2))
    with pytest.raises(ValueError, match=r"^query must .*, got .*tokens, heads, size.*x\.swapaxes\(1, 2\)"):
        cache.attend(zeros(2, 1, 4, 8))


@pytest.mark.parametrize("mask", [np.ones((1, 3, 5), bool), np.ones((4, 3, 5), bool), np.ones((1, 1, 1), bool)])
def test_masks_do_not_give_matrices_a_head_axis(mask):
    query, key, value = zeros(3, 8), zeros(5, 8), zeros(5, 6)
    out = np.full((3, 6, 4), POISON, np.uint8).view(np.float32)[..., 0]
    with pytest.raises(ValueError, match=r"\battn_mask\b.* must .*got") as caught:
        fastattn.scaled_dot_product_attention(query, key, value, mask, out=out)
    assert str(mask.shape) in str(caught.value)
    assert is_poison(out)


def test_options_may_not_enlarge_what_has_no_leading_axes():
    arrays = zeros(4, 3, 8), zeros(2, 5, 8), zeros(2, 5, 6)
    for name in ("q_offset", "kv_lengths"):
        fastattn.scaled_dot_product_attention(*arrays, **{name: np.array(3)})
        with pytest.raises(ValueError, match=rf"\b{name}\b.* must .*got .*\(1,\)"):
            fastattn.scaled_dot_product_attention(*arrays, **{name: np.array([3])})


@pytest.mark.parametrize("operation", ATTENTIONS)
@pytest.mark.parametrize(("name", "shape"), [("sinks", 4), ("alibi_slopes", 4), ("position_bias", (4, 3))])
def test_wider_than_a_double_query_is_refused(operation, name, shape):
    if np.dtype(np.longdouble) == np.float64:
        pytest.skip("no type wider than float64 here")
    arrays = {n: x if n in BOUNDS else x.astype(np.float64) for n, x in GOOD[operation].items()}
    getattr(fastattn, operation)(**arrays, **{name: np.zeros(shape, np.float32)})
    with pytest.raises(TypeError, match=rf"\b{name}\b.* must .*got"):
        getattr(fastattn, operation)(**arrays, **{name: np.zeros(shape, np.longdouble)})


def test_packed_sequences_have_no_mask():
    with pytest.raises(TypeError, match="attn_mask"):
        fastattn.varlen_attention(**GOOD[VARLEN], attn_mask=np.ones(5, bool))


# Packed sequences

PACKED_SHAPES = [
    # argument blamed, what came, the arrays
    ("query", "(7, 8)", {"query": zeros(7, 8)}),
    ("query", "(1, 7, 4, 8)", {"query": zeros(1, 7, 4, 8)}),
    ("key", "(9, 8)", {"key": zeros(9, 8)}),
    ("key", "(1, 9, 2, 8)", {"key": zeros(1, 9, 2, 8)}),
    ("key", "(9, 2, 7)", {"key": zeros(9, 2, 7)}),
    ("value", "(9, 6)", {"value": zeros(9, 6)}),
    ("value", "(8, 2, 6)", {"value": zeros(8, 2, 6)}),
    ("value", "(9, 4, 6)", {"value": zeros(9, 4, 6)}),
    ("query", "(7, 3, 8)", {"query": zeros(7, 3, 8)}),
    ("query", "(7, 4, 0)", {"query": zeros(7, 4, 0), "key": zeros(9, 2, 0)}),
]


@pytest.mark.parametrize(("name", "came", "wrong"), PACKED_SHAPES, ids=lambda p: p if isinstance(p, str) else "")
def test_wrong_shapes_of_packed_sequences(name, came, wrong):
    assert_refused(VARLEN, name, ValueError, came, wrong)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize(
    ("error", "came", "wrong"),
    [
        (TypeError, "float64", lambda end: [0, 3.0, end]),
        (TypeError, "bool", lambda end: [False, True]),
        (ValueError, "list", lambda end: [0, [3], end]),
        (ValueError, "(0,)", lambda end: []),
        (ValueError, "6", lambda end: (0, 6, 3, end)),
        (ValueError, str(2**70), lambda end: [0, 2**70, end]),
        (TypeError, "NoneType", lambda end: None),
        (TypeError, "int", lambda end: end),
        (TypeError, "float32", lambda end: np.array([0, 3, end], np.float32)),
        (TypeError, "float64", lambda end: np.array([0.0, 3, end])),
        (TypeError, "bool", lambda end: np.array([False, True, True])),
        (TypeError, "object", lambda end: np.array([0, 3, end], object)),
        (TypeError, "MaskedArray", lambda end: masked(np.array([0, 3, end]))),
        (ValueError, "()", lambda end: np.array(end)),
        (ValueError, "(1, 3)", lambda end: np.array([[0, 3, end]])),
        (ValueError, "(0,)", lambda end: np.array([], int)),
        (ValueError, "1", lambda end: np.array([1, 3, end])),
        (ValueError, "-1", lambda end: np.array([-1, 3, end])),
        (ValueError, "", lambda end: np.array([0, end + 1, end])),
        (ValueError, "", lambda end: np.array([0, -1, end])),
        (ValueError, "", lambda end: np.array([0, 3, end - 1])),
        (ValueError, "", lambda end: np.array([0, 3, end + 1])),
        (ValueError, "", lambda end: np.array([0, 2**62, end])),
        (ValueError, "", lambda end: np.array([0, 2**64 - 1, end], np.uint64)),
        (ValueError, "", lambda end: np.array([0, 3, 2**32 + end])),
    ],
    ids=lambda p: p if isinstance(p, str) else "",
)
def test_wrong_bounds(name, error, came, wrong):
    end = {"cu_seqlens_q": 7, "cu_seqlens_k": 9}[name]
    assert_refused(VARLEN, name, error, came, {name: wrong(end)})


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("sequences", [1, 3])
def test_bounds_of_different_numbers_of_sequences(name, sequences):
    end = {"cu_seqlens_q": 7, "cu_seqlens_k": 9}[name]
    wrong = np.array([0, 1, 2, end])[-sequences - 1 :]
    wrong[0] = 0
    assert_refused(VARLEN, "cu_seqlens_[qk]", ValueError, str(sequences + 1), {name: wrong})


@pytest.mark.parametrize(("came", "wrong"), [("5", np.array([4, 5])), ("6", np.array([6, 4])), ("5", 5)], ids=str)
def test_lengths_lie_within_each_sequence(came, wrong):
    """The first sequence has 5 keys, the second has 4."""
    fastattn.varlen_attention(**GOOD[VARLEN], kv_lengths=np.array([5, 4]))
    assert_refused(VARLEN, "kv_lengths", ValueError, came, {"kv_lengths": wrong})


@pytest.mark.parametrize("operation", SOFTMAXES)
@pytest.mark.parametrize(
    ("where", "error", "came"),
    [
        (True, TypeError, "bool"),
        ([True, False, True, True], TypeError, "list"),
        (np.ones((3, 4), np.uint8), TypeError, "uint8"),
        (np.ones((3, 4), np.float32), TypeError, "float32"),
        (masked(np.ones((3, 4), bool)), TypeError, "MaskedArray"),
        (np.ones(3, bool), ValueError, "(3,)"),
        (np.ones((2, 4), bool), ValueError, "(2, 4)"),
        (np.ones((1, 3, 4), bool), ValueError, "(1, 3, 4)"),
        (np.ones((0, 4), bool), ValueError, "(0, 4)"),
    ],
    ids=repr,
)
def test_wrong_where(operation, where, error, came):
    assert_refused(operation, "where", error, came, {"where": where})


# out


def spoiled_outs(operation):
    """(error, what came, arrays that must stay poison, out), for each way to be wrong."""
    _, (out, *_) = outs_for(operation)
    _, (double, *_) = outs_for(operation, np.float64)
    _, (half, *_) = outs_for(operation, np.float16)
    _, (swapped, *_) = outs_for(operation, np.dtype(np.float32).newbyteorder())
    read_only = out.copy()
    read_only.flags.writeable = False
    repeated = as_strided(out, out.shape, (0, *out.strides[1:]))
    *leading, row, element = out.strides
    shifted = as_strided(out, out.shape, (*leading, element, element))
    crossed = as_strided(out, out.shape, (*leading, 2 * element, element))
    straddling = as_strided(out, out.shape, (*leading, row, element - 1))
    backwards = as_strided(out[..., ::-1], out.shape, (*leading, element, -element))
    return {
        "list": (TypeError, "list", out.tolist()),
        "text": (TypeError, "str", "text"),
        "float64": (TypeError, "float64", double),
        "float16": (TypeError, "float16", half),
        "other byte order": (TypeError, swapped.dtype.str, swapped),
        "masked": (TypeError, "MaskedArray", masked(out)),
        "short": (ValueError, str(out[:1].shape), out[:1]),
        "more axes": (ValueError, str(out[None].shape), out[None]),
        "fewer axes": (ValueError, str(out[0].shape), out[0]),
        "transposed": (ValueError, str(out.T.shape), out.T),
        "read-only": (ValueError, "read-only", read_only),
        "repeated": (ValueError, "overlap itself", repeated),
        "shifted by an element": (ValueError, "overlap itself", shifted),
        "shifted by two": (ValueError, "overlap itself", crossed),
        "elements that straddle": (ValueError, "overlap itself", straddling),
        "backwards": (ValueError, "overlap itself", backwards),
    }


@pytest.mark.parametrize("operation", GOOD)
@pytest.mark.parametrize("wrong", spoiled_outs("softmax"))
def test_wrong_out(operation, wrong):
    error, came, out = spoiled_outs(operation)[wrong]
    places = range(2) if operation in PAIRS else [None]
    for place in places:
        pair = list(outs_for(operation)[1])
        if place is not None:
            pair[place] = out
        assert_refused(operation, "out", error, came, {"out": out if place is None else tuple(pair)})
        for x in [out] if place is None else pair:
            assert not isinstance(x, np.ndarray) or is_poison(x)


def test_strides_that_cross_but_never_meet(dtype):
    """4 i + 3 j is another number for each i < 3 and j < 4; with i < 4 it is not."""
    memory = np.full(30, np.nan, dtype)
    crossing = as_strided(memory, (3, 4), (4 * dtype.itemsize, 3 * dtype.itemsize))
    x = np.arange(12).reshape(3, 4).astype(dtype)
    assert fastattn.softmax(x, out=crossing) is crossing
    dtypes.assert_equal(crossing, fastattn.softmax(x))
    for out in (crossing[::-1], crossing[:, ::-1], crossing.T, crossing[:1], crossing[:, :1], crossing[:0]):
        fastattn.softmax(np.zeros_like(out), out=out)
    meeting = as_strided(memory, (4, 5), (4 * dtype.itemsize, 3 * dtype.itemsize))
    with pytest.raises(ValueError, match="out must not overlap itself, got"):
        fastattn.softmax(np.zeros_like(meeting), out=meeting)


def test_outs_of_caches_do_not_overlap_themselves():
    cache = fastattn.KVCache(1, 1, 5, 8)
    cache.append(zeros(1, 1, 5, 8), zeros(1, 1, 5, 8))
    out = as_strided(zeros(30), (1, 1, 3, 8), (96, 96, 4, 4))
    with pytest.raises(ValueError, match="out must not overlap itself, got"):
        cache.attend(zeros(1, 1, 3, 8), out=out)


# Sizes that no memory holds: arrays whose strides are 0 take none

HUGE = {
    "head size": lambda big: attend(big(1, 2, 2**58), big(1, 3, 2**58), big(1, 3, 4)),
    "head size, few bytes": lambda big: attend(*(big(1, 3, size, dtype=np.float16) for size in (2**59, 2**59, 4))),
    "value size": lambda big: attend(big(1, 2, 4), big(1, 3, 4), big(1, 3, 2**58)),
    "queries": lambda big: attend(big(1, 2**50, 4), big(1, 3, 4), big(1, 3, 4)),
    "lse alone": lambda big: attend(big(1, 2**50, 4), big(1, 3, 4), big(1, 3, 0), return_lse=True),
    "weights": lambda big: fastattn.attention_weights(big(1, 2, 2**58), big(1, 3, 2**58)),
    "inputs": lambda big: fastattn.linear(big(1, 2**60), big(1, 2**60)),
    "inputs of 16 bits": lambda big: fastattn.linear(*[big(1, 2**61, dtype=ml_dtypes.bfloat16)] * 2),
    "int8 inputs": lambda big: fastattn.linear(big(1, 2**60), (big(1, 2**60, dtype=np.int8), zeros(1))),
    "rows": lambda big: fastattn.softmax(big(2**50, 4)),
    "normalised rows": lambda big: fastattn.layer_norm(big(4, 2**50)),
    "parts": lambda big: fastattn.merge_states([big(2**50, 1)] * 2, [big(2**50)] * 2),
}
EMPTY = {
    "batch": lambda big: attend(*[big(2**61, 1, 0, 1, dtype=np.float16)] * 3),
    "batches": lambda big: attend(big(2**30, 1, 1, 0, 1), big(1, 2**30, 1, 0, 1), big(1, 1, 1, 0, 1)),
    "value size": lambda big: attend(big(1, 2**50, 4), big(1, 3, 4), big(1, 3, 0)),
    "value size, lengths": lambda big: attend(big(1, 2**50, 4), big(1, 3, 4), big(1, 3, 0), kv_lengths=2),
    "packed": lambda big: fastattn.varlen_attention(big(2**50, 1, 4), big(3, 1, 4), big(3, 1, 0), [0, 2**50], [0, 3]),
    "weights": lambda big: fastattn.attention_weights(big(1, 2**50, 4), big(1, 0, 4)),
    "features": lambda big: fastattn.linear(big(2**58, 4), zeros(0, 4)),
    "no rows": lambda big: fastattn.linear(zeros(0, 4), big(2**58, 4)),
    "softmax": lambda big: fastattn.softmax(big(0, 2**60)),
    "turned": lambda big: fastattn.rotary_embedding(big(0, 2**59), big(0, 2**58), big(0, 2**58)),
}
attend = fastattn.scaled_dot_product_attention


def of_one_number(*shape, dtype=np.float32):
    return as_strided(np.zeros(1, dtype), shape, (0,) * len(shape))


@pytest.mark.parametrize("case", HUGE)
@pytest.mark.usefixtures("target")
def test_sizes_that_no_memory_holds(case):
    with pytest.raises(MemoryError):
        HUGE[case](of_one_number)


@pytest.mark.parametrize("case", EMPTY)
@pytest.mark.usefixtures("target")
def test_results_without_elements_take_no_time(case):
    assert EMPTY[case](of_one_number).size == 0


def test_lengths_are_judged_where_there_is_nothing_to_compute():
    for shape in ((1, 3, 4), (2, 1, 3, 4)):
        q, k, v = zeros(*shape), zeros(*shape), zeros(*shape[:-1], 0)
        for lengths in (4, -1) if len(shape) == 3 else (4, [1, 4], [-1, 2]):
            with pytest.raises(ValueError, match="kv_lengths must lie between 0 and the number of keys, 3, got"):
                attend(q, k, v, kv_lengths=lengths)


@pytest.mark.parametrize("operation", PAIRS)
def test_out_must_be_a_pair(operation):
    _, (y, total) = outs_for(operation)
    assert_refused(operation, "out", TypeError, "ndarray", {"out": y})
    assert_refused(operation, "out", ValueError, "1", {"out": (y,)})
    assert_refused(operation, "out", ValueError, "3", {"out": (y, total, total)})
    assert is_poison(y)
    assert is_poison(total)


@pytest.mark.parametrize("operation", PAIRS)
def test_outs_must_not_overlap_each_other(operation):
    memory = np.full((4, 4), POISON, np.uint8).repeat(4, axis=1).view(np.float32)
    for y, total in ((memory[:3], memory[:3]), (memory[:3], memory[1:])):
        assert_refused(operation, "out", ValueError, "overlap", {"out": (y, total)})
        assert is_poison(memory)


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_every_attention_takes_every_option():
    """In the same order; but packed sequences have no mask, and caches know their lengths."""
    options = parameters(attention_options)
    of_caches = [name for name in options if name != "kv_lengths"]
    assert parameters(fastattn.scaled_dot_product_attention) == ["query", "key", "value", *options]
    assert parameters(fastattn.attention_weights) == ["query", "key", *options]
    bounds = ["cu_seqlens_q", "cu_seqlens_k"]
    assert parameters(fastattn.varlen_attention) == ["query", "key", "value", *bounds, *options[1:]]
    assert parameters(fastattn.KVCache.attend) == ["self", "query", *of_caches]
    assert parameters(fastattn.PagedKVCache.attend) == ["self", "ids", "query", *of_caches]


# merge_states


@pytest.mark.parametrize(
    ("name", "error", "came", "outs", "lses"),
    [
        ("outs", ValueError, "0", [], []),
        ("outs", TypeError, "float", 1.0, [zeros(3)]),
        ("outs", TypeError, "None", None, [zeros(3)]),
        ("lses", TypeError, "None", [zeros(3, 4)], None),
        ("lses", ValueError, "1", [zeros(3, 4)] * 2, [zeros(3)]),
        ("lses", ValueError, "3", [zeros(3, 4)] * 2, [zeros(3)] * 3),
        ("outs", TypeError, "list", [[[1.0]]], [zeros(1)]),
        ("outs", TypeError, "int64", [np.ones((3, 4), np.int64)], [zeros(3)]),
        ("outs", TypeError, "float8", [np.ones((3, 4), ml_dtypes.float8_e5m2)], [zeros(3)]),
        ("outs", TypeError, "float64", [zeros(3, 4), zeros(3, 4, dtype=np.float64)], [zeros(3)] * 2),
        ("lses", TypeError, "list", [zeros(3, 4)], [[0.0, 0.0, 0.0]]),
        ("lses", TypeError, "float64", [zeros(3, 4)], [zeros(3, dtype=np.float64)]),
        ("lses", TypeError, "float32", [zeros(3, 4, dtype=np.float64)], [zeros(3)]),
        *(("lses", TypeError, str(x), [zeros(3, 4, dtype=x)], [zeros(3, dtype=x)]) for x in dtypes.HALF),
        *(("lses", TypeError, "float64", [zeros(3, 4, dtype=x)], [np.zeros(3)]) for x in dtypes.HALF),
        ("outs", TypeError, "bfloat16", [zeros(3, 4), zeros(3, 4, dtype=ml_dtypes.bfloat16)], [zeros(3)] * 2),
        ("lses", TypeError, "complex64", [zeros(3, 4)], [zeros(3, dtype=np.complex64)]),
        ("outs", ValueError, "(3, 5)", [zeros(3, 4), zeros(3, 5)], [zeros(3)] * 2),
        ("outs", ValueError, "()", [zeros()], [zeros()]),
        ("lses", ValueError, "(4,)", [zeros(3, 4)], [zeros(4)]),
        ("lses", ValueError, "(3, 4)", [zeros(3, 4)], [zeros(3, 4)]),
        ("lses", ValueError, "(1,)", [zeros(3, 4)] * 2, [zeros(3), zeros(1)]),
    ],
    ids=lambda p: None if isinstance(p, str) else "",
)
def test_wrong_states(name, error, came, outs, lses):
    with pytest.raises(error, match=rf"\b{name}\b.* must .*got") as caught:
        fastattn.merge_states(outs, lses)
    assert came in str(caught.value)


@pytest.mark.parametrize(
    ("name", "wrong", "error", "came"),
    [
        ("out", zeros(3, 4).tolist(), TypeError, "list"),
        ("out", zeros(3, 4, dtype=np.float64), TypeError, "float64"),
        ("out", zeros(3, 5), ValueError, "(3, 5)"),
        ("out", np.broadcast_to(zeros(4), (3, 4)), ValueError, "read-only"),
        ("num_threads", 0, ValueError, "0"),
        ("num_threads", 1.0, TypeError, "float"),
    ],
)
def test_where_states_are_merged(name, wrong, error, came):
    out = np.full((3, 4 * 4), POISON, np.uint8).view(np.float32)
    with pytest.raises(error, match=rf"\b{name}\b.* must .*got") as caught:
        fastattn.merge_states([zeros(3, 4)] * 2, [zeros(3)] * 2, **{"out": out, name: wrong})
    assert came in str(caught.value)
    assert is_poison(out)


# The thread setting


@pytest.mark.parametrize("wrong", [0, -1, 10**30])
def test_wrong_thread_counts(wrong):
    before = fastattn.get_num_threads()
    with pytest.raises(ValueError, match=rf"must .*got {wrong}"):
        fastattn.set_num_threads(wrong)
    assert fastattn.get_num_threads() == before


@pytest.mark.parametrize("wrong", [1.0, "2", True, [1]], ids=repr)
def test_wrong_thread_types(wrong):
    with pytest.raises(TypeError, match=f"must .*got {type(wrong).__name__}"):
        fastattn.set_num_threads(wrong)


# The signature


@pytest.mark.parametrize("operation", GOOD)
def test_options_are_keywords_only(operation):
    further = {"softmax": [-1], "log_softmax": [-1], ATTENTION: [None], WEIGHTS: [None]}
    keyword = ("residual",) if operation == LINEAR else ()
    positional = [x for name, x in GOOD[operation].items() if name not in keyword] + further.get(operation, [])
    getattr(fastattn, operation)(*positional)
    with pytest.raises(TypeError, match="positional"):
        getattr(fastattn, operation)(*positional, None)


@pytest.mark.parametrize("operation", GOOD)
def test_unknown_options_are_named(operation):
    with pytest.raises(TypeError, match="dropout"):
        getattr(fastattn, operation)(**GOOD[operation], dropout=0.1)


# Odd, and fine


@pytest.mark.parametrize("operation", GOOD)
def test_subclasses_give_plain_arrays(operation):
    class Subclass(np.ndarray):
        pass

    results = getattr(fastattn, operation)(**{name: x.view(Subclass) for name, x in GOOD[operation].items()})
    for result in results if operation in PAIRS else [results]:
        assert type(result) is np.ndarray


@pytest.mark.parametrize("operation", GOOD)
def test_dtype_by_another_name(operation):
    """A dtype object of its own, with metadata, is still float32."""
    dtype = np.dtype(np.float32, metadata={"unit": "m"})
    arrays = {name: x if name in BOUNDS else x.astype(dtype) for name, x in GOOD[operation].items()}
    getattr(fastattn, operation)(**arrays)


@pytest.mark.parametrize("operation", GOOD)
@pytest.mark.parametrize("num_threads", [1, 2, np.int64(3), 1000, None])
def test_thread_counts(operation, num_threads):
    getattr(fastattn, operation)(**GOOD[operation], num_threads=num_threads)
