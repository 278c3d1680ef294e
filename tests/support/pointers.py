"""fastattn's functions for compiled callers through ctypes: the structs and the table of fastattn.h once more."""

import ctypes
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_char_p,
    c_double,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_ssize_t,
    c_void_p,
    py_object,
)

import numpy as np

from fastattn import capi

TYPES = {"float32": 1, "float64": 2, "float16": 3, "bfloat16": 4, "int8": 5, "bool": 6}
NULL, VERSION, TYPE, SIZE, SHAPE, STRIDE, VALUE, OVERLAP, MEMORY = range(1, 10)  # kinds of errors
ACTIVATIONS = (None, "gelu", "gelu_tanh", "relu", "silu")


class Array(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p), ("shape", POINTER(c_ssize_t)), ("strides", POINTER(c_ssize_t)), ("ndim", c_int32),
        ("type", c_int32),
    )  # fmt: skip


class AttentionOptions(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t), ("num_threads", c_int32), ("is_causal", c_int32), ("window", POINTER(c_ssize_t)),
        ("scale", c_double), ("softcap", c_double), ("attn_mask", POINTER(Array)), ("lse", POINTER(Array)),
        ("q_offset", POINTER(c_int64)), ("q_offset_count", c_ssize_t),
        ("kv_lengths", POINTER(c_int64)), ("kv_lengths_count", c_ssize_t),
        ("sinks", c_void_p), ("alibi_slopes", c_void_p), ("alibi_slopes_count", c_ssize_t),
        ("position_bias", POINTER(Array)),
    )  # fmt: skip


class LinearOptions(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t), ("num_threads", c_int32), ("activation", c_int32), ("bias", POINTER(Array)),
        ("residual", POINTER(Array)), ("scales", c_void_p),
    )  # fmt: skip


_A, _N = POINTER(Array), c_ssize_t
_PLAIN = {
    "softmax": (c_void_p, c_void_p, _N, _N),
    "layer_norm": (c_void_p, c_void_p, c_void_p, c_void_p, _N, _N, c_double),
    "rms_norm": (c_void_p, c_void_p, c_void_p, _N, _N, c_double),
    "linear": (c_void_p, c_void_p, c_void_p, c_void_p, _N, _N, _N),
    "attention": (c_void_p, c_void_p, c_void_p, c_void_p, _N, _N, _N, _N, _N, _N, _N, c_double, c_int),
}

#: The entries of the table in their order, which must not change: new ones are added at the end.
FUNCTIONS = {
    "error_message": (c_int,),
    "attention": (_A, _A, _A, _A, POINTER(AttentionOptions)),
    "varlen_attention": (_A, _A, _A, _A, POINTER(c_int64), POINTER(c_int64), _N, POINTER(AttentionOptions)),
    "softmax": (_A, _A, _A, c_int, c_int),
    "log_softmax": (_A, _A, _A, c_int, c_int),
    "layer_norm": (_A, _A, _A, _A, c_double, c_int),
    "rms_norm": (_A, _A, _A, c_double, c_int),
    "add_layer_norm": (_A, _A, _A, _A, _A, _A, c_double, c_int),
    "add_rms_norm": (_A, _A, _A, _A, _A, c_double, c_int),
    "linear": (_A, _A, _A, POINTER(LinearOptions)),
    **{f"{name}_{suffix}": types for suffix in ("f32", "f64", "f16", "bf16") for name, types in _PLAIN.items()},
}
SUFFIXES = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}


class Table(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t), ("version", c_int32), ("unused", c_int32), ("error_message", CFUNCTYPE(c_char_p, c_int)),
        *((name, CFUNCTYPE(c_int, *types)) for name, types in FUNCTIONS.items() if name != "error_message"),
    )  # fmt: skip


def address(capsule, name):
    """The pointer in a capsule."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = c_void_p, (py_object, c_char_p)
    return pointer(capsule, name)


def signature(capsule):
    """The name of a capsule."""
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = c_char_p, (py_object,)
    return name(capsule)


TABLE = Table.from_address(address(capi._C_API, b"fastattn.capi._C_API"))


def longs(*numbers):
    return (c_ssize_t * len(numbers))(*numbers)


def array(x, **changes):
    """A NumPy array as the functions take it, or None; with changes, for errors."""
    if x is None:
        return None
    return Array(
        **{
            "data": x.ctypes.data, "shape": longs(*x.shape), "strides": longs(*x.strides), "ndim": x.ndim,
            "type": TYPES[x.dtype.name],
        } | changes
    )  # fmt: skip


def pointer(x):
    """To a struct, or NULL for None."""
    return None if x is None else ctypes.pointer(x)


def integers(numbers):
    """An int64 array of one number or several, or None, and how many."""
    if numbers is None:
        return None, 0
    numbers = np.atleast_1d(np.asarray(numbers, np.int64))
    return (c_int64 * max(1, numbers.size))(*numbers), numbers.size


def attention_options(
    dtype=np.float32, *, window=None, attn_mask=None, lse=None, q_offset=None, kv_lengths=None, sinks=None,
    alibi_slopes=None, position_bias=None, **numbers,
):  # fmt: skip
    """The struct from what the Python functions take; it keeps alive what it points at."""
    sums = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    sinks, slopes = (None if x is None else np.ascontiguousarray(x, sums) for x in (sinks, alibi_slopes))
    (offsets, offset_count), (lengths, length_count) = integers(q_offset), integers(kv_lengths)
    options = AttentionOptions(
        window=None if window is None else longs(*(-1 if side is None else side for side in window)),
        attn_mask=pointer(array(attn_mask)), lse=pointer(array(lse)),
        q_offset=offsets, q_offset_count=offset_count, kv_lengths=lengths, kv_lengths_count=length_count,
        sinks=None if sinks is None else sinks.ctypes.data,
        alibi_slopes=None if slopes is None else slopes.ctypes.data,
        alibi_slopes_count=0 if slopes is None else slopes.size, position_bias=pointer(array(position_bias)),
        **{"size": ctypes.sizeof(AttentionOptions)} | numbers,
    )  # fmt: skip
    options.kept = attn_mask, lse, sinks, slopes, position_bias
    return options


def linear_options(*, bias=None, residual=None, scales=None, activation=None, num_threads=0):
    options = LinearOptions(
        size=ctypes.sizeof(LinearOptions), num_threads=num_threads, activation=ACTIVATIONS.index(activation),
        bias=pointer(array(bias)), residual=pointer(array(residual)),
        scales=None if scales is None else scales.ctypes.data,
    )  # fmt: skip
    options.kept = bias, residual, scales
    return options


def call(name, *arguments):
    """Call a function with arrays, structs and numbers; the code that it returns."""
    arguments = [array(x) if isinstance(x, np.ndarray) else x for x in arguments]
    return getattr(TABLE, name)(*(ctypes.byref(x) if isinstance(x, ctypes.Structure) else x for x in arguments))


def message(code):
    return TABLE.error_message(code).decode()


def kind(code):
    return code & 255
