"""NumPy, as an experienced user writes it: in place, without needless passes over memory.

If a case has `out`, results and intermediate arrays are allocated beforehand and reused by each call. In 16 bits, where
NumPy's own operations are slow, everything is computed in float32 and rounded once at the end. gelu uses SciPy's erf
if SciPy is installed, else one of array operations (:mod:`fastattn.commands.measuring.erf`). Operations that `bench`
does not time use :mod:`fastattn.commands.measuring.formulas`.

NumPy's BLAS takes its threads from the environment.
"""

import functools
import math

import numpy as np

from fastattn.commands.measuring import dtypes, erf, formulas
from fastattn.commands.measuring.cases import OPERATIONS


def start(threads):
    """Nothing to set up."""


def _formula(case, arguments):
    return functools.partial(getattr(formulas, case.operation), **arguments, **case.options), _same


def _same(result):
    return result


def _in_place(function):
    """A variant that calls `function` with the arguments, the options and `new(shape)`, which allocates arrays."""

    def build(case, arguments):
        def call():
            wide = {name: _widened(array) for name, array in arguments.items()}
            return _narrowed(function(**wide, **case.options, new=memory.take()), kind)

        kind, memory = dtypes.named(case.dtype), _Memory(dtypes.wide(dtypes.named(case.dtype)), kept=case.out)
        return call, _same

    return build


def _widened(array):
    """16-bit arrays as float32; others unchanged."""
    return array.astype(np.float32) if array.dtype.kind not in "bi" and array.dtype.itemsize == 2 else array


def _narrowed(result, kind):
    if isinstance(result, tuple):
        return tuple(array.astype(kind, copy=False) for array in result)
    return result.astype(kind, copy=False)


class _Memory:
    """Allocates a call's arrays: the same ones in each call if they are kept, else new ones."""

    def __init__(self, dtype, kept):
        self.dtype, self.kept, self.arrays = dtype, kept, []

    def take(self):
        """A function that returns an array of a shape, starting again from the first one."""
        turn = iter(self.arrays[:])

        def new(shape):
            if (array := next(turn, None)) is None:
                array = np.empty(shape, self.dtype)
                self.arrays += [array] if self.kept else []
            return array

        return new


def _attention(query, key, value, new, is_causal=False):
    """Query heads that share a key head are rows of one product."""
    B, Hq, Sq, D = query.shape
    Hkv, Sk, Dv = value.shape[1:]
    rows = (query * query.dtype.type(D**-0.5)).reshape(B, Hkv, Hq // Hkv * Sq, D)
    scores = np.matmul(rows, key.swapaxes(-1, -2), out=new((*rows.shape[:-1], Sk)))
    if is_causal:
        hidden = ~np.tri(Sq, Sk, Sk - Sq, dtype=bool)
        np.copyto(scores.reshape(B, Hkv, -1, Sq, Sk), -np.inf, where=hidden)
    total = _exponentials(scores)
    result = np.matmul(scores, value, out=new((*rows.shape[:-1], Dv)))
    result /= total
    return result.reshape(B, Hq, Sq, Dv)


def _exponentials(x):
    """exp(x - max), computed in place, and its sum, row by row."""
    x -= x.max(-1, keepdims=True)
    np.exp(x, out=x)
    return x.sum(-1, keepdims=True)


def _softmax(x, new):
    y = np.subtract(x, x.max(-1, keepdims=True), out=new(x.shape))
    np.exp(y, out=y)
    y /= y.sum(-1, keepdims=True)
    return y


def _log_softmax(x, new):
    y = np.subtract(x, x.max(-1, keepdims=True), out=new(x.shape))
    y -= np.log(np.exp(y, out=new(x.shape)).sum(-1, keepdims=True))
    return y


def _layer_norm(x, weight, bias, new, eps=1e-5):
    y = np.subtract(x, x.mean(-1, keepdims=True), out=new(x.shape))
    y *= _over_root(y, eps)
    y *= weight
    y += bias
    return y


def _rms_norm(x, weight, new, eps=1e-6):
    y = np.multiply(x, _over_root(x, eps), out=new(x.shape))
    y *= weight
    return y


def _over_root(x, eps):
    """1 / sqrt(mean(x²) + eps) of each row; the squares are not stored."""
    return 1 / np.sqrt(np.vecdot(x, x)[:, None] / x.dtype.type(x.shape[-1]) + x.dtype.type(eps))


def _add(norm):
    def function(x, residual, *parameters, new, **named):
        total = np.add(x, residual, out=new(x.shape))
        return norm(total, *parameters, new=new, **named), total

    return function


def _linear(x, weight, bias, new, activation=None):
    y = np.matmul(x, weight.T, out=new((len(x), len(weight))))
    y += bias
    return _ACTIVATIONS[activation](y, new) if activation else y


def _gelu(x, new):
    half = np.multiply(x, x.dtype.type(math.sqrt(0.5)), out=new(x.shape))
    erf.erf(half)
    half += 1
    half *= x
    half *= x.dtype.type(0.5)
    return half


def _gelu_tanh(x, new):
    half = np.multiply(x, x, out=new(x.shape))
    half *= x.dtype.type(0.044715 * math.sqrt(2 / math.pi))
    half += x.dtype.type(math.sqrt(2 / math.pi))
    half *= x
    np.tanh(half, out=half)
    half += 1
    half *= x
    half *= x.dtype.type(0.5)
    return half


_ACTIVATIONS = {"gelu": _gelu, "gelu_tanh": _gelu_tanh}


def _rotary_embedding(x, cos, sin, positions, new, interleaved=False):
    """Rotation of whole heads; the result has the layout of `x`."""
    cos, sin = cos[positions][:, None], sin[positions][:, None]
    half = x.shape[-1] // 2
    first, second = (np.s_[..., ::2], np.s_[..., 1::2]) if interleaved else (np.s_[..., :half], np.s_[..., half:])
    y, product = new(x.shape), new((*x.shape[:-1], half))
    np.multiply(x[first], cos, out=y[first])
    y[first] -= np.multiply(x[second], sin, out=product)
    np.multiply(x[first], sin, out=y[second])
    y[second] += np.multiply(x[second], cos, out=product)
    return y


_IN_PLACE = {
    "scaled_dot_product_attention": _attention,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "add_layer_norm": _add(_layer_norm),
    "add_rms_norm": _add(_rms_norm),
    "linear": _linear,
    "rotary_embedding": _rotary_embedding,
}

VARIANTS = {name: {"formula": _formula} for name in OPERATIONS}
VARIANTS |= {name: {"in place": _in_place(function)} for name, function in _IN_PLACE.items()}
