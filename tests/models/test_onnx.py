"""ONNX's operators by fastattn: ONNX's own node cases, then other calls against ONNX's own reference."""

import functools
import math
import warnings
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import fastattn
import fastattn.reference

onnx = pytest.importorskip("onnx")
ml_dtypes = pytest.importorskip("ml_dtypes")  # comes with onnx

from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner
from onnx.reference import ReferenceEvaluator

from fastattn.integrations.onnx import OPS
from support.examples import ROOT, run_named

# What each operator must be computed by, and how many node cases onnx 1.23 has of it.
FUNCTIONS = {
    "Attention": "scaled_dot_product_attention",
    "LayerNormalization": "layer_norm",
    "LogSoftmax": "log_softmax",
    "RMSNormalization": "rms_norm",
    "RotaryEmbedding": "rotary_embedding",
    "Softmax": "softmax",
}
FEWEST_CASES = {
    "Attention": 93,
    "LayerNormalization": 19,
    "LogSoftmax": 41,
    "RMSNormalization": 19,
    "RotaryEmbedding": 8,
    "Softmax": 111,
}

NEWEST = onnx.defs.onnx_opset_version()
TOLERANCES = {
    "float16": {"rtol": 1e-2, "atol": 1e-2},
    "bfloat16": {"rtol": 5e-2, "atol": 5e-2},
    "float32": {"rtol": 1e-4, "atol": 1e-5},
    "float64": {"rtol": 1e-9, "atol": 1e-10},
}


def operators(model):
    """How many nodes of the model's graph each of the operators has."""
    return Counter(node.op_type for node in model.graph.node if node.domain == "" and node.op_type in FUNCTIONS)


def node_cases():
    """Every node case whose graph has one of the operators: the expanded forms of others too, if Softmax is in them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making the data of other operators' cases overflows here and there
        cases = load_model_tests(kind="node")
    return [case for case in cases if operators(case.model)]


CASES = node_cases()


@pytest.fixture
def calls(monkeypatch):
    """Counts the runs of each class of OPS, and the calls of each of fastattn's functions."""
    counts = Counter()

    def counted(owner, name, key):
        function = getattr(owner, name)

        @functools.wraps(function)
        def counting(*args, **kwargs):
            counts[key] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    for operator in OPS:
        counted(operator, "_run", operator.__name__)
    for name in FUNCTIONS.values():
        counted(fastattn, name, name)
    return counts


def array(x):
    return numpy_helper.to_array(x) if isinstance(x, TensorProto) else x


# ONNX's node cases


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_node_case(calls, case):
    evaluator = ReferenceEvaluator(case.model, new_ops=OPS)
    for inputs, expected in case.data_sets:
        feeds = dict(zip(evaluator.input_names, map(array, inputs), strict=True))
        outputs = evaluator.run(None, feeds)
        Runner.assert_similar_outputs(list(map(array, expected)), outputs, case.rtol, case.atol)
    for operator, number in operators(case.model).items():
        assert calls[operator] == calls[FUNCTIONS[operator]] == number * len(case.data_sets)


def test_every_operator_has_its_cases():
    found = Counter(operator for case in CASES for operator in operators(case.model))
    assert {operator.__name__ for operator in OPS} == set(FUNCTIONS)
    assert all(found[operator] >= fewest for operator, fewest in FEWEST_CASES.items()), found
    assert len({case.name for case in CASES}) == len(CASES)


# docs/guide/onnx.md


def test_example(calls):
    """It runs as printed, and equals the evaluator's own result."""
    names = run_named("onnx")
    assert calls["Attention"] == calls["RMSNormalization"] == 1
    assert_close(names["y"], ReferenceEvaluator(names["model"]).run(None, names["inputs"]))


def test_count_of_cases():
    text = (ROOT / "docs" / "guide" / "onnx.md").read_text(encoding="utf-8")
    assert f"{sum(FEWEST_CASES.values())} node tests" in text


# Other calls


def model(operator, inputs, outputs, opset, **attributes):
    """A model of one node; a None among the inputs, or an empty name among the outputs, is left out."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    node = helper.make_node(operator, names, outputs, **attributes)
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in zip(names, inputs, strict=True)
        if x is not None
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs if name]
    graph = helper.make_graph([node], "one", values, results)
    feeds = {name: x for name, x in zip(names, inputs, strict=True) if x is not None}
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), feeds


def run(operator, *inputs, outputs=("y",), opset=NEWEST, new_ops=OPS, **attributes):
    proto, feeds = model(operator, inputs, list(outputs), opset, **attributes)
    results = ReferenceEvaluator(proto, new_ops=new_ops).run(None, feeds)
    return results if len(results) > 1 else results[0]


def assert_close(results, expected, **tolerance):
    """Same shapes, same types, same numbers up to the type's tolerance."""
    for result, other in zip(results, expected, strict=True):
        assert result.dtype == other.dtype
        limits = TOLERANCES[result.dtype.name] | tolerance
        np.testing.assert_allclose(result.astype(np.float64), other.astype(np.float64), **limits)


