"""The sentence encoder on ONNX Runtime: the graph with its own fused operators, and a hand-written `encode`.

int8 is the runtime's dynamic quantisation of that graph: weights per output channel, activations at run time.
"""

import functools

import numpy as np
import onnxruntime
from onnx import TensorProto
from onnxruntime import OrtValue
from onnxruntime.quantization import QuantType, quantize_dynamic

from laboratory import encoder
from laboratory.peers import Unsuitable, exported
from laboratory.peers.onnx_runtime import OPTIONS, start

__all__ = ["VARIANTS", "start"]


def _graph(case):
    """The path of the graph in that type."""
    graphs = exported.models(encoder.folder())
    if case.dtype == "int8":
        quantize_dynamic(
            graphs / "fused.onnx",
            graphs / "int8.onnx",
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},  # of what the fused operators return
        )
        return graphs / "int8.onnx"
    if case.dtype != "float32":
        raise Unsuitable(f"no {case.dtype}")
    return graphs / "fused.onnx"


def _session(case):
    return onnxruntime.InferenceSession(_graph(case), OPTIONS, providers=["CPUExecutionProvider"])


def _feeds(session, arguments):
    """The inputs of the graph, in its types."""
    arrays = {"token_type_ids": np.zeros_like(arguments["input_ids"])} | arguments
    types = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
    return {node.name: np.ascontiguousarray(arrays[node.name], types[node.type]) for node in session.get_inputs()}


def _forward(case, arguments):
    session = _session(case)
    binding = session.io_binding()
    for name, array in _feeds(session, arguments).items():
        binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
    shape = [*arguments["input_ids"].shape, encoder.config()["hidden_size"]]
    hidden = OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
    binding.bind_ortvalue_output("hidden", hidden)
    return functools.partial(session.run_with_iobinding, binding), lambda _: hidden.numpy()


def _encode(batch_size):
    def build(case, arguments):
        session, tokenizer = _session(case), encoder.tokenizer()
        return functools.partial(encode, session, tokenizer, arguments["texts"], batch_size), lambda result: result

    return build


def encode(session, tokenizer, texts, batch_size):
    """The embeddings, in batches of texts of about the same number of tokens, each padded to its longest."""
    encodings = tokenizer.encode_batch(texts)
    order = sorted(range(len(texts)), key=lambda n: len(encodings[n]))
    embeddings = np.empty((len(texts), encoder.config()["hidden_size"]), np.float32)
    for begin in range(0, len(texts), batch_size):
        rows = order[begin : begin + batch_size]
        batch = [encodings[n] for n in rows]
        for encoding in batch:
            encoding.pad(len(batch[-1]))
        ids = np.array([encoding.ids for encoding in batch])
        mask = np.array([encoding.attention_mask for encoding in batch])
        (hidden,) = session.run(None, _feeds(session, {"input_ids": ids, "attention_mask": mask}))
        total = np.einsum("bsd,bs->bd", hidden, mask.astype(np.float32))
        embeddings[rows] = total / np.linalg.norm(total, axis=1, keepdims=True)  # the mean's direction is the sum's
    return embeddings


VARIANTS = {
    "forward": {"fused": _forward},
    "encode": {f"batches of {size}": _encode(size) for size in (16, 32, 64)},
}
