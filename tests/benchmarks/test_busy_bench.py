"""The benchmark of busy machines, and what `bench` says of others' work: scripted times, one short real scene."""

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fastattn.commands.measuring import machine
from fastattn.commands.measuring.cases import CASES
from laboratory.watching import Desk, Engine
from support.scripts import pages_in, script

busy = script("busy")


def seen(rate, tail=1e-3, cpu=1e-3, foreign=math.nan):
    return busy.Seen(rate=rate, median=1e-3, tail=tail, cpu=cpu, foreign=foreign)


def row(scene, ours, one, other):
    found = {"fastattn": ours, busy.ONE_THREAD: one, "torch": other}
    return busy._row(scene, found, list(found))


QUIET, NEIGHBOUR, _, WORKERS, _, TURNS, PAUSES = busy.SCENES


@pytest.mark.parametrize(
    ("scene", "ours", "one", "other", "bold"),
    [
        (QUIET, seen(100), seen(50), seen(99), [False, False, False]),
        (QUIET, seen(98), seen(50), seen(99), [True, False, False]),
        (NEIGHBOUR, seen(100, tail=1.3e-3), seen(50), seen(99), [False, True, False]),
        (NEIGHBOUR, seen(100, tail=1.2e-3), seen(50), seen(99), [False, False, False]),
        (WORKERS, seen(94), seen(100), seen(90), [False, False, True]),
        (WORKERS, seen(96), seen(100), seen(90), [False, False, False]),
        (PAUSES, seen(100, cpu=1.2e-3), seen(100), seen(90), [False, False, True]),
        (PAUSES, seen(100, cpu=1.0e-3), seen(100), seen(90), [False, False, False]),
        (TURNS, seen(100, foreign=1.3), seen(100, foreign=1.1), seen(90), [False, False, True]),
        (TURNS, seen(100, foreign=1.2), seen(100, foreign=1.1), seen(90), [False, False, False]),
    ],
)
def test_what_falls_short_is_bold(scene, ours, one, other, bold):
    assert ["**" in cell for cell in row(scene, ours, one, other)[-3:]] == bold


def test_what_workers_saw_together():
    turns = [
        [
            {"rate": 10, "times": [0.1, 0.2], "cpu": 0.1, "foreign": None},
            {"rate": 20, "times": [0.3], "cpu": 0.3, "foreign": None},
        ],
        [{"rate": 50, "times": [0.4], "cpu": 0.2, "foreign": None}],
        [{"rate": 40, "times": [0.5], "cpu": 0.2, "foreign": None}],
    ]
    together = busy.Seen.of(turns)
    assert together.rate == 40  # the middle one of 30, 50 and 40
    assert (together.median, together.tail) == (0.3, 0.5)
    assert together.cpu == pytest.approx(0.2)
    assert math.isnan(together.foreign)


def test_a_scene():
    """Two real workers of NumPy's formulas, one neighbour."""
    with Engine("numpy", 1) as first, Engine("numpy", 1) as second:
        for engine in (first, second):
            assert not engine.prepare(CASES["softmax-1x128-out"]).failure
        answers = busy._watch([first, second], busy.Scene("", neighbours=1, workers=2), 0.05)
    assert len(answers) == 2
    for answer in answers:
        assert answer["times"] == sorted(answer["times"])
        assert answer["rate"] > 0 < answer["cpu"]
        assert answer["foreign"] is None


def test_a_neighbour_ends_with_its_parent():
    """Here the parent is another process from the beginning."""
    code = f"import subprocess; subprocess.run({busy.NEIGHBOUR!r}, check=True)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    with subprocess.Popen(busy.NEIGHBOUR) as process:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
        finally:
            process.kill()


class Played:
    """An engine that fails or has two variants, of which it chooses the given one or the second."""

    def __init__(self, failure=""):
        self.failure, self.asked = failure, []

    def prepare(self, case, variant=""):
        self.asked.append(variant)
        return SimpleNamespace(variant=variant or "second", failure=self.failure)


def test_workers_take_the_variant_of_the_first():
    workers = [Played(), Played(), Played()]
    assert busy._prepare(workers, None)
    assert [worker.asked for worker in workers] == [[""], ["second"], ["second"]]


def test_no_further_worker_prepares_what_fails():
    workers = [Played("no such call"), Played()]
    assert not busy._prepare(workers, None)
    assert workers[1].asked == []


# Interrupted runs