def assert_as_onnx(operator, *inputs, **options):
    """Run with and without fastattn's class."""
    results, expected = (run(operator, *inputs, new_ops=new_ops, **options) for new_ops in (OPS, None))
    assert_close(*([x] if isinstance(x, np.ndarray) else x for x in (results, expected)))


def normal(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


DTYPES = [np.dtype(x) for x in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
ATTENTION_OUTPUTS = ("y", "present_key", "present_value", "qk")


@st.composite
def attention_calls(draw):
    """(inputs, options) of a call that the installed onnx's own Attention takes too, and takes rightly.

    Its mask must have all queries (it reads their number off the mask where `is_causal` is set); in mode 0 it returns
    capped scores, where the schema and the function body have raw ones; and it takes the root of `scale` in float32.
    """
    opset = draw(st.sampled_from([23, 24, 25]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    batch, kv_heads, group = (draw(st.integers(1, 3)) for _ in range(3))
    queries, keys, size, value_size = (draw(st.integers(1, 9)) for _ in range(4))
    cache = draw(st.sampled_from(["none", "past"] if opset == 23 else ["none", "past", "lengths"]))
    past = draw(st.integers(0, 5)) if cache == "past" else 0
    softcap = draw(st.sampled_from([0.0, 0.5, 5.0]))

    def heads(number, length, size):
        return normal(rng, batch, number, length, size, dtype=dtype)

    arrays = [heads(kv_heads * group, queries, size), heads(kv_heads, keys, size), heads(kv_heads, keys, value_size)]
    mask = past_key = past_value = lengths = None
    if cache == "past":
        past_key, past_value = heads(kv_heads, past, size), heads(kv_heads, past, value_size)
    if cache == "lengths":
        lengths = rng.integers(0, keys, batch, endpoint=True)
    if kind := draw(st.sampled_from(["", "bool", "float"])):
        total = past + keys
        shortest = total if opset == 23 else max(1, 0 if lengths is None else lengths.max())
        leading = draw(st.sampled_from([(), (kv_heads * group,), (1,), (batch, 1), (batch, kv_heads * group)]))
        shape = (*leading, queries, draw(st.integers(shortest, total)))
        mask = rng.random(shape) < 0.7
        if kind == "float":
            mask = np.where(mask, rng.standard_normal(shape), -np.inf).astype(dtype)

    attributes = {
        "is_causal": draw(st.integers(0, 1)),
        "softcap": softcap,
        "qk_matmul_output_mode": draw(st.integers(1 if softcap else 0, 3)),
    }
    if draw(st.booleans()):
        attributes["scale"] = draw(st.sampled_from([0.25, 1.0, 2.25]))
    if draw(st.booleans()):
        # Less than the inputs have is not given: float64 stays float64.
        precisions = [TensorProto.FLOAT, TensorProto.DOUBLE] if dtype == np.float32 else [TensorProto.DOUBLE]
        attributes["softmax_precision"] = draw(st.sampled_from(precisions))
    if opset == 25:
        attributes |= {side: draw(st.integers(-1, 4)) for side in ("left_window_size", "right_window_size")}
    if draw(st.booleans()):
        arrays = [x.swapaxes(1, 2).reshape(batch, x.shape[2], -1) for x in arrays]
        attributes |= {"q_num_heads": kv_heads * group, "kv_num_heads": kv_heads}
    inputs = [*arrays, mask, past_key, past_value, lengths][: 6 if opset == 23 else 7]
    return inputs, {"opset": opset, "outputs": ATTENTION_OUTPUTS} | attributes


@hypothesis.given(attention_calls())
def test_attention_is_onnx_own(call):
    inputs, options = call
    assert_as_onnx("Attention", *inputs, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", range(4))
def test_attention_of_every_type(rng, dtype, mode):
    query, key, value = (normal(rng, 2, heads, 5, 8, dtype=dtype) for heads in (4, 2, 2))
    mask = np.where(rng.random((5, 5)) < 0.8, 0, -np.inf).astype(dtype)
    options = {"is_causal": 1, "qk_matmul_output_mode": mode, "outputs": ATTENTION_OUTPUTS}
    assert_as_onnx("Attention", query, key, value, mask, **options)


def test_attention_takes_values_of_another_type(rng):
    query, key, value = normal(rng, 1, 2, 3, 8), normal(rng, 1, 2, 4, 8), normal(rng, 1, 2, 4, 6)
    expected = run("Attention", query, key, value)
    half, double = value.astype(np.float16), value.astype(np.float64)
    assert_close([run("Attention", query, key, half)], [expected], atol=1e-3)
    assert_close([run("Attention", query, key, double)], [expected])


def test_attention_with_an_empty_past(rng):
    query, key, value = normal(rng, 3, 2, 4, 5, 8)
    nothing = np.zeros((2, 4, 0, 8), np.float32)
    outputs = ("y", "present_key", "present_value")
    results = run("Attention", query, key, value, None, nothing, nothing, outputs=outputs, is_causal=1)
    expected = run("Attention", query, key, value, outputs=outputs, is_causal=1)
    for result, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, other)


def test_attention_shows_raw_scores_beside_a_softcap(rng):
    """As the schema and its function body have it; onnx's reference caps them."""
    query, key, value = normal(rng, 3, 1, 2, 3, 4)
    raw = query @ key.swapaxes(-1, -2) / 2
    for mode, expected in enumerate([raw, np.tanh(raw)]):
        options = {"softcap": 1.0, "qk_matmul_output_mode": mode, "outputs": ("y", "", "", "qk")}
        assert_close([run("Attention", query, key, value, **options)[1]], [expected])


def test_attention_masks_broadcast(rng):
    """Masks that broadcast along queries, which onnx's reference misreads where is_causal is set."""
    query, key, value = normal(rng, 3, 2, 2, 4, 8)
    for shape in [(4,), (1, 4), (2, 1, 4), (2, 1, 1, 4), (1, 1, 1, 4)]:
        mask = normal(rng, *shape)
        whole = np.broadcast_to(mask, (2, 2, 4, 4)).copy()
        options = {"is_causal": 1, "qk_matmul_output_mode": 2, "outputs": ATTENTION_OUTPUTS}
        for kind in (mask, mask > 0):
            expected = run("Attention", query, key, value, whole if kind is mask else whole > 0, **options)
            assert_close(run("Attention", query, key, value, kind, **options), expected)


@pytest.mark.parametrize(("opset", "seen"), [(23, 4), (24, 1), (25, 1)])
def test_attention_mask_of_one_key(rng, opset, seen):
    """It broadcast in opset 23; since then the keys beyond it are excluded."""
    query, key, value = normal(rng, 3, 1, 2, 4, 8)
    result = run("Attention", query, key, value, np.ones((4, 1), bool), opset=opset)
    assert_close([result], [run("Attention", query, key[:, :, :seen], value[:, :, :seen], opset=opset)])


def test_attention_adds_integer_masks(rng):
    query, key, value = normal(rng, 3, 1, 2, 4, 8)
    mask = rng.integers(-2, 2, (4, 4))
    expected = run("Attention", query, key, value, mask.astype(np.float32))
    np.testing.assert_array_equal(run("Attention", query, key, value, mask), expected)


def test_attention_computes_scores_only_where_asked(rng, monkeypatch):
    query, key, value = normal(rng, 3, 1, 2, 4, 8)
    monkeypatch.setattr(fastattn, "attention_weights", None, raising=False)
    run("Attention", query, key, value, qk_matmul_output_mode=3)
    with pytest.raises(TypeError):
        run("Attention", query, key, value, qk_matmul_output_mode=3, outputs=("y", "", "", "qk"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [-1, 0, 1, -2])
@pytest.mark.parametrize("operator", ["LayerNormalization", "RMSNormalization"])
def test_normalisation(rng, operator, dtype, axis):
    x = normal(rng, 3, 4, 5, dtype=dtype)
    assert_as_onnx(operator, x, normal(rng, *x.shape[axis:], dtype=dtype), axis=axis, epsilon=0.1)


@pytest.mark.parametrize("shape", [(5,), (1,), (4, 1), (1, 1, 5), (3, 4, 5), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("axis", [-1, 1])
def test_parameters_of_normalisation_broadcast(rng, shape, axis):
    x, scale, bias = normal(rng, 3, 4, 5), normal(rng, *shape), normal(rng, 5)
    assert_as_onnx("LayerNormalization", x, scale, bias, axis=axis)
    assert_as_onnx("LayerNormalization", x, bias, scale, axis=axis)
    assert_as_onnx("RMSNormalization", x, scale, axis=axis)


def test_layer_normalization_outputs_have_the_stash_type(rng):
    x, outputs = normal(rng, 2, 3, 4, dtype=np.float16), ("y", "mean", "deviation")
    y, mean, inverse = run("LayerNormalization", x, np.ones(4, np.float16), outputs=outputs, epsilon=0.1)
    assert (y.dtype, mean.dtype, inverse.dtype) == (np.float16, np.float32, np.float32)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axis=-1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(inverse, 1 / np.sqrt(wide.var(axis=-1, keepdims=True) + 0.1), rtol=1e-6)
    options = {"stash_type": TensorProto.BFLOAT16, "epsilon": 0.1}
    _, coarse = run("LayerNormalization", x, np.ones(4, np.float16), outputs=("y", "", "deviation"), **options)
    np.testing.assert_array_equal(coarse, inverse.astype(ml_dtypes.bfloat16))


def test_layer_normalization_of_any_size(rng):
    """Squares of numbers from 1.8e19 on overflow in float32, sums of several near its largest."""
    x = normal(rng, 5, 7)
    x[1:] *= np.array([1e30, 1e19, 1e-10, 1], np.float32)[:, np.newaxis] / np.abs(x[1:]).max(axis=1, keepdims=True)
    x[2] = [3e38, 3e38, 3e38, -3e38, 3e38, 3e38, 3e38]
    x[4, 3] = np.nan
    outputs = "y", "mean", "deviation"
    _, mean, inverse = run("LayerNormalization", x, np.ones(7, np.float32), outputs=outputs, epsilon=0.1)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axis=-1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(inverse, 1 / np.sqrt(wide.var(axis=-1, keepdims=True) + 0.1), rtol=1e-6)
    _, few, same = run("LayerNormalization", x[:1], np.ones(7, np.float32), outputs=outputs, epsilon=0.1)
    np.testing.assert_array_equal([few, same], [mean[:1], inverse[:1]])


def test_rms_normalization_has_the_type_of_its_scale(rng):
    x, scale = normal(rng, 3, 4, dtype=np.float16), normal(rng, 4)
    assert_close([run("RMSNormalization", x, scale)], [run("RMSNormalization", x.astype(np.float32), scale)])


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rotary_size", [0, 4, 8])
@pytest.mark.parametrize("has_positions", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
def test_rotary_embedding(rng, dtype, interleaved, rotary_size, has_positions, is_packed):
    angles = rng.uniform(0, 6, (20, 4) if has_positions else (2, 5, 4))[..., : (rotary_size or 8) // 2]
    x = normal(rng, *((2, 5, 24) if is_packed else (2, 3, 5, 8)), dtype=dtype)
    positions = rng.integers(0, 20, (2, 5)) if has_positions else None
    attributes = {"interleaved": interleaved, "rotary_embedding_dim": rotary_size}
    if is_packed:
        attributes["num_heads"] = 3
    cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    assert_as_onnx("RotaryEmbedding", x, cos, sin, positions, **attributes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("opset", [1, 11, 13, NEWEST])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_softmax(rng, operator, opset, axis, dtype):
    """By the formula: onnx's reference knows only the meaning since opset 13."""
    x = normal(rng, 2, 3, 4, dtype=dtype)
    result = run(operator, x, opset=opset, **({} if axis is None else {"axis": axis}))
    axis = (-1 if opset >= 13 else 1) if axis is None else axis
    axes = axis if opset >= 13 else tuple(range(axis % 3, 3))
    exponentials = np.exp(x.astype(np.float64))
    expected = exponentials / exponentials.sum(axis=axes, keepdims=True)
    expected = np.log(expected) if operator == "LogSoftmax" else expected
    assert_close([result], [expected.astype(dtype)])


@pytest.mark.parametrize(("operator", "nothing"), [("Softmax", 0), ("LogSoftmax", -math.inf)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax_of_minus_infinity_alone(operator, nothing, dtype):
    x = np.array([[-np.inf, -np.inf], [0, -np.inf]], dtype)
    np.testing.assert_array_equal(run(operator, x)[0], nothing)


def test_operators_in_a_branch(calls, rng):
    """The evaluator hands the classes on to subgraphs."""
    x = normal(rng, 3, 4)
    output = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    branches = {
        name: helper.make_graph([helper.make_node(operator, ["x"], ["y"])], name, [], output)
        for name, operator in (("then_branch", "Softmax"), ("else_branch", "LogSoftmax"))
    }
    inputs = [
        helper.make_tensor_value_info("c", TensorProto.BOOL, ()),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
    ]
    graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], **branches)], "whole", inputs, output)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", NEWEST)])
    ReferenceEvaluator(proto, new_ops=OPS).run(None, {"c": np.array(True), "x": x})
    assert calls == {"Softmax": 1, "softmax": 1}


# What is refused


def tensors(*shapes):
    return [None if shape is None else np.zeros(shape, np.float32) for shape in shapes]


HEADS = tensors((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 4))
PACKED = tensors((1, 3, 8), (1, 5, 8), (1, 5, 8))
PAST = (1, 2, 3, 4)
LENGTHS = np.array([3])
ROTATION = tensors((1, 2, 3, 8), (1, 3, 4), (1, 3, 4))

REFUSED = [
    ("Attention", HEADS, {"qk_matmul_output_mode": 4}, "qk_matmul_output_mode must be one of 0, 1, 2, 3, got 4"),
    ("Attention", HEADS, {"softmax_precision": 7}, "softmax_precision must be one of"),
    ("Attention", HEADS, {"softcap": -1.0}, "softcap"),
    ("Attention", HEADS, {"left_window_size": -2}, "left_window_size must be -1"),
    ("Attention", HEADS, {"right_window_size": -3}, "right_window_size must be -1"),
    ("Attention", HEADS, {"left_window_size": 1, "opset": 24}, "Attention-24 has no attribute left_window_size"),
    ("Attention", HEADS, {"q_num_heads": 2, "kv_num_heads": 2}, "q_num_heads must not be given"),
    ("Attention", HEADS, {"window": 3}, "has no attribute window"),
    ("Attention", PACKED, {}, "q_num_heads must be given"),
    ("Attention", PACKED, {"q_num_heads": 2, "kv_num_heads": 0}, "kv_num_heads must be given and positive"),
    ("Attention", PACKED, {"q_num_heads": 3, "kv_num_heads": 2}, "q_num_heads must divide the last axis of Q"),
    ("Attention", [PACKED[0], *HEADS[1:]], {}, "Q, K and V must all have"),
    ("Attention", [*HEADS, *tensors(None, PAST)], {}, "past_key and past_value must be given together"),
    ("Attention", [*HEADS, *tensors(None, PAST, PAST), LENGTHS], {}, "nonpad_kv_seqlen must not be given together"),
    ("Attention", [*HEADS, None, None, None, np.array([3, 3])], {}, "nonpad_kv_seqlen must have shape"),
    ("Attention", [*HEADS, None, None, None, LENGTHS], {"opset": 23}, "Attention-23 has at most 6 inputs"),
    ("Attention", [x.astype(int) for x in HEADS], {}, "got int64"),
    ("LayerNormalization", tensors((2, 3), (3,)), {"axis": 2}, "attribute axis"),
    ("LayerNormalization", tensors((2, 3), (3,)), {"stash_type": 7}, "stash_type must be one of"),
    ("LayerNormalization", tensors((2, 3), (3,), (2,)), {}, "B must broadcast to X's shape"),
    ("LayerNormalization", tensors((2, 3), (3, 2, 3)), {}, "Scale must broadcast to X's shape"),
    ("RMSNormalization", tensors((1, 3), (2, 3)), {}, "scale must broadcast to X's shape"),
    ("RMSNormalization", tensors((2, 3), (3,)), {"axis": -3}, "attribute axis"),
    ("RMSNormalization", tensors((2, 3), (3,)), {"stash_type": 0}, "stash_type must be one of"),
    ("RotaryEmbedding", tensors((1, 3, 16), *((1, 3, 4),) * 2), {}, "num_heads must be given"),
    ("RotaryEmbedding", tensors((1, 3, 16), *((1, 3, 4),) * 2), {"num_heads": 3}, "num_heads must divide"),
    ("RotaryEmbedding", tensors((3, 16), *((1, 3, 4),) * 2), {}, "X must have 3 or 4 axes"),
    ("RotaryEmbedding", ROTATION, {"rotary_embedding_dim": 3}, "rotary_embedding_dim must be even"),
    ("RotaryEmbedding", ROTATION, {"rotary_embedding_dim": 10}, "rotary_embedding_dim must be even and at most"),
    ("RotaryEmbedding", ROTATION, {"rotary_embedding_dim": 4}, "cos_cache must have 3 axes without position_ids"),
    ("RotaryEmbedding", [*ROTATION, np.zeros((1, 3), int)], {}, "cos_cache must have 2 axes with position_ids"),
    ("Softmax", tensors((2, 3)), {"axis": 2}, "attribute axis"),
    ("LogSoftmax", tensors((2, 3)), {"axis": -3}, "attribute axis"),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes", "message"), REFUSED, ids=[row[-1] for row in REFUSED])
def test_refused(operator, inputs, attributes, message):
    with pytest.raises(ValueError, match=message):
        run(operator, *inputs, **attributes)
