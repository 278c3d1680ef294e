"""What the build, and `import fastattn`, say where something is missing; what is imported when; emulated targets."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastattn
from fastattn._core import targets as _targets
from support.processes import output, python

CHECKOUT = Path(__file__).parents[1]


# The build: each stops before anything is compiled


def build(tmp_path, **environment):
    """What `setup.py build_ext` says in this environment; it must fail."""
    pytest.importorskip("setuptools", minversion="77")
    if not (CHECKOUT / "setup.py").exists() or not importlib.util.find_spec("Cython"):
        pytest.skip("needs the checkout and Cython")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTATTN_") and name != "CC"}
    command = [sys.executable, "setup.py", "build_ext", "--build-temp", str(tmp_path), "--build-lib", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, env=kept | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode
    return done.stderr.strip().splitlines()[-1]


def compiler(tmp_path, condition):
    """A compiler that fails where this holds for its arguments and the source (in `$source`)."""
    real = shutil.which("cc") or pytest.skip("needs a C compiler")
    script = tmp_path / "a-compiler"
    script.write_text(
        '#!/bin/sh\nfor x in "$@"; do case $x in *.c) source=$x;; esac; done\n'
        f'if {condition}; then exit 1; fi\nexec {real} "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


def test_no_compiler(tmp_path):
    said = build(tmp_path, CC="there-is-no-such-compiler -O2")
    assert said.startswith("fastattn: no C compiler found: there is no 'there-is-no-such-compiler' here; install")


def test_a_target_that_is_not_there(tmp_path):
    said = build(tmp_path, FASTATTN_TARGETS="avx2, sse9")
    assert said.startswith("fastattn: FASTATTN_TARGETS: sse9: the targets are amx, avx512_bf16, ")


def test_a_sanitizer_that_is_not_there(tmp_path):
    said = build(tmp_path, FASTATTN_SANITIZE="thoughts")
    assert said.startswith("fastattn: this C compiler, ")
    assert "-fsanitize=thoughts" in said


def test_a_compiler_that_does_not_work(tmp_path):
    said = build(tmp_path, CC=compiler(tmp_path, "true"))
    assert said.startswith(f"fastattn: the C compiler does not work: {tmp_path}/a-compiler")


def test_a_compiler_that_cannot(tmp_path):
    said = build(tmp_path, CC=compiler(tmp_path, 'grep -q shufflevector "$source"'))
    assert said.startswith(f"fastattn: this C compiler, {tmp_path}/a-compiler, cannot build the kernels")


def test_no_openmp(tmp_path):
    missing = compiler(tmp_path, 'echo "$@" | grep -q fopenmp')
    said = build(tmp_path, CC=missing, FASTATTN_REQUIRE_OPENMP="1")
    assert said.startswith("fastattn: the compiler finds NO OPENMP, that is libgomp for gcc (Debian, Ubuntu: apt")


# Import


def missing(module, message):
    """Code that imports fastattn where this module cannot be loaded."""
    return f"""
    import sys

    class Missing:
        def find_spec(name, path, target=None):
            if name == {module!r}:
                raise ImportError({message!r})

    sys.meta_path.insert(0, Missing)
    import fastattn
    """


@pytest.mark.parametrize("library", ["libgomp.so.1", "libomp.so.5", "@rpath/libomp.dylib"])
def test_no_openmp_library(library):
    """As the dynamic linker says it."""
    done = python(missing("fastattn._core.threads", f"{library}: cannot open shared object file: No such file"))
    assert done.returncode
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("ImportError: fastattn needs the OpenMP library that it was built with, and this system")
    assert library in said
    assert "apt install libgomp1" in said


def test_other_errors_of_the_import_are_left_alone():
    done = python(missing("fastattn._core.threads", "undefined symbol: something"))
    assert done.stderr.strip().splitlines()[-1] == "ImportError: undefined symbol: something"


SUBPACKAGES = ("integrations", "models", "nn", "reference")


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_subpackages_are_imported_when_they_are_used(name):
    if name == "models":
        pytest.importorskip("tokenizers")
        pytest.importorskip("safetensors")
    code = f"""
    import sys
    import fastattn
    from fastattn import *
    modules = {tuple(f"fastattn.{other}" for other in SUBPACKAGES)}
    assert not [m for m in sys.modules if m.startswith(modules)]
    assert {set(SUBPACKAGES)} <= set(dir(fastattn))
    assert not [m for m in sys.modules if m.startswith(modules)]
    assert fastattn.{name} is sys.modules["fastattn.{name}"]
    print(fastattn.{name}.__name__)
    """
    assert output(code) == f"fastattn.{name}"


def test_other_names_are_errors():
    assert not hasattr(fastattn, "attenton")
    with pytest.raises(AttributeError, match=r"^module 'fastattn' has no attribute 'model'$"):
        _ = fastattn.model
    with pytest.raises(ImportError, match="cannot import name 'model'"):
        exec("from fastattn import model")


# Emulated instructions


def test_an_emulated_target_is_never_the_default():
    emulated = _targets.emulated()
    assert set(emulated) <= set(fastattn.targets())
    assert output("from fastattn._core import targets; print(targets.current())") not in emulated
    assert fastattn.show_config()["targets built"].count("(emulated)") == len(emulated)
