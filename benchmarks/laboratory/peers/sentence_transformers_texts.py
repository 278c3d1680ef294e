"""Embedding and reranking by sentence-transformers, on PyTorch, ONNX Runtime and OpenVINO.

With the latter two, an exported graph takes the place of PyTorch's model in sentence-transformers' pipeline. Its own
backends do the same through optimum, whose exports do not support transformers 5 (optimum-onnx 0.1) and ModernBERT
(optimum-intel 2.2). Graphs are exported once, next to PyTorch's model. int8 is the quantisation of these backends:
dynamic for ONNX Runtime; for OpenVINO static, by nncf, with texts like those of the cases to choose the scales by.
"""

import functools
import inspect
import os

import torch

from laboratory import texts
from laboratory.peers import Unsuitable

os.environ["HF_HUB_OFFLINE"] = "1"

from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

CLASSES = {"embed": (SentenceTransformer, "encode"), "rerank": (CrossEncoder, "predict")}

#: Numbers of texts that are padded together.
BATCHES = (8, 32, 64)

#: Number of texts that scales are chosen by.
CALIBRATION = 64

THREADS = []


def start(threads):
    """Set the number of threads."""
    torch.set_num_threads(threads)
    THREADS[:] = [threads]


def variants(backend):
    """What an engine's module calls VARIANTS."""
    return {
        operation: {f"batches of {size}": functools.partial(_build, backend, size) for size in BATCHES}
        for operation in CLASSES
    }


def _build(backend, batch_size, case, arguments):
    if case.dtype not in texts.RUNS[backend]:
        raise Unsuitable(f"no {case.dtype}")
    run = getattr(_model(backend, case), CLASSES[case.operation][1])
    return functools.partial(run, *arguments, batch_size=batch_size, show_progress_bar=False), lambda result: result


@functools.lru_cache(maxsize=1)
def _model(backend, case):
    return _LOADERS[backend](case)


def _loaded(case, folder, **options):
    return CLASSES[case.operation][0](str(folder), device="cpu", **options)


def _exported(case, name, export):
    """The folder of a model's export, made from that of PyTorch."""
    source = texts.saved(case.model)
    return texts.made(source.with_name(f"{source.name}-{name}"), functools.partial(export, case, source))


def _torch(case):
    options = {"dtype": getattr(torch, case.dtype), "attn_implementation": "sdpa"}
    return _loaded(case, texts.saved(case.model), model_kwargs=options)


# Graphs in the place of PyTorch's model


def _with_graph(case, run, names):
    """The pipeline with a function of arrays, by these names, in place of the model."""
    output = _OUTPUTS[case.operation]

    def forward(**inputs):
        return output(torch.from_numpy(run({name: inputs[name].numpy() for name in names})))

    model = _loaded(case, texts.saved(case.model))
    model.transformers_model.forward = forward
    return model


#: What the models of a task return.
_OUTPUTS = {"embed": BaseModelOutput, "rerank": lambda logits: SequenceClassifierOutput(logits=logits)}


def _traceable(case, source):
    """The model as a module of tensors in, one tensor out; and inputs by name."""
    model = _loaded(case, source)
    taken = inspect.signature(model.transformers_model.forward).parameters
    encoding = model.tokenizer(["some text", "another"], padding=True, return_tensors="pt")
    inputs = {name: tensor for name, tensor in encoding.items() if name in taken}

    class Result(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model.transformers_model

        def forward(self, *tensors):
            return self.model(**dict(zip(inputs, tensors, strict=True)))[0]

    return Result().eval(), inputs


# ONNX Runtime


def _onnx(case):
    import onnxruntime

    folder = _exported(case, "onnx", _export_onnx)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS[0]
    session = onnxruntime.InferenceSession(folder / f"{case.dtype}.onnx", options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return _with_graph(case, lambda arrays: session.run(None, arrays)[0], names)


def _export_onnx(case, source, target):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, inputs = _traceable(case, source)
    axes = {0: "batch", 1: "tokens"}
    torch.onnx.export(
        model,
        tuple(inputs.values()),
        target / "float32.onnx",
        dynamo=False,
        input_names=list(inputs),
        output_names=["result"],
        dynamic_axes={name: axes for name in inputs} | {"result": axes if case.operation == "embed" else {0: "batch"}},
    )
    quantize_dynamic(target / "float32.onnx", target / "int8.onnx", weight_type=QuantType.QInt8)


# OpenVINO


def _openvino(case):
    import openvino

    folder = _exported(case, "openvino", _export_openvino)
    settings = {"INFERENCE_NUM_THREADS": THREADS[0], "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(folder / f"{case.dtype}.xml", "CPU", settings)
    names = [node.get_any_name() for node in compiled.inputs]
    return _with_graph(case, lambda arrays: compiled(arrays)[0], names)


def _export_openvino(case, source, target):
    import nncf
    import openvino

    model, inputs = _traceable(case, source)
    with torch.no_grad():
        graph = openvino.convert_model(model, example_input=tuple(inputs.values()))
    for node, name in zip(graph.inputs, inputs, strict=True):
        node.get_tensor().set_names({name})
    openvino.save_model(graph, target / "float32.xml", compress_to_fp16=False)
    tokenizer = _loaded(case, source).tokenizer
    several = [tokenizer(text, return_tensors="np") for text in texts.drawn(CALIBRATION, *texts.SENTENCES, seed=2)]
    samples = nncf.Dataset([{name: encoding[name] for name in inputs} for encoding in several])
    quantised = nncf.quantize(graph, samples, subset_size=CALIBRATION, model_type=nncf.ModelType.TRANSFORMER)
    openvino.save_model(quantised, target / "int8.xml", compress_to_fp16=False)


_LOADERS = {"torch": _torch, "onnx": _onnx, "openvino": _openvino}
