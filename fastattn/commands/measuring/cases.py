"""What is timed and checked, as data: operations, real model shapes, awkward sizes.

A :class:`Case` is an operation, its sizes, options and dtype. An :class:`Operation` knows how to make the inputs, how
much work they are, and which parts of the result to compare with the oracle. ``bench``, ``check`` and the folder
``benchmarks`` all use the tables below.

Sizes of attention: B batch, Hq and Hkv query and key-value heads, Sq and Sk query and key length, D head
size of query and key, Dv head size of value. Sizes of row operations: `rows` rows of `n` numbers. Sizes of linear
layers: `rows` rows of K inputs, N outputs. Sizes of rotary embedding: B, H, S, D, the rotary size R, and P rows of the
tables, or 0 if every token has its own. Sizes of packed sequences: as attention, but with lengths from `shortest` to
`longest`; `roll` is the shift of the key lengths against the query lengths.
"""

import fnmatch
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fastattn._arguments import ACTIVATIONS
from fastattn.commands.measuring import accuracy, dtypes

#: Number of rows of a large result that are compared with the oracle at its beginning, middle and end.
SAMPLED_ROWS = 8

#: Maximum number of random numbers in an array, which repeat after that; a prime, so that no two rows are alike.
DRAWN = 2**22 - 3

#: Bytes of the scale of each row of a quantised type.
SCALE_BYTES = {"int8": 4}

#: A call with at least this many operations per byte that it moves is reported in FLOP/s, others in B/s. Today's
#: processors do 5 to 20 multiply-adds of float32 in the time of a byte, and calls are far to either side: decoding and
#: layers of one row have 0.5 to 4, all other attention and layers 32 and more.
INTENSE = 8


@dataclass(frozen=True)
class Case:
    """One call of one operation.

    Attributes
    ----------
    name : str
        Unique among the cases.
    operation : str
        A key of `OPERATIONS`, and the function's name in the library.
    sizes : mapping of str to int
    options : mapping
        Further keyword arguments of the call.
    arrays : tuple of str
        Keys of `ARRAYS`: further arguments that are drawn with the inputs.
    dtype : str
    kv_dtype : str
        Type of keys and values, or of a weight, if it is not that of the first argument; int8 keys and values are in a
        cache only.
    cached : bool
        Whether keys and values are read from a KVCache, filled beforehand.
    out : bool
        Whether the call writes into a given array or allocates its result.
    """

    name: str
    operation: str
    sizes: Mapping[str, int]
    options: Mapping[str, object] = field(default_factory=dict)
    dtype: str = "float32"
    out: bool = False
    arrays: tuple = ()
    kv_dtype: str = ""
    cached: bool = False

    @property
    def title(self):
        """The operation for readers: attention bert-512, or softmax out=."""
        return OPERATIONS[self.operation].title(self)

    @property
    def shape(self):
        """The sizes for readers: 1×12×128×64, or 64×768."""
        return OPERATIONS[self.operation].shape(self)

    @property
    def described(self):
        """The shape, and the options that it does not show: their names, or their values if these are names."""
        shown = {"is_causal", "return_lse"}
        options = {name: value if isinstance(value, str) else name for name, value in self.options.items()}
        return " ".join([self.shape, *(options[name] for name in options if name not in shown), *self.arrays])

    @property
    def types(self):
        """The dtype, or that of the first argument and that of stored ones: bfloat16, or float32/bfloat16."""
        return "/".join(filter(None, [self.dtype, self.kv_dtype]))

    @property
    def flops(self):
        """Useful floating-point operations: products with excluded keys do not count."""
        return OPERATIONS[self.operation].flops(self)

    @property
    def traffic(self):
        """Minimum memory traffic in bytes: each input read once, each output written once."""
        return OPERATIONS[self.operation].traffic(self) * dtypes.named(self.dtype).itemsize + self.stored

    @property
    def stored(self):
        """The bytes of keys and values, or of a weight; 0 for operations without them."""
        name = self.kv_dtype or self.dtype
        itemsize, scale = dtypes.named(name).itemsize, SCALE_BYTES.get(name, 0)
        return sum(rows * (n * itemsize + scale) for rows, n in OPERATIONS[self.operation].stored(self))

    @property
    def unit(self):
        """The unit of its speed, on any machine: FLOP/s if it is bound by arithmetic, else B/s."""
        return "FLOP/s" if self.flops >= INTENSE * self.traffic else "B/s"

    @property
    def work(self):
        """The work of one call in its unit."""
        return self.flops if self.unit == "FLOP/s" else self.traffic

    @property
    def streaming(self):
        """The memory probe that bounds its speed: ``read`` or ``copy``."""
        return OPERATIONS[self.operation].streaming

    def inputs(self):
        """The arrays of the call by argument name; the same ones in every process."""
        return _inputs(self.operation, tuple(self.sizes.items()), self.arrays, self.dtype, self.kv_dtype)

    def parts(self, sampled=False):
        """What to compare with the oracle: (index of the result, arguments, options) of all of it or of samples."""
        arguments = self.inputs()
        choose = OPERATIONS[self.operation].parts if sampled else _whole
        for index, changed, options in choose(self, arguments):
            yield index, {**arguments, **changed}, {**self.options, **options}

    def verifier(self):
        """A function that checks a result, by samples of a large one."""
        return functools.partial(accuracy.check, parts=accuracy.expected(self, sampled=True))


