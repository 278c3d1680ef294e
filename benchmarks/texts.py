"""Time texts to embeddings, reranking, and many callers at once; write docs/performance/texts.md.

    python benchmarks/texts.py                              # print the tables; takes about half an hour
    python benchmarks/texts.py --only "bge-base, float32"   # some rows: a task, a model and a type; some minutes each
    python benchmarks/texts.py --only callers               # many callers of one text each; a minute
    python benchmarks/texts.py --page                       # also write the page, from all rows that are saved

The other engines are sentence-transformers on PyTorch, ONNX Runtime and OpenVINO (which needs nncf), each in the batch
size that is fastest for it. Models and exported graphs stay in build/texts.
Every engine runs in a process of its own, with the same number of threads, in turns. Results are compared with
PyTorch's in float32. Missed targets are shown in bold.

Rows are printed and saved as soon as they are done, in build/texts.json or the file of --json, where they replace
earlier ones. So an interrupted run can be continued with --only, and --page.
"""

import contextlib
import itertools
import json
import statistics
import threading
import time
from pathlib import Path

import fastattn
from compare import parse
from fastattn.commands.measuring import dtypes, machine, tables
from fastattn.commands.measuring.engines import Engine, Outcome, Pace, contest
from laboratory import encoder, texts
from laboratory.peers import PEERS
from report import TURNS, Page

PAGE = Page(
    "texts",
    "Texts to embeddings and scores",
    f"""\
Embedding and reranking against sentence-transformers with its backends, and batching for many callers.
{TURNS}""",
    "texts.py",
)

#: Where rows are saved by default.
SAVED = Path(__file__).parents[1] / "build" / "texts.json"

OTHERS = ("torch", "onnx", "openvino")

TITLES = {"embed": "Texts to embeddings", "rerank": "Reranking"}

LEGEND = f"""\
Texts per second, tokenizer included, and the error relative to PyTorch in float32. A row of embeddings is some hundred
texts with a lognormal number of words, {texts.SENTENCES[0]} in the median; one of reranking is a query and
{texts.TASKS["rerank"]["MiniLM-L6 cross-encoder"]} passages, {texts.PASSAGES[0]} words in the median. Other engines are
sentence-transformers with PyTorch's model, or with a graph in its place as its backends have, each in its fastest batch
size. int8 is each engine's own: ONNX Runtime quantises dynamically, OpenVINO by samples of such texts. MiniLM-L6 has
trained weights, the others random ones.
"vs. fastest" is the time of the fastest other engine of the type over fastattn's. **Bold** below the target:
{", ".join(f"{tables.ratio(least)} in {dtype}" for dtype, least in texts.ASKED.items())}."""

#: Threads that call at the same time, and the targets of batching: times the calls, and the latency.
CALLERS, ASKED_OF_BATCHING = 16, (3.0, 1.0)

#: Each turn of many callers lasts this many times --seconds.
LONGER = 5

#: What callers call, by the name of the column.
WAYS = {"encode": {}, "encode, one thread": {"num_threads": 1}, "batching()": None}

LEGEND_OF_CALLERS = f"""\
{CALLERS} threads call MiniLM-L6 with one text each, over and over: calls per second of all together, and the median
latency. "vs. best" is batching's calls over those of the better other way, then its latency over the smaller one; the
targets are {tables.ratio(ASKED_OF_BATCHING[0])} and at most {tables.ratio(ASKED_OF_BATCHING[1])}."""


def main(argv=None):
    """Measure case by case, print and save the row of each, and write the page where requested."""
    arguments = parse(argv, __doc__, lambda parser: parser.set_defaults(json=SAVED))
    threads = arguments.threads or fastattn.get_num_threads()
    if absent := PEERS["fastattn-texts"].absent:
        raise SystemExit(f"this needs {', '.join(absent)}: pip install '.[bench]'")
    present = [name for name in OTHERS if not PEERS[f"{name}-texts"].absent]
    facts = machine.describe(["numpy", "sentence-transformers", "transformers", *_packages(present)], threads)
    del facts["load"]  # one line for all rows of a machine
    pace, saved = Pace(arguments.rounds, arguments.seconds), load(arguments.json)
    cases = {name: case for name, case in texts.CASES.items() if arguments.only.search(name)}
    cases = {name: case for name, case in cases.items() if not dtypes.absent(case.dtype)}
    callers = [f"callers, {dtype}" for dtype in dtypes.present(texts.ASKED)]
    with tables.Progress(len(cases) + len(callers)) as progress:
        for name, case in cases.items():
            progress.step(name)
            outcomes = _measure(case, present, threads, pace)
            _keep(saved, name, {engine: vars(outcome) for engine, outcome in outcomes.items()}, facts, arguments.json)
        for name in filter(arguments.only.search, callers):
            progress.step(name)
            found = _call_together(name.split(", ")[1], pace)
            _keep(saved, name, found, facts, arguments.json)
    if arguments.page:
        PAGE.write(render(saved))


def _packages(present):
    return [package for name in present for package in {"onnx": ["onnxruntime"]}.get(name, [name])]


