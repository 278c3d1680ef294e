"""wheel.py WHEEL: that wheel, installed here, is whole and small, and computes on threads of its own OpenMP library."""

import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import threadpoolctl

import fastattn
from fastattn import _runtime, reference

LARGEST_WHEEL = 3_000_000  # bytes
wheel = Path(sys.argv[1])

size = wheel.stat().st_size
assert size < LARGEST_WHEEL, f"the wheel has {size} bytes"
with zipfile.ZipFile(wheel) as archive:
    [openmp] = (file for file in archive.infolist() if re.match(r"fastattn\.libs/libgomp-\w+\.so", file.filename))
    others = {name for name in archive.namelist() if name.startswith("fastattn.libs/")}
assert others <= {"fastattn.libs/", openmp.filename}, f"the wheel brings other libraries: {others}"

compilers = [name for name in ("cc", "gcc", "clang", "ld", "as") if shutil.which(name)]
assert not compilers, f"a compiler on PATH: {compilers}"

config = fastattn.show_config()
libraries = os.path.join(os.path.dirname(fastattn.__path__[0]), openmp.filename)
assert config["openmp"].endswith(os.path.realpath(libraries)), config["openmp"]
assert config["installed"].startswith("wheel cp"), config["installed"]
assert "manylinux" in config["installed"], config["installed"]
assert libraries in {pool["filepath"] for pool in threadpoolctl.threadpool_info()}

# Each instruction set of this machine, on one thread, on several, and in a child of a process that has threads.
rng = np.random.default_rng(0)
query, key, value = rng.standard_normal((3, 8, 4, 130, 32), dtype=np.float32)
expected = reference.scaled_dot_product_attention(query, key, value, is_causal=True)


def attend(threads):
    """Attention on that many threads, which is right."""
    out = fastattn.scaled_dot_product_attention(query, key, value, is_causal=True, num_threads=threads)
    assert np.abs(out - expected).max() < 1e-5
    return out


for target in fastattn.targets():
    with _runtime.on_target(target):
        out = attend(1)
        assert all(np.array_equal(attend(4), out) for _ in range(100))
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(attend(4), out) else 1)
        assert os.waitpid(child, 0)[1] == 0
assert "besides the calling thread" in fastattn.show_config()["team"]

for name, text in fastattn.show_config().items():
    print(f"{name:14} {text}")
print(f"{wheel.name}: {size / 1e6:.2f} MB, of which libgomp {openmp.compress_size / 1e6:.2f}")
