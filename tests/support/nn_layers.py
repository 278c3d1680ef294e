"""Layers of transformers with random weights, and what they should give: written out plainly, by any set of operations.

Called with `fastattn.reference` the definitions are the oracle; called with `yardstick()` they are the straightforward
NumPy formulas in the layer's own type, whose error is the yardstick (see accuracy.py).
"""

import functools
import itertools
import math
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from fastattn import reference
from fastattn.commands.measuring import formulas
from fastattn.nn import QuantizedWeight, quantize
from support import accuracy
from support.accuracy import assert_accurate_together
from support.dtypes import computed_in, eps, readable


class Layer(NamedTuple):
    """Sizes and kinds of an encoder's layer, or of its attention alone."""

    embed: int = 24
    heads: int = 3
    kv_heads: int = 3
    head_size: int = 8
    kdim: int | None = None  # unlike embed
    vdim: int | None = None
    bias: bool = True
    hidden: int = 40
    activation: str = "relu"
    gated: bool = False
    norm: str = "layer"
    norm_first: bool = False
    heads_normed: str | None = None  # "each" or "all": queries and keys
    post_norms: bool = False
    attention_norm: bool = True

    @property
    def settings(self):
        """What `MultiHeadAttention.from_state_dict` is told."""
        return {"num_heads": self.heads, "num_kv_heads": self.kv_heads, "bias": self.bias}

    @property
    def encoder_settings(self):
        """What those of an encoder are told."""
        return self.settings | {name: getattr(self, name) for name in ("activation", "norm", "norm_first")}


# Weights, by PyTorch's names

HEAD_NORMS = ("q_norm", "k_norm")
NORMS = ("norm1", "norm2", "post_norm1", "post_norm2")


@functools.lru_cache(maxsize=256)
def _attention_weights(layer, seed):
    rng = np.random.default_rng([seed, *b"attention"])
    q, kv = layer.heads * layer.head_size, layer.kv_heads * layer.head_size
    if layer.kdim or layer.vdim:
        inputs = {"q": (q, layer.embed), "k": (kv, layer.kdim or layer.embed), "v": (kv, layer.vdim or layer.embed)}
        weights = {f"{name}_proj_weight": _matrix(rng, *shape) for name, shape in inputs.items()}
    else:
        weights = {"in_proj_weight": _matrix(rng, q + 2 * kv, layer.embed)}
    weights["out_proj.weight"] = _matrix(rng, layer.embed, q)
    if layer.bias:
        weights |= {"in_proj_bias": _vector(rng, q + 2 * kv), "out_proj.bias": _vector(rng, layer.embed)}
    if layer.heads_normed:
        sizes = dict.fromkeys(HEAD_NORMS, layer.head_size)
        if layer.heads_normed == "all":
            sizes = dict(zip(HEAD_NORMS, (q, kv), strict=True))
        weights |= {f"{name}.weight": 1 + _vector(rng, size) for name, size in sizes.items()}
        if layer.bias and layer.norm == "layer":
            weights |= {f"{name}.bias": _vector(rng, size) for name, size in sizes.items()}
    return weights


@functools.lru_cache(maxsize=256)
def _layer_weights(layer, seed):
    rng = np.random.default_rng([seed, *b"layer"])
    weights = {f"self_attn.{name}": x for name, x in _attention_weights(layer, seed).items()}
    rows = layer.hidden * (1 + layer.gated)
    weights["linear1.weight"] = _matrix(rng, rows, layer.embed)
    weights["linear2.weight"] = _matrix(rng, layer.embed, layer.hidden)
    norms = NORMS[not layer.attention_norm : 4 if layer.post_norms else 2]
    for norm in norms:
        weights[f"{norm}.weight"] = 1 + _vector(rng, layer.embed)
    if layer.bias:
        weights |= {"linear1.bias": _vector(rng, rows), "linear2.bias": _vector(rng, layer.embed)}
    if layer.bias and layer.norm == "layer":
        weights |= {f"{norm}.bias": _vector(rng, layer.embed) for norm in norms}
    return weights


def _matrix(rng, rows, columns):
    return rng.normal(0, 1 / math.sqrt(columns), size=(rows, columns))


def _vector(rng, size):
    return rng.normal(0, 0.2, size=size)


def attention_weights(layer, dtype, seed=0):
    """A state dict of read-only arrays."""
    return {name: _stored(x, dtype) for name, x in _attention_weights(layer, seed).items()}


