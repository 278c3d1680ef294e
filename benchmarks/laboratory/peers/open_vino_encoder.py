"""The sentence encoder on OpenVINO, compiled for the shape of the case.

int8 means weights in 8 bits with a scale for each output: the engine quantises activations itself where it considers
that faster.
"""

import functools

import numpy as np
import openvino
from openvino import opset13 as ops

from laboratory import encoder
from laboratory.peers import Unsuitable, exported
from laboratory.peers.open_vino import CONFIG, precisions, start

__all__ = ["VARIANTS", "start"]

_GRAPHS = ("converted.xml", "eager.onnx", "sdpa.onnx")

#: By dtype: the graphs, their precision hints (with 8-bit weights: for everything else), and the precision to expect.
_WAYS = {
    "float32": (_GRAPHS, ("f32",), "f32"),
    "bfloat16": (_GRAPHS, ("bf16",), "bf16"),
    "int8": (_GRAPHS[:1], ("f32", "bf16"), "i8"),
}


def _forward(graph, precision):
    def build(case, arguments):
        graphs, allowed, needed = _WAYS[case.dtype]
        if graph not in graphs or precision not in allowed:
            raise Unsuitable(f"not for {case.dtype}")
        model = _model(graph, case.dtype)
        model.reshape({node.get_any_name(): [case.batch, case.tokens] for node in model.inputs})
        compiled = openvino.Core().compile_model(model, "CPU", CONFIG | {"INFERENCE_PRECISION_HINT": precision})
        if needed not in precisions(compiled):
            raise Unsuitable(f"not computed in {needed}")
        request = compiled.create_infer_request()
        arrays = {"token_type_ids": np.zeros_like(arguments["input_ids"])} | arguments
        for node in request.model_inputs:
            request.set_tensor(node, openvino.Tensor(arrays[node.get_any_name()]))  # a copy, which the request keeps
        run = functools.partial(request.infer, share_outputs=True)  # the result stays in the request's own memory
        return run, lambda _: request.output_tensors[0].data

    return build


def _model(graph, dtype):
    model = openvino.Core().read_model(exported.models(encoder.folder()) / graph)
    if dtype == "int8":
        for node in model.get_ordered_ops():
            if node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() == "Constant":
                node.input(1).replace_source_output(_of_8_bits(node.input_value(1).get_node().data))
    return model


def _of_8_bits(weights):
    """A matrix with a row for each output, as integers and a scale for each row."""
    scale = np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)
    integers = ops.constant(np.rint(weights / scale).astype(np.int8))
    return ops.multiply(ops.convert(integers, "f32"), ops.constant(scale)).output(0)


VARIANTS = {
    "forward": {
        f"{graph}, {precision}": _forward(graph, precision) for graph in _GRAPHS for precision in ("f32", "bf16")
    }
}
