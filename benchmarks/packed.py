"""Time linear layers with packed weights, and a decoder made of them, against the machine's limits.

    python benchmarks/packed.py             # print the tables; takes some minutes and two gigabytes
    python benchmarks/packed.py --page      # also write docs/performance/packed-weights.md

All types of a shape, with the weight as an array and packed, take turns with the probe of the limit. Times are medians
of rounds, ratios medians of the rounds' ratios.
"""

import argparse
import functools
import statistics
import time
from pathlib import Path

import numpy as np

import fastattn
from fastattn._core import probe, targets
from fastattn.commands.measuring import dtypes, machine
from fastattn.nn import TransformerEncoder, quantize
from report import Page, add_page, deliver

PAGE = Page(
    "packed-weights",
    "Packed weights",
    """\
Weights that stay are packed once, by `fastattn.pack` or when a model is loaded. A few rows are then bound by reading
the weight, many by the multiply-adds. "array" is the same call with the weight as it was; "of limit" is the share of
what the machine reads in the same rounds, or multiplies: by multiply-adds of float32, by dot products of bfloat16 where
it has them, and by twice as many of int8 in tiles (AMX), or four for each multiply-add in vectors (VNNI).""",
    "packed.py",
)

TYPES = ("float32", "bfloat16", "float16", "int8")

#: rows, inputs, outputs: weights beyond the cache, in it, and many rows.
READING = ((1, 8192, 8192), (2, 8192, 8192), (4, 8192, 8192))
CACHED = ((1, 768, 3072), (1, 3072, 768), (4, 768, 3072))
MULTIPLYING = (
    (16, 768, 3072), (64, 768, 768), (128, 768, 3072), (128, 3072, 768), (512, 1024, 1024), (2048, 384, 1536),
)  # fmt: skip

#: A decoder as large as is common for a billion weights, but of fewer layers.
DECODER = {"hidden": 2048, "heads": 16, "kv_heads": 4, "feed_forward": 5632, "layers": 4, "tokens": 256}

ROUNDS, SECONDS = 9, 0.05
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def timed(call):
    """Seconds of a call, from as many as fit the time of a turn."""
    count, begin = 0, time.perf_counter()
    while True:
        call()
        count += 1
        passed = time.perf_counter() - begin
        if passed > SECONDS:
            return passed / count


def in_turns(calls):
    """{name: times of all rounds} of calls that take turns."""
    times = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(call.rate() if isinstance(call, Probe) else timed(call))
    return times


class Probe:
    """A limit of the machine, in billions a second."""

    def __init__(self, measure, what, threads, factor=1):
        self.measure, self.factor = functools.partial(measure, what, num_threads=threads), factor

    def rate(self):
        """Measure it now."""
        return self.factor * self.measure()


def multiplying_limits(threads):
    """{type: the probe of its products}."""
    reals = Probe(probe.fma, "float32", threads)
    pairs = Probe(probe.dot, "bfloat16", threads) if probe.dot("bfloat16", threads) else reals
    fours = {
        "amx": Probe(probe.dot, "bfloat16", threads, 2),
        "avx512_bf16": Probe(probe.fma, "float32", threads, 4),
        "avx512_vnni": Probe(probe.fma, "float32", threads, 4),
    }.get(targets.current(), reals)
    return {"float32": reals, "bfloat16": pairs, "float16": reals, "int8": fours}


def ratio(above, below):
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def stored(weight, dtype):
    """A weight of that type as an array, or a pair for int8."""
    return quantize(weight) if dtype == "int8" else weight.astype(dtypes.named(dtype))


def linear_calls(shape, threads):
    """Calls with the weight as an array and packed, in each type."""
    rows, inputs, outputs = shape
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(outputs, inputs)).astype(np.float32)
    for dtype in TYPES:
        own = stored(weight, dtype)
        x = rng.normal(size=(rows, inputs)).astype("float32" if dtype == "int8" else dtypes.named(dtype))
        out = np.empty((rows, outputs), x.dtype)
        for name, form in (("array", own), ("packed", fastattn.pack(own))):
            yield (dtype, name), functools.partial(fastattn.linear, x, form, out=out, num_threads=threads)


def linear_rows(shapes, threads, reading):
    """Rows of a table of linear layers: of reading, or of multiply-adds."""
    for shape in shapes:
        rows, inputs, outputs = shape
        calls = dict(linear_calls(shape, threads))
        size = 4 * inputs * outputs
        reads = Probe(probe.read, size, threads)
        limits = dict.fromkeys(TYPES, reads) if reading else multiplying_limits(threads)
        times = in_turns(calls | {("limit", dtype): limit for dtype, limit in limits.items()})
        for dtype in TYPES:
            packed, array = times[dtype, "packed"], times[dtype, "array"]
            work = (size * BYTES[dtype] / 4 if reading else 2 * rows * inputs * outputs) / 1e9
            rates = [work / seconds for seconds in packed]
            yield (
                f"| {rows}×{inputs}→{outputs} | {dtype} | {statistics.median(rates):.1f} | "
                f"{ratio(rates, times['limit', dtype]):.0%} | {ratio(array, packed):.2f}× | "
                f"{ratio(times['float32', 'packed'], packed):.2f}× |"
            )


