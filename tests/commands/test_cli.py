"""python -m fastattn: every command runs, says what it should, and its exit code tells whether all is well."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

import fastattn
from fastattn.__main__ import COMMANDS, main
from fastattn.commands import bench, check, dtypes
from fastattn.commands.cases import CASES
from fastattn.commands.peers import PEERS, Peer
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


@pytest.mark.parametrize("argv", [[], ["no-such-command"], ["info", "--no-such-option"], ["bench", "--threads", "two"]])
def test_wrong_arguments(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage: python -m fastattn" in capsys.readouterr().err


def test_the_library_does_not_import_its_commands():
    assert output("import sys, fastattn; print([m for m in sys.modules if 'fastattn.commands' in m])") == "[]"


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


def test_check_passes_for_every_operation_and_target(capsys):
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
    assert "bfloat16 is left out: no_such_package not installed" in run(capsys, "check")[1]


def test_check_leaves_the_target_as_it_was(capsys, monkeypatch):
    only(monkeypatch, "rms_norm")
    before = fastattn.show_config()["target"]
    run(capsys, "check")
    assert fastattn.show_config()["target"] == before


# bench


def test_bench(capsys):
    code, text = run(capsys, "bench", "--quick", "--only", "tiny|rms_norm")
    assert code == 0
    assert re.search(r"attention tiny +1×8×8×16 +float32 +[\d.]+ .s +[\d.]+ .s +[\d.]+×", text)
    assert "rms_norm" in text
    assert "the speed of NumPy" in text


def test_bench_as_json(capsys):
    code, text = run(capsys, "bench", "--quick", "--json", "--only", "tiny|rms_norm", "--threads", "1")
    assert code == 0
    report = json.loads(text)
    assert report["machine"]["threads"] == 1
    assert [result["case"] for result in report["results"]] == ["tiny", "rms_norm-1x4096-out"]
    for result in report["results"]:
        assert result["share_of_limit"] > 0
        assert result["engines"]["numpy"]["speedup"] > 0
        ours = result["engines"]["fastattn"]
        assert ours["failure"] is None
        assert ours["seconds"] > 0
        assert ours["error"] <= ours["allowed"]


def test_bench_without_a_matching_case():
    with pytest.raises(SystemExit, match="no case matches 'no such case'"):
        main(["bench", "--only", "no such case"])


def test_bench_in_the_types_asked_for(capsys):
    _, text = run(capsys, "bench", "--quick", "--json", "--only", "tiny", "--dtype", "float16,float64")
    assert [result["dtype"] for result in json.loads(text)["results"]] == ["float64", "float16"]


@pytest.mark.parametrize("names", ["bfloat17", "float32,", "float16 bfloat16"])
def test_bench_rejects_a_type_that_it_does_not_know(capsys, names):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--dtype", names])
    assert stop.value.code == 2
    assert "is none of float32, float64, float16, bfloat16" in capsys.readouterr().err


def test_bench_without_a_package_leaves_its_type_out_and_says_so(capsys, monkeypatch):
    monkeypatch.setitem(dtypes.NEEDS, "bfloat16", ("no_such_package",))
    code, text = run(capsys, "bench", "--quick", "--only", "tiny", "--dtype", "float32,bfloat16")
    assert code == 0
    assert "bfloat16 is left out: no_such_package not installed" in text
    assert not re.search(r"1×8×8×16 +bfloat16", text)
    with pytest.raises(SystemExit, match="bfloat16 is left out: no_such_package not installed"):
        main(["bench", "--dtype", "bfloat16"])


def test_bench_rejects_a_thread_count_below_one(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--threads", "0"])
    assert stop.value.code == 2


def test_bench_names_absent_peers(capsys, monkeypatch):
    monkeypatch.setitem(PEERS, "torch", Peer("PyTorch", "pytorch", ("no_such_package",)))
    monkeypatch.setattr(bench, "OTHERS", ("torch",))
    code, text = run(capsys, "bench", "--quick", "--only", "tiny", "--peers")
    assert code == 0
    assert "PyTorch is absent: no_such_package not installed" in text


def test_bench_fails_when_the_library_cannot_run(capsys, monkeypatch):
    monkeypatch.setenv("FASTATTN_TARGET", "no-such-target")  # the engine's process does not get as far as an answer
    code, text = run(capsys, "bench", "--quick", "--only", "tiny")
    assert code == 1
    assert re.search("fastattn cannot run tiny: its process ended with exit code 1: .*no-such-target", text)
    assert CASES["tiny"].shape in text


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
