"""Digests of the results of 43,000 calls: two builds that print the same lines give the same bits.

    PYTHONPATH=. python tests/support/digest.py > before.txt    # of the build in place

A line holds target, operation, type, number of calls and a digest of their results. Run it before and after a change
that must not move a bit; `diff` then names the operation that has moved.
"""

import hashlib
import itertools

import ml_dtypes
import numpy as np

import fastattn
from fastattn import _runtime
from fastattn.nn import quantize

TYPES = [np.dtype(name) for name in ("float32", "float64", "float16", ml_dtypes.bfloat16)]
LAYOUTS = ("contiguous", "transposed", "reversed", "sliced")
ROWS = (1, 3, 8, 17, 33)
COLUMNS = (1, 7, 16, 65, 384, 1031)


def array(rng, shape, dtype, layout="contiguous", scale=1.0):
    """Random numbers of this shape and type, their elements lying as `layout` says."""
    if layout == "transposed":
        return (scale * rng.normal(size=(*shape[:-2], shape[-1], shape[-2]))).astype(dtype).swapaxes(-1, -2)
    if layout == "reversed":
        return (scale * rng.normal(size=shape)).astype(dtype)[..., ::-1]
    if layout == "sliced":
        return (scale * rng.normal(size=(*shape[:-1], 2 * shape[-1] + 3))).astype(dtype)[..., 1 : 2 * shape[-1] + 1 : 2]
    return (scale * rng.normal(size=shape)).astype(dtype)


def row_operations(rng, dtype):
    """softmax, both norms and rotary_embedding over lengths, layouts and options."""
    for rows, columns, layout in itertools.product(ROWS, COLUMNS, LAYOUTS):
        x, y = array(rng, (rows, columns), dtype, layout, 3), array(rng, (rows, columns), dtype)
        weight, bias = array(rng, (columns,), dtype), array(rng, (columns,), dtype)
        yield "softmax", fastattn.softmax(x)
        yield "softmax", fastattn.softmax(x, axis=0)
        yield "softmax", fastattn.softmax(x, where=np.asarray(y > 0))
        yield "log_softmax", fastattn.log_softmax(x)
        yield "layer_norm", fastattn.layer_norm(x, weight, bias)
        yield "layer_norm", fastattn.layer_norm(x)
        yield "rms_norm", fastattn.rms_norm(x, weight)
        yield "add_layer_norm", fastattn.add_layer_norm(x, y, weight, bias)
        yield "add_rms_norm", fastattn.add_rms_norm(x, y, weight)
    for tokens, pairs, interleaved, layout in itertools.product((1, 5, 16), (1, 8, 17, 32), (False, True), LAYOUTS):
        x = array(rng, (2, 3, tokens, 2 * pairs + 4), dtype, layout)
        angles = rng.normal(size=(tokens, pairs))
        cos, sin = (part(angles).astype(np.float32).astype(dtype) for part in (np.cos, np.sin))
        yield "rotary_embedding", fastattn.rotary_embedding(x, cos, sin, interleaved=interleaved)


def linear(rng, dtype):
    """Linear over rows, features, activations and layouts; weights of the type and, in float32, of int8."""
    activations = (None, "gelu", "gelu_tanh", "relu", "silu")
    for rows, (inputs, outputs), activation in itertools.product(
        (1, 2, 5, 16, 33, 130), ((1, 1), (7, 5), (64, 64), (65, 130), (384, 96)), activations
    ):
        for layout in LAYOUTS:
            x, weight = array(rng, (rows, inputs), dtype, layout), array(rng, (outputs, inputs), dtype)
            bias, residual = array(rng, (outputs,), dtype), array(rng, (rows, outputs), dtype, layout)
            yield "linear", fastattn.linear(x, weight, bias, activation=activation, residual=residual)
            yield "linear", fastattn.linear(x, weight, activation=activation)
            if dtype == np.float32:
                yield "linear int8", fastattn.linear(x, quantize(weight), bias, activation=activation)


