"""OpenVINO on the CPU: compiled models of one operation, in the arrays' own precision.

Its Python API handles bfloat16 only as bytes: arrays go in as tensors of that type over the same memory, and come out
as float16 with the same bits. The precision hint is only a permission: whether attention really runs in bfloat16 is
checked in the compiled model.
"""

import numpy as np
import openvino
from openvino import opset13 as ops

from laboratory.peers import Unsuitable, folded, is_causal, is_square

CONFIG = {"PERFORMANCE_HINT": "LATENCY"}

#: By dtype, the precision hint. float16 runs in float32: with the hint "f16" it takes bfloat16 if the processor has
#: that, with eight times the error.
_PRECISIONS = {"bfloat16": "bf16"}


def start(threads):
    """Set the number of threads."""
    CONFIG["INFERENCE_NUM_THREADS"] = threads


class _Request:
    """An inference request on `arrays`, which it keeps alive: the engine does not.

    `model_of` turns input nodes into output nodes.
    """

    def __init__(self, model_of, arrays):
        self.arrays = arrays
        self.dtype = arrays[0].dtype
        self.tensors = list(map(_tensor, arrays))
        parameters = [ops.parameter(tensor.shape, tensor.element_type) for tensor in self.tensors]
        model = openvino.Model(model_of(*parameters), parameters)
        precision = _PRECISIONS.get(self.dtype.name, "f32")
        self.compiled = openvino.Core().compile_model(model, "CPU", CONFIG | {"INFERENCE_PRECISION_HINT": precision})
        self.request = self.compiled.create_infer_request()
        for index, tensor in enumerate(self.tensors):
            self.request.set_input_tensor(index, tensor)

    def into_its_own(self):
        """Run; the results stay in the request's own memory."""
        self.request.infer(share_outputs=True)
        return tuple(tensor.data.view(self.dtype) for tensor in self.request.output_tensors)

    def into_new(self):
        """Run; the results are copied into new arrays, which is how the engine returns them."""
        inputs = dict(enumerate(self.tensors))
        results = self.request.infer(inputs, share_inputs=True, share_outputs=False).to_tuple()
        return tuple(result.view(self.dtype) for result in results)


def precisions(compiled):
    """The precisions of the operations of a compiled model: f32, bf16, ..."""
    operations = (node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops())
    passing = ("Input", "Const", "Output")
    return {info["runtimePrecision"].astype(str) for info in operations if info["layerType"].astype(str) not in passing}


def _tensor(array):
    """A tensor that shares the array's memory."""
    if array.dtype.name == "bfloat16":
        return openvino.Tensor(array.view(np.uint16), list(array.shape), openvino.Type.bf16)
    return openvino.Tensor(array, shared_memory=True)


# Attention


def _attention(case, query, key, value):
    masked = is_causal(case) and not is_square(case)
    arrays = [query, key, value] + ([_visible(case)] if masked else [])

    def model(*nodes):
        return [ops.scaled_dot_product_attention(*nodes, causal=is_causal(case) and not masked)]

    request = _Request(model, arrays)
    if case.dtype == "bfloat16" and "f32" in precisions(request.compiled):
        raise Unsuitable("not computed in bfloat16")
    shape = [case.sizes[axis] for axis in ("B", "Hq", "Sq", "Dv")]
    return request.into_its_own, lambda results: results[0].reshape(shape)


def _visible(case):
    Sq, Sk = case.sizes["Sq"], case.sizes["Sk"]
    return np.tri(Sq, Sk, Sk - Sq, dtype=bool)


def _heads_repeated(case, arguments):
    """The operation does not support grouped heads: they are repeated beforehand, outside the timing."""
    group = case.sizes["Hq"] // case.sizes["Hkv"]
    key, value = (arguments[name].repeat(group, axis=1) if group > 1 else arguments[name] for name in ("key", "value"))
    return _attention(case, arguments["query"], key, value)


def _group_folded(case, arguments):
    return _attention(case, folded(case, arguments["query"]), arguments["key"], arguments["value"])


# Row operations


def _rows(model_of):
    def build(case, arguments):
        request = _Request(model_of, list(arguments.values()))
        return request.into_its_own if case.out else request.into_new, _same

    return build


def _same(results):
    return results


def _softmax(x):
    return [ops.softmax(x, -1)]


def _log_softmax(x):
    return [ops.log_softmax(x, -1)]


def _layer_norm(x, weight, bias):
    normal = ops.mvn(x, ops.constant([-1]), True, 1e-5, "INSIDE_SQRT")
    return [ops.add(ops.multiply(normal, weight), bias)]


def _rms_norm(x, weight):
    """The pattern that the compiler fuses into one operation."""
    square = ops.power(x, ops.constant(2, x.get_element_type()))
    mean = ops.reduce_mean(square, ops.constant([-1]), keep_dims=True)
    deviation = ops.sqrt(ops.add(mean, ops.constant(1e-6, x.get_element_type())))
    return [ops.multiply(ops.multiply(x, ops.divide(ops.constant(1, x.get_element_type()), deviation)), weight)]


def _add(norm):
    def model(x, residual, *parameters):
        total = ops.add(x, residual)
        return [*norm(total, *parameters), total]

    return model


# Linear layers: weight and bias are constants of the model, so that the compiler can repack them beforehand.


def _linear(case, arguments):
    weight, bias = (openvino.op.Constant(_tensor(arguments[name])) for name in ("weight", "bias"))
    modes = {"gelu": "erf", "gelu_tanh": "tanh"}

    def model(x):
        sums = ops.add(ops.matmul(x, weight, False, True), bias)
        return [ops.gelu(sums, modes[case.options["activation"]]) if case.options else sums]

    request = _Request(model, [arguments["x"]])
    if case.dtype == "bfloat16" and "f32" in precisions(request.compiled):
        raise Unsuitable("not computed in bfloat16")
    return request.into_its_own if case.out else request.into_new, _same


# Rotary embedding


def _rotate_half(case, arguments):
    """The pattern that the compiler fuses into one operation. The table's rows are chosen beforehand."""
    if case.options.get("interleaved"):
        raise Unsuitable("halves")
    positions = arguments["positions"]
    cos, sin = (np.concatenate([arguments[name][positions]] * 2, axis=-1)[:, None] for name in ("cos", "sin"))
    request = _Request(_rotate_half_model, [arguments["x"], cos, sin])
    shape = arguments["x"].shape
    return (request.into_its_own if case.out else request.into_new), lambda results: results[0].reshape(shape)


def _rotate_half_model(x, cos, sin):
    half = x.shape[3] // 2
    a, b = ops.variadic_split(x, 3, [half, half]).outputs()
    turned = ops.concat([ops.multiply(b, ops.constant(-1, x.get_element_type())), a], 3)
    return [ops.add(ops.multiply(x, cos), ops.multiply(turned, sin))]


VARIANTS = {
    "scaled_dot_product_attention": {
        "ScaledDotProductAttention": _heads_repeated,
        "ScaledDotProductAttention, groups folded": _group_folded,
    },
    "softmax": {"SoftMax": _rows(_softmax)},
    "log_softmax": {"LogSoftmax": _rows(_log_softmax)},
    "layer_norm": {"MVN": _rows(_layer_norm)},
    "rms_norm": {"RMS": _rows(_rms_norm)},
    "add_layer_norm": {"Add, MVN": _rows(_add(_layer_norm))},
    "add_rms_norm": {"Add, RMS": _rows(_add(_rms_norm))},
    "linear": {"MatMul, Add, Gelu": _linear},
    "rotary_embedding": {"Multiply, Add": _rotate_half},
}
