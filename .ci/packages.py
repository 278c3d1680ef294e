"""packages.py SDIST WHEEL TRACKED: the sdist holds all files, and its small wheel is what the checkout installs."""

import csv
import importlib.metadata
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

LARGEST_WHEEL = 3_000_000  # bytes
NOT_PACKED = {".gitignore"}
sdist, wheel, tracked = map(Path, sys.argv[1:])
DESCRIPTION = ".dist-info/"


def digests(path):
    """{name: digest} of a wheel, as its RECORD says."""
    with zipfile.ZipFile(path) as archive:
        [record] = [name for name in archive.namelist() if name.endswith("/RECORD")]
        rows = csv.reader(archive.read(record).decode().splitlines())
    return {name: digest for name, digest, _ in rows if digest}


def installed():
    """{name: digest} of the files of the installed package."""
    files = importlib.metadata.files("fastattn")
    return {str(file): f"{file.hash.mode}={file.hash.value}" for file in files if file.hash}


def milliseconds(statement):
    """The shortest of ten runs of a statement, each in an interpreter of its own."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    runs = [subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=True) for _ in range(10)]
    return 1000 * min(float(run.stdout) for run in runs)


def packed(path):
    """{name: content} of the files of an sdist."""
    with tarfile.open(path) as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        return {name.partition("/")[2]: file.read() for name, file in files.items() if file}


contents = packed(sdist)
names = set(tracked.read_text().splitlines()) - NOT_PACKED
different = {name for name in names if contents.get(name) != Path(name).read_bytes()}
assert not different, f"missing in the sdist, or not the checkout's: {sorted(different)}"

theirs = digests(wheel)
ours = {name: digest for name, digest in installed().items() if name in theirs or DESCRIPTION not in name}
different = {name for name, _ in ours.items() ^ theirs.items()}
assert not different, f"the sdist's wheel differs from what is installed in {sorted(different)}"

strange = {name for name in theirs if not name.startswith(("fastattn/", "fastattn-"))}
assert not strange, f"the wheel holds what is not the package's: {sorted(strange)}"

size = wheel.stat().st_size
assert size < LARGEST_WHEEL, f"the wheel has {size} bytes"
numpy, both = milliseconds("import numpy"), milliseconds("import numpy, fastattn")
print(f"wheel: {size / 1e6:.2f} MB in {len(ours)} files; import: {both - numpy:.1f} ms beyond numpy's {numpy:.0f} ms")
