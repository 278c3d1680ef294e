"""Time decoding over long contexts, against the machine's read bandwidth, and write docs/performance/decoding.md.

    python benchmarks/decode.py                      # print the table; takes some minutes and some gigabytes
    python benchmarks/decode.py --only "ragged|loop" # some parts
    python benchmarks/decode.py --page               # also write the page

One query per sequence, keys and values larger than the last-level cache, in each type that they may be stored in, as
arrays and in a KVCache. All types of a shape take turns, together with PyTorch in a process of its own, and with a
probe that only reads as many bytes. Times are medians of rounds, ratios medians of the rounds' ratios. Missed targets
are shown in bold.
"""

import contextlib
import dataclasses
import math

import fastattn
from compare import parse
from fastattn.commands.measuring import dtypes, machine, tables
from fastattn.commands.measuring.engines import Engine, Outcome, Pace, contest
from laboratory.decode import ASKED, DECODING, Loop, Reader, cached
from laboratory.peers import PEERS
from report import Page, deliver

PAGE = Page(
    "decoding",
    "Decoding",
    "One new token over a long context is bound by reading keys and values, so the table counts their bytes.",
    "decode.py",
)

#: The name of the part that measures the time outside of attention, for --only.
LOOP = "loop over 32 caches"

#: The types of its caches, and the target for the share of a step that is spent outside of attention.
LOOP_TYPES, OUTSIDE = ("float32", "float16", "bfloat16"), 0.05

LEGEND = """\
Tokens per second, one new token per sequence, with keys and values in arrays and in a KVCache; "of read" is the rate at
which they read keys and values, as a share of the machine's best in the same rounds, when only reading. GB/s,
"vs. float32" and "speed-up" are of the better of both. Shapes: batch × heads × queries → tokens × head size. PyTorch
uses its fastest variant: the plain call, either memory order, the queries of a group folded into one head, or one
sequence after the other. int8 rows are read with their scales. **Bold** if a target is missed:
{asked}."""

LEGEND_OF_LOOP = """\
A step appends a token to each of 32 caches (8 kv heads × 128, 2048 tokens) and attends to it with 32 heads; attention
alone is the same number of calls with `out=` on the same memory, in turns. The last column also counts the calls' own
overhead of {calls}, measured with a single key, as outside. **Bold** above {outside}."""


@dataclasses.dataclass(frozen=True)
class Row:
    """The results for keys and values stored in one type."""

    label: str
    shape: str
    stored: str
    tokens: int
    nbytes: int
    arrays: Outcome
    cache: Outcome
    torch: Outcome
    read: Outcome
    float32: Outcome

    @property
    def best(self):
        """The faster one of arrays and cache."""
        ran = [outcome for outcome in (self.arrays, self.cache) if outcome.times]
        return min(ran, key=lambda outcome: outcome.seconds, default=Outcome())

    @property
    def growth(self):
        """Speed-up over float32."""
        return self.best.faster_than(self.float32)

    @property
    def speedup(self):
        """Speed-up over PyTorch."""
        return self.best.faster_than(self.torch)

    def rate(self, outcome):
        """Bytes of keys and values per second."""
        return self.nbytes / outcome.seconds

    def tokens_per_second(self, outcome):
        """New tokens per second, of all sequences."""
        return self.tokens / outcome.seconds

    def share(self, outcome):
        """The share of the read bandwidth that was reached."""
        return outcome.faster_than(self.read)

    def short(self, what, reached):
        """Whether the target was missed."""
        asked = dict(zip(("share", "growth", "torch"), ASKED[self.stored], strict=True))[what]
        return asked is not None and reached < asked

    def as_json(self):
        """The row as plain data."""
        ways = {"arrays": self.arrays, "cache": self.cache, "torch": self.torch}
        numbers = {
            name: {
                "tokens_per_second": self.tokens_per_second(outcome),
                "bytes_per_second": self.rate(outcome),
                "share_of_read": self.share(outcome),
                "error": outcome.error,
                "allowed": outcome.allowed,
            }
            for name, outcome in ways.items()
        }
        shown = {name: {key: _or_none(number) for key, number in line.items()} for name, line in numbers.items()}
        for name, outcome in ways.items():
            shown[name] |= {"variant": outcome.variant or None, "failure": outcome.failure or None}
        words = {"label": self.label, "shape": self.shape, "stored": self.stored, "bytes": self.nbytes}
        ratios = {"growth": self.growth, "over_torch": self.speedup}
        return words | shown | {name: _or_none(ratio) for name, ratio in ratios.items()}