def _whole(case, arguments):
    yield ..., {}, {}


@dataclass(frozen=True)
class Operation:
    """What the cases of one operation share; the functions take the case as first argument.

    Attributes
    ----------
    inputs : function of (draw, sizes) to a dict of arrays
    title, shape : functions to a string
    traffic : function to the numbers read and written, those of `stored` not counted
    stored : function to (rows, length) of the keys and of the values, or of the weight
    parts : function of (case, arguments) to samples of the result, as (index, changed arguments, changed options)
    flops : function to a count; 0 if memory alone bounds the operation
    streaming : str
        The memory probe that bounds it, ``read`` or ``copy``.
    """

    inputs: Callable
    title: Callable
    shape: Callable
    traffic: Callable
    parts: Callable = _whole
    flops: Callable = lambda case: 0
    streaming: str = "copy"
    stored: Callable = lambda case: ()


@functools.lru_cache(maxsize=1)
def _inputs(operation, sizes, arrays, dtype, kv_dtype):
    """Cached for cases that differ in `out` alone, which follow one another."""
    generator, kind = np.random.default_rng(0), dtypes.named(dtype)

    def draw(shape):
        """Normal numbers; they repeat after `DRAWN`, since drawing takes longer than most calls."""
        numbers = generator.standard_normal(min(math.prod(shape), DRAWN), dtypes.wide(kind))
        return np.resize(numbers.astype(kind, copy=False), shape)

    inputs = OPERATIONS[operation].inputs(draw, **dict(sizes))
    if kv_dtype and kv_dtype not in SCALE_BYTES:  # quantised types are quantised by the caller
        stored = [name for name in accuracy.STORED if name in inputs]
        inputs |= {name: inputs[name].astype(dtypes.named(kv_dtype)) for name in stored}
    return inputs | {argument: make(draw, **dict(sizes)) for argument, make in map(ARRAYS.get, arrays)}


# Attention


def _attention_inputs(draw, B, Hq, Hkv, Sq, Sk, D, Dv):
    return {"query": draw((B, Hq, Sq, D)), "key": draw((B, Hkv, Sk, D)), "value": draw((B, Hkv, Sk, Dv))}


def _weights_inputs(draw, **sizes):
    inputs = _attention_inputs(draw, **sizes)
    return {name: inputs[name] for name in ("query", "key")}


def _attention_parts(case, arguments):
    """First and last of batch and key-value heads, a head of each group; queries at the beginning, middle and end."""
    sizes = case.sizes
    group = sizes["Hq"] // sizes["Hkv"]
    batch, kv_heads = _ends(sizes["B"]), _ends(sizes["Hkv"])
    heads = [group * head + group - 1 for head in kv_heads]
    chosen = {"key": np.ix_(batch, kv_heads), "value": np.ix_(batch, kv_heads), "kv_lengths": batch}
    chosen |= {"sinks": heads, "alibi_slopes": heads, "position_bias": heads}
    shared = {name: arguments[name][index] for name, index in chosen.items() if name in arguments}
    offset = shared.get("kv_lengths", sizes["Sk"]) - sizes["Sq"]
    for rows in _blocks(sizes["Sq"]):
        index = np.ix_(batch, heads, rows)
        changed = {"query": arguments["query"][index], **shared}
        if "attn_mask" in arguments:
            scores = [sizes[axis] for axis in ("B", "Hq", "Sq", "Sk")]
            changed["attn_mask"] = np.broadcast_to(arguments["attn_mask"], scores)[index]
        yield index, changed, {"q_offset": offset + rows[0]}