def attention_options(rng, dtype, batch, heads, queries, keys):
    """Keyword arguments of attention, one dict after the other."""
    real = np.float64 if dtype == np.float64 else np.float32
    yield {}
    yield {"is_causal": True}
    yield {"is_causal": True, "q_offset": 2}
    yield {"window": (3, 1)}
    yield {"window": (5, 0), "is_causal": True}
    yield {"softcap": 4.0, "scale": 0.3}
    yield {"attn_mask": rng.random((queries, keys)) < 0.7}
    yield {"attn_mask": rng.normal(size=(batch, 1, queries, keys)).astype(dtype)}
    yield {"kv_lengths": rng.integers(0, keys + 1, batch)}
    yield {"sinks": rng.normal(size=heads).astype(real)}
    yield {"alibi_slopes": rng.random(heads).astype(real), "is_causal": True}


# batch, heads, kv heads, queries, keys
SHAPES = [
    (2, 4, 4, 1, 7),
    (2, 4, 2, 5, 33),
    (1, 8, 1, 3, 700),
    (1, 2, 2, 70, 70),
    (2, 6, 2, 33, 257),
    (1, 1, 1, 1, 2100),
]


def attention(rng, dtype):
    """Attention over shapes, head sizes, options and layouts; whole weights; packed sequences."""
    for (batch, heads, kv_heads, queries, keys), (size, values), layout in itertools.product(
        SHAPES, ((8, 8), (64, 64), (20, 33), (128, 96)), LAYOUTS
    ):
        q = array(rng, (batch, heads, queries, size), dtype, layout)
        k = array(rng, (batch, kv_heads, keys, size), dtype, layout)
        v = array(rng, (batch, kv_heads, keys, values), dtype, layout)
        for options in attention_options(rng, dtype, batch, heads, queries, keys):
            yield "attention", fastattn.scaled_dot_product_attention(q, k, v, **options)
        real = np.float64 if dtype == np.float64 else np.float32
        bias = np.random.default_rng(0).normal(size=(heads, 41)).astype(real)
        yield "attention position_bias", fastattn.scaled_dot_product_attention(q, k, v, position_bias=bias)
        yield "attention lse", fastattn.scaled_dot_product_attention(q, k, v, return_lse=True)[1]
        yield "attention_weights", fastattn.attention_weights(q, k)
        yield "attention_weights", fastattn.attention_weights(q, k, softcap=3.0, is_causal=True)
    for lengths, (heads, kv_heads) in itertools.product(((5, 0, 17), (64, 3, 130, 1)), ((4, 4), (6, 2))):
        ends = np.cumsum([0, *lengths])
        q = array(rng, (ends[-1], heads, 64), dtype)
        k, v = (array(rng, (ends[-1], kv_heads, 64), dtype) for _ in range(2))
        for causal in (False, True):
            yield "varlen_attention", fastattn.varlen_attention(q, k, v, ends, ends, is_causal=causal)


def caches(rng, dtype):
    """Both caches, stored in the type and in int8: a prefill, then single tokens."""
    for stored, window, (heads, kv_heads, size) in itertools.product(
        (dtype, "int8"), (None, 9), ((4, 4, 64), (8, 2, 20), (6, 1, 128))
    ):
        cache = fastattn.KVCache(2, kv_heads, 96, size, dtype=stored, window=window)
        for step in (33, 1, 4, 1):
            k, v = (array(rng, (2, kv_heads, step, size), dtype) for _ in range(2))
            cache.append(k, v)
            q = array(rng, (2, heads, step, size), dtype)
            yield f"KVCache {np.dtype(stored)}", cache.attend(q, is_causal=True)


def calls(rng, dtype):
    """(operation, result) of every call in this type."""
    for part in (row_operations, linear, attention, caches):
        yield from part(rng, dtype)


def main():
    """Print the digests of each target, operation and type."""
    for target in fastattn.targets():
        _runtime.use_target(target)
        for dtype in TYPES:
            digests, counts = {}, {}
            for operation, result in calls(np.random.default_rng(0), dtype):
                counts[operation] = counts.get(operation, 0) + 1
                for part in result if isinstance(result, tuple) else (result,):
                    digests.setdefault(operation, hashlib.sha256()).update(np.ascontiguousarray(part).tobytes())
            for operation, digest in digests.items():
                print(f"{target:12} {operation:20} {dtype.name:9} {counts[operation]:5} {digest.hexdigest()[:24]}")


if __name__ == "__main__":
    main()
