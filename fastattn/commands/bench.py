"""Time real model shapes beside NumPy.

Every result is compared with the float64 oracle before it is timed. Each engine runs in a process of its own, on
the same number of threads, in turns with the others. The exit code is 1 when a result of the library is wrong.
"""

import json

import fastattn
from fastattn.commands import options
from fastattn.commands.measuring import dtypes, machine, tables
from fastattn.commands.measuring.cases import CASES, chosen
from fastattn.commands.measuring.engines import Pace
from fastattn.commands.measuring.peers import PEERS
from fastattn.commands.measuring.results import collect, geometric_mean

#: What the cases are called; those in other types than float32 have it behind the name.
NAMES = [name for name, case in CASES.items() if case.dtype == "float32"]

PACES = {
    "quick": Pace(rounds=2, seconds=0.03, patience=0.2),
    "usual": Pace(rounds=3, seconds=0.04, patience=0.4),
    "full": Pace(rounds=3, seconds=0.04, patience=0.4),
}

NOTES = """\
NumPy: the straightforward formula in the same precision; it has no erf, so its gelu calls Python's.
Rate: useful work only, excluded keys do not count.
Of limit: share of what this machine does at most, measured now, in multiply-adds ({arithmetic}),
or in reading or copying as many bytes. Error: largest difference from the float64 oracle."""


def add_arguments(parser):
    """Describe the command's arguments."""
    parser.add_argument("--quick", dest="suite", action="store_const", const="quick", help="a few small cases")
    parser.add_argument("--full", dest="suite", action="store_const", const="full", help="every case")
    options.add_arguments(parser)
    options.add_dtype(parser, "float32, and some cases in the others")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(suite="usual")


def run(arguments):
    """Measure, then print one line for each case."""
    threads = arguments.threads or fastattn.get_num_threads()
    present = ["numpy"]
    wanted = chosen(arguments.suite, arguments.only, arguments.dtype)
    if not wanted:
        raise SystemExit(f"no case matches {arguments.only.pattern!r}; they are {', '.join(NAMES)}")
    types = dict.fromkeys(case.dtype for case in wanted)
    cases = [case for case in wanted if case.dtype in dtypes.present(types)]
    if not cases:
        raise SystemExit("; ".join(dtypes.remarks(types)))

    facts = machine.describe(present, threads)
    others = machine.Others()
    results = collect(cases, ["fastattn", *present], PACES[arguments.suite], threads)
    if arguments.json:
        data = {"machine": facts, "left_out": dtypes.remarks(types)}
        print(json.dumps(data | {"results": [result.as_json() for result in results]}, indent=2))
    else:
        remarks = [*dtypes.remarks(types), *_remarks(results, present), others.remark()]
        print("\n".join([machine.line(facts), "", _table(results, present), "", *filter(None, remarks)]))
    return 0 if all(result.ours.kept for result in results) else 1


def _table(results, others):
    header = ["operation", "shape", "dtype", "fastattn"]
    for name in others:
        header += [PEERS[name].label, "speed-up"]
    header += ["rate", "of limit", "error"]
    return tables.text(header, [_row(result, others) for result in results], "lll" + "r" * (len(header) - 3))


def _row(result, others):
    case, ours = result.case, result.ours
    row = [case.title, case.shape, case.dtype, tables.duration(ours.seconds)]
    for name in others:
        row += [tables.duration(result.outcomes[name].seconds), tables.ratio(result.speedup(name))]
    error = tables.scientific(ours.error) if ours.kept else f"WRONG {tables.scientific(ours.error)}"
    return [*row, tables.rate(result.rate, result.unit), tables.percent(result.share), error]


def _remarks(results, others):
    """The lines below the table."""
    for name in others:
        mean = geometric_mean(result.speedup(name) for result in results)
        yield f"{tables.ratio(mean)} the speed of {PEERS[name].label} (geometric mean)"
    for result in results:
        for name, outcome in result.outcomes.items():
            if outcome.failure:
                yield f"{PEERS[name].label} cannot run {result.case.name}: {outcome.failure}"
    limits = {result.case.dtype: tables.rate(result.arithmetic, "FLOP/s") for result in results}
    yield NOTES.format(arithmetic=", ".join(f"{limit} in {dtype}" for dtype, limit in limits.items()))
