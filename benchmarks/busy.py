"""Time calls on a busy machine, and write docs/performance/busy.md.

    python benchmarks/busy.py                       # print the tables; takes about ten minutes
    python benchmarks/busy.py --only "softmax"      # some of what is called
    python benchmarks/busy.py --scene "workers"     # some scenes
    python benchmarks/busy.py --page                # also write the page, from all rows that are saved

A scene is a kind of load: busy neighbours (processes that only count), several workers of the same engine, PyTorch
called in turns in the same process, calls with pauses between them. Every worker is a process of its own with its own
threads; engines take turns, scene by scene. Results are compared with the oracle beforehand, on the quiet machine.
Missed targets are shown in bold. A scene lasts for --rounds times --seconds.

The rows of a call are printed and saved as soon as it is done, in build/busy.json or the file of --json, where they
replace earlier ones of the same call and scene. So an interrupted run can be continued with --only, and --page.
"""

import concurrent.futures
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import fastattn
from compare import parse
from fastattn.commands import options
from fastattn.commands.measuring import machine, tables
from fastattn.commands.measuring.cases import CASES
from fastattn.commands.measuring.results import geometric_mean
from laboratory import shared
from laboratory.encoder import ENCODER
from laboratory.peers import OTHERS, PEERS
from laboratory.watching import Engine
from report import Page

PAGE = Page(
    "busy",
    "On a busy machine",
    """\
Times while other processes, several workers, or another library's threads use the processors.""",
    "busy.py",
)

LEGEND = """\
Calls per second of all workers together, then the median, the 99th percentile (milliseconds) and the processor time
(milliseconds per call). "One thread" is fastattn with `num_threads=1`. The last columns are fastattn's calls over the
best other engine's, and its 99th percentile over the smallest one; with workers, and with pauses, also calls and
processor time over those of one thread. **Bold**: fewer calls than the best other engine, a percentile above 1.25 times
the smallest, less than 0.95 of one thread's calls with workers, more than 1.1 of its processor time with pauses. In
turns with PyTorch, the last figure is PyTorch's own time over its time in turns with one thread of fastattn; the target
is below 1.1."""

#: Where rows are saved by default.
SAVED = Path(__file__).parents[1] / "build" / "busy.json"

#: Seconds from the start of a scene until its calls begin, so that all processes have started.
LEAD = 0.2

#: Turns of each engine in a scene, every other round in reverse order.
TURNS = 3

#: A process that only counts, until its parent has ended, even if that was killed.
NEIGHBOUR = [
    sys.executable,
    "-c",
    f"import os\nwhile os.getppid() == {os.getpid()}:\n    for _ in range(1_000_000): pass",
]


@dataclass(frozen=True)
class Scene:
    """A kind of load during calls."""

    label: str
    neighbours: int = 0
    workers: int = 1
    gap: float = 0.0
    turns: str = ""


SCENES = (
    Scene("quiet"),
    Scene("one busy neighbour", neighbours=1),
    Scene("two busy neighbours", neighbours=2),
    Scene("two workers", workers=2),
    Scene("four workers", workers=4),
    Scene("in turns with PyTorch", turns="PyTorch"),
    Scene("a call every 10 ms", gap=0.01),
)

#: The calls: label → the case, and the suffix of the names of the engines that run it.
CALLS = {
    "attention 1×12×128×64": (CASES["attention-bert-128"], ""),
    "linear 128×768→3072, gelu": (CASES["linear-128x768x3072-gelu-out"], ""),
    "softmax 1536×128": (CASES["softmax-1536x128-out"], ""),
    "MiniLM 1×16, float32": (ENCODER["forward 1×16, float32"], "-encoder"),
    "MiniLM 1×16, bfloat16": (ENCODER["forward 1×16, bfloat16"], "-encoder"),
}

ONE_THREAD = "one thread"


