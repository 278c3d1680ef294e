"""ONNX Runtime: models of one operator or two, with inputs and outputs bound beforehand.

Cases without `out` let the runtime allocate the outputs (from its arena). For bfloat16 it supports only norms on CPUs.
"""

import ctypes
import functools
import math

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import OrtValue

from fastattn.commands.measuring import dtypes
from laboratory.peers import Unsuitable, folded, is_causal, is_square

OPSETS = {"": 23, "com.microsoft": 1}

OPTIONS = onnxruntime.SessionOptions()


def start(threads):
    """Set the number of threads inside an operator."""
    OPTIONS.intra_op_num_threads = threads
    OPTIONS.log_severity_level = 4


# A model


def _session(operator, inputs, outputs, domain="", **attributes):
    """A session of one operator.

    Parameters
    ----------
    inputs : dict of str to array
    outputs : sequence of (name, shape)
        In the operator's order, of the first input's type; the name of one that is left out is empty.
    """
    node = helper.make_node(operator, list(inputs), [name for name, _ in outputs], domain=domain, **attributes)
    return _session_of([node], inputs, outputs)


def _session_of(nodes, inputs, outputs, constants=()):
    """A session of several operators; `constants` are arrays stored in the model, by name."""
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    result_type = next(iter(types.values()))
    graph = helper.make_graph(
        nodes,
        nodes[0].op_type,
        [helper.make_tensor_value_info(name, types[name], array.shape) for name, array in inputs.items()],
        [helper.make_tensor_value_info(name, result_type, shape) for name, shape in outputs if name],
        [numpy_helper.from_array(constants[name], name) for name in constants],
    )
    opsets = [helper.make_opsetid(*opset) for opset in OPSETS.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), OPTIONS, providers=["CPUExecutionProvider"])


def _values(inputs):
    return {name: _value(array) for name, array in inputs.items()}


def _value(array):
    """A value that shares the array's memory; for bfloat16 the runtime's Python API takes the bits."""
    if array.dtype.name == "bfloat16":
        return OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)
    return OrtValue.ortvalue_from_numpy(array)


def _array(value):
    """The array of a value; for bfloat16 the API returns only the address."""
    if value.element_type() != TensorProto.BFLOAT16:
        return value.numpy()
    bits = (ctypes.c_uint16 * math.prod(value.shape())).from_address(value.data_ptr())
    return np.array(bits, np.uint16).view(dtypes.named("bfloat16")).reshape(value.shape())


def _bound(session, values, outputs):
    """A call that writes into `outputs`, and the outputs themselves."""
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    return functools.partial(session.run_with_iobinding, binding)


def _empty(shape, like):
    return OrtValue.ortvalue_from_shape_and_type(shape, helper.np_dtype_to_tensor_dtype(like.dtype))


# Attention


def _attention(operator, inputs, case, in_place=(), **attributes):
    """An attention operator; the inputs named in `in_place` are also outputs, in place."""
    first = next(iter(inputs.values()))
    values = _values(inputs)
    outputs = {"y": _empty(_result_shape(case, first), first)} | {f"new_{name}": values[name] for name in in_place}
    session = _session(operator, inputs, [(name, value.shape()) for name, value in outputs.items()], **attributes)
    return _bound(session, values, outputs), lambda _: _heads_of(_array(outputs["y"]), case)


