"""Embedding and reranking by sentence-transformers, with any of its backends, as its documentation advises.

Models are exported once, next to PyTorch's. int8 is the quantisation of each backend: dynamic for ONNX Runtime; for
OpenVINO static, with texts like those of the cases to choose the scales by.
"""

import functools
import os

import torch

from fastattn import targets
from laboratory import texts
from laboratory.peers import Unsuitable

os.environ["HF_HUB_OFFLINE"] = "1"

from sentence_transformers import CrossEncoder, SentenceTransformer

CLASSES = {"embed": (SentenceTransformer, "encode"), "rerank": (CrossEncoder, "predict")}

#: Numbers of texts that are padded together.
BATCHES = (8, 32, 64)

#: Number of texts that scales are chosen by.
CALIBRATION = 64

#: How weights are quantised for ONNX Runtime.
_INSTRUCTIONS = "avx512_vnni" if "avx512" in targets() else "avx2"

#: The names of quantised files, which the exports choose or sentence-transformers expects.
_QUANTISED = {"onnx": f"model_qint8_{_INSTRUCTIONS}.onnx", "openvino": "openvino_model_qint8_quantized.xml"}

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
    folder, options = _LOADING[backend](case)
    return CLASSES[case.operation][0](str(folder), device="cpu", backend=backend, model_kwargs=options)


def _exported(case, name, export):
    """The folder of a model's export, made from that of PyTorch."""
    source = texts.saved(case.model)
    return texts.made(source.with_name(f"{source.name}-{name}"), functools.partial(export, case, source))


def _torch(case):
    return texts.saved(case.model), {"dtype": getattr(torch, case.dtype), "attn_implementation": "sdpa"}


# ONNX Runtime


def _onnx(case):
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = THREADS[0]
    options = {"provider": "CPUExecutionProvider", "session_options": settings}
    if case.dtype == "int8":
        options["file_name"] = _QUANTISED["onnx"]
    return _exported(case, "onnx", _export_onnx), options


def _export_onnx(case, source, target):
    from sentence_transformers import export_dynamic_quantized_onnx_model

    options = {"provider": "CPUExecutionProvider", "export": True}
    model = CLASSES[case.operation][0](str(source), device="cpu", backend="onnx", model_kwargs=options)
    model.save_pretrained(str(target))
    export_dynamic_quantized_onnx_model(model, _INSTRUCTIONS, str(target))


# OpenVINO


def _openvino(case):
    options = {"ov_config": {"INFERENCE_NUM_THREADS": THREADS[0], "INFERENCE_PRECISION_HINT": "f32"}}
    if case.dtype == "int8":
        options["file_name"] = _QUANTISED["openvino"]
    return _exported(case, "openvino", _export_openvino), options


def _export_openvino(case, source, target):
    """The export, and beside it what optimum-intel makes of it: quantised by nncf, as a transformer."""
    import nncf
    import openvino
    from transformers import AutoTokenizer

    model = CLASSES[case.operation][0](
        str(source), device="cpu", backend="openvino", model_kwargs={"export": True, "compile": False}
    )
    model.save_pretrained(str(target))
    graph = openvino.Core().read_model(target / "openvino" / "openvino_model.xml")
    names = {node.get_any_name() for node in graph.inputs}
    tokenizer = AutoTokenizer.from_pretrained(source)
    several = [tokenizer(text, return_tensors="np") for text in texts.drawn(CALIBRATION, *texts.SENTENCES, seed=2)]
    inputs = [{name: encoding[name] for name in names} for encoding in several]
    quantised = nncf.quantize(graph, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER)
    openvino.save_model(quantised, target / "openvino" / _QUANTISED["openvino"], compress_to_fp16=False)


_LOADING = {"torch": _torch, "onnx": _onnx, "openvino": _openvino}
