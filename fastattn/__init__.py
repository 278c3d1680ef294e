"""Transformer attention for CPUs: NumPy arrays in, NumPy arrays out.

A map of the package. One module per operation: its signature, docstring and a few lines.

attention.py      scaled_dot_product_attention, varlen_attention, attention_weights, merge_states
softmax.py        softmax, log_softmax
normalization.py  layer_norm, rms_norm, add_layer_norm, add_rms_norm
linear.py         linear
weights.py        pack, PackedWeight: weights in the form that linear's kernels read; quantisation
rotary.py         rotary_embedding
cache.py          KVCache, PagedKVCache; _cache_file.py: how they are saved
_array_file.py    files of arrays: of caches and of packed weights
reference.py      the same names in float64 NumPy: the definition of every operation
_interpreter.py   refuses subinterpreters
_checkout.py      lets commands typed in a checkout find the installed package
_runtime.py       threads and targets: get_num_threads, set_num_threads, targets, show_config; get_include
_report.py        what show_config tells
capi.pyx          the functions for Cython, Numba and C, which capi.pxd and include/fastattn.h declare
_arguments.pyx    the only place that checks what a user passes in
_dtypes.py        the types that arrays may be stored in
_typing.py        types of arguments, for type checkers
_scaling.py       rows whose squares would overflow, brought near one
_core/            the compiled half: a .pyx for each operation family, and options.pyx and plan.pyx for attention;
                  kernels/ holds the C, compiled once for each target (kernels/README.md is its map)
nn/               layers made from PyTorch's state dicts: multi-head attention, transformer encoders
models/           sentence encoders, from texts to embeddings
commands/         python -m fastattn info | check | bench | embed | similar | attention-map
integrations/     fastattn inside other libraries: dask, onnx, transformers, and frameworks that use embeddings

A call goes one way: module -> _core -> _arguments -> items on OpenMP's threads -> kernel.
"""

__version__ = "0.1.0"

from typing import TYPE_CHECKING

from fastattn._checkout import compiled
from fastattn._interpreter import refuse_subinterpreters

if TYPE_CHECKING:
    from fastattn import capi, integrations, models, nn, reference  # noqa: F401

__path__ = compiled(__path__)
refuse_subinterpreters()

try:
    from fastattn._runtime import get_include, get_num_threads, set_num_threads, show_config, targets
except ImportError as error:
    if "libgomp" not in str(error) and "libomp" not in str(error):
        raise
    raise ImportError(
        f"fastattn needs the OpenMP library that it was built with, and this system has none ({error}): "
        f"install it (Debian, Ubuntu: apt install libgomp1; Fedora: dnf install libgomp; Alpine: apk add libgomp; "
        f"macOS: brew install libomp), or build fastattn with FASTATTN_NO_OPENMP=1, for one thread"
    ) from error

from fastattn.attention import attention_weights, merge_states, scaled_dot_product_attention, varlen_attention
from fastattn.cache import KVCache, OutOfPages, PagedKVCache
from fastattn.linear import linear
from fastattn.normalization import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from fastattn.rotary import rotary_embedding
from fastattn.softmax import log_softmax, softmax
from fastattn.weights import PackedWeight, pack

__all__ = [
    "KVCache",
    "OutOfPages",
    "PackedWeight",
    "PagedKVCache",
    "add_layer_norm",
    "add_rms_norm",
    "attention_weights",
    "get_include",
    "get_num_threads",
    "layer_norm",
    "linear",
    "log_softmax",
    "merge_states",
    "pack",
    "rms_norm",
    "rotary_embedding",
    "scaled_dot_product_attention",
    "set_num_threads",
    "show_config",
    "softmax",
    "targets",
    "varlen_attention",
]

# Found after `import fastattn` as well, and imported only when they are used.
_SUBPACKAGES = ("capi", "integrations", "models", "nn", "reference")


def __getattr__(name: str) -> object:
    if name not in _SUBPACKAGES:
        raise AttributeError(f"module 'fastattn' has no attribute {name!r}")
    import importlib

    return importlib.import_module(f"fastattn.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES})
