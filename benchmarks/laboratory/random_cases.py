"""The cases of benchmarks/random_shapes.py: operations, shapes and options, drawn at random.

Sizes are log-uniform: as many shapes between 4 and 8 as between 400 and 800. What exceeds `MOST_WORK` is drawn again.
"""

import math
from dataclasses import replace

import numpy as np

from fastattn.commands.measuring.cases import Case

#: Maximum work of a call, in floating-point operations and in numbers read and written: some 10 ms of a core.
MOST_WORK, MOST_NUMBERS = 1e9, 1e7

#: Smallest and largest number of queries in an attention call: decoding, a few new tokens, a prompt.
_QUERIES = ((1, 1), (2, 16), (17, 64), (65, 512))


def _attention(rng):
    low, high = _QUERIES[rng.integers(len(_QUERIES))]
    queries = _size(rng, low, high)
    head = _head(rng)
    sizes = {"B": _size(rng, 1, 16), **_heads(rng), "Sq": queries, "Sk": _size(rng, queries, 4096)}
    arrays = ((), (), (), (), (), ("bool mask",), ("float mask",), ("padding",))[rng.integers(8)]
    options = {"is_causal": True} if not arrays and rng.integers(2) else {}
    return "scaled_dot_product_attention", sizes | {"D": head, "Dv": head}, options, arrays


def _varlen(rng):
    longest, head = _size(rng, 4, 256), _head(rng)
    sizes = {"B": _size(rng, 2, 64), **_heads(rng), "shortest": _size(rng, 1, longest), "longest": longest, "roll": 0}
    return "varlen_attention", sizes | {"D": head, "Dv": head}, {}, ()


def _head(rng):
    """A head size; three of four are multiples of eight."""
    size = _size(rng, 4, 160)
    return -(-size // 8) * 8 if rng.integers(4) else size


def _heads(rng):
    """Query heads, and as many heads of keys and values or fewer."""
    heads = _size(rng, 1, 8)
    return {"Hq": heads * int(rng.choice([1, 1, 1, 2, 4])), "Hkv": heads}


def _linear(rng):
    sizes = {"rows": _size(rng, 1, 1024), "K": _size(rng, 4, 4096), "N": _size(rng, 4, 4096)}
    return "linear", sizes, {"activation": "gelu"} if rng.integers(2) else {}, ()


def _rows(operation, shortest=1, **options):
    def draw(rng):
        return operation, {"rows": _size(rng, 1, 16384), "n": _size(rng, shortest, 8192)}, options, ()

    return draw


def _columns(rng):
    """Rows are summed: `n` is the number of columns."""
    return "softmax", {"rows": _size(rng, 2, 8192), "n": _size(rng, 1, 512)}, {"axis": 0}, ()


#: By the first word of a case's name.
KINDS = {
    "attention": _attention,
    "varlen": _varlen,
    "linear": _linear,
    "packed": _linear,
    "softmax": _rows("softmax", shortest=2),
    "columns": _columns,
    "layer_norm": _rows("layer_norm", shortest=2),
    "rms_norm": _rows("rms_norm", shortest=2),
}

#: Those whose result is a new array, as PyTorch's attention has no other; the rest write into a given one.
ALLOCATED = ("attention", "varlen")


def drawn(kind, count, seed, dtypes):
    """`count` cases of a kind in each of the types; the same ones for the same seed."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    cases = []
    while len(cases) < count:
        operation, sizes, options, arrays = KINDS[kind](rng)
        case = Case(f"{kind} {len(cases)}", operation, sizes, options, arrays=arrays, out=kind not in ALLOCATED)
        if case.flops <= MOST_WORK and case.traffic <= 4 * MOST_NUMBERS:
            cases.append(case)
    return [replace(case, name=f"{case.name} {dtype}", dtype=dtype) for case in cases for dtype in dtypes]


def _size(rng, low, high):
    """An integer from low to high, log-uniform."""
    return min(high, math.floor(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))
