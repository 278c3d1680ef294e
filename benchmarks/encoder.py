"""Time a whole sentence encoder: token ids, texts, and the start of a process; write docs/performance/encoder.md.

    python benchmarks/encoder.py                      # print the tables; takes about half an hour
    python benchmarks/encoder.py --quick              # small shapes, a few texts, few rounds; some minutes
    python benchmarks/encoder.py --only "forward"     # some rows, by part and shape
    python benchmarks/encoder.py --dtype bfloat16,int8
    python benchmarks/encoder.py --isa avx512_bf16    # without AMX
    python benchmarks/encoder.py --page               # also write the page

Every engine runs in a process of its own, with the same number of threads and the same trained weights; all types of a
shape take turns. Times are medians of rounds, ratios medians of the rounds' ratios. Results are compared with the
model's definition in float64. Missed targets are shown in bold.
"""

import contextlib
import dataclasses
import math

import fastattn
from compare import parse
from fastattn.commands import options
from fastattn.commands.measuring import dtypes, machine, tables
from fastattn.commands.measuring.engines import Engine, Outcome, Pace, contest
from fastattn.commands.measuring.results import geometric_mean
from laboratory import shared, startup
from laboratory.encoder import (
    ALLOWED,
    ASKED_OF_PASSES,
    ASKED_OF_TEXTS,
    FEW,
    RIVAL,
    RIVAL_DTYPE,
    RUNS,
    SHAPES,
    TEXTS,
    Encode,
    Forward,
    folder,
)
from laboratory.peers import OTHERS, PEERS, exported
from report import Page, deliver

PAGE = Page(
    "encoder",
    "A whole encoder",
    """\
A trained encoder of six layers (MiniLM-L6): from token ids to hidden states, from texts to embeddings, and from the
start of a process to its first embedding. "Asked" is the project's own target.

![Speed of the encoder from token ids](encoder.svg)""",
    "encoder.py",
)

#: Shapes and pace with --quick.
QUICK_SHAPES, QUICK_PACE = SHAPES[:2], Pace(rounds=2, seconds=0.05)

LEGEND_OF_PASSES = """\
Shapes: batch × tokens. Each time is followed by the GFLOP/s of the matrix products. "vs. fastest" is the time of the
fastest other engine of the type over fastattn's. PyTorch is transformers' model, compiled or not; ONNX Runtime has its
fused operators, and its dynamic quantisation; OpenVINO has a graph for the exact shape, from PyTorch or from ONNX, and
for int8, 8-bit weights and activations that it quantises itself. The fastest variant counts."""

LEGEND_OF_TEXTS = """\
Texts per second, including the tokenizer: sentences and whole docstrings of Python's own library. PyTorch is
sentence-transformers; ONNX Runtime has padded batches of texts of about the same length: both in batches of 16, 32 or
64, whichever is fastest."""

LEGEND_OF_STARTS = """\
Medians of new processes whose files are in memory. "First embedding" counts from the start of the process. "Resident"
is its memory at that point, "at most" the maximum until then. PyTorch is sentence-transformers; ONNX Runtime and
OpenVINO load exported models."""

LEGEND_OF_ERRORS = """\
Errors are relative to the length of a result (all hidden states of a sequence, or an embedding); allowed are
{allowed}.
**Bold** if a target is missed or, without a target, fastattn is slower."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A case, its outcome in each engine that has its type, and that of the rival."""

    case: object
    outcomes: dict
    rival: Outcome = dataclasses.field(default_factory=Outcome)

    @property
    def ours(self):
        """The library's own outcome."""
        return self.outcomes["fastattn"]

    @property
    def advantage(self):
        """The time of the fastest other engine of the type over the library's; NaN if none ran."""
        others = [found for name, found in self.outcomes.items() if name != "fastattn" and found.times]
        return self.ours.faster_than(min(others, key=lambda outcome: outcome.seconds, default=Outcome()))

    @property
    def lead(self):
        """The rival's time over the library's."""
        return self.ours.faster_than(self.rival)

    def outcome(self, name):
        """The outcome of an engine; an empty one if it did not run the case."""
        return self.outcomes.get(name, Outcome())

    def speedup(self, name):
        """Another engine's time over the library's."""
        return self.ours.faster_than(self.outcome(name))

    def rate(self, name):
        """Operations, or texts, per second."""
        return self.case.work / self.outcome(name).seconds

    def as_json(self):
        """The row as plain data."""
        words = {"operation": self.case.operation, "shape": self.case.shape, "dtype": self.case.dtype}
        ratios = {"vs_fastest": _or_none(self.advantage), "vs_rival": _or_none(self.lead)}
        return {**words, **ratios, "engines": {name: self._engine_as_json(name) for name in self.outcomes}}

    def _engine_as_json(self, name):
        outcome = self.outcomes[name]
        numbers = {"seconds": outcome.seconds, "per_second": self.rate(name), "speedup": self.speedup(name)}
        numbers |= {"error": outcome.error, "allowed": outcome.allowed}
        words = {"failure": outcome.failure or None, "variant": outcome.variant or None}
        return words | {key: _or_none(number) for key, number in numbers.items()}


