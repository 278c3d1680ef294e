"""Each header of the kernels compiles alone: it includes what it needs, in whatever order headers are read."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[1] / "fastattn" / "_core" / "kernels"
HEADERS = sorted(str(path.relative_to(KERNELS)) for path in KERNELS.rglob("*.h"))
COMPILERS = {"x86_64": ("gcc", "clang", "x86_64-linux-gnu-gcc"), "aarch64": ("gcc", "clang", "aarch64-linux-gnu-gcc")}
SAME = {"AMD64": "x86_64", "arm64": "aarch64"}


def flags_of(machine):
    """Those of every target of the machine: a header says at its top what it is compiled for when it is alone.

    The last -march counts: the one that names the most instructions.
    """
    texts = [path.read_text(encoding="utf-8") for path in KERNELS.glob("targets/*.h")]
    return sorted(re.findall(r"-m\S+", "".join(text for text in texts if f"Machines: {machine}" in text)), key=len)


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_compiles_alone(header):
    machine, here = "aarch64" if "neon" in header else "x86_64", platform.machine()
    own, other = COMPILERS[machine][:2], COMPILERS[machine][2:]
    found = filter(None, map(shutil.which, own if SAME.get(here, here) == machine else other))
    compiler = next(found, None) or pytest.skip(f"needs a C compiler for {machine}")
    command = [compiler, "-fsyntax-only", "-std=gnu11", "-Wall", "-Werror", "-Wno-psabi", f"-I{KERNELS}", "-x", "c"]
    done = subprocess.run(
        [*command, *flags_of(machine), str(KERNELS / header)], capture_output=True, text=True, timeout=60
    )
    assert not done.returncode, done.stderr


def test_lines_are_at_most_120_columns():
    files = [path for path in KERNELS.rglob("*") if path.suffix in (".c", ".h", ".def")]
    lines = [
        (path.name, n) for path in files for n, line in enumerate(path.open(encoding="utf-8"), 1) if len(line) > 121
    ]
    assert not lines