def _attention_title(case):
    return f"attention {_original(case).removeprefix('attention-')}"


def _attention_shape(case):
    B, Hq, Hkv, Sq, Sk, D, Dv = case.sizes.values()
    heads = f"{Hq}" if Hq == Hkv else f"{Hq}/{Hkv}"
    tokens = f"{Sq}" if Sq == Sk else f"{Sq}→{Sk}"
    size = f"{D}" if Dv == D else f"{D}/{Dv}"
    return "×".join((f"{B}", heads, tokens, size)) + " causal" * case.options.get("is_causal", False)


def _attention_flops(case):
    """Two products, a multiplication and an addition each, for every pair of a query and a key it sees."""
    B, Hq, _, Sq, Sk, D, Dv = case.sizes.values()
    offset = case.options.get("q_offset", Sk - Sq)
    seen = np.clip(np.arange(Sq) + offset + 1, 0, Sk) if case.options.get("is_causal") else np.full(Sq, Sk)
    return 2 * B * Hq * int(seen.sum()) * (D + Dv)


def _attention_traffic(case):
    B, Hq, _, Sq, _, D, Dv = case.sizes.values()
    return B * Hq * Sq * (D + Dv)


def _attention_stored(case):
    """With kv_lengths, keys beyond the end of a sequence are not read."""
    B, _, Hkv, _, Sk, D, Dv = case.sizes.values()
    lengths = [make(None, **case.sizes) for name, make in map(ARRAYS.get, case.arrays) if name == "kv_lengths"]
    rows = Hkv * int(lengths[0].sum() if lengths else B * Sk)
    return (rows, D), (rows, Dv)


def _weights_traffic(case):
    B, Hq, _, Sq, Sk, D, _ = case.sizes.values()
    return B * Hq * Sq * (D + Sk)


def _weights_stored(case):
    """The keys alone."""
    return _attention_stored(case)[:1]


# Packed sequences


def long_tailed(count, shortest, longest):
    """Typical lengths of sequences, many short and a few long: their logarithms are uniform."""
    logarithms = np.random.default_rng(0).uniform(math.log1p(shortest), math.log1p(longest), count)
    lengths = np.expm1(logarithms).round().astype(int)
    lengths[:2] = [longest, shortest][:count]
    return lengths


def packed_lengths(sizes):
    """The query and the key length of each of the packed sequences."""
    lengths = long_tailed(sizes["B"], sizes["shortest"], sizes["longest"])
    return lengths, np.roll(lengths, sizes["roll"])


def _varlen_inputs(draw, **sizes):
    _, Hq, Hkv, *_, D, Dv = sizes.values()
    bounds = {
        f"cu_seqlens_{letter}": np.append(0, np.cumsum(lengths))
        for letter, lengths in zip("qk", packed_lengths(sizes), strict=True)
    }
    tokens = bounds["cu_seqlens_q"][-1]
    return {"query": draw((tokens, Hq, D)), "key": draw((tokens, Hkv, D)), "value": draw((tokens, Hkv, Dv)), **bounds}


def _varlen_title(case):
    return f"packed attention {_original(case)}"


def _varlen_shape(case):
    B, Hq, Hkv, shortest, longest, _, D, Dv = case.sizes.values()
    sizes = {"B": B, "Hq": Hq, "Hkv": Hkv, "Sq": 0, "Sk": 0, "D": D, "Dv": Dv}
    return _attention_shape(replace(case, sizes=sizes)).replace("×0×", f"×{shortest}…{longest}×")


def _varlen_flops(case):
    """As if every query saw all keys of its sequence."""
    queries, keys = packed_lengths(case.sizes)
    return 2 * case.sizes["Hq"] * int(queries @ keys) * (case.sizes["D"] + case.sizes["Dv"])


def _varlen_traffic(case):
    _, Hq, *_, D, Dv = case.sizes.values()
    return int(packed_lengths(case.sizes)[0].sum()) * Hq * (D + Dv)


def _varlen_stored(case):
    _, _, Hkv, *_, D, Dv = case.sizes.values()
    rows = int(packed_lengths(case.sizes)[1].sum()) * Hkv
    return (rows, D), (rows, Dv)


# Merging


def _merge_inputs(draw, P, S, Dv):
    """The logarithms of 16-bit attention are float32."""
    outs, lses = draw((P, S, Dv)), draw((P, S))
    return {"outs": list(outs), "lses": list(lses.astype(dtypes.wide(lses.dtype), copy=False))}


