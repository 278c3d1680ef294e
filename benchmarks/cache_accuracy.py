"""Measure the error of attention over a cache of 16 or 8 bits, against exact keys and values.

    python benchmarks/cache_accuracy.py             # print the table; takes a few seconds
    python benchmarks/cache_accuracy.py --page      # write docs/performance/cache-accuracy.md

The keys and values imitate those of trained models: components and tokens of different magnitudes, keys that share a
direction, and a few outlier channels, many times as large as the rest. Queries are close to some of the keys, so that
weights are uneven: for a median query, the top 4 of 2048 keys have half of the weight.
"""

import dataclasses

import numpy as np

import fastattn
from fastattn import reference
from report import Page, print_or_write

PAGE = Page(
    "cache-accuracy",
    "Accuracy of caches",
    """\
The cost of narrower storage, for keys and values like those of trained models, 2048 tokens, 128 components: the error
of attention relative to the size of its result, over all rows, and in brackets that of the worst of 2048 rows. Each
int8 row has a scale, so a few channels that are much larger than the others reduce the precision of the rest: keys with
such outliers need 16 bits.""",
    "cache_accuracy.py",
)

DTYPES = ("float32", "float16", "bfloat16", "int8")
HEADS, KV_HEADS, TOKENS, SIZE, QUERIES = 8, 2, 2048, 128, 64


@dataclasses.dataclass(frozen=True)
class Outliers:
    """Channels of the keys, and as many of the values, that are multiplied by these factors."""

    label: str
    channels: int = 0
    keys: float = 1
    values: float = 1


OUTLIERS = (Outliers("none"), Outliers("4 channels, 5×", 4, 5, 5), Outliers("4 channels, 20×", 4, 20, 5))


def trained_like(rng, outliers):
    """query (1, heads, queries, size), key and value (1, kv heads, tokens, size), in float32."""
    channels = rng.lognormal(0, 0.5, size=(2, KV_HEADS, 1, SIZE))
    tokens = rng.lognormal(0, 0.3, size=(2, KV_HEADS, TOKENS, 1))
    key, value = rng.normal(size=(2, KV_HEADS, TOKENS, SIZE)) * channels * tokens
    key = key + 2 * rng.normal(size=(KV_HEADS, 1, SIZE))
    near = key[:, rng.integers(0, TOKENS, QUERIES * HEADS // KV_HEADS)]
    query = near.reshape(HEADS, QUERIES, SIZE) * 0.4 + rng.normal(size=(HEADS, QUERIES, SIZE)) * 0.5
    at = rng.permutation(SIZE)[: outliers.channels]
    key[..., at] *= outliers.keys
    query[..., at] /= outliers.keys  # else those channels would dominate the scores
    value[..., at] *= outliers.values
    return [x[None].astype(np.float32) for x in (query, key, value)]


def error(dtype, outliers, draws=4):
    """Relative error in root mean square: over all rows, and of the worst row."""
    squares = []
    for seed in range(draws):
        query, key, value = trained_like(np.random.default_rng(seed), outliers)
        exact = reference.scaled_dot_product_attention(query, key, value)
        cache = fastattn.KVCache(1, KV_HEADS, TOKENS, SIZE, dtype=dtype)
        cache.append(key, value)
        squares.append(np.mean((cache.attend(query) - exact) ** 2, axis=-1) / np.mean(exact**2, axis=-1))
    return float(np.sqrt(np.mean(squares))), float(np.sqrt(np.max(squares)))


def bits(dtype):
    """Bits per element, including its share of the row's scale."""
    return fastattn.KVCache(1, 1, 1, SIZE, dtype=dtype).nbytes * 8 / (2 * SIZE)


def percent(x):
    """A percentage with two digits."""
    return f"{float(f'{100 * x:.2g}'):g} %"


def table():
    """The table, in Markdown."""
    head = " | ".join(f"outliers: {outliers.label}" for outliers in OUTLIERS)
    lines = [f"| stored as | bits an element | {head} |", "| --- " + "| ---: " * (1 + len(OUTLIERS)) + "|"]
    for dtype in DTYPES:
        cells = [" (".join(percent(x) for x in error(dtype, outliers)) + ")" for outliers in OUTLIERS]
        lines.append(f"| {dtype} | {bits(dtype):g} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print_or_write(table, PAGE, __doc__)
