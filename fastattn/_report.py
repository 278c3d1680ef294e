"""What `show_config()` tells, for a person or a bug report: the build, the machine, and what is used of both and why.

Imported when it is asked for. What a system does not tell is left out, or said to be unknown.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import numpy as np

import fastattn
from fastattn import _runtime
from fastattn._core import targets as _targets
from fastattn._core import threads as _threads

# Variables that change how fast this library and those beside it are, or which files they are loaded from; but not the
# one that threadpoolctl sets when it is imported.
_VARIABLES = re.compile(
    r"(FASTATTN|OMP|GOMP|KMP|OPENBLAS|MKL|BLIS|VECLIB)_(?!DUPLICATE_LIB_OK)\w+"
    r"|LD_(PRELOAD|LIBRARY_PATH)|MALLOC_\w+|PYTHON_GIL"
)
# Of the hundred and more that /proc/cpuinfo lists: what kernels are, or may be, written for.
_FEATURES = re.compile(r"\b(?:sse4_2|avx\w*|fma|f16c|amx_\w+|asimd\w*|fphp|bf16|i8mm|sve\w*|sme2?)\b")


def config() -> dict[str, str]:
    """Describe this build and what it uses on this machine."""
    return {
        "fastattn": fastattn.__version__,
        "installed": _installed(),
        "python": f"{platform.python_version()}{_threading()} on {platform.system()} {platform.machine()}",
        "numpy": _numpy(),
        "system": platform.platform(),
        "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        "processor": _from_cpuinfo("model name") or platform.processor() or "unknown",
        "features": " ".join(dict.fromkeys(_FEATURES.findall(_from_cpuinfo("flags", "Features")))) or "unknown",
        "compiler": f"{_targets.compiler}, Cython {_targets.cython}",
        "flags": _targets.flags,
        "openmp": _openmp(),
        "targets built": ", ".join(map(_described, _targets.built())),
        "targets here": ", ".join(fastattn.targets()),
        "target": f"{_targets.current()} ({_why_target()})",
        "processors": _processors(),
        "threads": f"{fastattn.get_num_threads()} ({_runtime.why_threads()})",
        "team": _threads.team_state(),
        "placement": _placement(),
        "environment": " ".join(f"{name}={value}" for name, value in sorted(_variables().items())) or "nothing set",
        "libraries": _libraries(),
    }


def _installed() -> str:
    """Say which wheel this is, and where: its tag tells a repaired one (manylinux) from one built on the machine."""
    [folder] = fastattn.__path__
    try:
        distribution = metadata.distribution("fastattn")
    except metadata.PackageNotFoundError:
        distribution = None
    tags = re.findall(r"^Tag: *(\S+)", distribution.read_text("WHEEL") or "", re.MULTILINE) if distribution else []
    if not tags or Path(str(distribution.locate_file("fastattn"))).resolve() != Path(folder).resolve():
        return f"built in place, in {folder}"
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    return f"wheel {' '.join(tags)}{', from a checkout' if 'dir_info' in origin else ''}, in {folder}"


def _threading() -> str:
    """Say whether this Python is free-threaded, and whether a module has turned its GIL on again."""
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return ""
    return " free-threaded, with the GIL on," if sys._is_gil_enabled() else " free-threaded"


def _numpy() -> str:
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return f"{np.__version__}, with {blas.get('name', 'no BLAS')} {blas.get('version', '')}".rstrip()


def _from_cpuinfo(*names: str) -> str:
    """Return what the first processor has under one of these names."""
    found = re.search(rf"^(?:{'|'.join(names)})\s*: *(.*)$", _runtime.read("/proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else ""


def _openmp() -> str:
    if not _runtime.has_openmp():
        return "none: one thread only"
    return f"{_threads.openmp} (yyyymm of its version), {_openmp_library()}"


def _openmp_library() -> str:
    """Return the file whose OpenMP this library calls: a process may hold several."""
    try:
        import ctypes

        class Found(ctypes.Structure):
            _fields_ = (
                ("file", ctypes.c_char_p),
                ("base", ctypes.c_void_p),
                ("symbol", ctypes.c_char_p),
                ("address", ctypes.c_void_p),
            )

        found = Found()
        known = ctypes.CDLL(None).dladdr(ctypes.c_void_p(_threads.openmp_address), ctypes.byref(found))
        return os.path.realpath(os.fsdecode(found.file)) if known else "of an unknown file"
    except (ImportError, AttributeError, TypeError):  # no ctypes, or no dladdr as on Windows
        return "of an unknown file"


def _described(target: str) -> str:
    return f"{target} (emulated)" if target in _targets.emulated() else target


def _why_target() -> str:
    return "FASTATTN_TARGET" if os.environ.get("FASTATTN_TARGET") else "the best that this machine can run"


def _processors() -> str:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _runtime.container_quota()
    return f"{os.cpu_count()}, of which this process may use {allowed}; CPU quota: {quota or 'none'}"


def _placement() -> str:
    bound = ", ".join(_runtime.bound_by)
    return f"bound by {bound}" if bound else "on all of them"


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _VARIABLES.fullmatch(name)}


def _libraries() -> str:
    """Name the other libraries with threads that the process has loaded, as threadpoolctl sees them."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return "unknown: threadpoolctl is not installed"
    pools = (
        " ".join(
            filter(None, (pool["prefix"], pool["version"], f"with {pool['num_threads']} threads, {pool['filepath']}"))
        )
        for pool in threadpool_info()
    )
    return "; ".join(pools) or "none"
