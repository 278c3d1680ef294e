"""Time calls of real models, in comparison with NumPy.

By default it runs a dozen representative calls. NAME is a name printed in the table, or a pattern like 'attention-*';
--all runs every call. Each result is compared with the float64 reference before it is timed. fastattn and NumPy run in
separate processes, with the same number of threads, in turns. The exit code is 1 if a result of the library is wrong.
"""

import difflib
import json
from pathlib import Path

import fastattn
from fastattn.commands import files, options
from fastattn.commands.measuring import dtypes, erf, machine, results, tables
from fastattn.commands.measuring.cases import CASES, SHORT, selected
from fastattn.commands.measuring.engines import Pace
from fastattn.commands.measuring.peers import PEERS

#: The engine to compare with.
OTHER = "numpy"

#: The pattern of all names.
EVERY = ("*",)

PACE = Pace(rounds=5, seconds=0.04, patience=0.6)

#: The largest share of the machine's limit that is shown. A larger one means that others used the processors while the
#: limit was measured.
BELIEVED = 1.25

SCATTERS, DISTURBED = "~", "!"

LEGEND = {
    SCATTERS: f"rounds differ by more than {tables.percent(results.SCATTER)} of their median",
    DISTURBED: f"other processes, or the machine's host, used more than {machine.Others.ALLOWED} processors meanwhile",
}

NOTES = f"""\
NumPy: as an experienced user writes it, in place and in the same precision. For gelu it uses
{erf.NAME}.
Rate: useful work only, without excluded keys; in bytes for calls that are bound by memory.
Of limit: share of this machine's peak, measured now, in multiply-adds ({{arithmetic}})
or in reading or copying as many bytes; — if that was disturbed. Error: difference from the float64 reference,
where it comes closest to what is allowed.
Shapes: batch × heads × tokens × head size, 32/8 heads are grouped, 64→4096 tokens are queries → keys;
rows × inputs → outputs of a linear layer; rows × length. Names with "out" write into a given array."""


def add_arguments(parser):
    """Describe the command's arguments."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these calls, by name or pattern")
    parser.add_argument("--all", action="store_true", help="every call, in float32 and some in other types")
    options.add_dtype(parser, "float32, or that of the name")
    options.add_threads(parser)
    parser.add_argument("--plot", type=options.picture, metavar="FILE", help="also draw a chart: .svg, .png or .pdf")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments):
    """Measure, print one line for each case, and draw them."""
    cases, left_out = _cases(arguments)
    if arguments.plot is None:
        return _run(arguments, cases, left_out, lambda found, facts: None)
    try:
        from fastattn.commands import barchart
    except ImportError as error:
        raise SystemExit(f"bench --plot needs {error.name}: pip install 'fastattn[plot]'") from None
    with files.created(arguments.plot) as out:
        format = Path(arguments.plot).suffix[1:].lower()
        return _run(arguments, cases, left_out, lambda found, facts: barchart.save(out, format, found, OTHER, facts))


def _run(arguments, cases, left_out, draw):
    threads = arguments.threads or fastattn.get_num_threads()
    facts = machine.describe([OTHER, *erf.DISTRIBUTIONS], threads)
    others = machine.Others()
    found = results.collect(cases, ["fastattn", OTHER], PACE, threads)
    draw(found, facts)
    if arguments.json:
        data = {"machine": facts, "left_out": left_out, "results": [result.as_json() for result in found]}
        print(json.dumps(data, indent=2))
    else:
        below = [*_remarks(found), *left_out, _more(arguments), others.remark()]
        print("\n".join([machine.line(facts), "", _table(found), "", *filter(None, below)]))
    return 0 if all(result.ours.kept for result in found) else 1


def _cases(arguments):
    """The requested cases that can run here, and a line about each type that cannot."""
    wanted = _wanted(arguments)
    types = dict.fromkeys(case.dtype for case in wanted)
    cases = [case for case in wanted if not dtypes.absent(case.dtype)]
    if not cases:
        raise SystemExit("; ".join(dtypes.remarks(types)))
    return cases, dtypes.remarks(types)


def _wanted(arguments):
    if not arguments.names:
        return selected(EVERY if arguments.all else SHORT, arguments.dtype)
    for name in arguments.names:
        if not selected([name], arguments.dtype):
            near = difflib.get_close_matches(name, CASES, n=3)
            similar = f"similar are {', '.join(near)}; " if near else ""
            raise SystemExit(f"there is no call {name!r}; {similar}bench --all shows every name")
    return selected(arguments.names, arguments.dtype)


def _more(arguments):
    """How to see the calls that are not in the table."""
    if arguments.names or arguments.all:
        return ""
    return f"bench --all runs {len(selected(EVERY, arguments.dtype))} calls, bench NAME a single one."


def _table(found):
    header = ("name", "shape", "fastattn", "NumPy", "speed-up", "rate", "of limit", "error", "")
    return tables.text(header, [_row(result) for result in found], "llrrrrrrl", _painted(found))


def _row(result):
    ours = result.ours
    return [
        result.case.name,
        result.case.shape,
        tables.duration(ours.seconds),
        tables.duration(result.outcomes[OTHER].seconds),
        tables.ratio(result.speedup(OTHER)),
        tables.rate(result.rate, result.case.unit),
        tables.percent(result.share) if result.share <= BELIEVED else tables.NOTHING,
        tables.scientific(ours.error) if ours.kept else f"WRONG {tables.scientific(ours.error)}",
        _marks(result),
    ]


def _marks(result):
    return SCATTERS * result.scatters + DISTURBED * result.disturbed


def _painted(found):
    """A function that colours cells of the table by column: losses and errors stand out."""
    if not tables.in_colour():
        return lambda row, column, cell: cell

    def paint(row, column, cell):
        if row is None:
            return tables.painted(cell, "bold")
        result = found[row]
        colours = {
            4: "red" if result.speedup(OTHER) < 1 else "green",
            7: "" if result.ours.kept else "red",
            8: "yellow",
        }
        return tables.painted(cell, colours.get(column, ""))

    return paint


def _remarks(found):
    """The lines below the table."""
    marks = "".join(map(_marks, found))
    yield from (f"{mark} {meaning}" for mark, meaning in LEGEND.items() if mark in marks)
    mean = results.geometric_mean(result.speedup(OTHER) for result in found)
    yield f"{tables.ratio(mean)} the speed of NumPy (geometric mean)"
    for result in found:
        for name, outcome in result.outcomes.items():
            if outcome.failure:
                yield f"{PEERS[name].label} cannot run {result.case.name}: {outcome.failure}"
    limits = {result.case.dtype: tables.rate(result.arithmetic, "FLOP/s") for result in found}
    yield NOTES.format(arithmetic=", ".join(f"{limit} in {dtype}" for dtype, limit in limits.items()))