def decoder(dtype, pack):
    """A decoder of random weights, and its caches."""
    rng = np.random.default_rng(0)
    hidden, inner = DECODER["hidden"], DECODER["feed_forward"]
    size = hidden // DECODER["heads"]
    shapes = {
        "self_attn.in_proj_weight": (hidden + 2 * DECODER["kv_heads"] * size, hidden),
        "self_attn.out_proj.weight": (hidden, hidden), "linear1.weight": (2 * inner, hidden),
        "linear2.weight": (hidden, inner), "norm1.weight": (hidden,), "norm2.weight": (hidden,),
    }  # fmt: skip
    one = {name: rng.normal(size=shape, scale=0.02).astype(np.float32) for name, shape in shapes.items()}
    weights = {f"layers.{i}.{name}": x for i in range(DECODER["layers"]) for name, x in one.items()}
    model = TransformerEncoder.from_state_dict(
        weights, num_heads=DECODER["heads"], num_kv_heads=DECODER["kv_heads"], activation="silu", norm="rms",
        norm_first=True, bias=False, dtype=dtype, pack=pack,
    )  # fmt: skip
    caches = [fastattn.KVCache(1, DECODER["kv_heads"], 4096, size, dtype="float32") for _ in model.layers]
    model(rng.normal(size=(1, DECODER["tokens"], hidden)).astype(np.float32), caches=caches, is_causal=True)
    count = DECODER["layers"] * sum(np.prod(shape) for shape in shapes.values())
    return model, caches, int(count)


def step(model, caches, threads):
    """A call that decodes one token; the caches keep their length."""
    x = np.random.default_rng(1).normal(size=(1, 1, DECODER["hidden"])).astype(np.float32)

    def call():
        model(x, caches=caches, is_causal=True, num_threads=threads)
        for cache in caches:
            cache.truncate(DECODER["tokens"])

    return call


def decoder_rows(threads):
    """Rows of the table of the decoder."""
    calls, sizes = {"limit": Probe(probe.read, 2**28, threads)}, {}
    for dtype in TYPES:
        for pack in (False, True):
            model, caches, count = decoder(dtype, pack)
            calls[dtype, pack], sizes[dtype] = step(model, caches, threads), count * BYTES[dtype] / 1e9
    times = in_turns(calls)
    for dtype in TYPES:
        packed = times[dtype, True]
        bound = [rate / sizes[dtype] for rate in times["limit"]]
        yield (
            f"| {dtype} | {statistics.median(1 / s for s in packed):.1f} | {statistics.median(bound):.1f} | "
            f"{ratio([1 / s for s in packed], bound):.0%} | {ratio(times[dtype, False], packed):.2f}× | "
            f"{ratio(times['float32', True], packed):.2f}× |"
        )


def results(threads):
    """The page's tables."""
    for title, shapes, reading in (
        ("Few rows, weights beyond the cache", READING, True),
        ("Few rows, weights in the cache", CACHED, True),
        ("More rows", MULTIPLYING, False),
    ):
        rate = "GB/s of the weight" if reading else "GFLOP/s"
        yield f"## {title}\n"
        yield f"| rows×inputs→outputs | dtype | {rate} | of limit | vs. array | vs. float32 |"
        yield "| --- | --- | ---: | ---: | ---: | ---: |"
        yield from linear_rows(shapes, threads, reading)
        yield ""
    yield (
        "## A decoder\n\nOne token a step: hidden {hidden}, {heads} heads, {kv_heads} kv heads, gated feed-forward of "
        "{feed_forward}, {layers} layers, after {tokens} tokens. The bound is reading each weight once.\n"
    ).format(**DECODER)
    yield "| weights | tokens a second | bound | of bound | vs. arrays | vs. float32 |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    yield from decoder_rows(threads)
    yield ""
    yield machine.line(machine.describe(["numpy"], threads))


def main():
    """Measure, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=fastattn.get_num_threads(), help="number of threads")
    parser.add_argument("--json", type=Path, help="also write the page's lines there")
    add_page(parser)
    arguments = parser.parse_args()
    lines = list(results(arguments.threads))
    deliver("\n".join(lines), lines, arguments, PAGE)


if __name__ == "__main__":
    main()
