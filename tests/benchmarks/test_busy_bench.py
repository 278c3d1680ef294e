"""The benchmark of busy machines, and what `bench` says of others' work: scripted times, one short real scene."""

import math
import os
from types import SimpleNamespace

import pytest

from fastattn.commands import machine, measure
from fastattn.commands.cases import CASES
from fastattn.commands.peers.__main__ import Desk
from support.scripts import script

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
    with measure.Engine("numpy", 1) as first, measure.Engine("numpy", 1) as second:
        for engine in (first, second):
            assert not engine.prepare(CASES["softmax-1x128-out"]).failure
        answers = busy._watch([first, second], busy.Scene("", neighbours=1, workers=2), 0.05)
    assert len(answers) == 2
    for answer in answers:
        assert answer["times"] == sorted(answer["times"])
        assert answer["rate"] > 0 < answer["cpu"]
        assert answer["foreign"] is None


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


def test_others_work_is_not_known_everywhere(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_STAT", tmp_path / "none")
    assert machine.Others().remark() == ""