@dataclass(frozen=True)
class Seen:
    """What the workers of an engine measured in a scene."""

    rate: float = math.nan
    median: float = math.nan
    tail: float = math.nan
    cpu: float = math.nan
    foreign: float = math.nan

    @classmethod
    def of(cls, turns):
        """From several workers in several turns: calls per second of all together, and the durations of all calls."""
        answers = [answer for turn in turns for answer in turn]
        times = sorted(duration for answer in answers for duration in answer["times"])
        foreign = [answer["foreign"] for answer in answers if answer["foreign"] is not None]
        return cls(
            rate=statistics.median(sum(answer["rate"] for answer in turn) for turn in turns),
            median=statistics.median(times),
            tail=times[min(len(times) - 1, len(times) * 99 // 100)],
            cpu=statistics.mean(answer["cpu"] for answer in answers),
            foreign=statistics.mean(foreign) if foreign else math.nan,
        )

    @classmethod
    def from_json(cls, numbers):
        """From what `as_json` returned."""
        return cls(**{name: math.nan if number is None else number for name, number in numbers.items()})

    def as_json(self):
        """The numbers by name; None for NaN, which JSON does not have."""
        return {name: None if math.isnan(number) else number for name, number in vars(self).items()}


@dataclass(frozen=True)
class Row:
    """What the engines measured in a scene, by name, and the facts of the machine."""

    found: dict
    machine: dict

    @classmethod
    def from_json(cls, engines, machine):
        """From what `as_json` returned."""
        return cls({name: Seen.from_json(numbers) for name, numbers in engines.items()}, machine)

    def as_json(self):
        """The row as plain data."""
        return {"engines": {name: seen.as_json() for name, seen in self.found.items()}, "machine": self.machine}


@shared.run()
def main(argv=None):
    """Measure call by call, print and save the rows of each, and write the page where requested."""
    arguments = parse(argv, __doc__, _add_arguments)
    threads = arguments.threads or fastattn.get_num_threads()
    others = [name for name in OTHERS if not PEERS[name].absent]
    facts = machine.describe(others, threads)
    scenes = [scene for scene in SCENES if arguments.scene.search(scene.label) and _possible(scene)]
    calls = {label: call for label, call in CALLS.items() if arguments.only.search(label)}
    seconds, measured, saved = arguments.rounds * arguments.seconds, {}, load(arguments.json)
    with tables.Progress(len(calls) * len(scenes)) as progress:
        for label, (case, ending) in calls.items():
            seen = _measure(label, case, ending, others, threads, scenes, seconds, progress)
            measured[label] = {scene: Row(found, facts) for scene, found in seen.items()}
            saved[label] = saved.get(label, {}) | measured[label]
            save(saved, arguments.json)
            print(f"{_section(label, measured[label])}\n", flush=True)
    print(_foot(measured))
    if arguments.page:
        PAGE.write(render(load(arguments.json)))


def _add_arguments(parser):
    parser.add_argument(
        "--scene", type=options.pattern, default="", metavar="REGEX", help="only scenes of a matching name"
    )
    parser.set_defaults(json=SAVED)


def _possible(scene):
    return not scene.turns or not PEERS["torch"].absent


def _measure(label, case, ending, others, threads, scenes, seconds, progress):
    """{scene: {engine: what was measured}} of a case."""
    most = max(scene.workers for scene in scenes)
    with contextlib.ExitStack() as stack:
        teams = {}
        for name in ("fastattn", ONE_THREAD, *others):
            of, count = ("fastattn", 1) if name == ONE_THREAD else (name, threads)
            if PEERS[of + ending].absent:
                continue
            workers = [stack.enter_context(Engine(of + ending, count)) for _ in range(most)]
            if _prepare(workers, case):
                teams[name] = workers
        seen = {}
        for scene in scenes:
            progress.step(f"{label}, {scene.label}")
            answers = {name: [] for name in teams}
            for turn in range(TURNS):
                for name in list(teams)[:: 1 if turn % 2 else -1]:
                    answers[name].append(_watch(teams[name][: scene.workers], scene, seconds / TURNS))
            seen[scene] = {name: Seen.of(turns) for name, turns in answers.items()}
    return seen


def _prepare(workers, case):
    """Whether all workers can run the case; the first one chooses the variant."""
    variant = ""
    for worker in workers:
        outcome = worker.prepare(case, variant=variant)
        if outcome.failure:
            return False
        variant = outcome.variant
    return True


def _watch(workers, scene, seconds):
    """The answers of workers that call at the same time, next to the scene's neighbours."""
    neighbours = [subprocess.Popen(NEIGHBOUR, start_new_session=True) for _ in range(scene.neighbours)]
    try:
        start = time.time() + LEAD
        with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
            tasks = [pool.submit(worker.watch, seconds, start, scene.gap, scene.turns) for worker in workers]
            return [task.result() for task in tasks]
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


# Saved rows


def load(path):
    """The saved rows, {call: {scene: row}}, in the order of `CALLS` and `SCENES`; none without a file."""
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {
        label: {scene: Row.from_json(**saved[label][scene.label]) for scene in SCENES if scene.label in saved[label]}
        for label in CALLS
        if label in saved
    }


def save(measured, path):
    """Write the rows as `load` reads them."""
    saved = {label: {scene.label: row.as_json() for scene, row in rows.items()} for label, rows in measured.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")


# Tables


def render(measured):
    """The tables as Markdown, then what they were measured on."""
    return "\n\n".join([*(_section(label, rows) for label, rows in measured.items()), _foot(measured)])


def _section(label, rows):
    """The table of a call."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row.found))
    header = ["", *(PEERS[name].label if name in PEERS else name for name in names), "calls", "99th percentile", ""]
    lines = [_row(scene, row.found, names) for scene, row in rows.items()]
    return f"## {label}\n\n{tables.markdown(header, lines, 'l' + 'r' * (len(header) - 1))}"


def _foot(measured):
    """The mean, the legend, and the facts of the machine; which calls were measured when they differ."""
    calls_on = {}
    for label, rows in measured.items():
        for row in rows.values():
            calls_on.setdefault(machine.line(row.machine), {})[label] = None
    lines = [f"{', '.join(calls)}: {line}" for line, calls in calls_on.items()] if len(calls_on) > 1 else calls_on
    ratios = [_against_others(row.found)[0] for rows in measured.values() for row in rows.values()]
    mean = f"Calls against the best other engine, geometric mean: {tables.ratio(geometric_mean(ratios))}."
    return "\n\n".join([mean, LEGEND, *lines])


def _row(scene, found, names):
    calls, tail = _against_others(found)
    quiet = scene == SCENES[0]
    cells = [_bold(tables.ratio(calls), calls < 1), _bold(tables.ratio(tail), tail > 1.25 and not quiet)]
    return [scene.label, *(_cell(found.get(name, Seen())) for name in names), *cells, _own(scene, found)]


def _cell(seen):
    if math.isnan(seen.rate):
        return tables.NOTHING
    milliseconds = (tables.digits(1e3 * duration) for duration in (seen.median, seen.tail, seen.cpu))
    return " · ".join([f"{seen.rate:.0f}", *milliseconds])


def _against_others(found):
    """Calls over the best other engine's, and the 99th percentile over the smallest."""
    others = [seen for name, seen in found.items() if name not in ("fastattn", ONE_THREAD)]
    if not others:
        return math.nan, math.nan
    ours = found["fastattn"]
    return ours.rate / max(seen.rate for seen in others), ours.tail / min(seen.tail for seen in others)


def _own(scene, found):
    """The scene's own criterion, besides the other engines."""
    ours, one = found["fastattn"], found[ONE_THREAD]
    if scene.workers > 1:
        return _bold(f"{tables.ratio(ours.rate / one.rate)} one thread's calls", ours.rate < 0.95 * one.rate)
    if scene.gap:
        return _bold(f"{tables.ratio(ours.cpu / one.cpu)} one thread's time", ours.cpu > 1.1 * one.cpu)
    if scene.turns:
        slower = ours.foreign / one.foreign
        return _bold(f"{scene.turns} {tables.ratio(slower)}", slower > 1.1)
    return ""


def _bold(text, short):
    return f"**{text}**" if short else text


if __name__ == "__main__":
    main()
