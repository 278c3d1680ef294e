"""packages.py SDIST WHEEL_OF_SDIST WHEEL TRACKED: the sdist holds all files and builds the same, small wheel."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

LARGEST_WHEEL = 3_000_000  # bytes
NOT_PACKED = {".gitignore"}
sdist, wheel_of_sdist, wheel, tracked = map(Path, sys.argv[1:])


def contents(path):
    """{name: bytes} of a wheel."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def milliseconds(statement):
    """The shortest of ten runs of a statement, each in an interpreter of its own."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    runs = [subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=True) for _ in range(10)]
    return 1000 * min(float(run.stdout) for run in runs)


with tarfile.open(sdist) as archive:
    packed = {name.partition("/")[2] for name in archive.getnames()}
missing = set(tracked.read_text().splitlines()) - packed - NOT_PACKED
assert not missing, f"not in the sdist: {sorted(missing)}"

ours, theirs = contents(wheel), contents(wheel_of_sdist)
different = {name for name, _ in ours.items() ^ theirs.items()}
assert not different, f"the sdist's wheel differs in {sorted(different)}"

strange = {name for name in ours if not name.startswith(("fastattn/", "fastattn-"))}
assert not strange, f"the wheel holds what is not the package's: {sorted(strange)}"

size = wheel.stat().st_size
assert size < LARGEST_WHEEL, f"the wheel has {size} bytes"
numpy, both = milliseconds("import numpy"), milliseconds("import numpy, fastattn")
print(f"wheel: {size / 1e6:.2f} MB in {len(ours)} files; import: {both - numpy:.1f} ms beyond numpy's {numpy:.0f} ms")