def layer_weights(layer, dtype, seed=0):
    return {name: _stored(x, dtype) for name, x in _layer_weights(layer, seed).items()}


def encoder_weights(layer, dtype, layers, final_norm=True):
    """The layers but the first always have a norm before the attention."""
    weights = {
        f"layers.{i}.{name}": x
        for i in range(layers)
        for name, x in layer_weights(layer if i == 0 else layer._replace(attention_norm=True), dtype, seed=i).items()
    }
    if final_norm:  # any one of a layer of its own
        last = layer_weights(layer, dtype, seed=layers)
        weights |= {name.replace("norm2", "norm"): x for name, x in last.items() if name.startswith("norm2")}
    return weights


def _stored(x, dtype):
    x = x.astype(dtype)
    x.flags.writeable = False
    return x


def dequantised(weights):
    """What a state dict stands for once its matrices have been quantised, in float64."""
    return {name: _matrix_of(quantize(x)) if x.ndim == 2 else x for name, x in weights.items()}


def _matrix_of(weight: QuantizedWeight):
    return weight.values * weight.scales[:, None].astype(np.float64)


def tokens(layer, dtype, *shape, seed=0, size=None):
    """Tokens that any layer of a stack may see, read-only."""
    rng = np.random.default_rng([seed, *b"tokens"])
    return _stored(rng.normal(size=(*shape, size or layer.embed)), dtype)


def angles(positions, pairs, dtype):
    """Tables of cosines and sines."""
    turns = np.arange(positions)[:, None] / 3.0 ** np.arange(pairs)
    return _stored(np.cos(turns), dtype), _stored(np.sin(turns), dtype)


# The definitions


def under(weights, prefix):
    """A part of a state dict."""
    return {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}


def multi_head_attention(ops, layer, weights, query, key=None, value=None, attn_mask=None, *, residual=None, **more):
    """(out, lse) of tokens (..., S, E)."""
    q, k, v, options = heads(ops, layer, weights, query, key, value, **more)
    found, lse = ops.scaled_dot_product_attention(q, k, v, attn_mask, return_lse=True, **options)
    found = found.swapaxes(-2, -3)
    joined = found.reshape(*found.shape[:-2], -1)  # (..., S, H * D)
    return ops.linear(joined, weights["out_proj.weight"], weights.get("out_proj.bias"), residual=residual), lse


def attention_map(ops, layer, weights, query, key=None, attn_mask=None, **more):
    """(weights, lse): weights (..., H, S, Sk)."""
    q, k, _, options = heads(ops, layer, weights, query, key, **more)
    return ops.attention_weights(q, k, attn_mask, return_lse=True, **options)


def heads(ops, layer, weights, query, key=None, value=None, *, cos=None, sin=None, interleaved=False, **options):
    """Query, key and value (..., heads, S, D), turned where there are angles; and the options of attention."""
    if key is None:
        # A token's query stands where its key does.
        key, options = query, {"q_offset": 0} | options
    value = key if value is None else value
    sizes = np.cumsum([layer.heads, layer.kv_heads]) * layer.head_size
    if "in_proj_weight" in weights:
        matrices = np.split(weights["in_proj_weight"], sizes)
    else:
        matrices = [weights[f"{name}_proj_weight"] for name in "qkv"]
    biases = np.split(weights["in_proj_bias"], sizes) if "in_proj_bias" in weights else [None] * 3
    q, k, v = (
        _by_head(ops.linear(x, matrix, bias), layer.head_size)
        for x, matrix, bias in zip((query, key, value), matrices, biases, strict=True)
    )
    q, k = (_normed(ops, layer, weights, name, x) for name, x in zip(HEAD_NORMS, (q, k), strict=True))
    if cos is not None:
        q, k = (ops.rotary_embedding(x, cos, sin, interleaved=interleaved) for x in (q, k))
    return q, k, v, options


def _by_head(x, size):
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size).swapaxes(-2, -3)


def _normed(ops, layer, weights, name, x):
    """Queries or keys (..., heads, S, D), each head or all of a token normalised."""
    own = under(weights, f"{name}.")
    if not own:
        return x
    if own["weight"].size == x.shape[-1]:
        return norm(ops, layer, own, x)
    joined = x.swapaxes(-2, -3).reshape(*x.shape[:-3], x.shape[-2], -1)
    return _by_head(norm(ops, layer, own, joined), layer.head_size)