def _measure(case, present, threads, pace):
    """The outcomes of the engines that have the case's type, by name."""
    with contextlib.ExitStack() as stack:
        names = [name for name in ("fastattn", *present) if case.dtype in texts.RUNS[name]]
        engines = [stack.enter_context(Engine(f"{name}-texts", threads)) for name in names]
        return dict(zip(names, contest([(engine, [case]) for engine in engines], pace), strict=True))


def _keep(saved, name, found, facts, path):
    """Print a row, and save it with all others."""
    saved[name] = {"found": found, "machine": machine.line(facts)}
    print(f"{render({name: saved[name]}, legends=False)}\n", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")


def load(path):
    """The saved rows by name: what was found, and the machine."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


# Many callers


def _call_together(dtype, pace):
    """Calls per second and median latency of each way, in turns, medians of the rounds."""
    from fastattn.models import SentenceEncoder  # needs packages that the tables do not

    model = SentenceEncoder.from_pretrained(encoder.folder(), dtype=dtype)
    several = texts.drawn(CALLERS, *texts.SENTENCES)
    found = {way: [] for way in WAYS}
    with model.batching() as batching:
        calls = {way: batching.encode if options is None else _calling(model, options) for way, options in WAYS.items()}
        for call in calls.values():
            together(call, several, pace.seconds)
        for turn in range(pace.rounds):
            for way in list(WAYS)[:: 1 if turn % 2 else -1]:
                found[way].append(together(calls[way], several, LONGER * pace.seconds))
    return {way: [statistics.median(numbers) for numbers in zip(*turns, strict=True)] for way, turns in found.items()}


def _calling(model, options):
    return lambda text: model.encode(text, **options)


def together(call, several, seconds):
    """Calls per second, and the median latency, of a thread for each text that call at the same time."""
    barrier, times = threading.Barrier(len(several)), [[] for _ in several]

    def caller(text, own):
        barrier.wait()
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            call(text)
            own.append(time.perf_counter() - start)

    started = [threading.Thread(target=caller, args=pair) for pair in zip(several, times, strict=True)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return sum(len(own) / sum(own) for own in times), statistics.median(itertools.chain(*times))


# Tables


def render(saved, legends=True):
    """The saved rows as Markdown, a table for each task, then what they were measured on."""
    blocks, rest = [], []
    for task, title in TITLES.items():
        rows = {texts.CASES[name]: row["found"] for name, row in saved.items() if name.startswith(f"{task} ")}
        if rows:
            blocks += [f"## {title}", _table({case: _outcomes(found) for case, found in rows.items()})]
            rest += [remark for case, found in rows.items() for remark in _remarks(case, _outcomes(found))]
    blocks += [LEGEND] if blocks and legends else []
    callers = {name: row["found"] for name, row in saved.items() if name.startswith("callers")}
    if callers:
        blocks += ["## Many callers", _table_of_callers(callers), *([LEGEND_OF_CALLERS] if legends else [])]
    machines = dict.fromkeys(row["machine"] for row in saved.values())
    return "\n\n".join([*blocks, *rest, *(machines if legends else [])])


def _outcomes(found):
    return {name: Outcome(**fields) for name, fields in found.items()}


def _table(rows):
    rows = {case: rows[case] for case in texts.CASES.values() if case in rows}
    header = ["", "dtype", *(PEERS[f"{name}-texts"].label for name in ("fastattn", *OTHERS)), "vs. fastest"]
    return tables.markdown(header, [_line(case, found) for case, found in rows.items()], "ll" + "r" * 5)


def _line(case, found):
    cells = [_cell(case, found.get(name, Outcome())) for name in ("fastattn", *OTHERS)]
    ratio = advantage(found)
    return [case.model, case.dtype, *cells, _marked(tables.ratio(ratio), ratio < texts.ASKED[case.dtype])]


def advantage(found):
    """The time of the fastest other engine over the library's; NaN if none ran."""
    others = [outcome for name, outcome in found.items() if name != "fastattn" and outcome.times]
    return found["fastattn"].faster_than(min(others, key=lambda outcome: outcome.seconds, default=Outcome()))


def _cell(case, outcome):
    """Texts per second and the error."""
    if not outcome.times:
        return tables.NOTHING
    return f"{tables.count(case.work / outcome.seconds)} · {tables.scientific(outcome.error)}"


def _marked(text, short):
    return f"**{text}**" if short else text


def _remarks(case, found):
    """A line for each engine that did not run."""
    for name, outcome in found.items():
        if outcome.failure:
            yield f"{case.name}, {PEERS[f'{name}-texts'].label}: {outcome.failure}."


def _table_of_callers(rows):
    lines = [[name.split(", ")[1], *_cells_of_callers(found)] for name, found in rows.items()]
    return tables.markdown(["dtype", *WAYS, "vs. best"], lines, "l" + "r" * (len(WAYS) + 1))


def _cells_of_callers(found):
    rate, latency = found["batching()"]
    others = [numbers for way, numbers in found.items() if way != "batching()"]
    calls, wait = rate / max(rate for rate, _ in others), latency / min(latency for _, latency in others)
    least, most = ASKED_OF_BATCHING
    against = f"{_marked(tables.ratio(calls), calls < least)} · {_marked(tables.ratio(wait), wait > most)}"
    return [*(f"{tables.count(rate)} · {tables.duration(latency)}" for rate, latency in found.values()), against]


if __name__ == "__main__":
    main()