@shared.run()
def main(argv=None):
    """Measure, print the tables, and write them where requested."""
    arguments = parse(argv, __doc__, _more)
    threads = arguments.threads or fastattn.get_num_threads()
    if absent := PEERS["fastattn-encoder"].absent:
        raise SystemExit(f"the encoder needs {', '.join(absent)}: pip install '.[bench]'")
    present = [name for name in OTHERS if not PEERS[f"{name}-encoder"].absent]
    software = ["numpy", "tokenizers", *present]
    software += ["transformers", "sentence-transformers"] if "torch" in present else []
    facts = machine.describe(software, threads)
    pace = QUICK_PACE if arguments.quick else Pace(arguments.rounds, arguments.seconds)
    types = dtypes.present(arguments.dtype or ALLOWED)

    cases = [case for case in _cases(arguments.quick) if arguments.only.search(f"{case.operation} {case.shape}")]
    starts = _starts(types, present) if arguments.only.search("start") else []
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(tables.Progress(len(cases) + bool(starts)))
        engines = {name: stack.enter_context(Engine(f"{name}-encoder", threads)) for name in ("fastattn", *present)}
        rows = [row for case in cases for row in _measure(case, types, engines, pace, progress)]
    if starts:
        progress.step("start")
        graphs = exported.models(folder()) if any(startup.PROGRAMS[start.engine].graph for start in starts) else None
        startup.measure(starts, graphs, threads, pace.rounds)
    data = {"machine": facts, "rows": [row.as_json() for row in rows], "starts": [start.as_json() for start in starts]}
    deliver(render(rows, starts, present, facts, dtypes.remarks(arguments.dtype or ALLOWED)), data, arguments, PAGE)


def _more(parser):
    options.add_dtype(parser, "all of them", tuple(ALLOWED))
    parser.add_argument("--quick", action="store_true", help="small shapes, a few texts, two rounds")


def _cases(quick):
    """The cases in float32; other types are added to each."""
    shapes, count = (QUICK_SHAPES, FEW) if quick else (SHAPES, TEXTS)
    return [*(Forward(*shape) for shape in shapes), Encode(count)]


def _starts(types, present):
    """The programs to start."""
    return [
        startup.Start(name, dtype)
        for name, program in startup.PROGRAMS.items()
        for dtype in program.dtypes
        if name in ("fastattn", *present) and dtype in types
    ]


def _measure(case, types, engines, pace, progress):
    """A row for each type; all of them, in all engines, take turns."""
    progress.step(f"{case.operation} {case.shape}")
    runs = RUNS[case.operation]
    pairs = [(name, dtype) for dtype in types for name in engines if dtype in runs.get(name, ())]
    if RIVAL in engines and RIVAL in runs:
        pairs += [(RIVAL, RIVAL_DTYPE[dtype]) for dtype in types]
    entries = {(name, dtype): (engines[name], [dataclasses.replace(case, dtype=dtype)]) for name, dtype in pairs}
    outcomes = dict(zip(entries, contest(list(entries.values()), pace), strict=True))
    for dtype in types:
        found = {name: outcomes[name, dtype] for name in engines if (name, dtype) in outcomes}
        rival = outcomes.get((RIVAL, RIVAL_DTYPE[dtype]), Outcome())
        yield Row(dataclasses.replace(case, dtype=dtype), found, rival)


def _or_none(number):
    """None for NaN, which JSON does not have."""
    return None if math.isnan(number) else number


# Tables


def render(rows, starts, present, facts, remarks=()):
    """The tables as Markdown: passes by type, texts, starts, then the facts of the machine."""
    passes, texts = ([row for row in rows if row.case.operation == name] for name in ("forward", "encode"))
    blocks = []
    for dtype in dict.fromkeys(row.case.dtype for row in passes):
        section = [row for row in passes if row.case.dtype == dtype]
        blocks += [f"## From token ids, {dtype}", _table_of_passes(section, present), _means(section)]
    blocks += [LEGEND_OF_PASSES] if passes else []
    blocks += ["## From texts", _table_of_texts(texts), LEGEND_OF_TEXTS] if texts else []
    blocks += ["## From the start of a process", _table_of_starts(starts), LEGEND_OF_STARTS] if starts else []
    allowed = ", ".join(f"{tables.scientific(error)} in {dtype}" for dtype, error in ALLOWED.items())
    absent = [f"{PEERS[name].label} was not installed." for name in OTHERS if name not in present]
    remarks = [*_remarks(rows, starts), *absent, *remarks]
    return "\n\n".join([*blocks, LEGEND_OF_ERRORS.format(allowed=allowed), *remarks, machine.line(facts)])


