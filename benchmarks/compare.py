"""Compare with the other engines, case by case, and write docs/performance/operations.md and 16-bits.md.

    python benchmarks/compare.py                     # print the table; takes some minutes
    python benchmarks/compare.py --only bert         # some cases
    python benchmarks/compare.py --page              # also write the page
    python benchmarks/compare.py --dtype bfloat16,float16 --page      # that of other types, and against float32

Every engine runs in a process of its own, with the same number of threads, in turns: times are medians of rounds,
ratios medians of the rounds' ratios. Losses are shown in bold.
"""

import argparse
import functools
from pathlib import Path

import fastattn
from fastattn.commands import options
from fastattn.commands.measuring import dtypes, machine, tables
from fastattn.commands.measuring.cases import chosen, in_float32
from fastattn.commands.measuring.engines import Pace
from fastattn.commands.measuring.results import collect, geometric_mean
from laboratory.instructions import CAPS, cap
from laboratory.peers import OTHERS, PEERS
from report import TURNS, Page, add_page, deliver

PAGE = Page(
    "operations",
    "Operations against other engines",
    f"""\
Attention, linear layers and row operations in float32 and float64, against PyTorch, ONNX Runtime and OpenVINO.
{TURNS}

![Speed of eight of these calls](speed.svg)""",
    "compare.py",
)

PAGE_OF_TYPES = Page(
    "16-bits",
    "Operations in 16 bits",
    f"""\
The calls of [operations](operations.md) in bfloat16 and float16, each in turns with its float32.
{TURNS}""",
    "compare.py --dtype bfloat16,float16",
)

#: The sections of the table: title, and a predicate of their cases.
SECTIONS = (
    ("Attention", lambda case: case.operation == "scaled_dot_product_attention"),
    ("Linear layers", lambda case: case.operation == "linear"),
    ("Rows, written into a given array", lambda case: case.out),
    ("Rows, into a new array", lambda case: True),
)

LEGEND = """\
Shapes: batch × heads × tokens × head size, rows × inputs → outputs of a linear layer, or rows × length; 32/8 heads are
grouped, 64→4096 tokens are queries → keys. A linear layer has a bias.
"vs. fastest" is the time of the fastest other engine over fastattn's; **bold** where fastattn is slower.
"of limit" is the share of this machine's peak, in multiply-adds or in bytes read or copied."""

LEGEND_TYPES = """\
"vs. float32" is the time of fastattn's own float32 over that of this type, in the same rounds. The limit of bfloat16 is
that of its dot product if the processor has one. ONNX Runtime has bfloat16 only for norms; OpenVINO's float16 is
computed in float32, as it would take bfloat16 otherwise."""


def main(argv=None):
    """Measure, print the table, and write it where requested."""
    arguments = parse(argv, __doc__, functools.partial(options.add_dtype, default="float32, and some cases in float64"))
    threads = arguments.threads or fastattn.get_num_threads()
    present = [name for name in OTHERS if not PEERS[name].absent]
    facts = machine.describe(["numpy", *present], threads)
    pace = Pace(arguments.rounds, arguments.seconds, patience=arguments.rounds * arguments.seconds * 5)
    cases, twin_of = of_types(arguments) if arguments.dtype else (of_float(arguments), lambda case: None)
    results = collect(cases, ["fastattn", *present], pace, threads, twin_of)

    data = {"machine": facts, "results": [result.as_json() for result in results]}
    table = render(results, present, facts, dtypes.remarks(arguments.dtype))
    deliver(table, data, arguments, PAGE_OF_TYPES if arguments.dtype else PAGE)


def of_float(arguments):
    """The cases of the first table."""
    return [case for case in chosen(arguments.only) if case.dtype not in dtypes.HALF]


def of_types(arguments):
    """The cases in the requested types (row operations only with `out`), and a function that finds each in float32."""
    cases = [case for name in dtypes.present(arguments.dtype) for case in chosen(arguments.only, (name,))]
    return [case for case in cases if case.out or SECTIONS[0][1](case)], in_float32


def render(results, others, facts, remarks=()):
    """The results as Markdown: a section for each kind of case, then the facts of the machine."""
    blocks = []
    for title, section in _sections(results):
        blocks += [f"## {title}", _table(section, others), _mean(section, others)]
    absent = [PEERS[name].label for name in OTHERS if name not in others]
    legend = [LEGEND, *([LEGEND_TYPES] if any(map(_twin, results)) else [])]
    remarks = [*(f"{label} was not installed." for label in absent), *remarks]
    return "\n\n".join([*blocks, "\n".join(legend), *remarks, machine.line(facts)])


def _sections(results):
    """Title and results of each kind of case; those compared with float32 are also split by type."""
    kinds = {}
    for result in results:
        place = next(n for n, (_, belongs) in enumerate(SECTIONS) if belongs(result.case))
        kinds.setdefault((place, result.case.dtype if _twin(result) else ""), []).append(result)
    for place, dtype in sorted(kinds, key=lambda kind: kind[0]):
        yield ", ".join(filter(None, [SECTIONS[place][0], dtype])), kinds[place, dtype]


def parse(argv, description, more=lambda parser: None):
    """The arguments of a measuring script; `more` adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_arguments(parser)
    more(parser)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each engine (default: 7)")
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a turn (default: 0.2)")
    parser.add_argument(
        "--isa",
        choices=[target for target in CAPS if target in fastattn.targets()],
        help="limit fastattn, PyTorch and OpenVINO to these instructions (ONNX Runtime cannot be limited)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements")
    add_page(parser)
    arguments = parser.parse_args(argv)
    if arguments.isa:
        cap(arguments.isa)
    return arguments


def _table(results, others):
    labels = [PEERS[name].label for name in others]
    twin = ["vs. float32"] if any(map(_twin, results)) else []
    header = ["", "shape", "dtype", "fastattn", *labels, "vs. fastest", *twin, "of limit"]
    return tables.markdown(header, [_row(result, others) for result in results], "lll" + "r" * (len(header) - 3))


def _twin(result):
    """Whether the library's own float32 was measured in the same rounds."""
    return "float32" in result.outcomes


def _row(result, others):
    case = result.case
    times = [tables.duration(result.outcomes[name].seconds) for name in ("fastattn", *others)]
    ratio = _advantage(result, others)
    shown = f"**{tables.ratio(ratio)}**" if ratio < 1 else tables.ratio(ratio)
    twin = [tables.ratio(result.speedup("float32"))] if _twin(result) else []
    return [case.title, case.shape, case.dtype, *times, shown, *twin, tables.percent(result.share)]


def _advantage(result, others):
    """The time of the fastest other engine over the library's; NaN when no other one ran."""
    fastest = result.fastest(others)
    return float("nan") if fastest is None else result.speedup(fastest)


def _mean(results, others):
    ratios = [_advantage(result, others) for result in results]
    lost = sum(ratio < 1 for ratio in ratios)
    mean = tables.ratio(geometric_mean(ratios))
    text = f"Geometric mean against the fastest other engine of each row: {mean}; slower in {lost} of {len(results)}."
    if any(map(_twin, results)):
        text += f" Against float32: {tables.ratio(geometric_mean(result.speedup('float32') for result in results))}."
    return text


if __name__ == "__main__":
    main()
