"""The cases of benchmarks/decode.py: one query per sequence, over keys and values larger than any cache.

As data: the shapes, the types of keys and values, and the targets. Also two special measurements: reading as many
bytes, and a loop over as many caches as a model has layers.
"""

import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import fastattn
from fastattn._core import probe
from fastattn.commands.measuring import dtypes
from fastattn.commands.measuring.cases import SCALE_BYTES, Case
from fastattn.commands.measuring.engines import Outcome

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def largest_cache():
    """Size of the first processor's largest cache in bytes, as reported by Linux; else 0."""
    sizes = (file.read_text().strip() for file in _CACHES.glob("index*/size"))
    return max((int(size.removesuffix("K")) << 10 for size in sizes), default=0)


#: Bytes of keys and values in the narrowest type, int8: more than any cache of this machine, and of most others.
LARGE = max(64 << 20, math.ceil(1.1 * largest_cache()))

_SHAPES = (
    # label             B  Hq Hkv    D  in use  arrays
    ("one query",       1,  8,  8, 128, 1.0,    ()),
    ("grouped",         1, 32,  8, 128, 1.0,    ()),
    ("single kv head",  1,  4,  1, 128, 1.0,    ()),
    ("ragged batch",    8, 32,  8, 128, 0.4,    ("kv_lengths",)),
)  # fmt: skip

#: By type of keys and values, the targets: share of the read bandwidth, speed-up over float32, and over PyTorch.
ASKED = {
    "float32": (0.85, None, None),
    "bfloat16": (0.85, 1.8, 8.0),
    "float16": (0.85, 1.8, None),
    "int8": (0.70, 3.0, None),
}


def _case(label, stored, B, Hq, Hkv, D, in_use, arrays):
    Sk = math.ceil(LARGE / (2 * B * Hkv * D * in_use) / 4096) * 4096
    sizes = {"B": B, "Hq": Hq, "Hkv": Hkv, "Sq": 1, "Sk": Sk, "D": D, "Dv": D}
    case = Case(f"{label}, {stored}", "scaled_dot_product_attention", sizes, dtype=stored, arrays=arrays)
    return replace(case, dtype="float32", kv_dtype=stored, cached=True) if stored in SCALE_BYTES else case


def cached(case):
    """The same with keys and values in a KVCache."""
    return case if case.cached else replace(case, name=f"{case.name}, cached", cached=True)


#: By label, the case of each type of keys and values; quantised ones are in a KVCache.
DECODING = {label: {stored: _case(label, stored, *row) for stored in ASKED} for label, *row in _SHAPES}


class Reader:
    """Takes turns with engines: its time for a case is that of only reading the case's keys and values."""

    name = "read"

    def __init__(self, threads):
        self.threads = threads

    def prepare(self, case, keep=False):
        """Nothing to prepare."""
        return Outcome(variant="read")

    def time(self, seconds, cases):
        """The best of the probe's tries, whose number is fixed: `seconds` is ignored."""
        nbytes = sum(case.stored for case in cases)
        return nbytes / (1e9 * probe.read(nbytes, num_threads=self.threads))


class Loop:
    """The decoding of a token by a model's caches, without the model.

    A step appends one token to each of `layers` caches, which then hold `tokens`, and attends to it. For comparison,
    attention alone: the same number of calls on the same memory.
    """

    #: Query heads, kv heads, their size.
    HEADS, KV_HEADS, SIZE = 32, 8, 128

    def __init__(self, dtype, layers=32, tokens=2048):
        self.layers, self.tokens = layers, tokens
        generator, kind = np.random.default_rng(0), dtypes.named(dtype)

        def draw(heads, length):
            return generator.standard_normal((1, heads, length, self.SIZE), np.float32).astype(kind)

        self.query, self.out = draw(self.HEADS, 1), np.empty((1, self.HEADS, 1, self.SIZE), kind)
        self.new = draw(self.KV_HEADS, 1), draw(self.KV_HEADS, 1)
        self.caches = [fastattn.KVCache(1, self.KV_HEADS, tokens, self.SIZE, dtype=dtype) for _ in range(layers)]
        for cache in self.caches:
            cache.append(draw(self.KV_HEADS, tokens), draw(self.KV_HEADS, tokens))
        self.stored = [(cache.keys[:, :, :tokens], cache.values[:, :, :tokens]) for cache in self.caches]

    def step(self):
        """Append and attend, layer by layer."""
        for cache in self.caches:
            cache.append(*self.new)
            cache.attend(self.query, out=self.out)

    def back(self):
        """Remove the step's token again; this is not timed."""
        for cache in self.caches:
            cache.truncate(self.tokens - 1)

    def bare(self, tokens=None):
        """Attend to the first `tokens` tokens, layer by layer."""
        for key, value in self.stored:
            fastattn.scaled_dot_product_attention(self.query, key[:, :, :tokens], value[:, :, :tokens], out=self.out)

    def measure(self, rounds):
        """Median seconds of a step, of its attention alone, and of as many calls with a single key.

        Each round has one of each, the first two in alternating order. The share of a step that is spent outside of
        attention is also a median over the rounds.
        """
        self.back()
        times = [self._round(turn) for turn in range(rounds + 1)][1:]  # the first one woke the threads
        step, bare, calls = map(statistics.median, zip(*times, strict=True))
        outside = statistics.median(1 - bare / step for step, bare, _ in times)
        return {"step": step, "bare": bare, "calls": calls, "outside": outside}

    def _round(self, turn):
        if turn % 2:
            step, bare = self._step(), _seconds(self.bare)
        else:
            bare, step = _seconds(self.bare), self._step()
        return step, bare, _seconds(lambda: self.bare(1))

    def _step(self):
        seconds = _seconds(self.step)
        self.back()
        return seconds


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
