"""The sentence encoder on OpenVINO, compiled for the shape of the case."""

import numpy as np
import openvino

from fastattn.commands import encoder
from fastattn.commands.peers import Unsuitable, exported
from fastattn.commands.peers.open_vino import CONFIG, start

__all__ = ["VARIANTS", "start"]

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def _forward(graph):
    def build(case, arguments):
        if case.dtype not in _PRECISIONS:
            raise Unsuitable(f"no {case.dtype}")
        core = openvino.Core()
        model = core.read_model(exported.models(encoder.folder()) / graph)
        model.reshape({node.get_any_name(): [case.batch, case.tokens] for node in model.inputs})
        precision = {"INFERENCE_PRECISION_HINT": _PRECISIONS[case.dtype]}
        request = core.compile_model(model, "CPU", CONFIG | precision).create_infer_request()
        arrays = {"token_type_ids": np.zeros_like(arguments["input_ids"])} | arguments
        for node in request.model_inputs:
            request.set_tensor(node, openvino.Tensor(arrays[node.get_any_name()]))  # a copy, which the request keeps
        return request.infer, lambda _: request.output_tensors[0].data

    return build


VARIANTS = {"forward": {"eager": _forward("eager"), "sdpa": _forward("sdpa")}}