def main(argv=None):
    """Measure, print the table, and write it where requested."""
    arguments = parse(argv, __doc__)
    threads = arguments.threads or fastattn.get_num_threads()
    present = [] if PEERS["torch"].absent else ["torch"]
    facts = machine.describe(["numpy", *present], threads)
    pace = Pace(arguments.rounds, arguments.seconds, patience=arguments.rounds * arguments.seconds * 5)
    labels = [label for label in DECODING if arguments.only.search(label)]
    loops = [name for name in dtypes.present(LOOP_TYPES) if arguments.only.search(LOOP)]
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(tables.Progress(len(labels) + len(loops)))
        engines = [stack.enter_context(Engine(name, threads)) for name in ("fastattn", *present)]
        rows = [row for label in labels for row in _measure(label, engines, Reader(threads), pace, progress)]
    with tables.Progress(len(loops)) as progress:
        steps = {name: _loop(name, threads, arguments.rounds, progress) for name in loops}
    data = {"machine": facts, "rows": [row.as_json() for row in rows], "loop": steps}
    deliver(render(rows, steps, present, facts), data, arguments, PAGE)


def _measure(label, engines, reader, pace, progress):
    """Measure all types of a shape, in turns."""
    progress.step(label)
    cases = {stored: case for stored, case in DECODING[label].items() if not dtypes.absent(stored)}
    entries = {}
    for stored, case in cases.items():
        entries["cache", stored] = engines[0], [cached(case)]
        entries["read", stored] = reader, [case]
        if not case.cached:
            entries["arrays", stored] = engines[0], [case]
            entries.update((("torch", stored), (engine, [case])) for engine in engines[1:])
    outcomes = dict(zip(entries, contest(list(entries.values()), pace), strict=True))
    best = {}
    for stored, case in cases.items():
        found = [outcomes.get((way, stored), Outcome()) for way in ("arrays", "cache", "torch", "read")]
        row = Row(label, case.shape, stored, case.sizes["B"], case.stored, *found, Outcome())
        best[stored] = row.best
        yield dataclasses.replace(row, float32=best["float32"])


def _loop(name, threads, rounds, progress):
    """Measure the loop; steps are short, so it has more rounds."""
    progress.step(f"{LOOP}, {name}")
    fastattn.set_num_threads(threads)
    return Loop(name).measure(10 * rounds)


def _or_none(number):
    """None for NaN, which JSON does not have."""
    return None if math.isnan(number) else number


# Tables


def render(rows, steps, present, facts):
    """The rows as Markdown: all types, the loop, then the facts of the machine."""
    blocks = []
    if rows:
        blocks += ["## One token more", _table(rows), *_remarks(rows), LEGEND.format(asked="; ".join(_asked()))]
    if steps:
        calls = tables.duration(max(times["calls"] for times in steps.values()))
        legend = LEGEND_OF_LOOP.format(calls=calls, outside=tables.percent(OUTSIDE))
        blocks += [f"## A {LOOP}", _table_of_steps(steps), legend]
    absent = [] if present else ["PyTorch was not installed."]
    return "\n\n".join([*blocks, *absent, *dtypes.remarks(ASKED), machine.line(facts)])


def _table(rows):
    header = ("", "shape", "keys, values", "arrays", "of read", "KVCache", "of read")
    header = (*header, "GB/s", "vs. float32", "PyTorch", "speed-up")
    return tables.markdown(header, [_line(row) for row in rows], "lll" + "r" * (len(header) - 3))


def _line(row):
    def marked(what, text, reached):
        return f"**{text(reached)}**" if row.short(what, reached) else text(reached)

    line = [row.label, row.shape, row.stored]
    for outcome in (row.arrays, row.cache):
        line += [tables.count(row.tokens_per_second(outcome)), marked("share", tables.percent, row.share(outcome))]
    line.append(tables.count(row.rate(row.best) / 1e9))
    line.append("" if row.stored == "float32" else marked("growth", tables.ratio, row.growth))
    return [*line, tables.count(row.tokens_per_second(row.torch)), marked("torch", tables.ratio, row.speedup)]


def _asked():
    """The targets in words."""
    for stored, (share, growth, torch) in ASKED.items():
        words = [f"{tables.percent(share)} of read"]
        words += [] if growth is None else [f"{tables.ratio(growth)} float32"]
        words += [] if torch is None else [f"{tables.ratio(torch)} PyTorch"]
        yield f"{stored} {', '.join(words)}"


def _remarks(rows):
    """A line for each call that did not run, or whose error is too large."""
    for row in rows:
        for way, outcome in (("arrays", row.arrays), ("KVCache", row.cache), ("PyTorch", row.torch)):
            where = f"{row.label}, {row.stored}, {way}"
            if outcome.failure:
                yield f"{where}: {outcome.failure}"
            elif outcome.times and not outcome.kept and way != "PyTorch":
                allowed = tables.scientific(outcome.allowed)
                yield f"{where}: WRONG, error {tables.scientific(outcome.error)} where {allowed} is allowed"


def _table_of_steps(steps):
    header = ("keys, values", "step", "attention alone", "outside", "and the calls' own")
    return tables.markdown(header, [_line_of_step(name, **times) for name, times in steps.items()], "lrrrr")


def _line_of_step(name, step, bare, calls, outside):
    shown = tables.percent(outside)
    times = [tables.duration(seconds) for seconds in (step, bare)]
    return [name, *times, f"**{shown}**" if outside > OUTSIDE else shown, tables.percent(outside + calls / step)]


if __name__ == "__main__":
    main()