def _result_shape(case, query):
    """(B, H, S, Dv) or, for a three-dimensional query, (B, S, H·Dv)."""
    Dv, D = case.sizes["Dv"], case.sizes["D"]
    return [*query.shape[:-1], query.shape[-1] // D * Dv]


def _heads_of(array, case):
    """A result of either layout as (B, Hq, Sq, Dv)."""
    B, Hq, Sq, Dv = (case.sizes[axis] for axis in ("B", "Hq", "Sq", "Dv"))
    if array.ndim == 4:
        return array.reshape(B, Hq, Sq, Dv)
    return array.reshape(B, Sq, Hq, Dv).swapaxes(1, 2)


def _joined(array):
    """(B, H, S, D) as (B, S, H·D)."""
    B, H, S, D = array.shape
    return np.ascontiguousarray(array.swapaxes(1, 2)).reshape(B, S, H * D)


def _standard(case, arguments):
    """The standard operator aligns its causal mask with the first key: unequal lengths need a mask."""
    masked = is_causal(case) and not is_square(case)
    inputs = arguments | ({"attn_mask": _visible(case)} if masked else {})
    return _attention("Attention", inputs, case, is_causal=int(is_causal(case) and not masked))


def _standard_folded(case, arguments):
    return _attention("Attention", {**arguments, "query": folded(case, arguments["query"])}, case)


def _visible(case):
    Sq, Sk = case.sizes["Sq"], case.sizes["Sk"]
    return np.tri(Sq, Sk, Sk - Sq, dtype=bool)


def _multi_head(case, arguments):
    """Keys and values stay (B, H, S, D), which saves the operator a transposition."""
    if case.sizes["Hq"] != case.sizes["Hkv"] or (is_causal(case) and not is_square(case)):
        raise Unsuitable("equal heads, and a causal mask for equal lengths only")
    inputs = {**arguments, "query": _joined(arguments["query"])}
    return _attention(
        "MultiHeadAttention",
        inputs,
        case,
        domain="com.microsoft",
        num_heads=case.sizes["Hq"],
        unidirectional=int(is_causal(case)),
    )


def _group_query(case, arguments):
    """The operator of decoders: appends the new keys and values to a cache, in place, then attends."""
    B, Hq, Hkv, Sq, Sk, *_ = case.sizes.values()
    if Sq > 1 and not is_causal(case):
        raise Unsuitable("always causal")
    key, value = arguments["key"], arguments["value"]
    inputs = {
        "query": _joined(arguments["query"]),
        "key": _joined(key[:, :, Sk - Sq :]),
        "value": _joined(value[:, :, Sk - Sq :]),
        "past_key": key,
        "past_value": value,
        "seqlens_k": np.full(B, Sk - 1, np.int32),
        "total_sequence_length": np.array([Sk], np.int32),
    }
    in_place = ("past_key", "past_value")
    heads = {"num_heads": Hq, "kv_num_heads": Hkv}
    return _attention("GroupQueryAttention", inputs, case, in_place, domain="com.microsoft", **heads)


# Row operations


def _rows(operator, results=("y",), **attributes):
    """A row operation; `results` are the operator's outputs in order, "" for one that is not needed."""

    def build(case, arguments):
        x = arguments["x"]
        session = _session(operator, arguments, [(name, x.shape) for name in results], **attributes)
        return _call(case, session, arguments, {name: x.shape for name in results if name})

    return build


def _call(case, session, inputs, results):
    """A call of a session, whose results have these names and shapes."""
    values = _values(inputs)
    if not case.out:
        return functools.partial(session.run_with_ort_values, list(results), values), _arrays
    outputs = {name: _empty(shape, inputs["x"]) for name, shape in results.items()}
    return _bound(session, values, outputs), lambda _: _arrays(outputs.values())


def _rotary(case, arguments):
    return _rows("RotaryEmbedding", interleaved=int(case.options.get("interleaved", False)))(case, arguments)


def _arrays(values):
    return tuple(map(_array, values))


# Linear layers: weight and bias are constants of the model, so that the runtime can repack them beforehand.


def _linear(case, arguments):
    nodes = [helper.make_node("Gemm", ["x", "weight", "bias"], ["sums"], transB=1)]
    ways = {"gelu": "none", "gelu_tanh": "tanh"}
    if case.options:
        nodes.append(helper.make_node("Gelu", ["sums"], ["y"], approximate=ways[case.options["activation"]]))
    return _layer(case, nodes, **arguments)


def _linear_fused(case, arguments):
    """The runtime's fused operators for bias and activation, which its optimizer uses for transformers."""
    if not case.options:
        raise Unsuitable("no activation")
    operator = {"gelu": "BiasGelu", "gelu_tanh": "FastGelu"}[case.options["activation"]]
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["sums"]),
        helper.make_node(operator, ["sums", "bias"], ["y"], domain="com.microsoft"),
    ]
    return _layer(case, nodes, **arguments | {"weight": np.ascontiguousarray(arguments["weight"].T)})


def _layer(case, nodes, x, weight, bias):
    (result,) = nodes[-1].output
    results = {result: (case.sizes["rows"], case.sizes["N"])}
    session = _session_of(nodes, {"x": x}, results.items(), {"weight": weight, "bias": bias})
    return _call(case, session, {"x": x}, results)


VARIANTS = {
    "scaled_dot_product_attention": {
        "Attention": _standard,
        "Attention, groups folded": _standard_folded,
        "MultiHeadAttention": _multi_head,
        "GroupQueryAttention": _group_query,
    },
    "softmax": {"Softmax": _rows("Softmax", axis=-1)},
    "log_softmax": {"LogSoftmax": _rows("LogSoftmax", axis=-1)},
    "layer_norm": {"LayerNormalization": _rows("LayerNormalization", axis=-1, epsilon=1e-5)},
    "rms_norm": {
        "RMSNormalization": _rows("RMSNormalization", axis=-1, epsilon=1e-6),
        "SimplifiedLayerNormalization": _rows("SimplifiedLayerNormalization", axis=-1, epsilon=1e-6),
    },
    "add_layer_norm": {
        "SkipLayerNormalization": _rows(
            "SkipLayerNormalization", ("y", "", "", "sum"), domain="com.microsoft", epsilon=1e-5
        )
    },
    "add_rms_norm": {
        "SkipSimplifiedLayerNormalization": _rows(
            "SkipSimplifiedLayerNormalization", ("y", "", "", "sum"), domain="com.microsoft", epsilon=1e-6
        )
    },
    "linear": {"Gemm, Gelu": _linear, "MatMul, BiasGelu": _linear_fused},
    "rotary_embedding": {"RotaryEmbedding": _rotary},
}