def _table_of_passes(rows, present):
    dtype = rows[0].case.dtype
    header = ["", "fastattn", *(PEERS[name].label for name in present), "vs. fastest", _name_of_rival(dtype), "error"]
    return tables.markdown(header, [_line_of_pass(row, present) for row in rows], "l" + "r" * (len(header) - 1))


def _name_of_rival(dtype):
    in_its_own = "" if RIVAL_DTYPE[dtype] == dtype else f", {RIVAL_DTYPE[dtype]}"
    return f"vs. {PEERS[RIVAL].label}{in_its_own}"


def _line_of_pass(row, present):
    _, least = ASKED_OF_PASSES[row.case.dtype]
    times = [_time(row, name) for name in ("fastattn", *present)]
    ratios = [_ratio(row.advantage, 1), _ratio(row.lead, least or 1)]
    return [row.case.shape, *times, *ratios, _error(row.ours)]


def _time(row, name):
    """12.3 ms · 187"""
    outcome = row.outcome(name)
    return f"{tables.duration(outcome.seconds)} · {tables.count(row.rate(name) / 1e9)}" if outcome.times else "—"


def _ratio(ratio, asked):
    """A ratio, in bold if it misses the target."""
    return _marked(tables.ratio(ratio), ratio < asked)


def _marked(text, short):
    return f"**{text}**" if short else text


def _error(found):
    """The error of an outcome or a verdict; a dash if it failed, which `_remarks` explains."""
    if getattr(found, "failure", ""):
        return tables.NOTHING
    shown = tables.scientific(found.error)
    return _marked(shown if found.kept else f"WRONG {shown}", not found.kept)


def _means(rows):
    """The geometric mean over all shapes, and the target."""
    mean, least = ASKED_OF_PASSES[rows[0].case.dtype]
    name = _name_of_rival(rows[0].case.dtype).removeprefix("vs. ")
    reached = geometric_mean(row.lead for row in rows)
    text = f"Geometric mean against {name}: {_ratio(reached, mean)}; asked: ≥ {tables.ratio(mean)}"
    text += f", and ≥ {tables.ratio(least)} in each row. " if least else ". "
    fastest = geometric_mean(row.advantage for row in rows)
    return text + f"Against the fastest other engine of each row: {_ratio(fastest, 1)}."


def _table_of_texts(rows):
    others = [name for name in ASKED_OF_TEXTS if any(name in row.outcomes for row in rows)]
    labels = [PEERS[name].label for name in others]
    header = ["", "dtype", "fastattn", *labels, *(f"vs. {label}" for label in labels), "error"]
    lines = [_line_of_texts(row, others) for row in rows]
    asked = ", ".join(f"≥ {tables.ratio(ASKED_OF_TEXTS[name])} {PEERS[name].label}" for name in others)
    table = tables.markdown(header, lines, "ll" + "r" * (len(header) - 2))
    return f"{table}\n\nAsked: {asked}." if asked else table


def _line_of_texts(row, others):
    rates = [tables.count(row.rate(name)) for name in ("fastattn", *others)]
    ratios = [_ratio(row.speedup(name), ASKED_OF_TEXTS[name]) for name in others]
    return [row.case.shape, row.case.dtype, *rates, *ratios, _error(row.ours)]


def _table_of_starts(starts):
    header = ("", "dtype", "import", "load", "first embedding", "resident", "at most", "beyond the weights", "error")
    lines = [_line_of_start(start) for start in starts]
    asked = startup.ASKED
    table = tables.markdown(header, lines, "ll" + "r" * (len(header) - 2))
    return (
        f"{table}\n\nAsked of fastattn: load < {tables.duration(asked['load'])}, first embedding < "
        f"{tables.duration(asked['first'])}, beyond the weights < {tables.megabytes(asked['beyond'])}."
    )


def _line_of_start(start):
    def within(what, text, reached):
        return _marked(text(reached), start.engine == "fastattn" and reached >= startup.ASKED[what])

    return [
        PEERS[start.engine].label,
        start.dtype,
        tables.duration(start.median("import")),
        within("load", tables.duration, start.median("load")),
        within("first", tables.duration, start.median("first")),
        tables.megabytes(start.median("resident")),
        tables.megabytes(start.median("most")),
        within("beyond", tables.megabytes, start.beyond),
        _error(start.verdict) if start.verdict else tables.NOTHING,
    ]


def _remarks(rows, starts):
    """A line for each call that did not run, and for each result of another engine that exceeds the allowed error."""
    for row in rows:
        for name, outcome in row.outcomes.items():
            where = f"{PEERS[name].label}, {row.case.dtype}, {row.case.shape}"
            if outcome.failure:
                yield f"{where}: {outcome.failure}."
            elif name != "fastattn" and not outcome.kept:
                yield f"{where}: error {tables.scientific(outcome.error)}."
    for start in starts:
        if start.failure:
            yield f"{PEERS[start.engine].label}, {start.dtype}, start: {start.failure}."


if __name__ == "__main__":
    main()
