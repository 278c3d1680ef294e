"""Each header of the kernels compiles alone: it includes what it needs, in whatever order headers are read."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[1] / "fastattn" / "_core" / "kernels"
HEADERS = sorted(str(path.relative_to(KERNELS)) for path in KERNELS.rglob("*.h"))
# Those of every target: a header says at its top what it is compiled for when it is alone.
FLAGS = re.findall(r"-m\S+", "".join(path.read_text(encoding="utf-8") for path in KERNELS.glob("targets/*.h")))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="flags of x86-64")
@pytest.mark.parametrize("header", HEADERS)
def test_a_header_compiles_alone(header):
    compiler = shutil.which("gcc") or shutil.which("clang") or pytest.skip("needs a C compiler")
    command = [compiler, "-fsyntax-only", "-std=gnu11", "-Wall", "-Werror", "-Wno-psabi"]
    done = subprocess.run(
        [*command, *FLAGS, f"-I{KERNELS}", "-x", "c", str(KERNELS / header)], capture_output=True, text=True, timeout=60
    )
    assert not done.returncode, done.stderr


def test_lines_are_at_most_120_columns():
    files = [path for path in KERNELS.rglob("*") if path.suffix in (".c", ".h", ".def")]
    lines = [
        (path.name, n) for path in files for n, line in enumerate(path.open(encoding="utf-8"), 1) if len(line) > 121
    ]
    assert not lines