def _merge_traffic(case):
    P, S, Dv = case.sizes.values()
    return (P + 1) * S * (Dv + 1)


# Row operations


def _row_inputs(*names):
    """A maker of inputs: `x` and `residual` have rows, `weight` and `bias` are one row."""

    def make(draw, rows, n):
        return {name: draw((rows, n) if name in ("x", "residual") else (n,)) for name in names}

    return make


def _row_parts(case, arguments):
    """The rows at the beginning, middle and end; along another axis, all of them."""
    if "axis" in case.options:
        yield from _whole(case, arguments)
        return
    for rows in _blocks(case.sizes["rows"]):
        yield rows, {name: arguments[name][rows] for name in ("x", "residual") if name in arguments}, {}


def _row_title(case):
    return f"{case.operation}{' out=' * case.out}"


def _row_shape(case):
    return "×".join(map(str, case.sizes.values()))


def _row_traffic(arrays):
    """For an operation that reads and writes `arrays` arrays in all; the single row of a weight does not count."""
    return lambda case: arrays * case.sizes["rows"] * case.sizes["n"]


# Linear layers


def _linear_inputs(draw, rows, K, N):
    """Weights are scaled so that sums are about as large as their terms."""
    weight = draw((N, K))
    weight *= weight.dtype.type(max(K, 1) ** -0.5)
    return {"x": draw((rows, K)), "weight": weight, "bias": draw((N,))}


def _linear_title(case):
    return " ".join(filter(None, ["linear", case.options.get("activation"), "out=" * case.out]))


def _linear_shape(case):
    rows, K, N = case.sizes.values()
    return f"{rows}×{K}→{N}"


def _linear_flops(case):
    """Those of the product."""
    return 2 * math.prod(case.sizes.values())


def _linear_traffic(case):
    rows, K, N = case.sizes.values()
    return rows * (K + N)


def _linear_stored(case):
    return ((case.sizes["N"], case.sizes["K"]),)


# Rotary embedding


