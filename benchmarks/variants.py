"""Time the options of attention and packed sequences, and write docs/performance/options.md.

    python benchmarks/variants.py                          # print the table; takes some minutes
    python benchmarks/variants.py --only "softcap|packed"  # some rows
    python benchmarks/variants.py --page                   # also write the page

A call with an option and without it, and packed and padded sequences, take turns in one process. PyTorch has a process
of its own, and takes turns with fastattn's. Times are medians of rounds, ratios medians of the rounds' ratios. Missed
targets are shown in bold.
"""

import contextlib
import dataclasses
import math

import fastattn
from compare import parse
from fastattn.commands.measuring import machine, tables
from fastattn.commands.measuring.engines import Engine, Outcome, Pace, race
from fastattn.commands.measuring.results import geometric_mean
from laboratory.peers import PEERS
from laboratory.variants import AGAINST, OPTIONS, PACKED, duel
from report import Page, deliver

PAGE = Page(
    "options",
    "Options of attention",
    """\
Each option against the same call without it, in turns in one process; then PyTorch, and packed sequences. "Asked" is
the project's own target.""",
    "variants.py",
)

LEGEND = """\
Shapes: batch × heads × tokens × head size; 64/128 are the head sizes of keys and of values. **Bold** if a ratio misses
its target, or fastattn is slower. PyTorch uses its fastest variant: a mask as bool or as numbers, either memory order,
a padded batch or one sequence after the other."""


@dataclasses.dataclass(frozen=True)
class Row:
    """The two outcomes of a row of the table, and the target of their ratio, if any."""

    label: str
    shape: str
    ours: Outcome
    other: Outcome
    asked: float = math.nan

    @property
    def speedup(self):
        """The other one's time over ours."""
        return self.ours.faster_than(self.other)

    @property
    def cost(self):
        """Our time over the other one's."""
        return self.other.faster_than(self.ours)

    def as_json(self):
        """The row as plain data."""
        numbers = {"seconds": self.ours.seconds, "other_seconds": self.other.seconds, "speedup": self.speedup}
        numbers |= {"asked": self.asked, "error": self.ours.error, "allowed": self.ours.allowed}
        words = {"label": self.label, "shape": self.shape, "other_variant": self.other.variant}
        failures = {"failure": self.ours.failure, "other_failure": self.other.failure}
        shown = {name: None if math.isnan(number) else number for name, number in numbers.items()}
        return {**words, **shown, **{name: failure or None for name, failure in failures.items()}}


def main(argv=None):
    """Measure, print the table, and write it where requested."""
    arguments = parse(argv, __doc__)
    threads = arguments.threads or fastattn.get_num_threads()
    present = [] if PEERS["torch"].absent else ["torch"]
    facts = machine.describe(["numpy", *present], threads)
    pace = Pace(arguments.rounds, arguments.seconds)
    plan = {name: [row for row in rows if arguments.only.search(row[0])] for name, (rows, _, _) in PARTS.items()}
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(tables.Progress(sum(map(len, plan.values()))))
        engines = [stack.enter_context(Engine(name, threads)) for name in ("fastattn", *present)]
        measured = {name: _measure(name, rows, engines, pace, progress) for name, rows in plan.items()}
    data = {"machine": facts, **{name: [row.as_json() for row in rows] for name, rows in measured.items()}}
    deliver(render(measured, present, facts), data, arguments, PAGE)


def _measure(part, plan, engines, pace, progress):
    rows = []
    for name, *what in plan:
        progress.step(name)
        rows += PARTS[part][1](name, *what, engines, pace)
    return rows


def _option(name, case, plain, asked, engines, pace):
    outcomes = duel({"with": [case], "without": [plain]}, engines[0], pace)
    yield Row(name, case.shape.removesuffix(" causal"), outcomes["with"], outcomes["without"], asked)


def _against(name, case, engines, pace):
    outcomes = race(case, engines, pace)
    yield Row(name, case.shape, outcomes["fastattn"], outcomes.get("torch", Outcome()), 1.0)


def _packed(name, case, alternatives, engines, pace):
    """The packed call and each alternative in one process; then PyTorch, with its own alternatives."""
    for label, cases, asked in alternatives:
        outcomes = duel({name: [case], label: cases}, engines[0], pace)
        yield Row(label, case.shape, outcomes[name], outcomes[label], asked)
    (row,) = _against("PyTorch", case, engines, pace)
    yield dataclasses.replace(row, label=", ".join(filter(None, [row.label, row.other.variant])))


# Tables


def render(measured, present, facts):
    """The rows as Markdown: a table for each part, then the facts of the machine."""
    blocks = [block for name, rows in measured.items() if rows for block in (f"## {name}", *PARTS[name][2](rows))]
    absent = [] if present else ["PyTorch was not installed."]
    return "\n\n".join([*blocks, LEGEND, *absent, machine.line(facts)])


def _table_of_options(rows):
    header = ("option", "shape", "without", "with", "ratio", "asked")
    yield _table(header, rows, lambda row: (row.other, row.ours, row.cost, row.cost > row.asked, "≤ "))


def _table_against(rows):
    header = ("", "shape", "fastattn", "PyTorch", "speed-up", "asked")
    yield _table(header, rows, lambda row: (row.ours, row.other, row.speedup, row.speedup < row.asked, "≥ "))
    yield f"Geometric mean: {tables.ratio(geometric_mean(row.speedup for row in rows))}; asked: ≥ 1.80×."


def _table_of_packed(rows):
    header = ("instead of packed", "shape", "packed", "instead", "speed-up", "asked")
    yield _table(header, rows, lambda row: (row.ours, row.other, row.speedup, row.speedup < row.asked, "≥ "))


def _table(header, rows, read):
    """`read` returns for a row: both outcomes, the ratio, whether it misses the target, the sign before the target."""
    return tables.markdown(header, [_line(row, *read(row)) for row in rows], "llrrrr")


def _line(row, first, second, ratio, short, sign):
    shown, asked = tables.ratio(ratio), "" if math.isnan(row.asked) else sign + tables.ratio(row.asked)
    times = [tables.duration(outcome.seconds) for outcome in (first, second)]
    return [row.label, row.shape, *times, f"**{shown}**" if short else shown, asked]


#: The parts of the table: title → what to measure, the name first; how to; how to show it.
PARTS = {
    "Options, against the same call without": (OPTIONS, _option, _table_of_options),
    "Against PyTorch": (AGAINST, _against, _table_against),
    "Packed sequences": (PACKED, _packed, _table_of_packed),
}


if __name__ == "__main__":
    main()
