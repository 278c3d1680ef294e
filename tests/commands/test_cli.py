"""python -m fastattn: every command runs, says what it should, and its exit code tells whether all is well."""

import contextlib
import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import fastattn
from fastattn.__main__ import COMMANDS, main
from fastattn.commands import check
from fastattn.commands.measuring import dtypes, machine, results
from fastattn.commands.measuring.cases import CASES, SHORT
from fastattn.commands.measuring.engines import Outcome
from fastattn.commands.measuring.results import Result
from support.processes import output, python


def run(capsys, *argv):
    """The exit code of a command, and what it printed."""
    code = main(argv)
    return code, capsys.readouterr().out


def only(monkeypatch, *operations):
    """Let `check` know these operations alone."""
    monkeypatch.setattr(check, "OPERATIONS", operations)


# The command line itself


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert set(COMMANDS) <= set(re.findall(r"^  ([\w-]+)  ", capsys.readouterr().out, re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"fastattn {command}" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"fastattn {fastattn.__version__}\n"


WRONG = [[], ["no-such-command"], ["info", "--no-such-option"], ["bench", "--threads", "two"], ["bench", "--only", "["]]


@pytest.mark.parametrize("argv", WRONG)
def test_wrong_arguments(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage: python -m fastattn" in capsys.readouterr().err


def test_the_library_does_not_import_its_commands():
    assert output("import sys, fastattn; print([m for m in sys.modules if 'fastattn.commands' in m])") == "[]"


def test_a_command_imports_no_other():
    code = "import sys; from fastattn.__main__ import main; main(['info']); print(sorted(sys.modules))"
    assert "fastattn.commands.measuring" not in output(code)


# info


def test_info(capsys):
    code, text = run(capsys, "info")
    assert code == 0
    assert all(value in text for value in fastattn.show_config().values())


def test_info_as_json(capsys):
    code, text = run(capsys, "info", "--json")
    assert code == 0
    assert json.loads(text) == fastattn.show_config()


# check


def test_check_passes_for_every_operation_and_target(capsys, monkeypatch):
    """Every fourth case of each; all of them take the command a minute, which CI runs as well."""
    cases = [[case for case in check.AWKWARD if case.operation == operation] for operation in check.OPERATIONS]
    monkeypatch.setattr(check, "AWKWARD", [case for of_operation in cases for case in of_operation[::4]])
    code, text = run(capsys, "check", "--json")
    lines = json.loads(text)
    assert [line for line in lines if not line["ok"]] == []
    assert code == 0
    combinations = {(line["operation"], line["dtype"], line["target"]) for line in lines}
    half = {"float16", *(["bfloat16"] if importlib.util.find_spec("ml_dtypes") else [])}
    stored = dict.fromkeys(("scaled_dot_product_attention", "varlen_attention", "attention_weights"), half)
    stored["linear"] = half | {"int8"}
    assert combinations == {
        (operation, dtype, target)
        for operation in check.OPERATIONS
        for dtype in {"float32", "float64", *half, *(f"float32/{narrow}" for narrow in stored.get(operation, ()))}
        for target in fastattn.targets()
    }


def test_check_tells_of_a_slightly_wrong_operation(capsys, monkeypatch):
    only(monkeypatch, "softmax")
    right = fastattn.softmax
    monkeypatch.setattr(fastattn, "softmax", lambda x, axis=-1, **options: right(x, axis, **options) * (1 + 1e-5))
    code, text = run(capsys, "check")
    assert code == 1
    assert "MISS" in text
    assert "lines miss the rule" in text


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_check_tells_of_a_single_wrong_number(capsys, monkeypatch, wrong):
    only(monkeypatch, "rms_norm")
    right = fastattn.rms_norm

    def broken(x, weight):
        y = right(x, weight)
        y[-1, -1] = wrong
        return y

    monkeypatch.setattr(fastattn, "rms_norm", broken)
    assert run(capsys, "check")[0] == 1


def test_check_tells_of_an_exception(capsys, monkeypatch):
    only(monkeypatch, "rms_norm")

    def broken(x, weight):
        raise ArithmeticError("no such kernel")

    monkeypatch.setattr(fastattn, "rms_norm", broken)
    code, text = run(capsys, "check")
    assert code == 1
    assert "ArithmeticError: no such kernel" in text


def test_check_without_a_package_leaves_its_type_out_and_says_so(capsys, monkeypatch):
    only(monkeypatch, "rms_norm")
    monkeypatch.setitem(dtypes.NEEDS, "bfloat16", ("no_such_package",))
    assert {types for _, *types in check.plan() if "bfloat16" in types} == set()
    assert "bfloat16 is skipped: no_such_package not installed" in run(capsys, "check")[1]


def test_check_leaves_the_target_as_it_was(capsys, monkeypatch):
    only(monkeypatch, "rms_norm")
    before = fastattn.show_config()["target"]
    run(capsys, "check")
    assert fastattn.show_config()["target"] == before


# bench


QUICK = ("attention-tiny", "rms_norm-1x4096-out")


def shown(text):
    """The names in the table's rows."""
    rows = text.split("─\n", 1)[1].split("\n\n", 1)[0]
    return [row.split()[0] for row in rows.splitlines()]


def test_bench(capsys):
    code, text = run(capsys, "bench", *QUICK)
    assert code == 0
    assert re.search(r"attention-tiny +1×8×8×16 +[\d.]+ .s +[\d.]+ .s +[\d.]+× +[\d.]+ GB/s", text)
    assert shown(text) == list(QUICK)
    assert "the speed of NumPy" in text
    assert "\x1b" not in text


def test_bench_as_json(capsys):
    code, text = run(capsys, "bench", "--json", *QUICK, "--threads", "1")
    assert code == 0
    report = json.loads(text)
    assert report["machine"]["threads"] == 1
    assert [result["case"] for result in report["results"]] == list(QUICK)
    for result in report["results"]:
        assert result["unit"] == "B/s"
        assert result["share_of_limit"] > 0
        assert {result["scatters"], result["disturbed"]} <= {True, False}
        assert result["engines"]["numpy"]["speedup"] > 0
        ours = result["engines"]["fastattn"]
        assert ours["failure"] is None
        assert ours["seconds"] > 0
        assert ours["error"] <= ours["allowed"]


@pytest.fixture
def measured(monkeypatch):
    """Nothing is measured: NumPy takes twice as long. A case's name → outcomes that differ may be filled in."""
    different = {}

    def collect(cases, names, pace, threads):
        fine = {"error": 1e-7, "allowed": 1e-6}
        outcomes = {name: Outcome(**fine, times=[n * 1e-3] * 3) for n, name in enumerate(names, 1)}
        return [Result(case, outcomes | different.get(case.name, {}), 1e11, 1e10) for case in cases]

    monkeypatch.setattr(results, "collect", collect)
    return different


def test_bench_shows_a_dozen_calls_and_says_how_many_there_are(capsys, measured):
    code, text = run(capsys, "bench")
    assert code == 0
    assert shown(text) == list(SHORT)
    assert "2.00× the speed of NumPy" in text
    count = int(re.search(r"bench --all runs (\d+) calls", text)[1])
    text = run(capsys, "bench", "--all")[1]
    assert set(shown(text)) > set(SHORT)
    assert "--all" not in text
    if not dtypes.absent("bfloat16"):
        assert len(shown(text)) == count


def test_bench_shows_each_call_by_the_name_that_it_printed(capsys, measured):
    for name in shown(run(capsys, "bench", "--all")[1])[::7]:
        assert shown(run(capsys, "bench", name)[1]) == [name]


def test_bench_without_such_a_call():
    with pytest.raises(SystemExit, match="there is no call 'softmax-6144x512-oot'; similar are softmax-6144x512-out, "):
        main(["bench", "softmax-6144x512-oot"])
    with pytest.raises(SystemExit, match="there is no call '#'; bench --all shows every name"):
        main(["bench", "#"])


def test_bench_in_the_types_asked_for(capsys, measured):
    _, text = run(capsys, "bench", "--json", "attention-tiny", "--dtype", "float16,float64")
    assert [result["dtype"] for result in json.loads(text)["results"]] == ["float64", "float16"]
    assert shown(run(capsys, "bench", "--dtype", "float64")[1]) == [f"{name}-float64" for name in SHORT]


@pytest.mark.parametrize("names", ["bfloat17", "float32,", "float16 bfloat16"])
def test_bench_rejects_a_type_that_it_does_not_know(capsys, names):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--dtype", names])
    assert stop.value.code == 2
    assert "is not one of float32, float64, float16, bfloat16" in capsys.readouterr().err


def test_bench_without_a_package_leaves_its_type_out_and_says_so(capsys, monkeypatch, measured):
    monkeypatch.setitem(dtypes.NEEDS, "bfloat16", ("no_such_package",))
    code, text = run(capsys, "bench", "attention-tiny", "--dtype", "float32,bfloat16")
    assert code == 0
    assert "bfloat16 is skipped: no_such_package not installed" in text
    assert shown(text) == ["attention-tiny"]
    with pytest.raises(SystemExit, match="bfloat16 is skipped: no_such_package not installed"):
        main(["bench", "--dtype", "bfloat16"])


def test_bench_rejects_a_thread_count_below_one(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--threads", "0"])
    assert stop.value.code == 2


def test_bench_fails_when_the_library_cannot_run(capsys, monkeypatch):
    monkeypatch.setenv("FASTATTN_TARGET", "no-such-target")  # the engine's process does not get as far as an answer
    code, text = run(capsys, "bench", "attention-tiny")
    assert code == 1
    assert re.search("fastattn cannot run attention-tiny: its process ended with exit code 1: .*no-such-target", text)
    assert CASES["attention-tiny"].shape in text


@pytest.mark.parametrize(("slowest", "marked"), [(1.2e-3, False), (1.3e-3, True)])
@pytest.mark.parametrize("engine", ["fastattn", "numpy"])
def test_bench_marks_rows_whose_rounds_scatter(capsys, measured, engine, slowest, marked):
    measured[QUICK[0]] = {engine: Outcome(error=0.0, allowed=1.0, times=[1e-3, 1e-3, slowest])}
    text = run(capsys, "bench", *QUICK)[1]
    assert [line.endswith("~") for line in text.splitlines() if line.startswith(QUICK)] == [marked, False]
    assert ("~ rounds differ by more than 25 % of their median" in text) == marked


def test_bench_marks_rows_that_others_disturbed(capsys, monkeypatch):
    monkeypatch.setattr(machine.Others, "_shares", lambda self: (0.5, 0.25))
    text = run(capsys, "bench", QUICK[0])[1]
    (row,) = (line for line in text.splitlines() if line.startswith(QUICK[0]))
    assert row.endswith("!")
    assert "! other processes, or the machine's host, used more than 0.1 processors meanwhile" in text
    assert "other processes took 0.5 of" in text


@pytest.mark.parametrize(("arithmetic", "share"), [(1e10, "32 %"), (2.6e9, "123 %"), (1e9, "—")])
def test_bench_believes_no_limit_that_was_surpassed(capsys, monkeypatch, arithmetic, share):
    case = CASES["attention-bert-128"]
    outcome = Outcome(error=0.0, allowed=1.0, times=[case.flops / 3.2e9])
    outcomes = dict.fromkeys(("fastattn", "numpy"), outcome)
    monkeypatch.setattr(results, "collect", lambda *_: [Result(case, outcomes, arithmetic, 1e15)])
    text = run(capsys, "bench", case.name)[1]
    assert re.search(rf"3.20 GFLOP/s +{share} +0", text)


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("settings", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)], ids=str
)
def test_bench_has_colours_on_terminals_alone(monkeypatch, measured, settings, coloured):
    """They change no text and no column."""
    for name, value in ({"TERM": "xterm", "NO_COLOR": ""} | settings).items():
        monkeypatch.setenv(name, value)
    measured[QUICK[0]] = {"numpy": Outcome(times=[5e-4])}
    measured[QUICK[1]] = {"fastattn": Outcome(error=1.0, allowed=0.5, times=[1e-3])}
    texts = []
    for stream in (Terminal(), io.StringIO()):
        with contextlib.redirect_stdout(stream):
            assert main(["bench", *QUICK]) == 1
        texts.append(stream.getvalue())
    painted, plain = texts
    assert ("\x1b[" in painted, "\x1b[" in plain) == (coloured, False)
    lines = (re.sub(r" +$", "", re.sub(r"\x1b\[\d+m", "", text), flags=re.MULTILINE) for text in texts)
    in_terminal, in_pipe = (text.split("\n\n")[1] for text in lines)
    assert in_terminal == in_pipe
    if coloured:
        assert re.search(r"\x1b\[31m +0.50×\x1b\[0m", painted)
        assert re.search(r"\x1b\[32m +2.00×\x1b\[0m", painted)
        assert "\x1b[31mWRONG 1.0e+00\x1b[0m" in painted


@pytest.mark.parametrize(("ending", "beginning"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("PDF", b"%PDF")])
def test_bench_draws(capsys, tmp_path, measured, ending, beginning):
    pytest.importorskip("matplotlib")
    measured[QUICK[0]] = {"numpy": Outcome(failure="no")}
    measured[QUICK[1]] = {"numpy": Outcome(times=[1e-4, 2e-4, 9e-4])}
    out = tmp_path / f"bench.{ending}"
    assert run(capsys, "bench", *QUICK, SHORT[1], "--plot", str(out))[0] == 0
    picture = out.read_bytes()
    assert picture.startswith(beginning)
    if ending == "svg":
        text = picture.decode()
        assert all(f"{name}  {CASES[name].shape}" in text for name in (*QUICK, SHORT[1]))
        assert all(told in text for told in ("0.20×  1.00 ms ~", "2.00×  1.00 ms", "Times as fast as NumPy"))


def test_bench_draws_only_where_it_can(capsys, tmp_path, monkeypatch):
    """And says so before it measures."""
    monkeypatch.setattr(results, "collect", None)
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--plot", "bench.jpeg"])
    assert stop.value.code == 2
    assert "'bench.jpeg' does not end in .png, .svg, .pdf" in capsys.readouterr().err
    for name in ("matplotlib", "fastattn.commands.barchart"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(fastattn.commands, "barchart", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"bench --plot needs matplotlib: pip install 'fastattn\[plot\]'"):
        main(["bench", "--plot", str(tmp_path / "bench.svg")])
    assert list(tmp_path.iterdir()) == []


# Streams that are closed or full

FULL = Path("/dev/full")

# One call of each command that soon has something to print.
PRINTING = [["--help"], ["--version"], ["info"], ["info", "--json"], ["check", "--help"], ["bench", "--help"]]


def typed(argv, before="", **environment):
    """The finished process of a command, with lines of Python before it."""
    return python(f"import os, sys\n{before}\n{IN_FULL}", *argv, **environment)


IN_FULL = "import runpy; sys.argv[0] = 'fastattn'; runpy.run_module('fastattn', run_name='__main__', alter_sys=True)"


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("argv", PRINTING, ids=" ".join)
def test_standard_output_that_is_full(argv, unbuffered):
    done = typed(argv, "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (1, "cannot write standard output: No space left on device\n")


@pytest.mark.parametrize("argv", PRINTING, ids=" ".join)
def test_standard_output_that_is_closed(argv):
    done = typed(argv, "sys.stdout = None")
    assert (done.returncode, done.stderr) == (1, "cannot write standard output: it is closed\n")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_reader_that_leaves(unbuffered):
    before = "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)"
    done = typed(["info"], before, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (141, "")


def test_standard_output_in_another_encoding():
    done = typed(["info"], "import fastattn; fastattn.show_config = lambda: {'×': 'µ'}", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["?", "?"], "")
