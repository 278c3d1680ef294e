"""The benchmark of texts: its cases and texts, rows that are kept, the tables; no other engine runs."""

import json
import threading
import time

import numpy as np
import pytest

from fastattn.commands.measuring.engines import Outcome
from laboratory import texts
from laboratory.peers import PEERS
from laboratory.texts import CASES, Case
from support.scripts import pages_in, script

bench = script("texts")


@pytest.fixture
def words(monkeypatch):
    """A vocabulary, in place of the model's."""
    monkeypatch.setattr(texts, "_words", lambda: ["one", "two", "three"])


def test_cases_are_known_by_name():
    assert all(name == case.name for name, case in CASES.items())
    assert {case.model for case in CASES.values()} == set(texts.MODELS)
    assert texts.ASKED.keys() == texts.PLAUSIBLE.keys() == set(texts.RUNS["fastattn"])
    assert all(f"{name}-texts" in PEERS for name in texts.RUNS)
    assert set(texts.RUNS) == {"fastattn", *bench.OTHERS}


def test_texts_follow_from_the_seed(words):
    several = texts.drawn(400, 20, 0.9)
    assert several == texts.drawn(400, 20, 0.9)
    assert several != texts.drawn(400, 20, 0.9, seed=1)
    lengths = [len(text.split()) for text in several]
    assert 16 <= np.median(lengths) <= 25
    assert 0.7 <= np.log(lengths).std() <= 1.1
    assert 1 <= min(lengths) < 5
    assert 100 < max(lengths) <= texts.LONGEST


def test_arguments(words):
    """Texts of their number; pairs of one query, in which only the passage differs."""
    (several,) = Case("embed", "bge-base").inputs()
    assert len(several) == Case("embed", "bge-base").work
    (pairs,) = Case("rerank", "MiniLM-L6 cross-encoder").inputs()
    assert len(pairs) == 100
    ((query, *others),) = [dict.fromkeys(query for query, _ in pairs)]
    assert not others
    assert len(query.split()) == texts.QUERY


def test_errors_are_those_of_the_worst_text(monkeypatch, tmp_path):
    np.save(tmp_path / "expected.npy", np.array([[3.0, 4.0], [0.0, 1.0]], np.float32))
    monkeypatch.setattr(texts, "saved", lambda name: tmp_path)
    verdict = Case("embed", "bge-base", "int8").verifier()(np.array([[3.0, 4.5], [0.0, 1.0]], np.float32))
    assert verdict.error == pytest.approx(0.1)
    assert verdict.allowed > verdict.error


def test_a_folder_is_made_once_and_whole(tmp_path):
    def fail(path):
        (path / "half").touch()
        raise RuntimeError

    path = tmp_path / "new" / "model"
    with pytest.raises(RuntimeError):
        texts.made(path, fail)
    assert not path.exists()
    assert texts.made(path, lambda path: (path / "file").touch()) == path
    assert [file.name for file in texts.made(path, fail).iterdir()] == ["file"]


def outcome(*times, failure=""):
    return Outcome(variant="batches of 8", error=1e-6, allowed=1e-5, failure=failure, times=list(times))


def test_missed_targets_are_bold():
    case = CASES["embed bge-base, float32"]
    for theirs, shown in ((3.0, "**1.00×**"), (4.6, "1.53×")):
        line = bench._line(case, {"fastattn": outcome(3.0), "torch": outcome(9.0), "onnx": outcome(theirs)})
        assert line == ["bge-base", "float32", "32.0 · 1.0e-06", "10.7 · 1.0e-06", line[4], "—", shown]


def test_many_callers_call_at_the_same_time():
    at_work, most = [], []

    def call(text):
        at_work.append(text)
        most.append(len(at_work))
        time.sleep(0.001)
        at_work.remove(text)

    rate, latency = bench.together(call, ["a", "b", "c"], 0.05)
    assert max(most) > 1
    assert latency > 0.001
    assert rate * latency == pytest.approx(3, rel=0.5)
    assert threading.active_count() < 10


def test_batching_is_held_to_the_better_other_way():
    found = {"encode": [100.0, 0.16], "encode, one thread": [200.0, 0.08], "batching()": [500.0, 0.1]}
    assert bench._cells_of_callers(found)[-1] == "**2.50×** · **1.25×**"


def test_a_run_can_be_continued(monkeypatch, tmp_path, capsys):
    """The page has all rows in order, with their machines; a failure is explained."""
    monkeypatch.setattr(bench.machine, "describe", lambda *_: {"processor": "a machine", "load": 0.1})
    monkeypatch.setattr(bench.PEERS["fastattn-texts"].__class__, "absent", ())
    found = {"fastattn": outcome(1.0), "torch": outcome(2.0), "onnx": outcome(failure="no export")}
    monkeypatch.setattr(bench, "_measure", lambda case, *_: {**found})
    callers = {way: [100.0, 0.01] for way in bench.WAYS}
    monkeypatch.setattr(bench, "_call_together", lambda *_: callers)
    saved = tmp_path / "new" / "texts.json"
    with pages_in(tmp_path):
        for only in ("rerank.*float32", "callers, float32", "MiniLM-L6, float32"):
            bench.main(["--only", only, "--json", str(saved), "--page"])
    page = (tmp_path / "texts.md").read_text(encoding="utf-8")
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    assert titles == ["## Texts to embeddings", "## Reranking", "## Many callers"]
    assert "embed MiniLM-L6, float32, ONNX Runtime: no export." in page
    assert page.count("a machine") == 1
    assert list(json.loads(saved.read_text())) == [
        "rerank MiniLM-L6 cross-encoder, float32", "callers, float32", "embed MiniLM-L6, float32"
    ]  # fmt: skip
    assert "| MiniLM-L6 | float32 |" in capsys.readouterr().out
