"""Python in a process of its own: for what is decided at import, for forks, and for measuring memory."""

import os
import subprocess
import sys
import textwrap

import fastattn

_SETTINGS = ("FASTATTN_", "OMP_", "GOMP_", "KMP_")


def python(code, *arguments, **environment):
    """Run `code` with these arguments, the settings in `environment` and no others; the finished process."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(fastattn.__file__)))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    return subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code), *arguments],
        # One thread for NumPy's own library, so that the other threads are ours.
        env=kept | {"PYTHONPATH": package, "OPENBLAS_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def output(code, *arguments, **environment):
    """What `code` prints; that it failed is an error here, with what it said."""
    done = python(code, *arguments, **environment)
    assert done.returncode == 0, done.stderr or f"ended with {done.returncode}"
    return done.stdout.strip()