def _rotary_inputs(draw, B, H, S, D, R, P):
    """The sequences of a batch are at different positions."""
    angles = draw((P, R // 2) if P else (B, S, R // 2))
    arrays = {"x": draw((B, H, S, D)), "cos": np.cos(angles), "sin": np.sin(angles)}
    return arrays | ({"positions": (np.arange(S) + 7 * np.arange(B)[:, None]) % P} if P else {})


def _rotary_parts(case, arguments):
    """Tokens at the beginning, middle and end."""
    of_tokens = ("positions",) if "positions" in arguments else ("cos", "sin")
    for tokens in _blocks(case.sizes["S"]):
        index = np.s_[:, :, tokens]
        yield index, {"x": arguments["x"][index]} | {name: arguments[name][:, tokens] for name in of_tokens}, {}


def _rotary_title(case):
    return f"{case.operation}{' interleaved' * case.options.get('interleaved', False)}{' out=' * case.out}"


def _rotary_shape(case):
    B, H, S, D, R, _ = case.sizes.values()
    return f"{B}×{H}×{S}×{D}" + (f" rotary {R}" if R < D else "")


def _rotary_traffic(case):
    B, H, S, D, R, P = case.sizes.values()
    return 2 * B * H * S * D + min(B * S, P or B * S) * R


def _ends(length):
    return sorted({0, length - 1})


def _blocks(length, rows=SAMPLED_ROWS):
    """Lists of `rows` consecutive rows at the beginning, middle and end; of all rows when there are few."""
    if length <= 3 * rows:
        return [list(range(length))]
    return [list(range(start, start + rows)) for start in (0, (length - rows) // 2, length - rows)]


def _rows(inputs, arrays):
    return Operation(_row_inputs(*inputs.split()), _row_title, _row_shape, _row_traffic(arrays), _row_parts)


OPERATIONS = {
    "scaled_dot_product_attention": Operation(
        _attention_inputs,
        _attention_title,
        _attention_shape,
        _attention_traffic,
        _attention_parts,
        _attention_flops,
        streaming="read",
        stored=_attention_stored,
    ),
    "varlen_attention": Operation(
        _varlen_inputs,
        _varlen_title,
        _varlen_shape,
        _varlen_traffic,
        flops=_varlen_flops,
        streaming="read",
        stored=_varlen_stored,
    ),
    "attention_weights": Operation(
        _weights_inputs, _attention_title, _attention_shape, _weights_traffic, stored=_weights_stored
    ),
    "merge_states": Operation(_merge_inputs, _row_title, _row_shape, _merge_traffic),
    "softmax": _rows("x", 2),
    "log_softmax": _rows("x", 2),
    "layer_norm": _rows("x weight bias", 2),
    "rms_norm": _rows("x weight", 2),
    "add_layer_norm": _rows("x residual weight bias", 4),
    "add_rms_norm": _rows("x residual weight", 4),
    "linear": Operation(
        _linear_inputs,
        _linear_title,
        _linear_shape,
        _linear_traffic,
        _row_parts,
        _linear_flops,
        streaming="read",
        stored=_linear_stored,
    ),
    "rotary_embedding": Operation(_rotary_inputs, _rotary_title, _rotary_shape, _rotary_traffic, _rotary_parts),
}


#: Those whose keys and values, or weight, may be of another type than the first argument; and where that may be int8.
STORING = ("scaled_dot_product_attention", "varlen_attention", "attention_weights", "linear")
QUANTISED = ("linear",)


# Further arguments: what a case calls it, the argument, and function of (draw, sizes) to its array.


def _padding(share):
    """A bool mask for all queries alike: the last `share` of the keys are excluded."""

    def make(draw, B, Sk, **_):
        return np.tile(np.arange(Sk) < round((1 - share) * Sk), (B, 1, 1, 1))

    return make


def _padded_lengths(B, Sk, **_):
    return long_tailed(B, Sk // 32, Sk)


def _float_mask(draw, Sq, Sk, **_):
    mask = draw((Sq, Sk))
    return np.where(mask < -1, -np.inf, mask).astype(mask.dtype)


ARRAYS = {
    "bool mask": ("attn_mask", lambda draw, Sq, Sk, **_: draw((1, 1, Sq, Sk)) > 0),
    "bool mask by head": ("attn_mask", lambda draw, Hq, Sq, Sk, **_: draw((Hq, Sq, Sk)) > 0),
    "float mask": ("attn_mask", _float_mask),
    "padding 0 %": ("attn_mask", _padding(0)),
    "padding 10 %": ("attn_mask", _padding(0.1)),
    "padding 50 %": ("attn_mask", _padding(0.5)),
    "padding": (
        "attn_mask",
        lambda draw, **sizes: (np.arange(sizes["Sk"]) < _padded_lengths(**sizes)[:, None])[:, None, None],
    ),
    "half kv_lengths": ("kv_lengths", lambda draw, B, Sk, **_: np.full(B, Sk // 2)),
    "packed lengths": ("kv_lengths", lambda draw, B, Sk, **_: long_tailed(B, 16, Sk)),
    "kv_lengths": ("kv_lengths", lambda draw, **sizes: _padded_lengths(**sizes)),
    "q_offset": ("q_offset", lambda draw, B, **_: 13 * np.arange(B) - 3),
    "sinks": ("sinks", lambda draw, Hq, **_: draw((Hq,))),
    "alibi_slopes": ("alibi_slopes", lambda draw, Hq, **_: np.abs(draw((Hq,)))),
    "alibi_slopes by batch": ("alibi_slopes", lambda draw, B, Hq, **_: np.abs(draw((B, Hq)))),
    "position_bias": ("position_bias", lambda draw, Hq, **_: draw((Hq, 65))),
    "residual": ("residual", lambda draw, rows, N, **_: draw((rows, N))),
}


# The cases of `bench`: shapes of real models.

_ATTENTION = (
    # attention-...          B  Hq Hkv   Sq     Sk    D  options
    ("tiny",                 1,  8,  8,    8,     8,  16),
    ("bert-128",             1, 12, 12,  128,   128,  64),
    ("bert-128-batch-8",     8, 12, 12,  128,   128,  64),
    ("vit-197",              1, 12, 12,  197,   197,  64),
    ("bert-512",             1, 12, 12,  512,   512,  64),
    ("bert-512-batch-8",     8, 12, 12,  512,   512,  64),
    ("gpt-1024",             1, 12, 12, 1024,  1024,  64, {"is_causal": True}),
    ("one-head-2048",        1,  1,  1, 2048,  2048,  64, {"is_causal": True}),
    ("llama-2048",           1, 32,  8, 2048,  2048, 128, {"is_causal": True}),
    ("long-4096",            1,  8,  8, 4096,  4096, 128),
    ("append-64",            1, 32,  8,   64,  4096, 128),
    ("append-64-causal",     1, 32,  8,   64,  4096, 128, {"is_causal": True}),
    ("decode-1024-batch-8",  8, 32,  8,    1,  1024, 128),
    ("decode-4096",          1, 32,  8,    1,  4096, 128),
    ("decode-32768",         1, 32,  8,    1, 32768, 128),
)  # fmt: skip

_ROWS = {
    # operation: (rows, n) of one short row to hundreds of megabytes
    "softmax": (
        (1, 128), (1, 32000), (1536, 128), (6144, 512), (12288, 1024), (64, 32000), (2048, 32000),
    ),
    "layer_norm": (
        (1, 128), (1, 768), (128, 768), (1, 32000), (4096, 384), (4096, 768), (2048, 4096), (65536, 1024),
    ),
    "log_softmax": ((64, 32000),),
    "rms_norm": ((1, 4096), (2048, 4096)),
    "add_layer_norm": ((128, 768), (4096, 768)),
    "add_rms_norm": ((2048, 4096),),
}  # fmt: skip

_LINEAR = (
    # rows    K     N  activation
    (   1,  768, 3072, "gelu"),
    ( 128,  768, 3072, "gelu"),
    ( 512,  768, 3072, "gelu"),
    (4096,  768, 3072, "gelu"),
    ( 512,  768, 3072, "gelu_tanh"),
    (   1, 3072,  768),
    ( 128, 3072,  768),
    ( 512, 3072,  768),
    (4096, 3072,  768),
)  # fmt: skip

_ROTARY = (
    # B   H     S    D  options
    ( 1, 32,    1, 128),
    ( 8, 32,    1, 128),
    ( 1, 32,  128, 128),
    ( 1, 32, 2048, 128),
    ( 1, 32, 2048, 128, {"interleaved": True}),
)  # fmt: skip

#: The types besides float32 of a case, unless types are requested.
_ALSO = {
    "attention-bert-512": ("float64", "float16", "bfloat16"),
    "attention-gpt-1024": ("float64",),
    "attention-decode-32768": ("float16", "bfloat16"),
    "softmax-6144x512-out": ("float64", "float16", "bfloat16"),
    "layer_norm-4096x768-out": ("float64", "float16", "bfloat16"),
    "linear-1x768x3072-gelu-out": ("bfloat16",),
    "linear-128x768x3072-gelu-out": ("bfloat16",),
    "linear-512x768x3072-gelu-out": ("bfloat16",),
    "linear-4096x768x3072-gelu-out": ("bfloat16",),
}

#: The cases of ``bench`` by default: of each operation, the calls most common in models.
SHORT = (
    "attention-tiny",
    "attention-bert-128",
    "attention-bert-512",
    "attention-gpt-1024",
    "attention-decode-4096",
    "softmax-6144x512-out",
    "layer_norm-4096x768-out",
    "rms_norm-1x4096-out",
    "add_layer_norm-128x768-out",
    "linear-1x768x3072-gelu-out",
    "linear-512x768x3072-gelu-out",
    "rotary_embedding-1x32x128x128-out",
)


def _attention(name, B, Hq, Hkv, Sq, Sk, D, options=None):
    sizes = {"B": B, "Hq": Hq, "Hkv": Hkv, "Sq": Sq, "Sk": Sk, "D": D, "Dv": D}
    return Case(f"attention-{name}", "scaled_dot_product_attention", sizes, options or {})


def _row_case(operation, rows, n, out):
    return Case(f"{operation}-{rows}x{n}{'-out' * out}", operation, {"rows": rows, "n": n}, out=out)


def _linear_case(rows, K, N, activation="", *, out):
    name = "-".join(filter(None, [f"linear-{rows}x{K}x{N}", activation, "out" * out]))
    options = {"activation": activation} if activation else {}
    return Case(name, "linear", {"rows": rows, "K": K, "N": N}, options, out=out)


def _rotary_case(B, H, S, D, options=None, *, out):
    name = f"rotary_embedding-{B}x{H}x{S}x{D}{'-interleaved' * bool(options)}{'-out' * out}"
    return Case(name, "rotary_embedding", {"B": B, "H": H, "S": S, "D": D, "R": D, "P": 4096}, options or {}, out=out)


def in_dtype(case, dtype):
    """A case of float32 in another type, which its name then ends with."""
    return case if dtype == case.dtype else replace(case, name=f"{case.name}-{dtype}", dtype=dtype)


def _bench_cases():
    """Every row above, the row operations with and without `out`; those in other types after their originals."""
    cases = [_attention(*row) for row in _ATTENTION]
    cases += [_row_case(name, *sizes, out) for name, rows in _ROWS.items() for sizes in rows for out in (True, False)]
    cases += [_linear_case(*row, out=out) for row in _LINEAR for out in (True, False)]
    cases += [_rotary_case(*row, out=out) for row in _ROTARY for out in (True, False)]
    for case in cases:
        yield from (in_dtype(case, dtype) for dtype in dtypes.NEEDS)


#: The cases of ``bench`` and of ``benchmarks``, by name.
CASES = {case.name: case for case in _bench_cases()}


def chosen(pattern, asked=()):
    """The cases whose name has a match of a compiled regular expression.

    In the requested types; else in float32, and some also in other types.
    """
    return [case for case in CASES.values() if pattern.search(case.name) and _is_shown(case, asked)]


def selected(patterns, asked=()):
    """The cases that have one of these names, in the order of the cases; ``*`` stands for anything.

    Without requested types, a full name selects its single case, and a pattern the types of `chosen`. With them, names
    are those in float32.
    """

    def fits(case):
        if asked:
            return _is_shown(case, asked) and _has_one_of(patterns, _original(case))
        return case.name in patterns or (_is_shown(case) and _has_one_of(patterns, case.name))

    return list(filter(fits, CASES.values()))


def _has_one_of(patterns, name):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_shown(case, asked=()):
    return case.dtype in (asked or ("float32", *_ALSO.get(_original(case), ())))


def in_float32(case):
    """The same case in float32; None for one that is."""
    return None if case.dtype == "float32" else CASES[_original(case)]


def _original(case):
    """The name of the same case in float32."""
    return case.name.removesuffix(f"-{case.dtype}")


# The cases of `check`: awkward sizes.

_AWKWARD_ATTENTION = (
    # B  Hq Hkv  Sq    Sk    D   Dv  options
    (1,  1,  1,   1,    1,   1,   1),
    (2,  3,  3,   3,    5,   7,   7),
    (1,  2,  2,  17,   33,  64,  64),
    (2,  4,  2, 129,  257,  72,  40),
    (1,  8,  1,   5,  300,  65,  31),
    (2,  8,  2,   1, 1031, 128, 128),
    (1,  3,  3,  50,   50,  16, 200, {"scale": 2.0}),
    (1,  2,  1, 100,  100,  96,  96, {"is_causal": True}),
    (1,  6,  2,  31,   75,  80,  80, {"is_causal": True}),
    (1,  6,  2,  75,   31,  80,  80, {"is_causal": True}),
    (1,  2,  2,  40,   90,  33,  33, {"is_causal": True, "q_offset": 0}),
    (1,  1,  1,   7,    0,   8,   8),
    (0,  2,  2,   3,    4,   8,   8),
)  # fmt: skip

_EVERYTHING = ("float mask", "kv_lengths", "q_offset", "sinks", "alibi_slopes by batch", "position_bias")

_AWKWARD_VARIANTS = (
    # arrays, options of attention and of its weights
    (("bool mask",), {}),
    (("bool mask by head",), {}),
    (("float mask",), {}),
    (("padding",), {"is_causal": True}),
    ((), {"window": (9, 4)}),
    ((), {"window": (None, 2)}),
    ((), {"softcap": 1.5}),
    (("sinks",), {}),
    (("alibi_slopes",), {}),
    (("alibi_slopes by batch",), {"is_causal": True}),
    (("position_bias",), {}),
    (("kv_lengths",), {}),
    (("kv_lengths",), {"is_causal": True}),
    (("q_offset",), {"is_causal": True}),
    (_EVERYTHING, {"is_causal": True, "window": (40, 3), "softcap": 20.0, "scale": 0.3}),
)

#: Sizes of these, each in all variants: many queries; one, and two, of each of many sequences (decoding).
_VARIANT_SIZES = ((3, 4, 2, 67, 133, 40, 24), (16, 16, 4, 1, 301, 64, 64), (16, 16, 4, 2, 301, 64, 64))

_AWKWARD_VARLEN = (
    # B Hq Hkv shortest longest roll  D   Dv  arrays, options
    (1,  1,  1,       1,      1,   0,  1,  1, (), {}),
    (7,  2,  2,       0,     75,   0, 64, 64, (), {"is_causal": True}),
    (9,  6,  2,       0,     70,   1, 33, 20, (), {}),
    (9,  6,  2,       0,    140,   2, 33, 20, (), {"is_causal": True}),
    (5,  4,  4,       3,     90,   1, 16, 48, ("sinks", "alibi_slopes"), {"window": (20, 1)}),
    (5,  4,  4,       3,     90,   1, 64, 64, ("position_bias",), {}),
    (8,  4,  1,       3,     90,   1, 80, 80, ("sinks", "alibi_slopes by batch", "q_offset"),
     {"is_causal": True, "window": (40, 3), "softcap": 20.0, "kv_lengths": 3}),
)  # fmt: skip

_AWKWARD_ROWS = ((1, 1), (3, 2), (5, 31), (17, 64), (67, 33), (2, 1000), (3, 4099), (1, 70001))

_AWKWARD_LINEAR = (
    # rows   K    N  activation, arrays
    (  1,    1,   1),
    (  3,    3,   5, "relu", ("residual",)),
    (  5,    2,  33, "silu"),
    ( 67,    7,  31, "gelu_tanh", ("residual",)),
    ( 33,   65, 130, None, ("residual",)),
    (130,  257,  65, "gelu", ("residual",)),
    (  1, 1000, 300, "gelu"),
    (  2, 4099,  64),
    (  3, 70001, 17, "silu"),
)  # fmt: skip

_AWKWARD_ROTARY = (
    # B  H   S    D    R   P
    (1,  1,  1,   2,   2,  0),
    (2,  3,  5,   7,   4,  0),
    (2,  1, 33,  64,  64,  0),
    (3,  2, 17,  80,  20, 40),
    (1,  4,  1, 128, 128, 99),
    (2,  5, 31,  66,  66, 31),
    (1,  2, 67, 257, 250, 80),
)  # fmt: skip

_AWKWARD_OPTIONS = {
    "softmax": ({}, {"axis": 0}, {"where": np.arange(67)[:, None] % 5 > 1, "axis": 0}),
    "log_softmax": ({}, {"axis": 0}, {"where": np.arange(67)[:, None] % 5 > 1, "axis": 0}),
}


def _awkward_attention(B, Hq, Hkv, Sq, Sk, D, Dv, options=None):
    sizes = {"B": B, "Hq": Hq, "Hkv": Hkv, "Sq": Sq, "Sk": Sk, "D": D, "Dv": Dv}
    return Case("awkward", "scaled_dot_product_attention", sizes, {**(options or {}), "return_lse": True})


def _awkward_variants(operation):
    """Every option alone, some together, all together."""
    for row in _VARIANT_SIZES:
        for arrays, options in _AWKWARD_VARIANTS:
            yield replace(_awkward_attention(*row, options), operation=operation, arrays=arrays)


def _awkward_varlen(*row):
    *sizes, arrays, options = row
    named = dict(zip(("B", "Hq", "Hkv", "shortest", "longest", "roll", "D", "Dv"), sizes, strict=True))
    return Case("awkward", "varlen_attention", named, {**options, "return_lse": True}, arrays=arrays)


def _awkward_linear(rows, K, N, activation=None, arrays=()):
    options = {"activation": activation} if activation else {}
    return Case("awkward", "linear", {"rows": rows, "K": K, "N": N}, options, arrays=arrays)


def _check_cases():
    yield from (_awkward_attention(*row) for row in _AWKWARD_ATTENTION)
    yield from _awkward_variants("scaled_dot_product_attention")
    yield from (_awkward_varlen(*row) for row in _AWKWARD_VARLEN)
    yield from _awkward_variants("attention_weights")
    yield from (Case("awkward", "merge_states", {"P": parts, "S": 37, "Dv": 65}) for parts in (1, 2, 5))
    for name in _ROWS:
        for rows, n in _AWKWARD_ROWS:
            for options in _AWKWARD_OPTIONS.get(name, ({},)):
                if "where" not in options or rows == 67:
                    yield Case("awkward", name, {"rows": rows, "n": n}, options)
    yield from (_awkward_linear(*row) for row in _AWKWARD_LINEAR)
    # Rows of some hundred outputs, so that the formula's worst error is its own and not that of a lucky row.
    yield from (_awkward_linear(17, 40, 355, activation) for activation in ACTIVATIONS)
    for sizes in _AWKWARD_ROTARY:
        for interleaved in (False, True):
            named = dict(zip("BHSDRP", sizes, strict=True))
            yield Case("awkward", "rotary_embedding", named, {"interleaved": interleaved})


#: The cases of ``check``, which runs each in every dtype.
AWKWARD = tuple(_check_cases())