SOFTMAX, LINEAR = "softmax 1536×128", "linear 128×768→3072, gelu"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the script in two scenes with given calls per second by call; a call without them interrupts it."""
    saved = tmp_path / "new" / "busy.json"

    def run(rates, *options, machine_now="a machine"):
        def measure(label, case, ending, others, threads, scenes, seconds, progress):
            if label not in rates:
                raise KeyboardInterrupt
            return {scene: {"fastattn": seen(rates[label]), busy.ONE_THREAD: seen(50)} for scene in scenes}

        monkeypatch.setattr(busy, "_measure", measure)
        monkeypatch.setattr(busy.machine, "describe", lambda *_: {"processor": machine_now})
        with pages_in(tmp_path):
            busy.main(["--scene", "quiet|two workers", "--json", str(saved), *options])

    run.saved, run.page = saved, tmp_path / "busy.md"
    return run


def test_rows_of_an_interrupted_run_are_printed_and_saved(run, capsys):
    with pytest.raises(KeyboardInterrupt):
        run({SOFTMAX: 222}, "--only", "softmax|MiniLM", "--page")
    assert f"## {SOFTMAX}\n" in capsys.readouterr().out
    assert not run.page.exists()
    [(label, rows)] = busy.load(run.saved).items()
    assert label == SOFTMAX
    assert [scene.label for scene in rows] == ["quiet", "two workers"]
    assert rows[QUIET].found["fastattn"].rate == 222
    assert math.isnan(rows[QUIET].found["fastattn"].foreign)


def test_a_run_can_be_continued(run, capsys):
    """The page has all calls in order; what is measured again replaces what was saved."""
    run({SOFTMAX: 111}, "--only", "softmax")
    run({SOFTMAX: 222}, "--only", "softmax", "--scene", "two workers")
    capsys.readouterr()
    run({LINEAR: 333}, "--only", "linear", "--page")
    page, printed = run.page.read_text(encoding="utf-8"), capsys.readouterr().out
    assert [line for line in page.splitlines() if line.startswith("## ")] == [f"## {LINEAR}", f"## {SOFTMAX}"]
    assert [rate in page for rate in ("| 111 ·", "| 222 ·", "| 333 ·")] == [True] * 3
    assert page.count("a machine") == 1
    assert LINEAR in printed
    assert SOFTMAX not in printed


def test_a_page_of_several_machines_names_the_calls_of_each(run):
    run({SOFTMAX: 111}, "--only", "softmax")
    run({LINEAR: 333}, "--only", "linear", "--page", machine_now="another machine")
    assert run.page.read_text(encoding="utf-8").endswith(f"{LINEAR}: another machine\n\n{SOFTMAX}: a machine\n")


def test_watching_takes_turns_and_pauses(monkeypatch):
    calls, naps = [], []
    desk = Desk(SimpleNamespace(VARIANTS={}))
    desk.calls["ours"] = lambda: calls.append("ours")
    main = __import__("sys").modules[Desk.__module__]
    monkeypatch.setitem(main.FOREIGN, "other", lambda: lambda: calls.append("theirs"))
    monkeypatch.setattr(main, "FOREIGN_ALONE", 0.001)
    monkeypatch.setattr(main.time, "sleep", naps.append)
    answer = desk.watch(0.01, gap=0.5, turns="other")
    watched = calls[calls.index("ours") + main.WARM_UP :]
    assert watched[::2] == ["ours"] * len(answer["times"])
    assert set(watched[1::2]) == {"theirs"}
    assert naps[1:] == [0.5] * len(answer["times"])
    assert answer["foreign"] > 0


@pytest.mark.parametrize(
    ("machine_ticks", "stolen_ticks", "own", "words"),
    [(200, 0, 2.0, None), (205, 5, 2.0, None), (350, 0, 2.0, "took 1.5"), (200, 50, 2.0, "host 0.5")],
)
def test_others_work(monkeypatch, tmp_path, machine_ticks, stolen_ticks, own, words):
    """One second in which the processors worked for so long, two of them for us."""
    stat, clock, ours = tmp_path / "stat", [10.0], [5.0]
    ticks = os.sysconf("SC_CLK_TCK") / 100
    stat.write_text("cpu 100 0 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr(machine, "_STAT", stat)
    monkeypatch.setattr(machine.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(machine.os, "times", lambda: (ours[0], 0, 0, 0, 0))
    others = machine.Others()
    clock[0], ours[0] = 11.0, 5.0 + own
    stat.write_text(f"cpu {100 + int(machine_ticks * ticks)} 0 0 0 0 0 0 {int(stolen_ticks * ticks)} 0 0\n")
    assert others.remark() == "" if words is None else words in others.remark()


def test_work_of_running_engines_is_ours():
    """A process of ours works; whoever knows it does not take it for another's."""
    if math.isnan(machine._spent(())[1]):
        pytest.skip("the system does not tell")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            blind, knowing = machine.Others(), machine.Others([SimpleNamespace(pid=process.pid)])
            begin = machine._worked(process.pid)
            while machine._worked(process.pid) < begin + 0.3:
                pass
            taken = knowing.taken(), blind.taken()
        finally:
            process.kill()
    assert taken[1] > taken[0]
    assert machine._worked(None) == 0.0


def test_an_engines_process_has_a_number():
    engine = Engine("numpy", 1)
    with engine:
        assert engine.pid is None
        engine.prepare(CASES["softmax-1x128-out"])
        assert engine.pid == engine._process.pid
    assert engine.pid is None


def test_others_work_is_not_known_everywhere(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_STAT", tmp_path / "none")
    assert machine.Others().remark() == ""
    assert machine.Others().taken() == 0.0
