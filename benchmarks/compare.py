"""Compare with the other engines, case by case, and write the README's table.

    python benchmarks/compare.py                     # print the table; takes some minutes
    python benchmarks/compare.py --only bert         # some cases
    python benchmarks/compare.py --readme            # put the table into README.md

Every engine runs in a process of its own, on the same number of threads, and they take turns: times are medians of
rounds, ratios medians of the rounds' ratios. Losses are shown as they are.
"""

import argparse
import json
from pathlib import Path

import fastattn
from fastattn.commands import machine, options, tables
from fastattn.commands.cases import chosen
from fastattn.commands.measure import Pace
from fastattn.commands.peers import OTHERS, PEERS
from fastattn.commands.results import collect, geometric_mean

README = Path(__file__).parents[1] / "README.md"

#: What stands around the table in the README.
BEGIN, END = "<!-- table of benchmarks/compare.py -->", "<!-- end of table -->"

#: The sections of the table: title, and the cases that belong there.
SECTIONS = (
    ("Attention", lambda case: case.operation == "scaled_dot_product_attention"),
    ("Rows, written into a given array", lambda case: case.out),
    ("Rows, into a new array", lambda case: True),
)

LEGEND = """\
Shapes: batch × heads × tokens × head size, or rows × length; 32/8 heads are grouped, 64→4096 tokens are queries → keys.
"vs. fastest" is the time of the fastest other engine over fastattn's; **bold** where fastattn is slower.
"of limit" is the share of the multiply-adds that this machine can do, or of the bytes it can read or copy."""


def main(argv=None):
    """Measure, print the table, and put it where it was asked for."""
    arguments = parse(argv, __doc__)
    threads = arguments.threads or fastattn.get_num_threads()
    present = [name for name in OTHERS if not PEERS[name].absent]
    facts = machine.describe(["numpy", *present], threads)
    pace = Pace(arguments.rounds, arguments.seconds, patience=arguments.rounds * arguments.seconds * 5)
    results = collect(chosen("full", arguments.only), ["fastattn", *present], pace, threads)

    data = {"machine": facts, "results": [result.as_json() for result in results]}
    deliver(render(results, present, facts), data, arguments, BEGIN)


def deliver(table, data, arguments, begin):
    """Print the table, and put table and measurements where they were asked for."""
    print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(data, indent=2) + "\n")
    if arguments.readme:
        arguments.readme.write_text(replaced(arguments.readme.read_text(), table, begin))


def render(results, others, facts):
    """The results as Markdown: a section for each kind of case, then what they were measured on."""
    blocks, left = [], list(results)
    for title, belongs in SECTIONS:
        section = [result for result in left if belongs(result.case)]
        left = [result for result in left if result not in section]
        if section:
            blocks += [f"**{title}**", _table(section, others), _mean(section, others)]
    absent = [PEERS[name].label for name in OTHERS if name not in others]
    blocks += [LEGEND, *(f"{label} was not installed." for label in absent), machine.line(facts)]
    return "\n\n".join(blocks)


def replaced(text, table, beginning=BEGIN):
    """A text with what stands between the markers replaced by the table."""
    before, begin, rest = text.partition(beginning)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"there are no lines {beginning!r} and {END!r} to put the table between")
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def parse(argv, description):
    """The arguments of a script that measures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each engine (default: 7)")
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a turn (default: 0.2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements")
    parser.add_argument("--readme", type=Path, nargs="?", const=README, metavar="FILE", help="put the table in there")
    return parser.parse_args(argv)


def _table(results, others):
    labels = [PEERS[name].label for name in others]
    header = ["", "shape", "dtype", "fastattn", *labels, "vs. fastest", "of limit"]
    return tables.markdown(header, [_row(result, others) for result in results], "lll" + "r" * (len(labels) + 3))


def _row(result, others):
    case = result.case
    times = [tables.duration(result.outcomes[name].seconds) for name in ("fastattn", *others)]
    ratio = _advantage(result, others)
    shown = f"**{tables.ratio(ratio)}**" if ratio < 1 else tables.ratio(ratio)
    return [case.title, case.shape, case.dtype, *times, shown, tables.percent(result.share)]


def _advantage(result, others):
    """The time of the fastest other engine over the library's; NaN when no other one ran."""
    fastest = result.fastest(others)
    return float("nan") if fastest is None else result.speedup(fastest)


def _mean(results, others):
    ratios = [_advantage(result, others) for result in results]
    lost = sum(ratio < 1 for ratio in ratios)
    mean = tables.ratio(geometric_mean(ratios))
    return f"Geometric mean against the fastest other engine of each row: {mean}; slower in {lost} of {len(results)}."


if __name__ == "__main__":
    main()