def encoder_layer(ops, layer, weights, x, **options):
    def attended(x, residual):
        return multi_head_attention(ops, layer, under(weights, "self_attn."), x, residual=residual, **options)[0]

    def fed_forward(x, residual):
        matrix, bias = weights["linear1.weight"], weights.get("linear1.bias")
        if not layer.gated:
            hidden = ops.linear(x, matrix, bias, activation=layer.activation)
        else:
            (gate, matrix), (gate_bias, bias) = np.split(matrix, 2), (None, None) if bias is None else np.split(bias, 2)
            hidden = ops.linear(x, gate, gate_bias, activation=layer.activation) * ops.linear(x, matrix, bias)
        return ops.linear(hidden, weights["linear2.weight"], weights.get("linear2.bias"), residual=residual)

    def normalised(x, name):
        return norm(ops, layer, under(weights, f"{name}."), x)

    def with_post_norm(part, name, before, residual):
        if f"{name}.weight" not in weights:
            return part(before, residual)
        return residual + normalised(part(before, None), name)

    if layer.norm_first:
        before = normalised(x, "norm1") if "norm1.weight" in weights else x
        x = with_post_norm(attended, "post_norm1", before, x)
        return with_post_norm(fed_forward, "post_norm2", normalised(x, "norm2"), x)
    x = normalised(attended(x, x), "norm1")
    return normalised(fed_forward(x, x), "norm2")


def encoder(ops, layer, weights, x, layer_options=None, **options):
    for i in itertools.count():
        own = under(weights, f"layers.{i}.")
        if not own:
            break
        x = encoder_layer(ops, layer, own, x, **options | (layer_options[i] if layer_options else {}))
    last = under(weights, "norm.")
    return norm(ops, layer, last, x) if last else x


def norm(ops, layer, weights, x):
    if layer.norm == "rms":
        return ops.rms_norm(x, weights["weight"], eps=EPS)
    return ops.layer_norm(x, weights["weight"], weights.get("bias"), eps=EPS)


EPS = 1e-5  # the default


# The straightforward formulas


def linear(x, weight, bias=None, *, activation=None, residual=None, matmul=np.matmul):
    """With the activation in float32 at least, then rounded: as kernels make it, and the stricter yardstick."""
    y = accuracy.by_formula("linear", x, weight, bias, matmul=matmul)
    if activation is not None:
        y = formulas.ACTIVATIONS[activation](y.astype(computed_in(x.dtype))).astype(x.dtype)
    return y if residual is None else residual + y


def linear_of_rounded_rows(x, weight, bias=None, **more):
    """As int8 kernels make it where they multiply integers: rows of x in 255 steps between their ends, 0 among them."""
    low, high = (f(x.astype(np.float64), axis=-1, keepdims=True, initial=0) for f in (np.min, np.max))
    step = np.where(high > low, (high - low) / 255, 1)
    return linear((np.rint(x / step) * step).astype(x.dtype), weight, bias, **more)


def yardstick(linear=linear):
    """The operations as the current target's yardstick."""
    matmul = accuracy.matmul_of_target()
    products = "scaled_dot_product_attention", "attention_weights"
    rows = "layer_norm", "rms_norm", "rotary_embedding"
    return SimpleNamespace(
        linear=functools.partial(linear, matmul=matmul),
        **{name: functools.partial(accuracy.by_formula, name, matmul=matmul) for name in products},
        **{name: functools.partial(accuracy.by_formula, name) for name in rows},
    )


def answers(definition, layer, weights, call, int8=False):
    """What the formulas make of a call, and what the oracle does."""
    if int8:
        weights = dequantised(weights)
    by_formula = definition(yardstick(linear_of_rounded_rows if int8 else linear), layer, weights, **call)
    if next(iter(call.values())).dtype == np.float64:
        weights, call = accuracy.wider(weights), accuracy.wider(call)
    return by_formula, definition(reference, layer, weights, **call)


def assert_as_defined(result, formula, expected):
    """Hold a result to the accuracy rule; all rows are taken for one, as they are of one magnitude, however short."""
    assert result.shape == expected.shape
    formula = np.broadcast_to(formula, expected.shape)
    assert_accurate_together(result, formula, expected)


def assert_close(result, expected, units):
    """That results are the oracle's up to so many eps, of the largest or of 1, which is about what goes in.

    For sizes so small that the rule, which compares the worst error of two ways, is a matter of luck.
    """
    assert result.shape == expected.shape
    tolerance = units * eps(result.dtype) * np.abs(expected).max(initial=1)
    np.testing.assert_allclose(readable(result), expected.astype(float), rtol=0, atol=tolerance)
