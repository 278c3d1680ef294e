"""Compare with PyTorch on random shapes, and write docs/performance/random-shapes.md.

    python benchmarks/random_shapes.py                      # print the tables of all threads and of one: half an hour
    python benchmarks/random_shapes.py --only "linear|packed" --dtype float32 --shapes 200
    python benchmarks/random_shapes.py --seed 7             # other shapes
    python benchmarks/random_shapes.py --page               # also write the page

Both engines run in processes of their own, in turns, and use their fastest variant. The tables show how often fastattn
is slower, by how much, and the shapes that are worst.
"""

import contextlib
import math
from collections import defaultdict

import fastattn
from compare import parse
from fastattn.commands import options
from fastattn.commands.measuring import dtypes, machine, tables
from fastattn.commands.measuring.engines import Engine, Pace, contest
from fastattn.commands.measuring.results import geometric_mean
from laboratory.peers import PEERS
from laboratory.random_cases import KINDS, drawn
from report import Page, deliver

PAGE = Page(
    "random-shapes",
    "Random shapes against PyTorch",
    """\
Calls of random shapes, types and options, in turns with PyTorch: what a user meets who has none of the shapes of the
other pages.

![Distribution of the ratios](random-shapes.svg)""",
    "random_shapes.py",
)

#: The variants of both engines for plain and for packed weights; otherwise each takes its fastest.
VARIANTS = {
    ("fastattn", "linear"): "linear",
    ("fastattn", "packed"): "linear, packed",
    ("torch", "linear"): "linear, gelu",
}

#: The bounds of the columns that count ratios: of a user's notice, of noise, and of a factor.
BOUNDS = (0.5, 0.8, 0.97, 1.03, 1.5, 2, 4)

WORST = 20

LEGEND = """\
Sizes are log-uniform. A ratio is PyTorch's time over fastattn's. "linear" is `fastattn.linear` with an array beside
`torch.nn.functional.linear`, "packed" the same with a `PackedWeight` beside the fastest of PyTorch's, its packed
weights among them; "columns" is softmax along the first axis."""


class Chooser(Engine):
    """An engine that takes the variant of `VARIANTS`."""

    def prepare(self, case, keep=False, variant=""):
        """As `Engine.prepare`."""
        return super().prepare(case, keep, variant or VARIANTS.get((self.name, kind_of(case)), ""))


def main(argv=None):
    """Measure, print the tables, and write them where requested."""
    arguments = parse(argv, __doc__, _add_options)
    numbers = [arguments.threads] if arguments.threads else sorted({fastattn.get_num_threads(), 1}, reverse=True)
    if PEERS["torch"].absent:
        raise SystemExit("this needs PyTorch: pip install '.[bench]'")
    facts = machine.describe(["numpy", "torch"], numbers[0])
    types = dtypes.present(arguments.dtype or ("float32", "bfloat16", "float16"))
    kinds = [kind for kind in KINDS if arguments.only.search(kind)]
    cases = [case for kind in kinds for case in drawn(kind, arguments.shapes, arguments.seed, types)]
    pace = Pace(arguments.rounds, arguments.seconds)
    with tables.Progress(len(numbers) * len(cases)) as progress:
        measured = {threads: _measure(cases, threads, pace, progress) for threads in numbers}
    data = {
        "machine": facts,
        "seed": arguments.seed,
        "results": [_as_json(threads, *row) for threads, rows in measured.items() for row in rows],
    }
    parts = [render(rows, "one thread" if threads == 1 else "") for threads, rows in measured.items()]
    deliver("\n\n".join([*parts, f"{LEGEND} Seed {arguments.seed}.", machine.line(facts)]), data, arguments, PAGE)


def _measure(cases, threads, pace, progress):
    """Each case and the outcomes of both engines."""
    rows = []
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(Chooser(name, threads)) for name in ("fastattn", "torch")]
        for case in cases:
            progress.step(case.name)
            rows.append((case, *contest([(engine, [case]) for engine in engines], pace)))
    return rows


def _add_options(parser):
    options.add_dtype(parser, default="float32, bfloat16 and float16")
    parser.add_argument("--shapes", type=options.count, default=50, help="of each kind and type (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the shapes (default: 0)")
    parser.set_defaults(rounds=3, seconds=0.02)


def kind_of(case):
    """The kind of a drawn case."""
    return case.name.partition(" ")[0]


def render(rows, condition=""):
    """The tables as Markdown: means and counts of ratios by kind and type, then the worst shapes, then failures."""
    suffix = f", {condition}" if condition else ""
    groups = defaultdict(list)
    for case, ours, theirs in rows:
        if not math.isnan(ratio := ours.faster_than(theirs)):
            groups[kind_of(case), case.dtype].append(ratio)
    compared = [row for row in rows if not math.isnan(row[1].faster_than(row[2]))]
    worst = sorted(compared, key=lambda row: row[1].faster_than(row[2]))[:WORST]
    failures = [
        f"{case.name}, {case.described}, {name}: {outcome.failure}."
        for case, *pair in rows
        for name, outcome in zip(("fastattn", "PyTorch"), pair, strict=True)
        if outcome.failure
    ]
    blocks = [
        f"## Ratios{suffix}",
        tables.markdown(_HEADER, [_summary(*key, found) for key, found in groups.items()], "ll" + "r" * 11),
        f"## The worst {WORST}{suffix}",
        tables.markdown(
            ("", "shape", "dtype", "fastattn", "PyTorch", "ratio"),
            [_line(*row) for row in worst],
            "lllrrr",
        ),
        *failures,
    ]
    return "\n\n".join(blocks)


_HEADER = (
    *("", "dtype", "shapes", "geometric mean", "least"),
    *(f"below {bound}" for bound in BOUNDS),
    f"{BOUNDS[-1]} and more",
)


def _summary(kind, dtype, ratios):
    places = [sum(ratio >= bound for bound in BOUNDS) for ratio in ratios]
    counts = [places.count(place) for place in range(len(BOUNDS) + 1)]
    mean, least = tables.ratio(geometric_mean(ratios)), tables.ratio(min(ratios))
    return [kind, dtype, str(len(ratios)), mean, least, *map(str, counts)]


def _line(case, ours, theirs):
    times = [tables.duration(outcome.seconds) for outcome in (ours, theirs)]
    return [kind_of(case), case.described, case.dtype, *times, tables.ratio(ours.faster_than(theirs))]


def _as_json(threads, case, ours, theirs):
    return {
        "threads": threads,
        "case": case.name,
        "shape": case.described,
        "dtype": case.dtype,
        "variants": [ours.variant, theirs.variant],
        "seconds": [ours.seconds, theirs.seconds],
        "ratio": ours.faster_than(theirs),
        "failures": [outcome.failure for outcome in (ours, theirs) if outcome.failure],
    }


if __name__ == "__main__":
    main()
